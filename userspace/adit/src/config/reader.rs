//! Sections, keys and what belongs where.

use std::collections::HashMap;
use std::ops::Range;

use adit_protocol::{Prefix, PublicKey};

use super::diagnostic::{Diagnostic, Severity};
use super::line::{Line, Piece, lines};
use super::value::{self, Wrong, quoted};
use super::{Config, Interface, Parsed, Peer, secret};

/// Keys of the interface, as people write them.
const INTERFACE_KEYS: [&str; 12] = [
    "PrivateKey",
    "ListenPort",
    "FwMark",
    "Address",
    "DNS",
    "MTU",
    "Table",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
];
/// Keys of a peer.
const PEER_KEYS: [&str; 5] = [
    "PublicKey",
    "PresharedKey",
    "AllowedIPs",
    "Endpoint",
    "PersistentKeepalive",
];
/// Keys that `wg(8)` reads, which takes all blanks out of a line first.
const KEYS_OF_WG: [&str; 8] = [
    "PrivateKey",
    "ListenPort",
    "FwMark",
    "PublicKey",
    "PresharedKey",
    "AllowedIPs",
    "Endpoint",
    "PersistentKeepalive",
];
/// Keys that add to what was said before; of the others the last one counts.
const REPEATABLE: [&str; 7] = [
    "Address",
    "DNS",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "AllowedIPs",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    /// Before the first header.
    None,
    Interface,
    Peer,
    /// One that does not exist; its keys are passed over.
    Unknown,
}

/// A peer whose section is being read.
struct OpenPeer {
    header: Range<usize>,
    public_key: Option<(PublicKey, Range<usize>)>,
    /// A key was given, if a wrong one.
    named: bool,
    rest: Peer,
    allowed: Vec<(Prefix, Range<usize>)>,
}

struct Reader {
    config: Config,
    diagnostics: Vec<Diagnostic>,
    section: Section,
    peer: Option<OpenPeer>,
    /// Where the keys of this section were given last.
    given: HashMap<&'static str, Range<usize>>,
    /// Where peers were named, and prefixes given.
    names: HashMap<PublicKey, Range<usize>>,
    prefixes: HashMap<Prefix, Range<usize>>,
    interface_header: Option<Range<usize>>,
    private_key_given: bool,
    /// Where the first search domain is.
    domain: Option<Range<usize>>,
}

/// See [`super::parse`].
pub(super) fn read(text: &str) -> Parsed {
    let mut reader = Reader {
        config: Config::default(),
        diagnostics: Vec::new(),
        section: Section::None,
        peer: None,
        given: HashMap::new(),
        names: HashMap::new(),
        prefixes: HashMap::new(),
        interface_header: None,
        private_key_given: false,
        domain: None,
    };
    for line in lines(text) {
        match line {
            Line::Section(piece) => reader.open(piece),
            Line::Setting {
                key,
                value,
                comment,
            } => reader.setting(key, value, comment),
            Line::Other(piece) => reader.stray(piece),
        }
    }
    reader.close_peer();
    reader.look_at_the_whole();
    reader.diagnostics.sort_by_key(|d| d.span.start);
    Parsed {
        config: reader.config,
        diagnostics: reader.diagnostics,
    }
}

impl Reader {
    fn open(&mut self, header: Piece<'_>) {
        self.close_peer();
        self.given.clear();
        let name: String = header.text.split_whitespace().collect();
        self.section = match name.to_ascii_lowercase().as_str() {
            "[interface]" => Section::Interface,
            "[peer]" => Section::Peer,
            _ => Section::Unknown,
        };
        match self.section {
            Section::Interface => {
                self.interface_header.get_or_insert(header.span());
            }
            Section::Peer => {
                self.peer = Some(OpenPeer {
                    header: header.span(),
                    public_key: None,
                    named: false,
                    rest: Peer {
                        public_key: PublicKey::from_bytes([0; 32]),
                        preshared_key: None,
                        allowed_ips: Vec::new(),
                        endpoint: None,
                        persistent_keepalive: None,
                    },
                    allowed: Vec::new(),
                });
            }
            _ => {
                let inner = name.trim_matches(['[', ']']);
                let meant = nearest(inner, ["Interface", "Peer"].iter());
                let unclosed = !name.ends_with(']');
                let message = if unclosed && name.contains(']') {
                    "there is something behind the header of the section".to_owned()
                } else if unclosed {
                    "the header of the section does not close".to_owned()
                } else {
                    format!("there is no section {}", quoted(header.text))
                };
                let help = meant.map(|meant| format!("did you mean `[{meant}]`?"));
                self.diagnostics.push(
                    Diagnostic::error(header.span(), message, "expected `[Interface]` or `[Peer]`")
                        .maybe_help(help),
                );
            }
        }
    }

