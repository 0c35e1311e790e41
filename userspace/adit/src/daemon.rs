//! Starts a tunnel device as `wireguard-go` does: in the foreground, or as a daemon whose parent
//! returns when device and configuration socket exist.

use std::cell::RefCell;
use std::env::{self, VarError};
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{OwnedFd, RawFd};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;

use adit_kernel::inotify::FileWatch;
use adit_kernel::netlink::{LinkMonitor, NeighbourMonitor, RouteMonitor};
use adit_kernel::process;
use adit_kernel::tun::{Tun, TunOptions};
use adit_kernel::udp::UdpOptions;
use adit_packet::aead::Backend;
use adit_protocol::Device;
use anyhow::{Context as _, Result, bail};
use getrandom::SysRng;
use rand_core::UnwrapErr;
use tokio::runtime;
use tokio::task::LocalSet;
use tracing::level_filters::LevelFilter;

use crate::control::{self, Control, Signals, Sources, Watcher};
use crate::dataplane::helper::Helpers;
use crate::dataplane::{Dataplane, Threads, queues, transport};
use crate::sandbox::{self, Needs, Role, Sandbox};
use crate::service::{self, ServiceManager};
use crate::steering::options::XdpTransmit;
use crate::steering::{self, Steerer};
use crate::uapi::server;
use crate::uapi::socket::ConfigurationSocket;
use crate::{logging, metrics};

/// Tells the daemon's process where to say that it is ready.
const READY_FD: &str = "ADIT_READY_FD";

/// What the command line says about the tunnel.
#[derive(Debug)]
pub struct Options {
    /// Name of the TUN device.
    pub interface: String,
    /// Do not leave a daemon behind.
    pub foreground: bool,
    /// TSO, USO and GRO with the TUN device.
    pub tun_offload: bool,
    /// UDP_SEGMENT.
    pub gso: bool,
    /// UDP_GRO.
    pub gro: bool,
    /// Pairs of data threads; the machine decides if not given.
    pub queues: Option<usize>,
    /// When data threads have help with the cryptography.
    pub helpers: Helpers,
    /// The AEAD implementation; `Auto` for the fastest.
    pub aead: Backend,
    /// Whether the daemon confines itself.
    pub sandbox: sandbox::Mode,
    /// AF_XDP and what goes with it.
    pub steering: steering::options::Options,
    /// Whom to tell what is counted.
    pub metrics: metrics::Options,
}

/// Runs the tunnel, here or in a daemon.
///
/// # Errors
/// When the device, its sockets or its threads cannot be made; the message names which and why.
pub fn run(options: &Options) -> Result<()> {
    let level = log_level()?;
    if options.foreground || env::var_os(READY_FD).is_some() {
        logging::start(level);
        serve(options).with_context(|| options.interface.escape_debug().to_string())
    } else {
        daemonise(&options.interface)
    }
}

fn log_level() -> Result<LevelFilter> {
    match env::var("LOG_LEVEL") {
        Ok(text) => logging::parse_level(&text).with_context(|| {
            format!("LOG_LEVEL={text}: expected silent, error, warn, info, debug, verbose or trace")
        }),
        Err(VarError::NotPresent) => Ok(LevelFilter::WARN),
        Err(error) => Err(error).context("LOG_LEVEL"),
    }
}

