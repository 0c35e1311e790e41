//! What a daemon starts from: a device of its own, one that it is given, or that of another daemon.

use std::env;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use adit_kernel::inotify::FileWatch;
use adit_kernel::netlink::LinkMonitor;
use adit_kernel::process::{self, StandardError};
use adit_kernel::tun::{Tun, TunOptions};
use adit_kernel::udp::{UdpGroup, UdpOptions};
use anyhow::{Context as _, Result};
use zeroize::Zeroizing;

use super::Options;
use crate::control::Control;
use crate::dataplane::queues;
use crate::hand_over::take::{Inheritance, Predecessor};
use crate::service::ServiceManager;
use crate::uapi::socket::ConfigurationSocket;
use crate::{error_chain, metrics};

/// Everything that is there before the data plane.
pub(super) struct Start {
    pub(super) interface: String,
    pub(super) tun: Tun,
    pub(super) further_tuns: Vec<Tun>,
    pub(super) mtu: u32,
    pub(super) link: LinkMonitor,
    pub(super) socket: ConfigurationSocket,
    /// The socket's file is there because we have made it, not somebody else.
    made_socket: bool,
    pub(super) metrics: Option<metrics::Listener>,
    pub(super) manager: Option<ServiceManager>,
    pub(super) predecessor: Option<Former>,
}

/// What is left of another daemon's things until they are ours.
pub(super) struct Former {
    pid: u32,
    stream: Predecessor,
    udp: Vec<OwnedFd>,
    configuration: Zeroizing<Vec<u8>>,
    /// Where metrics were answered, if they are not any more.
    metrics: Option<(String, OwnedFd)>,
    log: StandardError,
}

impl Start {
    /// From a device of our own, or one that the environment names.
    pub(super) fn fresh(options: &Options) -> Result<Self> {
        let tun_options = tun_options(options);
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
        let made_socket = inherited.is_none();
        let socket = match inherited {
            Some(fd) => ConfigurationSocket::inherited(fd, &interface),
            None => ConfigurationSocket::create(&interface)?,
        };
        Ok(Self {
            interface,
            tun,
            further_tuns,
            mtu,
            link,
            socket,
            made_socket,
            metrics,
            manager: ServiceManager::from_environment(),
            predecessor: None,
        })
    }

    /// From what another daemon has, which still may go on with it.
    pub(super) fn inherited(
        options: &Options,
        heritage: Inheritance,
        log: StandardError,
    ) -> Result<Self> {
        // Offloads that are not wanted any more are given up when the device is ours.
        let mut tuns = Tun::from_queues(heritage.tun, &TunOptions::default())
            .context("cannot take the device over")?;
        let queues = tuns.len();
        if let Some(wanted) = options.queues.filter(|&wanted| wanted != queues) {
            tracing::warn!(queues, wanted, "a device that is there keeps its queues");
        }
        let tun = tuns.remove(0);
        let link = LinkMonitor::new(&tun).context("cannot watch the device")?;
        let mtu = tun.mtu().context("cannot read the device's MTU")?;
        let mut former = heritage.metrics;
        let metrics = match &options.metrics.metrics {
            None => None,
            Some(address) => {
                let same = former.take_if(|(former, _)| *former == address.to_string());
                Some(match same {
                    Some((_, socket)) => metrics::Listener::inherited(address, socket)?,
                    None => metrics::Listener::bind(address)?,
                })
            }
        };
        let socket = ConfigurationSocket::inherited(heritage.listener, &heritage.interface);
        // If this fails the other daemon goes on to serve it.
        socket.leave();
        Ok(Self {
            socket,
            made_socket: false,
            interface: heritage.interface,
            tun,
            further_tuns: tuns,
            mtu,
            link,
            metrics,
            manager: heritage.manager,
            predecessor: Some(Former {
                pid: heritage.predecessor,
                stream: heritage.predecessor_stream,
                udp: heritage.udp,
                configuration: heritage.configuration,
                metrics: former,
                log,
            }),
        })
    }

    /// Watches the configuration socket's file; `None` if somebody has removed it already.
    pub(super) fn watch(&self) -> Result<Option<FileWatch>> {
        match FileWatch::new(self.socket.path()) {
            Err(error) if self.made_socket && error.kind() == io::ErrorKind::NotFound => {
                let interface = &self.interface;
                tracing::info!(interface, "the configuration socket was removed at once");
                Ok(None)
            }
            watch => watch
                .map(Some)
                .with_context(|| format!("cannot watch {}", self.socket.path().display())),
        }
    }
}

impl Former {
    /// Takes the tunnel over. What it shares with the other daemon, which may go on if this fails, is changed last.
    pub(super) fn take(
        self,
        control: &mut Control,
        options: &UdpOptions,
    ) -> Result<(Predecessor, u32)> {
        control.inherit(&self.configuration)?;
        let mut predecessor = self.stream;
        predecessor.take()?;
        self.log.keep();
        match UdpGroup::inherited(self.udp, options) {
            Ok(sockets) => control.inherit_sockets(sockets),
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(error, "the UDP sockets are opened anew");
            }
        }
        if let Some((address, socket)) = self.metrics
            && let Ok(address) = address.parse()
        {
            // Removes its file.
            if let Ok(listener) = metrics::Listener::inherited(&address, socket)
                && let Ok(estate) = listener.estate()
            {
                estate.claim();
            }
        }
        Ok((predecessor, self.pid))
    }
}

fn tun_options(options: &Options) -> TunOptions {
    TunOptions {
        offload: options.tun_offload,
        ..TunOptions::default()
    }
}

/// The open file whose number an environment variable gives.
pub(super) fn number_from_environment(variable: &str) -> Result<Option<OwnedFd>> {
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
