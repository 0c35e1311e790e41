//! Two sites with a tunnel between them: what most tests start from.
//!
//! ```text
//!   namespace                                        namespace
//!  ┌───────────────────┐                            ┌───────────────────┐
//!  │ left     adXXXX   │ 10.9.0.1         10.9.0.2  │ right    adYYYY   │
//!  │          wan0     │ 192.0.2.1 ────── 192.0.2.2 │          wan0     │
//!  └───────────────────┘                            └───────────────────┘
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use crate::daemon::Options;
use crate::link::{End, veth};
use crate::ping::wait_reachable;
use crate::wg::{self, Dump, KeyPair, Peer};
use crate::{Daemon, Namespace};

/// UDP port of every site, unless a test changes it.
pub const PORT: u16 = 51820;

/// The interface a site uses to reach other sites.
pub const WAN: &str = "wan0";

/// How long the first handshake may take on a busy machine.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

/// How to build a [`Pair`].
#[derive(Debug, Clone)]
pub struct PairOptions {
    /// The left daemon.
    pub left: Options,
    /// The right daemon.
    pub right: Options,
    /// Family of the outer addresses used as endpoints.
    pub outer: Family,
    /// MTU of the tunnel devices.
    pub mtu: u32,
    /// MTU of the wire between the sites.
    pub wire_mtu: u32,
    /// Is the right site told where the left one is? If not, it learns from the first handshake.
    pub right_knows_left: bool,
    /// Preshared key in base64.
    pub preshared_key: Option<String>,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            left: Options::default(),
            right: Options::default(),
            outer: Family::V4,
            mtu: 1420,
            wire_mtu: 1500,
            right_knows_left: true,
            preshared_key: None,
        }
    }
}

/// A namespace with a daemon in it.
#[derive(Debug)]
pub struct Site {
    /// The daemon. Before the namespace, so that it ends first.
    pub daemon: Daemon,
    /// The namespace.
    pub namespace: Namespace,
    /// The site's keys.
    pub keys: KeyPair,
    /// Number of the site in its addresses, from 1.
    pub number: u8,
}

impl Site {
    /// Starts a daemon in `namespace`, gives it keys, a port and inner addresses, and sets its device up.
    ///
    /// # Errors
    /// Any of it failed.
    pub fn start(namespace: Namespace, number: u8, mtu: u32, options: &Options) -> Result<Self> {
        let daemon = Daemon::start(&namespace, options)?;
        let site = Self {
            daemon,
            namespace,
            keys: KeyPair::generate()?,
            number,
        };
        site.set_up(mtu)?;
        Ok(site)
    }

    /// Configures the device from scratch: key, port, inner addresses, up.
    ///
    /// # Errors
    /// `wg` or `ip` failed.
    pub fn set_up(&self, mtu: u32) -> Result<()> {
        let interface = self.interface();
        let private = &self.keys.private;
        let config = format!("[Interface]\nPrivateKey = {private}\nListenPort = {PORT}\n");
        wg::apply(&self.namespace, "setconf", interface, &config)?;
        self.namespace.ip(&format!(
            "link set {interface} mtu {mtu}
             address add {}/24 dev {interface}
             address add {}/64 dev {interface} nodad
             link set {interface} up",
            self.inner(Family::V4),
            self.inner(Family::V6),
        ))
    }

    /// Name of the tunnel device.
    #[must_use]
    pub fn interface(&self) -> &str {
        self.daemon.interface()
    }

    /// Address inside the tunnel.
    #[must_use]
    pub fn inner(&self, family: Family) -> IpAddr {
        inner(self.number, family)
    }

    /// Address on the wire.
    #[must_use]
    pub fn outer(&self, family: Family) -> IpAddr {
        outer(self.number, family)
    }

    /// Where its daemon listens.
    #[must_use]
    pub fn endpoint(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.outer(family), PORT)
    }

    /// Runs `wg set IFACE …`.
    ///
    /// # Errors
    /// `wg` failed.
    pub fn wg_set(&self, arguments: &str) -> Result<()> {
        wg::wg(
            &self.namespace,
            &format!("set {} {arguments}", self.interface()),
        )
        .map(drop)
    }

    /// Adds `peer` with its inner addresses as allowed prefixes, and `more` arguments of `wg set`.
    ///
    /// # Errors
    /// `wg` failed.
    pub fn add_peer(&self, peer: &Self, more: &str) -> Result<()> {
        let (v4, v6) = (peer.inner(Family::V4), peer.inner(Family::V6));
        self.wg_set(&format!(
            "peer {} allowed-ips {v4}/32,{v6}/128 {more}",
            peer.keys.public
        ))
    }

    /// `wg show IFACE dump`.
    ///
    /// # Errors
    /// `wg` failed.
    pub fn dump(&self) -> Result<Dump> {
        wg::dump(&self.namespace, self.interface())
    }

    /// What `wg show` tells of `peer`.
    ///
    /// # Errors
    /// `wg` failed or there is no such peer.
    pub fn peer(&self, peer: &Self) -> Result<Peer> {
        let peer = self.dump()?.peers.remove(&peer.keys.public);
        peer.ok_or_else(|| anyhow::anyhow!("site {} has no such peer", self.number))
    }

    /// Runs `wg set` with a secret, given as a file as `wg` wants it, before `arguments`.
    ///
    /// # Errors
    /// `wg` failed.
    pub fn wg_set_secret(&self, before: &str, secret: &str) -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), secret)?;
        self.wg_set(&format!("{before} {}", file.path().display()))
    }
}

