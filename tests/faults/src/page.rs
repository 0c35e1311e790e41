//! What the library and the tests that control it share: a file of numbers, mapped on one side, read and written on the
//! other. All are 64 bits, in native byte order.

/// Names the file, in the environment of the process that the library is loaded into.
pub const VARIABLE: &str = "ADIT_FAULTS";

/// Numbers in the file.
pub const NUMBERS: usize = 64;

/// How many times faster than the machine's the clocks run, 0 and 1 both being as fast.
pub const CLOCK: usize = 0;

/// What the dice start from.
pub const SEED: usize = 1;

/// The first number of the first call.
const CALLS: usize = 8;

/// Numbers of each call.
const STRIDE: usize = 4;

/// In a thousand calls, so many fail.
pub const RATE: usize = 0;

/// How they fail: an errno, or [`SHORT`].
pub const FAULT: usize = 1;

/// Calls so far.
pub const ATTEMPTS: usize = 2;

/// Of these, failed by the library.
pub const INJECTED: usize = 3;

/// No error, but less than was asked for: fewer messages, or nothing that is ready.
pub const SHORT: u64 = 0;

/// The calls that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Call {
    /// `sendmmsg`: what leaves by the UDP sockets.
    SendMany,
    /// `recvmmsg`: what comes by them.
    ReceiveMany,
    /// `read` of a packet from the TUN device.
    TunRead,
    /// `writev`, of packets to it.
    TunWrite,
    /// `ppoll`: waiting for the UDP sockets, for netlink and inotify, and for room to send.
    Poll,
    /// `epoll_wait`: waiting for the TUN device; on the main thread for everything else, where nothing but an
    /// interruption and [`SHORT`] happen.
    EpollWait,
    /// `recvmsg`: netlink.
    ReceiveNetlink,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::SendMany,
        Self::ReceiveMany,
        Self::TunRead,
        Self::TunWrite,
        Self::Poll,
        Self::EpollWait,
        Self::ReceiveNetlink,
    ];

    /// Position in the file of one of its numbers.
    #[must_use]
    pub const fn position(self, number: usize) -> usize {
        CALLS + STRIDE * self as usize + number
    }
}
