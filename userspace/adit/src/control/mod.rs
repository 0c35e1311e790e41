//! Everything that is not moving packets: handshakes, timers, configuration, device events.
//!
//! One thread, one owner of the protocol's [`Device`]. What it decides reaches the data threads
//! as snapshots; what they need from it arrives as notices.

mod configure;
mod describe;
mod hand_over;
mod measure;
mod run;
mod service;
mod watcher;

use std::fmt::Write as _;
use std::sync::Arc;

use adit_kernel::udp::{Outcome, Outgoing, SendBatch, UdpError, UdpGroup, UdpOptions};
use adit_kernel::{clock, netlink};
use adit_protocol::{Device, Endpoint, Instant, Now, Output, PeerId};
use tokio::sync::Notify;

use crate::dataplane::outbound::Outbound;
use crate::dataplane::transport::TransportKey;
use crate::dataplane::{Dataplane, HandshakeMessage, Session, send_staged};
use crate::steering::{Sockets, Steerer};
use crate::uapi::Errno;
use crate::uapi::request::Setting;
use crate::uapi::server::Configurable;
use crate::{error_chain, instant};

pub use run::{Ending, Interruption, News, Signals, run};
pub use watcher::{Happening, Sources, Watcher};

/// The device and what surrounds it.
#[derive(Debug)]
pub struct Control {
    device: Device<TransportKey>,
    shared: Arc<Dataplane>,
    outbound: Outbound,
    sender: SendBatch,
    options: UdpOptions,
    /// The port asked for, and once there is a socket the one it has.
    port: u16,
    mark: u32,
    up: bool,
    /// When the daemon began to serve the device.
    started: Instant,
    steerer: Steerer,
    /// Interfaces, addresses or endpoints may have changed since the steerer was told.
    underlay_changed: bool,
    /// To the service manager, if there is one.
    reports: Option<service::Reports>,
    /// Sockets of the daemon that ran before, until the interface is seen to be up.
    inherited: Option<UdpGroup>,
    /// No other process uses the sockets, or may yet go on with them.
    alone: bool,
    /// Another process may be about to take the device over.
    standing: bool,
    /// Lines that tell how the daemon was started.
    options_told: String,
    /// Told whenever the next timer may have changed.
    timers_changed: Arc<Notify>,
}

impl Control {
    /// A device that is down, without peers.
    pub fn new(
        device: Device<TransportKey>,
        shared: Arc<Dataplane>,
        options: UdpOptions,
        steerer: Steerer,
    ) -> Self {
        Self {
            device,
            shared,
            outbound: Outbound::new(),
            sender: SendBatch::new(),
            options,
            port: 0,
            mark: 0,
            up: false,
            started: instant(),
            steerer,
            underlay_changed: false,
            reports: None,
            inherited: None,
            alone: true,
            standing: false,
            options_told: String::new(),
            timers_changed: Arc::new(Notify::new()),
        }
    }

    /// What to say of how the daemon was started: lines for whoever starts another one in its place.
    pub fn tell_options(&mut self, lines: String) {
        self.options_told = lines;
    }

    fn now(&self) -> Now {
        Now {
            instant: instant(),
            unix: clock::unix_time(),
        }
    }

    /// The interface went up or down; its sockets and sessions go with it.
    fn set_up(&mut self, up: bool) {
        let inherited = self.inherited.take();
        if self.up == up {
            return;
        }
        self.up = up;
        if up {
            if let Some(sockets) = inherited {
                self.use_sockets(sockets);
            } else if let Err(error) = self.bind(self.port) {
                tracing::error!(
                    port = self.port,
                    error = error_chain(&error),
                    "no UDP socket; trying again"
                );
            }
            self.shared.probe_gro();
            self.device.up();
        } else {
            self.device.down();
            self.shared.replace_sockets(None);
        }
        tracing::info!(up, "interface");
        self.underlay_changed = true;
        self.refresh_underlay();
        self.settle();
    }

    fn set_mtu(&mut self, mtu: u32) {
        self.shared.set_mtu(mtu);
        self.device.set_mtu(mtu as usize);
    }

