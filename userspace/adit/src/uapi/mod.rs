//! The configuration protocol that `wg(8)` and `wg-quick(8)` speak
//! (<https://www.wireguard.com/xplatform/>): lines of `key=value`, a blank line ends an operation.
//!
//! - [`request`]: what a `set` operation may say, line by line.
//! - [`server`]: the socket, its connections and their limits.
//! - [`socket`]: where the socket file lives and who removes it.

pub mod request;
pub mod server;
pub mod socket;

use thiserror::Error;

/// Why an operation failed, as the errno that `wg(8)` turns into a message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Errno {
    /// The line is not `key=value`, or not text at all.
    #[error("protocol error")]
    Protocol,
    /// Unknown key, or a value that its key does not take.
    #[error("invalid argument")]
    Invalid,
    /// The listen port is taken.
    #[error("address already in use")]
    AddressInUse,
    /// A system call failed.
    #[error("input/output error")]
    Io,
    /// The device is being handed over to another process.
    #[error("device or resource busy")]
    Busy,
}

impl Errno {
    /// The number for the `errno=` line of a `set`: negative, since wg(8) negates what it reads.
    pub fn code(self) -> i32 {
        // errno(3), the numbers that are the same on every Linux architecture Rust supports but
        // for EPROTO and EADDRINUSE on MIPS and SPARC.
        match self {
            Self::Protocol => -71,
            Self::Invalid => -22,
            Self::AddressInUse => -98,
            Self::Io => -5,
            Self::Busy => -16,
        }
    }
}
