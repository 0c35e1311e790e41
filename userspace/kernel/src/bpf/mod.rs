//! The eBPF programs: loading, attaching, pinning, and typed access to their maps.
//!
//! [`Steering`] owns everything; when it is dropped, or the process ends, nothing is left attached. Only pins can outlive a
//! killed process, and the next start removes them. Nothing here is needed for the tunnel to work: whatever fails, packets reach
//! the UDP socket.
//!
//! ```no_run
//! use std::os::fd::AsFd;
//! use adit_kernel::bpf::{LoadOptions, Listener, Steering, XdpMode};
//! use adit_kernel::xsk::{FrameSize, Receiver, ReceiverOptions, Umem};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (ifindex, address, port, index, peer) = (2, "192.0.2.1".parse()?, 51820, 7, 0);
//! let mut steering = Steering::load(&LoadOptions::default())?;
//! steering.set_listeners([Listener { address, port, ifindex: Some(ifindex) }])?;
//! steering.sessions()?.insert(index, peer)?;
//!
//! let umem = Umem::new(4096, FrameSize::for_mtu(1500))?;
//! let options = ReceiverOptions { ifindex, queue: 0, frames: 0..4096, generic: false };
//! let mut receiver = Receiver::open(&umem, options)?;
//! steering.add_device(ifindex, 1, umem.frame_size().capacity())?;
//! steering.set_socket(ifindex, 0, receiver.as_fd())?;
//!
//! // Last of all, so that nothing is dropped for want of what was still to come.
//! steering.set_steering(true)?;
//! steering.attach_xdp(ifindex, XdpMode::Native)?;
//! steering.attach_tc(ifindex, "wg0", None)?;
//! steering.pin("wg0")?;
//! # Ok(())
//! # }
//! ```
//!
//! | file | what |
//! |---|---|
//! | `steering` | the programs as a whole |
//! | `attach` | XDP and tc links, and whether they are still there |
//! | `filter` | the program in front of UDP sockets |
//! | `foreign` | which program of somebody else's is on an interface |
//! | `pin` | `/sys/fs/bpf/adit/IFACE/v1` |
//! | `tables` | flows, drops, sessions |
//! | `sent` | flows that no program sees |
//! | `events` | what the programs log |
//! | `sys` | `bpf(2)` |

mod attach;
mod events;
mod filter;
mod foreign;
mod pin;
mod sent;
mod steering;
mod sys;
mod tables;

pub use attach::{AttachError, LinkState, TcMode, XdpMode};
pub use events::{EventLevel, Events};
pub use filter::SocketFilter;
pub use foreign::{ForeignProgram, attached_program};
pub use pin::{BPFFS, PinError, PinnedMaps};
pub use sent::SentFlows;
pub use steering::{Hook, Listener, LoadError, LoadOptions, MapError, RateLimit, Steering};
pub(crate) use sys::raise_locked_memory_limit;
pub use tables::{Direction, DropCount, DropReason, Flow, Sessions};

/// Each may be moved to the thread that needs it.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Steering>();
    is_send::<Sessions>();
    is_send::<Events>();
    is_send::<crate::xsk::Receiver>();
};
