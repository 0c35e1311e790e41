//! The whole system at work: daemons in network namespaces, configured by the stock tools, under real and under
//! hostile traffic. One module a theme.
#![forbid(unsafe_code)]

mod ageing;
mod denial;
mod documents;
mod faults;
mod flood;
mod guide;
mod hostile_network;
mod hostile_tun;
mod inside;
mod inspect;
mod interop;
mod json;
mod launch;
mod lesser_kernels;
mod life;
mod live_changes;
mod metrics;
mod mtu;
mod on_call;
mod packages;
mod path_mtu;
mod queues;
mod quick;
mod quick_bench;
mod quick_changes;
mod quick_failures;
mod readme;
mod restart;
mod roaming;
mod sandbox;
mod scale;
mod service;
mod soak;
mod super_packets;
#[cfg(target_arch = "x86_64")]
mod system_call;
mod system_call_faults;
mod top;
mod traffic;
mod uapi_protocol;
mod wg_quick;
mod wg_tool;
mod xdp;
mod xdp_counters;
mod xdp_fallback;
mod xdp_inject;
mod xdp_not_stolen;
mod xdp_refused;
mod xdp_tools;
mod xdp_transmit;
