//! Starts a tunnel device as `wireguard-go` does: in the foreground, or as a daemon whose parent
//! returns when device and configuration socket exist; or in the place of another daemon.

mod start;

use std::cell::RefCell;
use std::env::{self, VarError};
use std::future::pending;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::sync::Arc;

use adit_kernel::netlink::{NeighbourMonitor, RouteMonitor};
use adit_kernel::process::{self, StandardError};
use adit_kernel::tun::TunOffloads;
use adit_kernel::udp::UdpOptions;
use adit_packet::aead::Backend;
use adit_protocol::Device;
use anyhow::{Context as _, Result, bail};
use getrandom::SysRng;
use rand_core::UnwrapErr;
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};
use tracing::level_filters::LevelFilter;

use self::start::{Start, number_from_environment};
use crate::control::{self, Control, Ending, Interruption, News, Signals, Sources, Watcher};
use crate::dataplane::helper::Helpers;
use crate::dataplane::{Dataplane, Threads, transport};
use crate::hand_over::give;
use crate::hand_over::take::{self, Inheritance};
use crate::sandbox::{self, Role, Sandbox};
use crate::service::{self, ServiceManager};
use crate::steering::options::XdpTransmit;
use crate::steering::{self, Steerer};
use crate::uapi::server;
use crate::{logging, metrics};

/// Tells the daemon's process where to say that it is ready.
const READY_FD: &str = "ADIT_READY_FD";
/// What is worth a line of the log.
pub(crate) const LOG_LEVEL: &str = "LOG_LEVEL";

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
    /// Which of these were given, as environment variables.
    pub given: Vec<(String, String)>,
}

/// Runs the tunnel, here or in a daemon.
///
/// # Errors
/// When the device, its sockets or its threads cannot be made; the message names which and why.
pub fn run(options: &Options) -> Result<()> {
    let level = log_level()?;
    if options.foreground || is_daemon() {
        logging::start(level);
        serve(options, None).with_context(|| options.interface.escape_debug().to_string())
    } else {
        daemonise(&options.interface)
    }
}

/// Whether this process was started to be a daemon, by one that waits until it is ready.
pub fn is_daemon() -> bool {
    env::var_os(READY_FD).is_some()
}

/// Runs the tunnel in the place of the daemon that runs it now, and goes on to log where that one did.
///
/// # Errors
/// As [`run`]; the other daemon then goes on.
pub fn take_over(options: &Options) -> Result<()> {
    let context = || options.interface.escape_debug().to_string();
    let level = log_level()?;
    let heritage = take::ask(&options.interface).with_context(context)?;
    // Back to where whoever waits for us reads, if this fails.
    let log = StandardError::redirect(&heritage.standard_error).with_context(context)?;
    logging::start(level);
    serve(options, Some((heritage, log))).with_context(context)
}

fn log_level() -> Result<LevelFilter> {
    match env::var(LOG_LEVEL) {
        Ok(text) => logging::parse_level(&text).with_context(|| {
            format!("LOG_LEVEL={text}: expected silent, error, warn, info, debug, verbose or trace")
        }),
        Err(VarError::NotPresent) => Ok(LevelFilter::WARN),
        Err(error) => Err(error).context(LOG_LEVEL),
    }
}

/// Starts this program again in a session of its own, and waits until it is ready or has failed;
/// why it failed it says itself.
fn daemonise(interface: &str) -> Result<()> {
    let (mut command, mut ready) = again_as_daemon()?;
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
    let status = end_of(&mut child)?;
    bail!("{interface}: the daemon ended before it was ready: {status}");
}

