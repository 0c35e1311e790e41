//! Configuration files: anything may stand in them, and no secret comes out in what is said about them.

use adit::config::diagnostic::{Severity, render};
use adit::config::{Config, parse, value};

/// The bytes are the text of a file.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let parsed = parse(&text);
    for diagnostic in &parsed.diagnostics {
        assert!(
            text.get(diagnostic.span.clone()).is_some(),
            "{diagnostic:?}"
        );
        if let Some((span, _)) = &diagnostic.related {
            assert!(text.get(span.clone()).is_some(), "{diagnostic:?}");
        }
        assert!(!diagnostic.message.is_empty());
    }
    let errors = parsed.diagnostics.iter();
    let errors = errors.filter(|diagnostic| diagnostic.severity == Severity::Error);
    assert_eq!(parsed.errors(), errors.count());
    let drawn = render(&parsed.diagnostics, "wg0.conf", &text, false);
    for secret in secrets(&text) {
        assert!(!drawn.contains(&*secret), "{secret:?} in\n{drawn}");
    }
    let coloured = render(&parsed.diagnostics, "wg0.conf", &text, true);
    assert_eq!(coloured.is_empty(), drawn.is_empty());
    check_values(&parsed.config);
}

/// What stands behind the names of secret keys, as far as it could be recognised when drawn.
fn secrets(text: &str) -> Vec<String> {
    let pairs: Vec<(String, String)> = text
        .split('\n')
        .filter_map(|line| line.split('#').next()?.split_once('='))
        .map(|(name, value)| {
            let name = name.split_ascii_whitespace().collect::<String>();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect();
    let is_secret = |name: &str| name == "privatekey" || name == "presharedkey";
    // What also stands somewhere else is none.
    let elsewhere = |value: &str| {
        let named = pairs
            .iter()
            .filter(|(name, other)| is_secret(name) && other == value);
        text.matches(value).count() != named.count()
    };
    let secrets = pairs.iter().filter(|(name, value)| {
        let telling = value.len() >= 12 && value.bytes().any(|byte| !b"*-= ^|_".contains(&byte));
        telling && is_secret(name) && !elsewhere(value)
    });
    secrets.map(|(_, value)| value.clone()).collect()
}

/// Values as they are printed are read as the same.
fn check_values(config: &Config) {
    let interface = &config.interface;
    for address in &interface.addresses {
        assert_eq!(value::address(&address.to_string()).ok(), Some(*address));
    }
    if let Some(table) = &interface.table {
        assert_eq!(value::table(&table.to_string()).ok().as_ref(), Some(table));
    }
    for server in &interface.dns {
        assert!(matches!(value::dns(&server.to_string()), Ok(Ok(read)) if read == *server));
    }
    for peer in &config.peers {
        for prefix in &peer.allowed_ips {
            let read = value::allowed_ip(&prefix.to_string()).ok();
            assert_eq!(read.map(|(prefix, _)| prefix), Some(*prefix));
        }
        if let Some(endpoint) = &peer.endpoint {
            let read = value::endpoint(&endpoint.to_string()).ok();
            assert_eq!(read.as_ref(), Some(endpoint));
        }
        let key = value::public_key(&peer.public_key.to_base64()).ok();
        assert_eq!(key, Some(peer.public_key));
    }
}
