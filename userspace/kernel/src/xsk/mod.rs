//! AF_XDP sockets: frames from an RX queue straight into memory of ours (`linux/if_xdp.h`,
//! Documentation/networking/af_xdp.rst).
//!
//! ```text
//!   kernel                                        userspace
//!     |   <---------------- fill ring -------------   |   empty frames
//!     |   ----------------- RX ring ------------->    |   frames with a packet
//! ```
//!
//! A [`Umem`] is cut into frames; each [`Receiver`] has frames of its own and serves one RX queue. A frame is either the
//! kernel's (in the fill ring, on the wire, in the RX ring) or ours (while [`Receiver::receive`] runs the caller's code), and
//! the `queue` file keeps a bit per frame that says which: it goes back to the fill ring exactly once, also when the
//! caller's code panics.
//!
//! | file | what |
//! |---|---|
//! | `ring` | the ends of a ring, generic over its memory |
//! | `mapped` | ring memory shared with the kernel |
//! | `umem` | frame memory, in huge pages when there are some |
//! | `queue` | who owns which frame |
//! | `socket` | the socket itself |
//! | `receiver` | one RX queue, as the data path uses it |
//! | [`frame`] | outer headers |

pub mod frame;
mod mapped;
mod queue;
mod receiver;
mod ring;
mod socket;
mod umem;

pub use receiver::{BATCH, Frame, Receiver, ReceiverOptions, Statistics};
pub use socket::XskError;
pub use umem::{FrameSize, Umem};