    /// A line that is neither a header nor a setting.
    fn stray(&mut self, piece: Piece<'_>) {
        if self.section == Section::Unknown {
            return;
        }
        let help = match piece.text.split_once([':', ' ', '\t']) {
            Some((word, _)) => known(word).map(|key| format!("write `{key} = …`")),
            None => known(piece.text).map(|key| format!("`{key}` needs a value: `{key} = …`")),
        };
        self.diagnostics.push(
            Diagnostic::error(
                piece.span(),
                "the line is neither a section nor a setting",
                "expected `Key = value`",
            )
            .maybe_help(help),
        );
    }

    fn setting(&mut self, key: Piece<'_>, value: Piece<'_>, comment: &str) {
        if self.section == Section::Unknown {
            return;
        }
        let Some(name) = known(key.text) else {
            return self.unknown_key(key, value);
        };
        let here = match self.section {
            Section::Interface => INTERFACE_KEYS.contains(&name),
            Section::Peer => PEER_KEYS.contains(&name),
            _ => false,
        };
        if !here {
            return self.misplaced(name, key);
        }
        if let Some(before) = self.given.insert(name, key.span())
            && !REPEATABLE.contains(&name)
        {
            self.diagnostics.push(
                Diagnostic::warning(
                    key.span(),
                    format!("{name}: given more than once"),
                    "this one counts",
                )
                .related(before, "this one does not"),
            );
        }
        if value.text.is_empty() && KEYS_OF_WG.contains(&name) {
            if name == "PublicKey"
                && let Some(peer) = &mut self.peer
            {
                peer.named = true;
            }
            self.private_key_given |= name == "PrivateKey";
            self.diagnostics.push(
                Diagnostic::error(
                    value.span(),
                    format!("{name}: there is no value"),
                    format!("expected {}", expected(name)),
                )
                .help("leave the line out if there is nothing to say"),
            );
            return;
        }
        match self.section {
            Section::Interface => self.interface_setting(name, value, comment),
            _ => self.peer_setting(name, value),
        }
    }

    fn unknown_key(&mut self, key: Piece<'_>, value: Piece<'_>) {
        if key.text.is_empty() {
            self.diagnostics.push(Diagnostic::error(
                key.start..value.start.max(key.start + 1),
                "there is no key before the `=`",
                "expected `Key = value`",
            ));
            return;
        }
        let first = key.text.split([':', ' ', '\t']).next().and_then(known);
        let help = match first {
            Some(name) => Some(format!("write `{name} = …`")),
            None => meant(key.text).map(|name| format!("did you mean `{name}`?")),
        };
        // The name of a key may be a key that stands on a line of its own: base64 ends with `=`.
        let message = if secret::masked(key.text) == key.text {
            format!("there is no key {}", quoted(key.text))
        } else {
            "there is no such key".to_owned()
        };
        let help = help.or_else(|| {
            let may_be_key = secret::masked(key.text) != key.text;
            may_be_key
                .then(|| "is this the value of the line above? Put it behind the `=`".to_owned())
        });
        let label = match self.section {
            Section::Peer => "not a key of a peer",
            _ => "not a key of the interface",
        };
        self.diagnostics
            .push(Diagnostic::error(key.span(), message, label).maybe_help(help));
    }

