//! Whole files: what is read from a right one, and what is said about each wrong one in `wrong/`.

use std::fs;
use std::path::Path;

use super::diagnostic::render;
use super::*;

const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNftft3dYgqsGgXrcPkPk=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";
const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// Every form that `wg-quick` and `wg` take.
fn whole() -> String {
    format!(
        "# a comment\n[interface]  # another\r\n  privatekey={PRIVATE}\nLISTENPORT\t=\t51820\nFw Mark = 0xca6c\n\
         Address = 10.9.0.1/24,fd09::1/64 10.8.0.1\nAddress = 10.7.0.1/255.255.0.0\n\
         DNS = 9.9.9.9, 2620:fe::fe,example.org\nMTU = 1380\nTable = auto\n\
         PreUp = echo a = b; echo %i\nPostUp = one # not this\nPostUp = two\nPreDown = three\nPostDown =\n\
         SaveConfig = TRUE\n\n[ Peer ]\nPublicKey = {PUBLIC}\nPreshared Key = {PRIVATE}\n\
         AllowedIPs = 10.9.0.2, fd09::/64\nAllowedIPs = 0.0.0.0/0\nEndpoint = vpn.example.org:51820\n\
         PersistentKeepalive = off\n[Interface]\nListenPort = 7\n[peer]\nPublicKey = {OTHER}\n\
         Endpoint = [2001:db8::1]:51820"
    )
}

#[test]
fn a_whole_file_is_read() {
    let Parsed {
        config,
        diagnostics,
    } = parse(&whole());
    assert_eq!(diagnostics, []);
    let Interface {
        private_key,
        addresses,
        ..
    } = &config.interface;
    assert!(private_key.is_some());
    let addresses: Vec<_> = addresses.iter().map(Address::to_string).collect();
    assert_eq!(
        addresses,
        ["10.9.0.1/24", "fd09::1/64", "10.8.0.1/32", "10.7.0.1/16"]
    );
    let interface = Interface {
        private_key: None,
        addresses: Vec::new(),
        ..config.interface
    };
    let strings = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    assert_eq!(
        interface,
        Interface {
            private_key: None,
            listen_port: Some(7),
            fwmark: Some(0xca6c),
            addresses: Vec::new(),
            dns: vec!["9.9.9.9".parse().unwrap(), "2620:fe::fe".parse().unwrap()],
            dns_search: strings(&["example.org"]),
            mtu: Some(1380),
            table: Some(Table::Auto),
            pre_up: strings(&["echo a = b; echo %i"]),
            post_up: strings(&["one", "two"]),
            pre_down: strings(&["three"]),
            post_down: strings(&[""]),
            save_config: true,
        }
    );
    let [first, second] = &config.peers[..] else {
        panic!()
    };
    assert_eq!(first.public_key.to_base64(), PUBLIC);
    assert!(first.preshared_key.is_some());
    let prefixes: Vec<_> = first.allowed_ips.iter().map(Prefix::to_string).collect();
    assert_eq!(prefixes, ["10.9.0.2/32", "fd09::/64", "0.0.0.0/0"]);
    assert_eq!(
        first.endpoint,
        Some(Endpoint::Name {
            host: "vpn.example.org".to_owned(),
            port: 51820
        })
    );
    assert_eq!(first.persistent_keepalive, Some(0));
    assert_eq!(
        second.endpoint.as_ref().unwrap().to_string(),
        "[2001:db8::1]:51820"
    );
    assert_eq!(
        (second.persistent_keepalive, &second.preshared_key),
        (None, &None)
    );
}

#[test]
fn nothing_is_a_configuration_too() {
    for text in [
        "",
        "\n\n",
        "# only a comment",
        "[Interface]",
        "[Interface]\nPostUp=x\n",
    ] {
        let parsed = parse(text);
        assert_eq!(parsed.errors(), 0, "{text}");
        assert!(parsed.config.peers.is_empty());
    }
}

/// What is said about each file in `wrong/`.
#[test]
fn wrong_files_get_these_messages() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/wrong");
    let mut files: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 25);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap();
        let parsed = parse(&text);
        assert!(!parsed.diagnostics.is_empty(), "{name}");
        let message = render(&parsed.diagnostics, &format!("{name}.conf"), &text, false);
        for secret in secrets(&text) {
            assert!(!message.contains(&secret), "{name}:\n{message}");
        }
        insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, message);
        });
    }
}

/// Every eight characters of the values that are not public keys but long enough for keys.
fn secrets(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with("PublicKey"));
    let words = lines.flat_map(|line| line.split([' ', ':', ',']));
    let long = words.filter(|word| word.len() >= 40 && word.is_ascii());
    long.flat_map(|word| (0..word.len() - 8).map(|at| word[at..at + 8].to_owned()))
        .collect()
}

#[test]
fn colours_are_for_terminals() {
    let text = "[Interface]\nMTU = x\nPostUp = y\n";
    let diagnostics = parse(text).diagnostics;
    assert!(render(&diagnostics, "wg0.conf", text, true).contains('\x1b'));
    assert!(!render(&diagnostics, "wg0.conf", text, false).contains('\x1b'));
}

/// Every cut and every single changed byte of a whole file, and junk: never a panic, and every diagnostic can be drawn.
#[test]
fn nothing_makes_it_panic() {
    let whole = whole();
    let look = |text: &str| {
        let parsed = parse(text);
        let drawn = render(&parsed.diagnostics, "f", text, false);
        assert_eq!(drawn.is_empty(), parsed.diagnostics.is_empty());
        assert!(!drawn.contains(&PRIVATE[..12]), "{drawn}");
    };
    for end in 0..whole.len() {
        look(&whole[..end]);
    }
    for at in (0..whole.len()).step_by(3) {
        for byte in ["", "=", "#", "[", "\n", "\0", "é", ",", " "] {
            let mut changed = whole.clone();
            changed.replace_range(at..=at, byte);
            look(&changed);
        }
    }
    for junk in [
        "=",
        "==",
        "[",
        "]",
        "[]",
        "=\n=",
        "\0",
        "\r",
        "é = é",
        "[é]",
        "[Peer]\n\u{202e}=\u{202e}",
        "[Peer]\nAllowedIPs = ,\nAllowedIPs = é,é\nEndpoint = é",
        "[Interface]\nAddress = é/é",
    ] {
        look(junk);
    }
}
