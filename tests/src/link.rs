//! Wires between namespaces.

use anyhow::Result;

use crate::Namespace;
use crate::command::run;

/// One end of a wire: the interface name and its addresses in CIDR form.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The namespace.
    pub namespace: &'a Namespace,
    /// Name of the interface to make.
    pub interface: &'a str,
    /// Addresses with prefix length, both families.
    pub addresses: &'a [&'a str],
}

/// Joins two namespaces by a veth pair, both ends up, with the MTU and addresses given. The pair goes away with either
/// namespace.
///
/// # Errors
/// `ip` failed.
pub fn veth(left: End<'_>, right: End<'_>, mtu: u32) -> Result<()> {
    run(std::process::Command::new("ip").args([
        "-n",
        left.namespace.name(),
        "link",
        "add",
        left.interface,
        "type",
        "veth",
        "peer",
        "name",
        right.interface,
        "netns",
        right.namespace.name(),
    ]))?;
    for end in [left, right] {
        let interface = end.interface;
        let mut batch = format!("link set {interface} mtu {mtu} up\n");
        for address in end.addresses {
            batch.push_str(&format!(
                "address add {address} dev {interface} {}\n",
                nodad(address)
            ));
        }
        end.namespace.ip(&batch)?;
    }
    Ok(())
}

/// `nodad` for IPv6 addresses, which would be unusable for the first second otherwise.
#[must_use]
pub fn nodad(address: &str) -> &'static str {
    if address.contains(':') { "nodad" } else { "" }
}

/// Makes a namespace forward packets of both families.
///
/// # Errors
/// The kernel refuses.
pub fn forward(router: &Namespace) -> Result<()> {
    router.sysctl("net.ipv4.ip_forward", "1")?;
    router.sysctl("net.ipv6.conf.all.forwarding", "1")
}