/// Starts this program again in a session of its own, and waits until it is ready or has failed;
/// why it failed it says itself.
fn daemonise(interface: &str) -> Result<()> {
    let program = env::current_exe().context("cannot find the program to start as a daemon")?;
    let (mut ready, ready_in_child) = std::io::pipe().context("cannot make a pipe")?;
    let mut command = Command::new(program);
    command
        .args(env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let number = process::pass_to_child(&mut command, &OwnedFd::from(ready_in_child))
        .context("cannot pass a descriptor to the daemon")?;
    command.env(READY_FD, number.to_string());
    process::start_in_new_session(&mut command);
    service::hand_over(&mut command);
    let mut child = command.spawn().context("cannot start the daemon")?;
    // Closes our copy of the pipe's end, or the daemon's failure would never end the read.
    drop(command);
    if wait_until_ready(&mut ready) {
        if let Some(manager) = ServiceManager::of_main_process() {
            manager.ready_as(child.id(), "device ready");
        }
        return Ok(());
    }
    let status = child.wait().context("cannot wait for the daemon")?;
    if let Some(code) = status.code().filter(|&code| code != 0) {
        // The daemon has said why.
        std::process::exit(code);
    }
    bail!("{interface}: the daemon ended before it was ready: {status}");
}

fn wait_until_ready(ready: &mut PipeReader) -> bool {
    let mut byte = [0];
    ready.read_exact(&mut byte).is_ok()
}

/// Makes the device and runs it until it ends.
fn serve(options: &Options) -> Result<()> {
    let ready = ready_pipe()?;
    transport::choose(options.aead)?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let mut signals = {
        let _context = runtime.enter();
        Signals::new()?
    };
    let tun_options = TunOptions {
        offload: options.tun_offload,
        ..TunOptions::default()
    };
    let wanted = options.queues.unwrap_or_else(queues::usual);
    let (tun, further_tuns) = match number_from_environment("WG_TUN_FD")? {
        Some(fd) => {
            let tun = Tun::from_fd(fd, &tun_options).context("WG_TUN_FD")?;
            (tun, Vec::new())
        }
        None => {
            let mut tuns = Tun::create_queues(&options.interface, &tun_options, wanted)?;
            (tuns.remove(0), tuns)
        }
    };
    if 1 + further_tuns.len() < wanted {
        let queues = 1 + further_tuns.len();
        tracing::warn!(queues, wanted, "the device has fewer queues than wanted");
    }
    let interface = tun.name().to_owned();
    // Before the socket, whose file says to many that the device is ready: whatever happens to the
    // device from then on is noticed.
    let link = LinkMonitor::new(&tun).context("cannot watch the device")?;
    let mtu = tun.mtu().context("cannot read the device's MTU")?;
    let metrics = options.metrics.metrics.as_ref();
    let metrics = metrics.map(metrics::Listener::bind).transpose()?;
    let inherited = number_from_environment("WG_UAPI_FD")?;
    let ours = inherited.is_none();
    let socket = match inherited {
        Some(fd) => ConfigurationSocket::inherited(fd, &interface),
        None => ConfigurationSocket::create(&interface)?,
    };
    let watch = match FileWatch::new(socket.path()) {
        Err(error) if ours && error.kind() == io::ErrorKind::NotFound => {
            tracing::info!(interface, "the configuration socket was removed at once");
            return Ok(());
        }
        watch => watch.with_context(|| format!("cannot watch {}", socket.path().display()))?,
    };
    let manager = ServiceManager::from_environment();
    let sources = Sources {
        link,
        routes: RouteMonitor::new().context("cannot watch routes")?,
        neighbours: match options.steering.xdp_transmit {
            XdpTransmit::Off => None,
            _ => Some(NeighbourMonitor::new().context("cannot watch neighbours")?),
        },
        socket: watch,
    };

    let mut device = Device::new(Box::new(UnwrapErr(SysRng)));
    let sandbox = Sandbox::new(options.sandbox);
    let (shared, queues) = Dataplane::new(
        tun,
        further_tuns,
        options.helpers,
        sandbox.clone(),
        mtu,
        device.sessions(),
        device.routes(),
    )
    .context("cannot set up the data plane")?;
    // Before anything large is freed: from then on the allocator hands out memory that has to be
    // cleared, and so touched, where until then it maps pages that nobody needs yet.
    let threads = Threads::start(&shared)?;
    let udp_options = UdpOptions {
        gso: options.gso,
        gro: options.gro,
        ..UdpOptions::default()
    };
    let steerer = Steerer::start(options.steering.clone(), &interface, Arc::clone(&shared))?;
    let _limits = sandbox.enter(&Needs {
        socket: socket.path(),
        metrics: metrics.as_ref().and_then(metrics::Listener::path),
        programs: steerer.has_programs(),
        pins: steerer.pinned_at(),
        af_xdp: steerer.may_steer(),
    });
    let control = Rc::new(RefCell::new(Control::new(
        device,
        Arc::clone(&shared),
        udp_options,
        steerer,
    )));
    if let Some(manager) = manager {
        control.borrow_mut().report_to(manager);
    }
    tracing::info!(
        interface,
        aead = transport::backend().name(),
        queues = shared.queues(),
        offloads = ?shared.tun.offloads(),
        "tunnel device ready"
    );

    let ending = LocalSet::new().block_on(&runtime, async {
        let (watcher, happenings) = Watcher::start(Arc::clone(&shared), sources)?;
        let listener = tokio::net::UnixListener::from_std(socket.listener()?)?;
        tokio::task::spawn_local(server::serve(listener, Rc::clone(&control)));
        if let Some(listener) = metrics {
            let (control, interface) = (Rc::clone(&control), interface.clone());
            let peers = options.metrics.metrics_peers;
            let task = metrics::server::serve(listener, control, interface, peers);
            tokio::task::spawn_local(task.context("--metrics")?);
        }
        sandbox.confine(Role::Control);
        match ready {
            Some(ready) => report_ready(ready)?,
            None => control.borrow().report_ready(),
        }
        let ending = control::run(&control, queues, happenings, &mut signals).await;
        control.borrow().report_stopping();
        drop(watcher);
        anyhow::Ok(ending)
    })?;
    tracing::info!(interface, reason = %ending, "tunnel device ends");
    drop(threads);
    Ok(())
}

fn ready_pipe() -> Result<Option<PipeWriter>> {
    Ok(number_from_environment(READY_FD)?.map(PipeWriter::from))
}

fn report_ready(mut ready: PipeWriter) -> Result<()> {
    ready
        .write_all(b"\n")
        .context("cannot tell the parent process that the device is ready")
}

/// The open file whose number an environment variable gives.
fn number_from_environment(variable: &str) -> Result<Option<OwnedFd>> {
    let Ok(text) = env::var(variable) else {
        return Ok(None);
    };
    let number: RawFd = text
        .parse()
        .with_context(|| format!("{variable}={text}: expected the number of an open file"))?;
    process::inherited_fd(number)
        .map(Some)
        .with_context(|| format!("{variable}={text}: not a file that was passed on"))
}
