//! The file format of `wg-quick(8)` and `wg(8)`: text in, a typed configuration and everything that is wrong with the
//! text out. Nothing here reads a file, asks a name server or looks at the machine.
//!
//! What is accepted is what `wg-quick` of wireguard-tools 1.0.20210914 and the `wg setconf` behind it accept: keys in any
//! case, blanks anywhere around them, comments from `#` to the end of the line, lists with commas, keys given more than
//! once. Numbers of ports cannot be given as names of services.
//!
//! - [`diagnostic`]: what is said about a wrong line, and how it is drawn.
//! - [`value`]: one value: keys, addresses, endpoints, numbers. The command line of `adit set` uses it too.
//! - `reader`: sections, keys and what belongs where.

pub mod diagnostic;
mod line;
mod reader;
mod secret;
#[cfg(test)]
mod tests;
pub mod value;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use adit_protocol::{Prefix, PresharedKey, PrivateKey, PublicKey};

use self::diagnostic::{Diagnostic, Severity};

/// A configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What the `[Interface]` sections say together.
    pub interface: Interface,
    /// One for each `[Peer]` section, in the order of the file.
    pub peers: Vec<Peer>,
}

/// The tunnel device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// `PrivateKey`.
    pub private_key: Option<PrivateKey>,
    /// `ListenPort`.
    pub listen_port: Option<u16>,
    /// `FwMark`; 0 is `off`.
    pub fwmark: Option<u32>,
    /// `Address`.
    pub addresses: Vec<Address>,
    /// The name servers in `DNS`.
    pub dns: Vec<IpAddr>,
    /// The search domains in `DNS`.
    pub dns_search: Vec<String>,
    /// `MTU` in bytes.
    pub mtu: Option<u32>,
    /// `Table`.
    pub table: Option<Table>,
    /// `PreUp`, unexpanded.
    pub pre_up: Vec<String>,
    /// `PostUp`, unexpanded.
    pub post_up: Vec<String>,
    /// `PreDown`, unexpanded.
    pub pre_down: Vec<String>,
    /// `PostDown`, unexpanded.
    pub post_down: Vec<String>,
    /// `SaveConfig`.
    pub save_config: bool,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `PublicKey`.
    pub public_key: PublicKey,
    /// `PresharedKey`.
    pub preshared_key: Option<PresharedKey>,
    /// `AllowedIPs`.
    pub allowed_ips: Vec<Prefix>,
    /// `Endpoint`.
    pub endpoint: Option<Endpoint>,
    /// `PersistentKeepalive` in seconds; 0 is `off`.
    pub persistent_keepalive: Option<u16>,
}

/// An address of the tunnel device with the length of its subnet's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// In bits.
    pub prefix_length: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

/// Where a peer is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// At an address.
    Address(SocketAddr),
    /// At whatever address the name has.
    Name {
        /// A host name, or a link-local address with the name of an interface.
        host: String,
        /// UDP port.
        port: u16,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The routing table that the peers' prefixes go into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// None: no routes are added.
    Off,
    /// The main table; default routes go into one of their own, with rules that lead there.
    Auto,
    /// The table of this number.
    Number(u32),
    /// The table of this name in `/etc/iproute2/rt_tables`.
    Name(String),
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Auto => f.write_str("auto"),
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// What became of a text.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What was understood. It is all there is only if there are no errors.
    pub config: Config,
    /// Everything that is wrong or remarkable, in the order of the text.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// How many of the diagnostics are errors.
    #[must_use]
    pub fn errors(&self) -> usize {
        let errors = self.diagnostics.iter();
        errors.filter(|d| d.severity == Severity::Error).count()
    }
}

/// Reads a whole configuration file. Every line is looked at, whatever is wrong with those before it.
#[must_use]
pub fn parse(text: &str) -> Parsed {
    reader::read(text)
}
