//! One daemon in the place of another, without losing the tunnel: `adit restart`.
//!
//! A confined daemon cannot execute its successor, so that one is started by somebody else, with all rights, and asks on the
//! configuration socket for what there is: the device's queues, the UDP sockets, the listening sockets, and the
//! configuration with its keys. Sessions are not among it; the successor makes others at once.
//!
//! ```text
//!   adit restart         successor                                    daemon
//!        │                                                               │
//!        ├── hand_over=options ────────────────────────────────────────► │
//!        │ ◄──────────────────────────────── its options, errno=0 ───────┤
//!        ├── starts ──► │                                                │
//!                       ├── hand_over=1 ───────────────────────────────► │ data threads stand still,
//!                       │                                                │ XDP is detached
//!                       │ ◄── header, descriptors, configuration ────────┤
//!              sets up  │                                                │
//!                       ├── hand_over=ready ───────────────────────────► │
//!                       │ ◄────────────────────────────────── errno=0 ───┤
//!                       ├── hand_over=taken ───────────────────────────► │ names the successor to the
//!             moves     │                                                │ service manager
//!            packets    │ ◄──────────────────────────── end of stream ───┤ ends
//! ```
//!
//! Until `taken` has come the daemon gives nothing up for good. If the successor fails, dies or says nothing for
//! [`LIMIT`], it goes on where it stood, with its sessions. What a reader does not know is
//! passed over (in the configuration: lines that begin with `adit_`), so that either side may be the older one.
//!
//! - `estate`: what is handed over, as bytes.
//! - [`give`]: the daemon's side. [`take`]: the successor's. [`restart`]: the command.

mod estate;
pub mod give;
pub mod restart;
pub mod take;

use std::time::Duration;

/// How long the daemon stands still at most, from the request to `taken`.
pub const LIMIT: Duration = Duration::from_secs(5);

/// What the successor says, each with a blank line behind it.
const REQUEST: &str = "hand_over=1";
const READY: &str = "hand_over=ready";
const TAKEN: &str = "hand_over=taken";
/// What the daemon answers if all is well.
const AGREED: &str = "errno=0";
/// What it says if it goes on itself: `ETIMEDOUT`.
const GOES_ON: &str = "errno=-110";
