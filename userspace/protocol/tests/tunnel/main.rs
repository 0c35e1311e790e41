//! The protocol at work between simulated devices. One file per subject; every row of the
//! protocol's limits has its test.
#![allow(
    clippy::unwrap_used,
    reason = "clippy knows tests, but not the functions they share"
)]

mod config;
mod cookies;
mod data;
mod garbage;
mod handshakes;
mod lifetime;
mod restart;
mod roaming;
mod sessions;
mod shared;
mod sim;
mod staged;
mod timers;
