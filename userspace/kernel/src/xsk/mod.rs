//! AF_XDP sockets: frames from an RX queue straight into memory of ours, and from there to a TX queue
//! (`linux/if_xdp.h`, Documentation/networking/af_xdp.rst).
//!
//! ```text
//!   kernel                                        userspace
//!     |   <---------------- fill ring -------------   |   empty frames
//!     |   ----------------- RX ring ------------->    |   frames with a packet
//!     |   <----------------- TX ring --------------   |   frames with a packet
//!     |   ------------- completion ring --------->    |   frames whose packet has left
//! ```
//!
//! A [`Umem`] is cut into frames; each [`Receiver`] has frames of its own and serves one RX queue. A frame is either the
//! kernel's (in the fill ring, on the wire, in the RX ring) or ours (while [`Receiver::receive`] runs the caller's code), and
//! the `queue` file keeps a bit per frame that says which: it goes back to the fill ring exactly once, also when the
//! caller's code panics.
//!
//! A [`Transmitter`] is a socket of its own on the queue of a [`Receiver`], with frames of its own in the same UMEM, so that
//! neither can take the other's. Two sockets rather than one, because whoever polls a socket that has a TX ring does the
//! sending in copy mode (`xsk_poll()`, net/xdp/xsk.c), and the receiving thread should not.
//!
//! | file | what |
//! |---|---|
//! | `ring` | the ends of a ring, generic over its memory |
//! | `mapped` | ring memory shared with the kernel |
//! | `umem` | frame memory, in huge pages when there are some |
//! | `queue` | who owns which frame on the way in |
//! | `outgoing` | who owns which frame on the way out |
//! | `socket` | the socket itself |
//! | `receiver` | one RX queue, as the data path uses it |
//! | `transmitter` | one TX queue, as the data path uses it |
//! | [`frame`] | outer headers |

pub mod frame;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod mapped;
mod outgoing;
mod queue;
mod receiver;
mod ring;
mod socket;
mod transmitter;
mod umem;

pub use receiver::{BATCH, Frame, Receiver, ReceiverOptions, Statistics};
pub use socket::XskError;
pub use transmitter::{TRANSMIT_FRAMES, TransmitStatistics, Transmitter};
pub use umem::{FrameSize, Umem};