    /// Opens sockets on the port and gives them to the data threads.
    fn bind(&mut self, port: u16) -> Result<(), UdpError> {
        let options = UdpOptions {
            fwmark: self.mark,
            ..self.options
        };
        self.use_sockets(UdpGroup::bind(port, &options, self.shared.queues())?);
        self.underlay_changed = true;
        // Addresses of the old socket say nothing about the new one's.
        for link in self.device.links() {
            link.clear_source();
        }
        Ok(())
    }

    fn use_sockets(&mut self, mut sockets: UdpGroup) {
        self.steerer.choose_filter(&mut sockets);
        self.port = sockets.port();
        self.shared.replace_sockets(Some(Arc::new(sockets)));
        if self.alone {
            self.steerer.put_filter_on();
        }
    }

    fn set_listen_port(&mut self, port: u16) -> Result<(), Errno> {
        if !self.up {
            self.port = port;
            self.inherited = None;
            return Ok(());
        }
        let bound = self.shared.sockets.load().is_some();
        if bound && port == self.port {
            return Ok(());
        }
        self.bind(port).map_err(|error| {
            tracing::error!(
                port,
                error = error_chain(&error),
                "cannot change the listen port"
            );
            match error {
                UdpError::PortInUse { .. } => Errno::AddressInUse,
                _ => Errno::Io,
            }
        })
    }

    fn set_firewall_mark(&mut self, mark: u32) -> Result<(), Errno> {
        if let Some(sockets) = self.shared.sockets.load().as_ref() {
            sockets.set_fwmark(mark).map_err(|error| {
                tracing::error!(mark, %error, "cannot set the firewall mark");
                Errno::Io
            })?;
        }
        self.mark = mark;
        self.underlay_changed = true;
        // A mark can lead to another routing table, and so to another source address.
        self.check_sources();
        Ok(())
    }

    /// Handles one handshake message or cookie reply; `backlog` more are waiting.
    fn handshake_message(&mut self, mut message: HandshakeMessage, backlog: usize) {
        let now = self.now();
        self.device.note_backlog(now.instant, backlog);
        self.device
            .handle_datagram(now, message.from, &mut message.datagram);
        self.settle();
    }

    fn attend(&mut self, peer: PeerId) {
        self.device.attend(self.now(), peer);
        self.settle();
    }

    fn timeout(&mut self) {
        self.device.handle_timeout(self.now());
        self.settle();
    }

    /// Forgets source addresses that the routing table would not choose the way back for: the
    /// interface that the peer was last heard on is not the one that leads to it any more. The
    /// kernel module does the same on each send (drivers/net/wireguard/socket.c, send4).
    fn check_sources(&mut self) {
        for link in self.device.links() {
            let Some(Endpoint {
                address,
                source: Some(source),
            }) = link.endpoint()
            else {
                continue;
            };
            let interface = netlink::route_interface(address.ip(), Some(source.address), self.mark);
            if !matches!(interface, Ok(Some(interface)) if interface == source.interface) {
                tracing::debug!(peer = %link.id(), "source address forgotten");
                link.forget_source(address);
            }
        }
    }

    /// Addresses, routes or interfaces of the host have changed.
    fn host_changed(&mut self) {
        self.check_sources();
        self.underlay_changed = true;
        self.refresh_underlay();
    }

    fn receiver_failed(&mut self, ifindex: u32) {
        self.steerer.receiver_failed(instant(), ifindex);
    }

    /// Called once a second.
    fn tick(&mut self) {
        let now = instant();
        // Before the kernel's counts have wrapped.
        if let Some(sockets) = self.shared.sockets.load().as_ref() {
            let _ = sockets.receive_drops();
        }
        // What is refused in front of the sockets would wait for us otherwise.
        let refused = self.steerer.refused_handshakes();
        self.device.note_backlog(now, refused);
        self.steerer.set_under_load(self.device.is_under_load(now));
        // The port may be free by now: a data thread lets go of the old sockets when its batch ends.
        if self.up && self.shared.sockets.load().is_none() && self.bind(self.port).is_ok() {
            tracing::info!(port = self.port, "UDP socket open");
        }
        self.refresh_underlay();
        self.steerer.check(now);
        self.report(now);
    }

