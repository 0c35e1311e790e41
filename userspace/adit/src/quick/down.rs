//! `adit down`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::client::State;
use super::file::File;
use super::steps::Steps;
use super::{client, dns, firewall, hooks, policy, save, say, tunnel};
use crate::config::{Config, Table};

/// What the command line says.
#[derive(Debug)]
pub struct Options {
    /// A file, or the name of a tunnel whose file is in `/etc/wireguard`.
    pub config: PathBuf,
    /// Say what is done.
    pub verbose: bool,
}

/// Takes a tunnel down: what [`super::up`] and `wg-quick up` have made, and the hooks before and after.
///
/// A file that has errors in it by now is used as far as it is understood. Once the device is gone nothing stops this any
/// more; what fails then is said at the end.
///
/// # Errors
/// No such tunnel; a hook or the saving of the configuration that failed; what could not be removed.
pub fn run(options: &Options) -> Result<()> {
    let file = File::read(&options.config)?;
    let interface = file.interface(&options.config)?;
    let parsed = file.parse();
    file.warn_of_readers();
    tunnel::check_rights()?;
    let link = tunnel::find(&interface)?;
    let (Some(link), true) = (link, client::listens(&interface)) else {
        anyhow::bail!("{interface} is not up");
    };
    let steps = Steps::new(&interface, options.verbose);
    let config = &parsed.config;
    let hooks = |key, commands| hooks::run(key, commands, &interface, &file, &steps);

    let take_down = || -> Result<()> {
        hooks("PreDown", &config.interface.pre_down)?;
        let state = client::get(&interface)?;
        if config.interface.save_config && parsed.errors() > 0 {
            say(&format!(
                "adit: {interface}: the configuration is not saved over a file with errors"
            ));
        } else if config.interface.save_config {
            steps.begin(format_args!("save the configuration in {}", file.shown))?;
            save::write(&file.path, &save::text(config, &state, &link)?)?;
        }
        let failures = remove(config, &state, &interface, &link, &steps);
        hooks("PostDown", &config.interface.post_down)?;
        ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(())
    };
    take_down().with_context(|| interface.clone())
}

/// Removes everything, and returns what could not be.
fn remove(
    config: &Config,
    state: &State,
    interface: &str,
    link: &adit_kernel::netlink::Link,
    steps: &Steps,
) -> Vec<String> {
    let mut failures = Vec::new();
    let mut attempt = |what: &str, result: Result<()>| {
        steps.tell(what);
        if let Err(error) = result {
            failures.push(format!("{error:#}"));
        }
    };
    let automatic = matches!(config.interface.table, None | Some(Table::Auto));
    let everything = state.prefixes().any(|prefix| prefix.length() == 0);
    if automatic && everything && state.fwmark != 0 {
        for ipv4 in [true, false] {
            attempt("delete the rules", policy::remove_rules(ipv4, state.fwmark));
        }
    }
    attempt("remove the device", tunnel::remove(link));
    if !config.interface.dns.is_empty() {
        attempt("take the name servers back", dns::unset(interface));
    }
    attempt("remove the firewall's rules", firewall::remove(interface));
    failures
}