/// Inner address of site `number`.
#[must_use]
pub fn inner(number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 9, 0, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// Outer address of site `number` on a wire shared with its peer; documentation prefixes.
#[must_use]
pub fn outer(number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, number).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// Two sites, directly connected, with a tunnel between them.
#[derive(Debug)]
pub struct Pair {
    /// Site 1. It knows where the right one is.
    pub left: Site,
    /// Site 2.
    pub right: Site,
}

impl Pair {
    /// Builds two namespaces, a wire, two daemons and their configuration. No packet was exchanged yet.
    ///
    /// # Errors
    /// Any of it failed.
    pub fn new(options: &PairOptions) -> Result<Self> {
        let (left, right) = (Namespace::new()?, Namespace::new()?);
        connect(&left, &right, options.wire_mtu)?;
        let left = Site::start(left, 1, options.mtu, &options.left)?;
        let right = Site::start(right, 2, options.mtu, &options.right)?;
        let pair = Self { left, right };
        // In one go with the rest: boringtun cannot change a peer it already has.
        let secret = tempfile::NamedTempFile::new()?;
        std::fs::write(
            secret.path(),
            options.preshared_key.as_deref().unwrap_or_default(),
        )?;
        let preshared = match options.preshared_key {
            Some(_) => format!("preshared-key {}", secret.path().display()),
            None => String::new(),
        };
        let endpoint =
            |site: &Site| format!("endpoint {} {preshared}", site.endpoint(options.outer));
        pair.left.add_peer(&pair.right, &endpoint(&pair.right))?;
        let hint = if options.right_knows_left {
            endpoint(&pair.left)
        } else {
            preshared.clone()
        };
        pair.right.add_peer(&pair.left, &hint)?;
        Ok(pair)
    }

    /// [`Pair::new`] with a first handshake made by the left side, and its first packet answered.
    ///
    /// # Errors
    /// As [`Pair::new`], or the handshake does not succeed in time.
    pub fn connected(options: &PairOptions) -> Result<Self> {
        let pair = Self::new(options)?;
        pair.wait_connected()?;
        Ok(pair)
    }

    /// Waits until a ping from left to right is answered.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_connected(&self) -> Result<()> {
        wait_reachable(
            &self.left.namespace,
            self.right.inner(Family::V4),
            HANDSHAKE_LIMIT,
        )
    }

    /// Sets the preshared key on both sides.
    ///
    /// # Errors
    /// `wg` failed.
    pub fn set_preshared_key(&self, key: &str) -> Result<()> {
        for (site, other) in [(&self.left, &self.right), (&self.right, &self.left)] {
            site.wg_set_secret(&format!("peer {} preshared-key", other.keys.public), key)?;
        }
        Ok(())
    }

    /// Both daemons must still run.
    ///
    /// # Errors
    /// One ended; its log is in the error.
    pub fn check_running(&mut self) -> Result<()> {
        for site in [&mut self.left, &mut self.right] {
            if !site.daemon.running() {
                anyhow::bail!(
                    "daemon of site {} ended\n{}",
                    site.number,
                    site.daemon.log_text()
                );
            }
        }
        Ok(())
    }
}

/// Puts a wire between two namespaces, with the outer addresses of site 1 and 2.
///
/// # Errors
/// `ip` failed.
pub fn connect(left: &Namespace, right: &Namespace, mtu: u32) -> Result<()> {
    let addresses = |n| {
        [
            format!("{}/24", outer(n, Family::V4)),
            format!("{}/64", outer(n, Family::V6)),
        ]
    };
    let (l, r) = (addresses(1), addresses(2));
    veth(
        End {
            namespace: left,
            interface: WAN,
            addresses: &[&l[0], &l[1]],
        },
        End {
            namespace: right,
            interface: WAN,
            addresses: &[&r[0], &r[1]],
        },
        mtu,
    )
}