    /// A key that exists, but not here.
    fn misplaced(&mut self, name: &'static str, key: Piece<'_>) {
        let home = if PEER_KEYS.contains(&name) {
            "[Peer]"
        } else {
            "[Interface]"
        };
        let label = match self.section {
            Section::None => "no section has begun".to_owned(),
            Section::Peer => "this is a [Peer] section".to_owned(),
            _ => "this is the [Interface] section".to_owned(),
        };
        let mut diagnostic = Diagnostic::error(
            key.span(),
            format!("{name}: belongs to a section {home}"),
            label,
        );
        if self.section == Section::None {
            diagnostic = diagnostic.help(format!("begin with a line `{home}`"));
        } else if let Some(peer) = &self.peer {
            diagnostic = diagnostic.related(peer.header.clone(), "the section begins here");
        }
        self.diagnostics.push(diagnostic);
    }

    fn interface_setting(&mut self, name: &'static str, value: Piece<'_>, comment: &str) {
        let text = value.text;
        let interface = &mut self.config.interface;
        let result = match name {
            "PrivateKey" => {
                self.private_key_given = true;
                let key = value::private_key(&without_blanks(text));
                key.map(|key| interface.private_key = Some(key))
            }
            "ListenPort" => {
                value::port(&without_blanks(text)).map(|port| interface.listen_port = Some(port))
            }
            "FwMark" => {
                value::fwmark(&without_blanks(text)).map(|mark| interface.fwmark = Some(mark))
            }
            // As for wg-quick, to say nothing of these two is to leave them out.
            "MTU" => unless_empty(text, value::mtu).map(|mtu| interface.mtu = mtu),
            "Table" => unless_empty(text, value::table).map(|table| interface.table = table),
            "SaveConfig" => value::boolean(text).map(|save| interface.save_config = save),
            "Address" => return self.addresses(value),
            "DNS" => return self.dns(value),
            _ => return self.hook(name, value, comment),
        };
        if let Err(wrong) = result {
            self.wrong(name, value, wrong);
        }
    }

    fn addresses(&mut self, value: Piece<'_>) {
        for word in words(value) {
            match value::address(word.text) {
                Ok(address) => self.config.interface.addresses.push(address),
                Err(wrong) => self.wrong("Address", word, wrong),
            }
        }
    }

    fn dns(&mut self, value: Piece<'_>) {
        for word in words(value) {
            match value::dns(word.text) {
                Ok(Ok(server)) => self.config.interface.dns.push(server),
                Ok(Err(domain)) => {
                    self.config.interface.dns_search.push(domain);
                    self.domain.get_or_insert(word.span());
                }
                Err(wrong) => self.wrong("DNS", word, wrong),
            }
        }
    }

    fn hook(&mut self, name: &'static str, value: Piece<'_>, comment: &str) {
        let interface = &mut self.config.interface;
        let hooks = match name {
            "PreUp" => &mut interface.pre_up,
            "PostUp" => &mut interface.post_up,
            "PreDown" => &mut interface.pre_down,
            _ => &mut interface.post_down,
        };
        hooks.push(value.text.to_owned());
        let open = |quote| value.text.matches(quote).count() % 2 == 1;
        if !comment.is_empty() && (open('"') || open('\'')) {
            self.diagnostics.push(
                Diagnostic::warning(
                    value.span(),
                    format!("{name}: the command is cut off at a `#`"),
                    "only this much of it is run",
                )
                .help("`#` begins a comment everywhere, also between quotes"),
            );
        }
    }

    fn peer_setting(&mut self, name: &'static str, value: Piece<'_>) {
        let Some(peer) = &mut self.peer else { return };
        let text = without_blanks(value.text);
        let result = match name {
            "PublicKey" => {
                peer.named = true;
                value::public_key(&text).map(|key| peer.public_key = Some((key, value.span())))
            }
            "PresharedKey" => {
                value::preshared_key(&text).map(|key| peer.rest.preshared_key = Some(key))
            }
            "PersistentKeepalive" => {
                value::keepalive(&text).map(|time| peer.rest.persistent_keepalive = Some(time))
            }
            "Endpoint" => value::endpoint(&text).map(|endpoint| {
                peer.rest.endpoint = Some(endpoint);
            }),
            _ => return self.allowed_ips(value),
        };
        match result {
            Err(wrong) => self.wrong(name, value, wrong),
            Ok(()) if name == "Endpoint" && text.ends_with(":0") => {
                self.diagnostics.push(Diagnostic::warning(
                    value.span(),
                    "Endpoint: nobody listens on port 0",
                    "expected the port that the peer listens on",
                ));
            }
            Ok(()) => {}
        }
    }

