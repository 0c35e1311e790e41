//! The Linux interfaces a userspace tunnel needs, one module each, all with a safe API.
//!
//! Every system call of the project and nearly all of its `unsafe` live here. The crate knows
//! neither the WireGuard protocol nor the contents of the packets it carries.
//!
//! | module | interface |
//! |---|---|
//! | [`tun`] | `/dev/net/tun`: super-packets with a virtio header, offloads |
//! | [`udp`] | `recvmmsg`/`sendmmsg` with UDP GRO/GSO, source addresses, ECN, fwmark |
//! | [`bpf`] | the eBPF programs: loading, attaching, pinning, their maps |
//! | [`xsk`] | AF_XDP: frames from an RX queue straight into our memory |
//! | [`netlink`] | rtnetlink: the device's state, address and route changes, route lookup |
//! | [`ethtool`] | what a network card says about itself |
//! | [`netns`] | network namespaces |
//! | [`poll`] | `ppoll(2)` |
//! | [`epoll`] | `epoll(7)`, for the egress thread |
//! | [`event`] | `eventfd(2)` |
//! | [`inotify`] | removal of one file |
//! | [`clock`] | `CLOCK_BOOTTIME`, wall clock |
//! | [`descriptors`] | open files passed to another process |
//! | [`process`] | sessions, umask, inherited descriptors |
//! | [`sandbox`] | capabilities, seccomp, Landlock, memory that stays where it is |
//! | [`alloc`] | an allocator that counts per thread |
//!
//! With the feature `fuzzing` there is also `fuzzing`, by which tests of other crates reach private readers.

pub mod alloc;
pub mod bpf;
pub mod clock;
pub mod descriptors;
pub mod epoll;
pub mod ethtool;
pub mod event;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod inotify;
pub mod netlink;
pub mod netns;
pub mod poll;
pub mod process;
pub mod sandbox;
mod sys;
pub mod tun;
pub mod udp;
pub mod xsk;