    /// Attaches to the interfaces that carry the tunnel now, if that may have changed.
    fn refresh_underlay(&mut self) {
        if !std::mem::take(&mut self.underlay_changed) {
            return;
        }
        let bound = self.shared.sockets.load().is_some();
        let sockets = bound.then_some(Sockets {
            port: self.port,
            mark: self.mark,
        });
        let endpoints: Vec<Endpoint> = self
            .device
            .links()
            .filter_map(|link| link.endpoint())
            .collect();
        self.steerer.refresh(sockets, &endpoints);
    }

    /// Does what the device has decided since the last call.
    fn settle(&mut self) {
        while let Some(output) = self.device.poll_output() {
            match output {
                Output::Transmit { to, peer, payload } => self.transmit(to, peer, &payload),
                Output::FlushStaged { peer } => self.flush_staged(peer),
                Output::Event(event) => tracing::debug!(%event, "protocol"),
                // Data packets are opened by the ingress thread, and never given to the device.
                Output::Packet { .. } => {}
                Output::SessionAdded { session } => {
                    self.steerer
                        .session_added(session.receiver_index(), session.peer().id());
                    let source = session
                        .peer()
                        .endpoint()
                        .and_then(|endpoint| endpoint.source);
                    if let Some(source) = source {
                        self.steerer.heard_at(source.address);
                    }
                    // Before the first packet of the session, or that one is not counted.
                    if source.is_some_and(|source| !self.steerer.covers(source.interface)) {
                        self.underlay_changed = true;
                        self.refresh_underlay();
                    }
                }
                Output::SessionRemoved { receiver_index } => {
                    self.steerer.session_removed(receiver_index);
                }
            }
        }
        let routes = self.device.routes();
        if !Arc::ptr_eq(&routes, &self.shared.routes.load()) {
            self.shared.routes.store(routes);
        }
        self.timers_changed.notify_one();
    }

    fn transmit(&mut self, to: Endpoint, peer: Option<PeerId>, datagram: &[u8]) {
        let sockets = self.shared.sockets.load();
        let Some(socket) = sockets
            .as_ref()
            .and_then(|sockets| sockets.member(0).for_address(&to.address))
        else {
            return self
                .shared
                .counters
                .of(0)
                .egress
                .drop_egress_no_socket
                .add(1);
        };
        let mut messages = [Outgoing {
            to: to.address,
            source: to.source.map(|source| (source.address, source.interface)),
            ecn: 0,
            probe: false,
            segment_size: datagram.len(),
            data: datagram,
            outcome: Outcome::Pending,
        }];
        self.sender.send(socket, &mut messages);
        match messages[0].outcome {
            Outcome::Dropped { errno, .. } => {
                self.shared
                    .counters
                    .of(0)
                    .egress
                    .drop_egress_send_error
                    .add(1);
                tracing::debug!(errno, "handshake message not sent");
            }
            Outcome::SentAfterForgettingSource => {
                if let Some(link) = peer.and_then(|peer| self.device.link(peer)) {
                    link.forget_source(to.address);
                }
            }
            _ => {}
        }
    }

    fn flush_staged(&mut self, peer: PeerId) {
        let Some(link) = self.device.link(peer) else {
            return;
        };
        let now = instant();
        let session: Option<Arc<Session>> = link
            .current()
            .as_ref()
            .filter(|session| session.can_send(now))
            .cloned();
        let Some(session) = session else {
            return;
        };
        let sockets = self.shared.sockets.load();
        send_staged(
            &mut self.outbound,
            &link,
            &session,
            &self.shared,
            (0, sockets.as_deref()),
            now,
        );
    }
}

impl Configurable for Control {
    fn apply(&mut self, settings: Vec<Setting>) -> Result<(), Errno> {
        if self.standing {
            // Whoever takes over would not know of it.
            return Err(Errno::Busy);
        }
        let result = self.configure(settings);
        self.underlay_changed = true;
        self.refresh_underlay();
        self.settle();
        result
    }

    fn describe(&self, answer: &mut String) {
        self.describe_device(answer);
    }

    fn describe_options(&self, answer: &mut String) {
        answer.push_str(&self.options_told);
        let managed = self.reports.is_some();
        // Writing to a String cannot fail.
        let _ = writeln!(answer, "managed={managed}");
    }
}
