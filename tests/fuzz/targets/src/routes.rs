//! The flattened lookup table against a search through all prefixes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit_protocol::{AllowedIps, Prefix};

use crate::script::Script;

/// The bytes are prefixes to add and remove, and addresses to look up.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let mut table = AllowedIps::new();
    let mut model = BTreeMap::new();
    let mut looked_up = vec![];
    while !script.is_empty() && model.len() < 300 {
        let address = address(&mut script);
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let length = script.byte();
        let Ok(prefix) = Prefix::new(address, length) else {
            assert!(length > longest);
            looked_up.push(address);
            continue;
        };
        assert!(prefix.contains(address));
        match script.choice(4) {
            0 => assert_eq!(table.remove(&prefix), model.remove(&prefix)),
            owner => assert_eq!(table.insert(prefix, owner), model.insert(prefix, owner)),
        }
        looked_up.extend([address, prefix.address(), neighbour(address, length)]);
    }
    assert_eq!(table.len(), model.len());
    assert!(table.iter().eq(model.iter()));
    let routes = table.to_table();
    for address in looked_up {
        let expected = model
            .iter()
            .filter(|(prefix, _)| prefix.contains(address))
            .max_by_key(|(prefix, _)| prefix.length());
        assert_eq!(
            routes.lookup(address),
            expected.map(|(_, owner)| owner),
            "{address}"
        );
    }
}

/// Few bits that vary, so that prefixes overlap.
fn address(script: &mut Script<'_>) -> IpAddr {
    match script.choice(4) {
        0 => Ipv4Addr::from(script.u32()).into(),
        1 => Ipv4Addr::new(10, 0, 0, script.byte()).into(),
        2 => Ipv6Addr::from(u128::from(script.u64()) << 64 | u128::from(script.u64())).into(),
        _ => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, script.byte().into()).into(),
    }
}

/// The address behind the prefix's last one, or somewhere else.
fn neighbour(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let size = 1_u32.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from(address.to_bits().wrapping_add(size)).into()
        }
        IpAddr::V6(address) => {
            let size = 1_u128.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from(address.to_bits().wrapping_add(size)).into()
        }
    }
}
