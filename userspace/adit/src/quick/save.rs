//! `SaveConfig`: writing a running tunnel back into its file, in the form of `wg-quick save`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use adit_kernel::netlink::{self, InterfaceAddress, Link};
use anyhow::{Context as _, Result};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use zeroize::Zeroizing;

use super::client::{PeerState, State};
use super::dns;
use crate::config::Config;

/// Enough for the interface, and for a peer without its prefixes.
const SECTION: usize = 1024;
/// Enough for a prefix.
const PREFIX: usize = 64;

/// The file's new contents: what runs, and what the file said that cannot be seen from what runs.
pub(super) fn text(config: &Config, state: &State, link: &Link) -> Result<Zeroizing<String>> {
    let addresses = netlink::interface_addresses(link.index)
        .context("cannot read the addresses of the interface")?;
    // With a device that is up the kernel makes a link-local address; it would clash with the next one.
    let own = |address: &InterfaceAddress| {
        let configured = config.interface.addresses.iter();
        let link_local = matches!(address.address, IpAddr::V6(ip) if ip.is_unicast_link_local());
        !link_local
            || configured
                .into_iter()
                .any(|own| own.address == address.address)
    };
    let addresses: Vec<_> = addresses.into_iter().filter(own).collect();
    let current = netlink::link_by_name(&link.name).context("cannot read the MTU")?;
    let mtu = current.map_or(link.mtu, |link| link.mtu);
    let servers = if config.interface.dns.is_empty() {
        Vec::new()
    } else {
        dns::servers(&link.name)
    };
    Ok(compose(config, state, &addresses, mtu, &servers))
}

fn compose(
    config: &Config,
    state: &State,
    addresses: &[InterfaceAddress],
    mtu: u32,
    servers: &[String],
) -> Zeroizing<String> {
    let interface = &config.interface;
    let hooks = [
        ("PreUp", &interface.pre_up),
        ("PostUp", &interface.post_up),
        ("PreDown", &interface.pre_down),
        ("PostDown", &interface.post_down),
    ];
    let hook_bytes: usize = hooks
        .iter()
        .flat_map(|(_, commands)| commands.iter().map(|command| command.len() + 16))
        .sum();
    let list_bytes = PREFIX * (addresses.len() + state.prefixes().count())
        + servers
            .iter()
            .chain(&interface.dns_search)
            .map(|word| word.len() + 8)
            .sum::<usize>();
    // All at once: growing would leave copies of the keys behind.
    let capacity = SECTION * (1 + state.peers.len()) + hook_bytes + list_bytes;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    // Writing to a string does not fail.
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{arguments}");
    };
    line(format_args!("[Interface]"));
    for address in addresses {
        line(format_args!(
            "Address = {}/{}",
            address.address, address.prefix_length
        ));
    }
    for server in servers {
        line(format_args!("DNS = {server}"));
    }
    for domain in &interface.dns_search {
        line(format_args!("DNS = {domain}"));
    }
    if interface.mtu.is_some() {
        line(format_args!("MTU = {mtu}"));
    }
    if let Some(table) = &interface.table {
        line(format_args!("Table = {table}"));
    }
    line(format_args!("SaveConfig = {}", interface.save_config));
    for (key, commands) in hooks {
        for command in commands {
            line(format_args!("{key} = {command}"));
        }
    }
    if state.listen_port != 0 {
        line(format_args!("ListenPort = {}", state.listen_port));
    }
    if state.fwmark != 0 {
        line(format_args!("FwMark = {:#x}", state.fwmark));
    }
    if let Some(key) = &state.private_key {
        line(format_args!("PrivateKey = {}", *base64(key.as_bytes())));
    }
    for peer in &state.peers {
        section(peer, &mut line);
    }
    text
}

fn section(peer: &PeerState, line: &mut impl FnMut(std::fmt::Arguments<'_>)) {
    line(format_args!("\n[Peer]"));
    line(format_args!("PublicKey = {}", peer.public_key));
    if let Some(key) = &peer.preshared_key {
        line(format_args!("PresharedKey = {}", *base64(key.as_bytes())));
    }
    if !peer.allowed_ips.is_empty() {
        let prefixes: Vec<_> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        line(format_args!("AllowedIPs = {}", prefixes.join(", ")));
    }
    if let Some(endpoint) = peer.endpoint {
        line(format_args!("Endpoint = {endpoint}"));
    }
    if peer.keepalive != 0 {
        line(format_args!("PersistentKeepalive = {}", peer.keepalive));
    }
}

fn base64(key: &[u8; 32]) -> Zeroizing<String> {
    Zeroizing::new(BASE64_STANDARD.encode(key))
}

/// Puts the text in place of the file in one go, readable by its owner alone.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = Path::new(&beside);
    let write = || -> std::io::Result<()> {
        // What is there was left by somebody who was interrupted, and may be readable by others.
        if let Err(error) = fs::remove_file(beside)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(beside, path)
    };
    write()
        .inspect_err(|_| {
            // The failure that is reported is the first one.
            let _ = fs::remove_file(beside);
        })
        .with_context(|| format!("SaveConfig: cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_saved_reads_back_as_it_was() {
        let key = "yAnz5TF+lXXJte14tji3zlMNftft3dYgqsGgXrcPkPk=";
        let written = format!(
            "[Interface]\nPrivateKey={key}\nAddress=10.9.0.1/24\nDNS=9.9.9.9,a.example\nMTU=1380\nTable=off\n\
             PreUp=a = b\nPostDown=c\nSaveConfig=true\n"
        );
        let config = crate::config::parse(&written).config;
        let mut state =
            State::with_prefixes([crate::config::value::allowed_ip("10.9.0.0/24").unwrap().0]);
        state.private_key = config.interface.private_key.clone();
        state.fwmark = 0xca6c;
        state.peers[0].endpoint = Some("[fe80::1%3]:5".parse().unwrap());
        state.peers[0].keepalive = 25;
        let address = InterfaceAddress {
            address: "10.9.0.1".parse().unwrap(),
            prefix_length: 24,
        };
        let text = compose(&config, &state, &[address], 1380, &["9.9.9.9".to_owned()]);
        let again = crate::config::parse(&text);
        assert_eq!(again.diagnostics, []);
        let mut expected = config.interface;
        expected.fwmark = Some(0xca6c);
        assert_eq!(again.config.interface, expected);
        let [peer] = &again.config.peers[..] else {
            panic!()
        };
        assert_eq!(peer.persistent_keepalive, Some(25));
        assert!(text.contains("\nEndpoint = [fe80::1%3]:5\n"));
    }

    #[test]
    fn the_file_is_replaced_and_private() {
        let directory = std::env::temp_dir().join(format!("adit-save-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("wg0.conf");
        fs::write(&path, "old").unwrap();
        fs::write(directory.join("wg0.conf.tmp"), "left over").unwrap();
        write(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        assert!(write(&directory.join("none/wg0.conf"), "x").is_err());
        fs::remove_dir_all(directory).unwrap();
    }
}
