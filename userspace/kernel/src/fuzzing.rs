//! Private readers of what the kernel writes, for tests that feed them nonsense.

pub use crate::udp::fuzzing::{ControlMessages, read_control, write_control};
pub use crate::xsk::fuzzing::{ReceivingRings, TransmittingRings};
