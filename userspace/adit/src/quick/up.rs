//! `adit up`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use adit_kernel::netlink::{self, InterfaceAddress, Link, MAIN_TABLE};
use adit_protocol::Prefix;
use anyhow::{Context as _, Result, ensure};

use super::client::State;
use super::file::File;
use super::operation::Operation;
use super::resolve::Retries;
use super::steps::{self, Steps};
use super::{client, dns, firewall, hooks, policy, resolve, routes, tunnel};
use crate::config::{Address, Config, Table};
use crate::service::ServiceManager;

/// How long the daemon may take to see that its device is up.
const PORT_PATIENCE: Duration = Duration::from_secs(10);
const PORT_INTERVAL: Duration = Duration::from_millis(5);

/// What the command line says.
#[derive(Debug)]
pub struct Options {
    /// A file, or the name of a tunnel whose file is in `/etc/wireguard`.
    pub config: PathBuf,
    /// Say what is done.
    pub verbose: bool,
}

/// Brings a tunnel up: daemon, configuration, addresses, MTU, name servers, routes, and the hooks before and after, in the
/// order of `wg-quick`. When a step fails, those before it are undone, last first.
///
/// # Errors
/// What is wrong with the file, which is shown; the step that failed, and why.
pub fn run(options: &Options) -> Result<()> {
    let file = File::read(&options.config)?;
    let interface = file.interface(&options.config)?;
    let config = file.config()?;
    file.warn_of_readers();
    tunnel::check_rights()?;
    ensure!(
        tunnel::find(&interface)?.is_none(),
        "there is an interface {interface} already: take it down first, with `adit down {}`",
        options.config.display()
    );
    let retries = Retries::from_environment()?;
    let table = routes::table(config.interface.table.as_ref())?;
    steps::catch_signals().context("cannot handle signals")?;

    let mut steps = Steps::new(&interface, options.verbose);
    let set_up = |steps: &mut Steps| -> Result<()> {
        let interface_config = &config.interface;
        hooks::run("PreUp", &interface_config.pre_up, &interface, &file, steps)?;
        let link = start(&interface, steps)?;
        let state = configure(&interface, &config, retries, steps)?;
        let mut bring_up = BringUp {
            interface: &interface,
            config: &config,
            link,
            state,
            steps,
        };
        bring_up.addresses()?;
        bring_up.mtu()?;
        bring_up.port()?;
        bring_up.dns()?;
        if let Some(table) = table {
            bring_up.routes(table)?;
        }
        hooks::run(
            "PostUp",
            &interface_config.post_up,
            &interface,
            &file,
            steps,
        )?;
        tell_service_manager(&interface)
    };
    set_up(&mut steps).with_context(|| interface.clone())?;
    steps.keep();
    Ok(())
}

/// A manager that started this as a service waits for this, and goes on with the daemon.
fn tell_service_manager(interface: &str) -> Result<()> {
    if let Some(manager) = ServiceManager::of_main_process() {
        manager.ready_as(client::daemon_pid(interface)?, "everything is in place");
    }
    Ok(())
}

fn start(interface: &str, steps: &mut Steps) -> Result<Link> {
    steps.begin("start the daemon")?;
    let link = tunnel::start(interface)?;
    let ours = link.clone();
    steps.done("remove the device", move || tunnel::remove(&ours));
    Ok(link)
}

/// Gives the daemon what the file says, and asks what became of it.
fn configure(interface: &str, config: &Config, retries: Retries, steps: &Steps) -> Result<State> {
    let endpoints = resolve::endpoints(config, retries)?;
    steps.begin(format_args!("configure, {} peers", config.peers.len()))?;
    client::set(interface, &Operation::whole(config, &endpoints))?;
    client::get(interface)
}

/// A tunnel whose daemon runs.
struct BringUp<'a> {
    interface: &'a str,
    config: &'a Config,
    link: Link,
    state: State,
    steps: &'a mut Steps,
}