    fn allowed_ips(&mut self, value: Piece<'_>) {
        for part in value.split(|c| c == ',') {
            let text = without_blanks(part.text);
            match value::allowed_ip(&text) {
                Ok((prefix, bits)) => {
                    if let Some(peer) = &mut self.peer {
                        peer.allowed.push((prefix, part.span()));
                    }
                    if bits {
                        self.diagnostics.push(Diagnostic::warning(
                            part.span(),
                            format!("AllowedIPs: {} has host bits set", quoted(&text)),
                            format!("taken as {prefix}"),
                        ));
                    }
                }
                Err(wrong) if text.is_empty() => {
                    let span = part.start..part.start;
                    let label = format!("expected {}", wrong.expected);
                    self.diagnostics.push(
                        Diagnostic::error(
                            span,
                            "AllowedIPs: there is nothing at this comma",
                            label,
                        )
                        .help("leave the comma out"),
                    );
                }
                Err(mut wrong) => {
                    if part.text.contains(char::is_whitespace) {
                        wrong.help = Some("put a comma between two prefixes".to_owned());
                    }
                    self.wrong("AllowedIPs", part, wrong);
                }
            }
        }
    }

    fn wrong(&mut self, name: &str, value: Piece<'_>, wrong: Wrong) {
        let label = format!("expected {}", wrong.expected);
        // What is said of a key does not repeat it. Whatever else a value is, it may be a key in the wrong line.
        let message = if name.ends_with("Key") || secret::masked(value.text) == value.text {
            format!("{name}: {}", wrong.problem)
        } else {
            format!("{name}: the value will not do")
        };
        let help = wrong.help.filter(|help| secret::masked(help) == *help);
        self.diagnostics
            .push(Diagnostic::error(value.span(), message, label).maybe_help(help));
    }

    /// Takes the peer whose section ends into the configuration.
    fn close_peer(&mut self) {
        let Some(peer) = self.peer.take() else { return };
        let Some((public_key, span)) = peer.public_key else {
            if !peer.named {
                self.diagnostics.push(Diagnostic::error(
                    peer.header,
                    "PublicKey: the peer has none",
                    "expected a line `PublicKey = …` in this section",
                ));
            }
            return;
        };
        for (prefix, span) in &peer.allowed {
            if let Some(before) = self.prefixes.insert(*prefix, span.clone())
                && before.end <= peer.header.start
            {
                self.diagnostics.push(
                    Diagnostic::warning(
                        span.clone(),
                        format!("AllowedIPs: {prefix} is another peer's already"),
                        "this peer gets it",
                    )
                    .related(before, "this peer loses it"),
                );
            }
        }
        if let Some(before) = self.names.insert(public_key, span.clone()) {
            self.diagnostics.push(
                Diagnostic::warning(
                    span,
                    "PublicKey: there is a peer with this key already",
                    "both sections are about one peer",
                )
                .related(before, "given here first"),
            );
        }
        self.config.peers.push(Peer {
            public_key,
            allowed_ips: peer.allowed.into_iter().map(|(prefix, _)| prefix).collect(),
            ..peer.rest
        });
    }

