//! What a person runs: the tunnel daemon and its command line.
//!
//! - [`dataplane`]: the threads that move packets between the TUN device and the UDP sockets.
//! - [`control`]: one thread for everything else: handshakes, timers, configuration, device events.
//! - [`uapi`]: the configuration protocol that `wg(8)` speaks.
//! - [`config`]: the file format of `wg-quick(8)`.
//! - [`quick`]: tunnels from such files, and changes to running ones.
//! - [`hand_over`]: one daemon in the place of another, without losing the tunnel.
//! - [`inspect`]: looking at tunnels and at the machine from outside.
//! - [`metrics`]: what is counted, for Prometheus.
//! - [`top`]: a live view of a tunnel.
//! - [`sandbox`]: what the daemon gives up when it is set up.
//! - [`service`]: what a service manager is told.
//! - [`unix_socket`]: listening sockets whose files come and go with them.
//! - [`cli`]: the command line; [`daemon`] starts a tunnel as `wireguard-go` does.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod hand_over;
pub mod inspect;
pub mod keys;
pub mod logging;
pub mod metrics;
pub mod quick;
pub mod sandbox;
pub mod service;
pub mod steering;
pub mod top;
pub mod uapi;
pub mod unix_socket;

/// An error with its causes on one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

/// The moment on the clock that protocol, control thread and data threads share.
fn instant() -> adit_protocol::Instant {
    adit_protocol::Instant::from_nanos(adit_kernel::clock::boottime_ns())
}
