//! Names that no other run on the machine uses.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Prefix of every namespace the harness makes; [`crate::namespace`] finds what dead runs left behind by it.
pub const NAMESPACE_PREFIX: &str = "adit-";

/// A network interface name, 4 to 15 bytes, not used by another run: interface names end up in the directory
/// `/var/run/wireguard`, which all namespaces share.
#[must_use]
pub fn interface() -> String {
    let name = format!(
        "ad{}{}{}",
        base36(std::process::id()),
        // More than an hour's soak makes; with five digits of a process id that is 14 bytes.
        base36(next() % 1_679_616),
        run_tag()
    );
    debug_assert!(name.len() <= 15, "{name}");
    name
}

/// A namespace name: prefix, process id of this run, counter, random tag.
#[must_use]
pub fn namespace() -> String {
    format!(
        "{NAMESPACE_PREFIX}{}-{}-{}",
        std::process::id(),
        next(),
        run_tag()
    )
}

/// The process id in a namespace name made by [`namespace`].
#[must_use]
pub fn namespace_owner(name: &str) -> Option<u32> {
    name.strip_prefix(NAMESPACE_PREFIX)?
        .split('-')
        .next()?
        .parse()
        .ok()
}

fn next() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Three characters that tell this run from an earlier one with the same process id.
fn run_tag() -> &'static str {
    static TAG: OnceLock<String> = OnceLock::new();
    TAG.get_or_init(|| {
        let random = getrandom::u32().unwrap_or_else(|_| std::process::id());
        format!("{:0>3}", base36(random % 46656))
    })
}

fn base36(mut value: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(value % 36, 36).unwrap_or('0'));
        value /= 36;
        if value == 0 {
            return digits.iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_short_and_unique() {
        let names: std::collections::HashSet<_> = (0..10_000).map(|_| interface()).collect();
        assert_eq!(names.len(), 10_000);
        assert!(names.iter().all(|n| n.len() <= 15));
    }

    #[test]
    fn namespace_names_carry_their_owner() {
        assert_eq!(namespace_owner(&namespace()), Some(std::process::id()));
        assert_eq!(namespace_owner("adit-x-1"), None);
        assert_eq!(namespace_owner("other-12-1"), None);
    }
}
