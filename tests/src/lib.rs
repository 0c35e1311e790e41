//! Harness for whole-system tests: network namespaces, tunnel daemons in them, stock tools run against them.
//!
//! Every resource is a guard. Dropping it, also while a panic unwinds, ends the processes it started (by their ids),
//! and removes its namespaces, sockets and files. Names are unique, so any number of runs share one machine.
//!
//! Everything here needs root. [`Namespace::new`] says so when it is missing.
#![forbid(unsafe_code)]

pub mod bpftool;
pub mod command;
pub mod daemon;
pub mod faults;
pub mod flood;
pub mod initiators;
pub mod iperf;
pub mod link;
pub mod measure;
pub mod name;
pub mod namespace;
pub mod open_metrics;
pub mod packet_socket;
pub mod ping;
pub mod process;
pub mod relay;
pub mod round_trip;
pub mod soak;
pub mod stopwatch;
pub mod terminal;
pub mod transfer;
pub mod tunnel;
pub mod uapi;
pub mod udp_flow;
pub mod wait;
pub mod weather;
pub mod wg;

pub use daemon::{Daemon, Implementation};
pub use namespace::Namespace;
pub use tunnel::{Pair, PairOptions, Site};
