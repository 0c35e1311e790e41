//! What a tunnel does to packet bytes, without any I/O.
//!
//! * [`virtio`]: the header in front of every packet on a TUN device opened with `IFF_VNET_HDR`.
//! * [`split`]: one TSO/USO super-packet becomes MTU-sized packets, written where they will be sealed.
//! * [`coalesce`]: decrypted packets become super-packets, described as iovecs over the decrypted buffers.
//! * [`checksum`]: the Internet checksum, also fused with a copy, and its incremental update.
//! * [`ecn`]: congestion marks across the tunnel (RFC 6040).
//! * [`aead`]: ChaCha20-Poly1305 over batches of packets of one session.
//!
//! Bytes come from peers and from local processes and are never trusted: every function here answers nonsense with
//! an error or a verdict, never with a panic.
//!
//! `examples/super_packet.rs` splits a super-packet and puts it together again.
#![deny(unsafe_code)]

pub mod aead;
pub mod checksum;
pub mod coalesce;
pub mod ecn;
mod header;
pub mod split;
pub mod virtio;
