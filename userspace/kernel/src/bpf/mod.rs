//! The eBPF programs: loading, attaching, pinning, and typed access to their maps.
//!
//! [`Steering`] owns everything; when it is dropped, or the process ends, nothing is left attached. Only pins can outlive a
//! killed process, and the next start removes them. Nothing here is needed for the tunnel to work: whatever fails, packets reach
//! the UDP socket.
//!
//! | file | what |
//! |---|---|
//! | `steering` | the programs as a whole |
//! | `attach` | XDP and tc links, and whether they are still there |
//! | `foreign` | which program of somebody else's is on an interface |
//! | `pin` | `/sys/fs/bpf/adit/IFACE/v1` |
//! | `tables` | flows, drops, sessions |
//! | `events` | what the programs log |
//! | `sys` | `bpf(2)` |

mod attach;
mod events;
mod foreign;
mod pin;
mod steering;
mod sys;
mod tables;

pub use attach::{AttachError, LinkState, TcMode, XdpMode};
pub use events::{EventLevel, Events};
pub use foreign::{ForeignProgram, attached_program};
pub use pin::{BPFFS, PinError, PinnedMaps};
pub use steering::{Hook, Listener, LoadError, LoadOptions, MapError, RateLimit, Steering};
pub use tables::{Direction, DropCount, DropReason, Flow, Sessions};
