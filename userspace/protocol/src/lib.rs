//! The WireGuard protocol as pure state machines: no I/O, no clock, no threads.
//!
//! Data in, data out, time as an argument. A [`Device`] takes datagrams, inner packets and the
//! time, and gives back [`Output`]s: datagrams to send, sessions that came and went, inner packets
//! that arrived. Whoever owns it drains [`Device::poll_output`] after every call and calls
//! [`Device::handle_timeout`] at [`Device::poll_timeout`].
//!
//! Two things are shared with threads that move data without asking the device: [`SessionTable`]
//! and [`Session`] for what arrives, [`Routes`] and [`PeerLink`] for what leaves. They call the
//! device back only when [`PeerLink::sent`], [`PeerLink::received`] or [`PeerLink::stage`] say so.
//!
//! Sources named in the comments: "paper" is *WireGuard: Next Generation Kernel Network Tunnel*
//! (Donenfeld, NDSS 2017, in its revision of 2020); "kernel" is `drivers/net/wireguard` of Linux.
//!
//! # A tunnel in memory
//!
//! ```
//! use adit_protocol::{Device, Endpoint, Instant, Now, Output, Prefix, PrivateKey};
//! use std::net::SocketAddr;
//! use std::time::Duration;
//!
//! fn device(secret: u8) -> Device {
//!     let rng = Box::new(rand_core::UnwrapErr(getrandom::SysRng));
//!     let mut device = Device::new(rng);
//!     device.set_private_key(Some(PrivateKey::from_bytes([secret; 32])));
//!     device
//! }
//!
//! let now = Now { instant: Instant::from_nanos(0), unix: Duration::from_secs(1_700_000_000) };
//! let addresses: [SocketAddr; 2] = ["192.0.2.1:51820".parse()?, "192.0.2.2:51820".parse()?];
//! let mut devices = [device(1), device(2)];
//! let keys = [devices[0].public_key().unwrap(), devices[1].public_key().unwrap()];
//! for (here, there) in [(0, 1), (1, 0)] {
//!     let peer = devices[here].add_peer(keys[there])?;
//!     devices[here].set_endpoint(peer, addresses[there]);
//!     let inner = [10, 0, 0, u8::try_from(there)?];
//!     devices[here].add_allowed_ip(peer, Prefix::new(inner.into(), 32)?);
//!     devices[here].up();
//! }
//!
//! // An empty IPv4 packet from 10.0.0.0 to 10.0.0.1.
//! let mut packet = [0_u8; 20];
//! (packet[0], packet[3], packet[12], packet[16], packet[19]) = (0x45, 20, 10, 10, 1);
//! devices[0].send_packet(now, &packet)?;
//!
//! let mut arrived = None;
//! let mut here = 0;
//! while arrived.is_none() {
//!     while let Some(output) = devices[here].poll_output() {
//!         match output {
//!             Output::Transmit { mut payload, .. } => {
//!                 let from = Endpoint::new(addresses[here]);
//!                 devices[1 - here].handle_datagram(now, from, &mut payload);
//!             }
//!             Output::FlushStaged { peer } => devices[here].flush_staged(now, peer),
//!             Output::Packet { payload, .. } => arrived = Some(payload),
//!             _ => {}
//!         }
//!     }
//!     here = 1 - here;
//! }
//! assert_eq!(arrived.as_deref(), Some(&packet[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/tunnel.rs` does the same with a wire that loses a datagram and a clock that moves.
#![forbid(unsafe_code)]

mod allowed_ips;
mod cookie;
mod crypto;
mod device;
mod dh;
pub mod inner;
pub mod key;
mod limits;
pub mod message;
mod noise;
mod peer;
mod rate_limit;
mod replay;
mod session;
mod staged;
mod table;
#[cfg(test)]
mod testing;
mod time;
mod timers;
mod transport;

pub use allowed_ips::{AllowedIps, LookupTable, Prefix, PrefixLengthError};
pub use device::{
    AddPeerError, Counters, Device, Event, Output, PeerHistory, PeerInfo, Routes, SendError,
};
pub use inner::{InnerPacket, InnerPacketError, padded_len};
pub use key::{KEY_LEN, PresharedKey, PrivateKey, PublicKey};
pub use limits::Limits;
pub use peer::{Endpoint, PeerId, PeerLink, Source};
pub use replay::{ReplayWindow, WINDOW_BITS, WINDOW_USABLE};
pub use session::{Role, Session};
pub use staged::{STAGED_PACKETS, Staged, StagedGuard};
pub use table::SessionTable;
pub use time::{Instant, Now};
pub use transport::{PortableKey, TransportKey};