/// What starts this program with these arguments again, in a session of its own, and where that one says that it is ready.
pub(crate) fn again_as_daemon() -> Result<(Command, PipeReader)> {
    let program = env::current_exe().context("cannot find the program to start as a daemon")?;
    let (ready, ready_in_child) = std::io::pipe().context("cannot make a pipe")?;
    let mut command = Command::new(program);
    command
        .args(env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let number = process::pass_to_child(&mut command, &OwnedFd::from(ready_in_child))
        .context("cannot pass a descriptor to the daemon")?;
    command.env(READY_FD, number.to_string());
    process::start_in_new_session(&mut command);
    Ok((command, ready))
}

/// How a daemon ended that was never ready. If it has failed, it has said why, and this process ends likewise.
pub(crate) fn end_of(daemon: &mut Child) -> Result<ExitStatus> {
    let status = daemon.wait().context("cannot wait for the daemon")?;
    if let Some(code) = status.code().filter(|&code| code != 0) {
        std::process::exit(code);
    }
    Ok(status)
}

/// False if the daemon has ended instead.
pub(crate) fn wait_until_ready(ready: &mut PipeReader) -> bool {
    let mut byte = [0];
    ready.read_exact(&mut byte).is_ok()
}

/// Makes the device, or takes over that of a daemon, and runs it until it ends.
fn serve(options: &Options, heritage: Option<(Inheritance, StandardError)>) -> Result<()> {
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
    let start = match heritage {
        Some((heritage, log)) => Start::inherited(options, heritage, log)?,
        None => Start::fresh(options)?,
    };
    let interface = start.interface.clone();
    let Some(watch) = start.watch()? else {
        return Ok(());
    };
    let sources = Sources {
        link: start.link,
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
        start.tun,
        start.further_tuns,
        options.helpers,
        sandbox.clone(),
        start.mtu,
        device.sessions(),
        device.routes(),
    )
    .context("cannot set up the data plane")?;
    if start.predecessor.is_some() {
        // The packets are still another daemon's.
        shared.stand_still();
    }
    // Before anything large is freed: from then on the allocator hands out memory that has to be
    // cleared, and so touched, where until then it maps pages that nobody needs yet.
    let threads = Threads::start(&shared)?;
    let udp_options = UdpOptions {
        gso: options.gso,
        gro: options.gro,
        ..UdpOptions::default()
    };
    let steerer = Steerer::start(options.steering.clone(), Arc::clone(&shared))?;
    let mut control = Control::new(device, Arc::clone(&shared), udp_options, steerer);
    control.tell_options(told(options));
    if let Some(manager) = start.manager {
        control.report_to(manager);
    }
    let mut metrics = start.metrics;
    let metrics_estate = metrics
        .as_ref()
        .map(metrics::Listener::estate)
        .transpose()?;
    let former = start.predecessor;
    let former = former
        .map(|former| former.take(&mut control, &udp_options))
        .transpose()?;
    let (predecessor, predecessor_pid) = former.unzip();
    start.socket.claim();
    if let Some(estate) = &metrics_estate {
        estate.claim();
    }
    control.pin(&interface, predecessor_pid);
    if !options.tun_offload {
        for tun in shared.tun_queues() {
            // Without offloads there is nothing to switch off.
            let _ = tun.set_offloads(TunOffloads::NONE);
        }
    }
    let _limits = sandbox.enter(&control.needs(
        start.socket.path(),
        metrics.as_ref().and_then(metrics::Listener::path),
    ));
    shared.go_on();
    let control = Rc::new(RefCell::new(control));
    tracing::info!(
        interface,
        aead = transport::backend().name(),
        queues = shared.queues(),
        offloads = ?shared.tun.offloads(),
        "tunnel device ready"
    );

    let socket = &start.socket;
    let ending = LocalSet::new().block_on(&runtime, async {
        let (watcher, happenings) = Watcher::start(Arc::clone(&shared), sources)?;
        let (heir, heirs) = mpsc::channel(1);
        let listener = Rc::new(tokio::net::UnixListener::from_std(socket.listener()?)?);
        let serve = || -> JoinHandle<()> {
            let (listener, control) = (Rc::clone(&listener), Rc::clone(&control));
            tokio::task::spawn_local(server::serve(listener, control, heir.clone()))
        };
        let mut server = serve();
        if let Some(listener) = metrics.take() {
            let (control, interface) = (Rc::clone(&control), interface.clone());
            let peers = options.metrics.metrics_peers;
            let task = metrics::server::serve(listener, control, interface, peers);
            tokio::task::spawn_local(task.context("--metrics")?);
        }
        sandbox.confine(Role::Control);
        let mut news = News {
            queues,
            happenings,
            heirs,
        };
        // Ends only if the tunnel is not ours to serve.
        let begun = async {
            let takes_over = predecessor.is_some();
            if let Some(predecessor) = predecessor {
                if !predecessor.has_ended().await {
                    return Ok(Ending::TooLate);
                }
                control.borrow_mut().be_alone();
            }
            match ready {
                // The tunnel that was there goes on, whoever waits or does not.
                Some(ready) if takes_over => _ = report_ready(ready),
                Some(ready) => report_ready(ready)?,
                None => control.borrow().report_ready(),
            }
            pending::<Result<Ending>>().await
        };
        let serving = async {
            loop {
                let mut heir = match control::run(&control, &mut news, &mut signals).await {
                    Interruption::Ending(ending) => return anyhow::Ok((ending, None)),
                    Interruption::Heir(heir) => heir,
                };
                // Clients that come from now on are served by whoever has the device then.
                server.abort();
                let belongings = give::Belongings {
                    interface: &interface,
                    listener: socket.as_fd(),
                    metrics: options
                        .metrics
                        .metrics
                        .as_ref()
                        .zip(metrics_estate.as_ref())
                        .map(|(address, estate)| (address.to_string(), estate.socket.as_fd())),
                };
                if give::hand_over(&control, &belongings, &mut heir).await {
                    return Ok((Ending::HandedOver, Some(heir)));
                }
                server = serve();
            }
        };
        let (ending, heir) = tokio::select! {
            ended = serving => ended?,
            ending = begun => (ending?, None),
        };
        match ending {
            Ending::HandedOver | Ending::TooLate => {
                socket.leave();
                control.borrow_mut().leave_pins();
                if let Some(estate) = &metrics_estate {
                    estate.leave();
                }
            }
            _ => control.borrow().report_stopping(),
        }
        // The watcher may wait for room in the queue that nobody reads any more.
        drop(news);
        drop(watcher);
        anyhow::Ok((ending, heir))
    });
    let (ending, heir) = ending?;
    tracing::info!(interface, reason = %ending, "tunnel device ends");
    drop(threads);
    // Closed last: the heir takes it for our end.
    drop(heir);
    Ok(())
}

/// What [`crate::hand_over`] tells of how this daemon was started.
fn told(options: &Options) -> String {
    let (pid, foreground) = (std::process::id(), options.foreground);
    let given = options.given.iter();
    let given = given.map(|(name, value)| format!("option={name}={value}\n"));
    format!(
        "pid={pid}\nforeground={foreground}\n{}",
        given.collect::<String>()
    )
}

fn ready_pipe() -> Result<Option<PipeWriter>> {
    Ok(number_from_environment(READY_FD)?.map(PipeWriter::from))
}

fn report_ready(mut ready: PipeWriter) -> Result<()> {
    ready
        .write_all(b"\n")
        .context("cannot tell the parent process that the device is ready")
}
