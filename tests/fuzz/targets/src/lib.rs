//! What is fuzzed: one function of bytes for each target, which panics when something is not as it must be.
//!
//! `tests/replay.rs` runs them over the committed corpora with every test run; `../fuzz_targets` hands them to libFuzzer.
//! Inputs are scripts where plain bytes would not get far: the `script` module reads decisions from them.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a panic is how a finding is reported; lengths of scripts are small"
)]

mod aead;
mod cmsg;
mod coalesce;
mod config;
mod device;
mod ecn;
mod message;
mod replay_window;
mod routes;
mod script;
mod split;
mod uapi;
mod virtio;
mod wire;
mod xsk_frame;
mod xsk_rings;

pub use aead::run as aead;
pub use cmsg::run as cmsg;
pub use coalesce::run as coalesce;
pub use config::run as config;
pub use device::run as device;
pub use ecn::run as ecn;
pub use message::run as message;
pub use replay_window::run as replay_window;
pub use routes::run as routes;
pub use split::run as split;
pub use uapi::{answer as uapi_answer, run as uapi};
pub use virtio::run as virtio;
pub use xsk_frame::run as xsk_frame;
pub use xsk_rings::run as xsk_rings;