    /// What can be told only at the end.
    fn look_at_the_whole(&mut self) {
        let Interface {
            private_key,
            post_up,
            pre_up,
            ..
        } = &self.config.interface;
        let errors = self
            .diagnostics
            .iter()
            .any(|d| d.severity == Severity::Error);
        if let Some(domain) = &self.domain
            && self.config.interface.dns.is_empty()
            && !errors
        {
            self.diagnostics.push(
                Diagnostic::warning(
                    domain.clone(),
                    "DNS: there are domains to search, but no name server",
                    "ignored",
                )
                .help("give the address of a name server too"),
            );
        }
        let own = private_key.as_ref().map(|key| key.public_key());
        if let Some(span) = own.and_then(|own| self.names.get(&own)) {
            self.diagnostics.push(
                Diagnostic::warning(
                    span.clone(),
                    "PublicKey: this is the interface's own key",
                    "the peer is ignored",
                )
                .help("the public key here is the one that belongs to the peer's private key"),
            );
        }
        // A hook may set the key: `PostUp = wg set %i private-key …` keeps it out of the file.
        let hooks = !post_up.is_empty() || !pre_up.is_empty();
        if let Some(header) = &self.interface_header
            && !self.private_key_given
            && !hooks
            && !errors
        {
            self.diagnostics.push(
                Diagnostic::warning(
                    header.clone(),
                    "PrivateKey: the interface has none",
                    "nothing can be sent without one",
                )
                .help("make one with `adit genkey`"),
            );
        }
    }
}

/// The key that is meant by a word, in whatever case. `wg(8)` takes its own keys with blanks inside too.
fn known(word: &str) -> Option<&'static str> {
    let all = || INTERFACE_KEYS.iter().chain(&PEER_KEYS).copied();
    all()
        .find(|key| key.eq_ignore_ascii_case(word))
        .or_else(|| {
            let word = without_blanks(word);
            KEYS_OF_WG
                .into_iter()
                .find(|key| key.eq_ignore_ascii_case(&word))
        })
}

/// The key that somebody may have meant by a word that is none.
fn meant(word: &str) -> Option<&'static str> {
    /// What other programs and people call them.
    const OTHER_NAMES: [(&str, &str); 8] = [
        ("psk", "PresharedKey"),
        ("port", "ListenPort"),
        ("keepalive", "PersistentKeepalive"),
        ("ip", "Address"),
        ("nameserver", "DNS"),
        ("nameservers", "DNS"),
        ("mark", "FwMark"),
        ("routes", "AllowedIPs"),
    ];
    let lower = word.to_ascii_lowercase();
    let other = OTHER_NAMES.iter().find(|(name, _)| *name == lower);
    other
        .map(|(_, key)| *key)
        .or_else(|| nearest(word, INTERFACE_KEYS.iter().chain(&PEER_KEYS)))
}

/// The word that is most like this one, if any is like it.
fn nearest(word: &str, words: impl Iterator<Item = &'static &'static str>) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let distance = |other: &str| {
        let other = other.to_ascii_lowercase();
        strsim::damerau_levenshtein(&word, &other)
    };
    let near = words.copied().map(|other| (distance(other), other)).min()?;
    let limit = (word.chars().count() / 3).max(1);
    (near.0 <= limit).then_some(near.1)
}

/// A value that may also be left empty.
fn unless_empty<T>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, Wrong>,
) -> Result<Option<T>, Wrong> {
    (!text.is_empty()).then(|| parse(text)).transpose()
}

/// `wg(8)` takes all blanks out of a line.
fn without_blanks(text: &str) -> zeroize::Zeroizing<String> {
    let mut kept = zeroize::Zeroizing::new(String::with_capacity(text.len()));
    kept.extend(text.chars().filter(|c| !c.is_ascii_whitespace()));
    kept
}

/// `wg-quick` splits at commas and blanks.
fn words(value: Piece<'_>) -> impl Iterator<Item = Piece<'_>> {
    let parts = value.split(|c| c == ',' || c.is_ascii_whitespace());
    parts.into_iter().filter(|part| !part.text.is_empty())
}

fn expected(name: &str) -> &'static str {
    match name {
        "PrivateKey" | "PublicKey" | "PresharedKey" => "a key in base64",
        "ListenPort" => "a number from 0 to 65535",
        "FwMark" => "`off` or a number",
        "AllowedIPs" => "addresses such as 10.9.0.0/24, with commas between them",
        "Endpoint" => "HOST:PORT",
        _ => "`off` or seconds",
    }
}