impl BringUp<'_> {
    fn addresses(&self) -> Result<()> {
        for address in &self.config.interface.addresses {
            self.steps.begin(format_args!("address {address}"))?;
            let Address {
                address: ip,
                prefix_length,
            } = *address;
            let wanted = InterfaceAddress {
                address: ip,
                prefix_length,
            };
            netlink::add_address(self.link.index, wanted)
                .with_context(|| format!("Address: cannot give the interface {address}"))?;
        }
        Ok(())
    }

    fn mtu(&self) -> Result<()> {
        let mtu = match self.config.interface.mtu {
            Some(mtu) => mtu,
            None => {
                let endpoints = self.state.peers.iter().filter_map(|peer| peer.endpoint);
                routes::mtu(&endpoints.collect::<Vec<_>>())?
            }
        };
        self.steps.begin(format_args!("MTU {mtu}, up"))?;
        netlink::set_up(self.link.index, mtu)
            .with_context(|| format!("MTU: cannot set the interface up with {mtu} bytes"))
    }

    /// The daemon opens its UDP port when it has seen that the device is up, and keeps trying if somebody else has it.
    /// Whoever brings a tunnel up wants to know.
    fn port(&self) -> Result<()> {
        let deadline = Instant::now() + PORT_PATIENCE;
        loop {
            let state = client::get(self.interface)?;
            if state.bound {
                return Ok(());
            }
            // Asked for the port again, it says why it cannot be had.
            let mut operation = Operation::new(0, 0);
            operation.listen_port(state.listen_port);
            client::set(self.interface, &operation)?;
            ensure!(
                Instant::now() < deadline,
                "the daemon does not open its UDP port"
            );
            steps::pause(PORT_INTERVAL)?;
        }
    }

    fn dns(&mut self) -> Result<()> {
        let config = &self.config.interface;
        if config.dns.is_empty() {
            return Ok(());
        }
        self.steps.begin("name servers")?;
        dns::set(self.interface, config)?;
        let interface = self.interface.to_owned();
        self.steps
            .done("take the name servers back", move || dns::unset(&interface));
        Ok(())
    }

    fn routes(&mut self, table: u32) -> Result<()> {
        let automatic = matches!(self.config.interface.table, None | Some(Table::Auto));
        for prefix in routes::prefixes(&self.state) {
            if automatic && prefix.length() == 0 {
                self.default_route(prefix)?;
            } else if !automatic || !routes::covered(prefix, self.link.index)? {
                self.route(prefix, table)?;
            }
        }
        Ok(())
    }

    fn route(&self, prefix: Prefix, table: u32) -> Result<()> {
        if table == MAIN_TABLE {
            self.steps.begin(format_args!("route {prefix}"))?;
        } else {
            self.steps
                .begin(format_args!("route {prefix}, table {table}"))?;
        }
        netlink::add_route(prefix.address(), prefix.length(), self.link.index, table)
            .with_context(|| format!("cannot add the route {prefix} to table {table}"))
    }

    /// Everything of a family, but the daemon's own packets.
    fn default_route(&mut self, prefix: Prefix) -> Result<()> {
        let ipv4 = prefix.address().is_ipv4();
        let mark = self.mark()?;
        self.route(prefix, mark)?;
        self.steps
            .begin(format_args!("rules for what does not carry mark {mark}"))?;
        policy::add_rules(ipv4, mark)?;
        self.steps
            .done("delete the rules", move || policy::remove_rules(ipv4, mark));
        if ipv4 {
            let before = policy::mind_marks()?;
            self.steps.done("set src_valid_mark back", move || {
                policy::set_mind_marks(&before)
            });
        }
        self.steps.begin("firewall")?;
        let addresses = netlink::interface_addresses(self.link.index)
            .context("cannot read the addresses of the interface")?;
        let addresses: Vec<_> = addresses.iter().map(|address| address.address).collect();
        firewall::set(self.interface, ipv4, &addresses, mark)?;
        let interface = self.interface.to_owned();
        self.steps.done("remove the firewall's rules", move || {
            firewall::remove(&interface)
        });
        Ok(())
    }

    /// The mark that the daemon's packets carry; given to it if there is none.
    fn mark(&mut self) -> Result<u32> {
        if self.state.fwmark == 0 {
            let mark = policy::free_table()?;
            self.steps.begin(format_args!("mark {mark}"))?;
            let mut operation = Operation::new(0, 0);
            operation.fwmark(mark);
            client::set(self.interface, &operation)?;
            self.state.fwmark = mark;
        }
        Ok(self.state.fwmark)
    }
}
