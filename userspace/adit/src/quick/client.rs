//! Talking to the daemon of a tunnel.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_protocol::{Prefix, PresharedKey, PrivateKey, PublicKey};
use anyhow::{Context as _, Result, bail};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use zeroize::Zeroizing;

use super::operation::Operation;
use crate::uapi::Errno;
use crate::uapi::request::{Parser, Setting};
use crate::uapi::socket::DIRECTORY;

/// A daemon that is alive answers within milliseconds; one that takes in a million peers within seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A tunnel as its daemon describes it, with its keys.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) private_key: Option<PrivateKey>,
    pub(super) listen_port: u16,
    /// 0 if off.
    pub(super) fwmark: u32,
    /// Its UDP port is open: the device is up, and nobody else had the port.
    pub(super) bound: bool,
    pub(super) peers: Vec<PeerState>,
}

/// A peer in [`State`].
#[derive(Debug)]
pub(super) struct PeerState {
    pub(super) public_key: PublicKey,
    pub(super) preshared_key: Option<PresharedKey>,
    pub(super) endpoint: Option<SocketAddr>,
    /// Seconds; 0 if off.
    pub(super) keepalive: u16,
    pub(super) allowed_ips: Vec<Prefix>,
    /// Unix time in seconds; 0 if never.
    pub(super) latest_handshake: u64,
}

/// The file of a tunnel's socket.
pub(super) fn socket_path(interface: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{interface}.sock"))
}

/// Whether a daemon listens.
pub(super) fn listens(interface: &str) -> bool {
    UnixStream::connect(socket_path(interface)).is_ok()
}

/// The id of the process that made the socket.
pub(super) fn daemon_pid(interface: &str) -> Result<u32> {
    let stream = connect(interface)?;
    let credentials = getsockopt(&stream, PeerCredentials)
        .with_context(|| format!("cannot ask who the daemon of {interface} is"))?;
    Ok(credentials.pid().unsigned_abs())
}

/// Carries out an operation.
pub(super) fn set(interface: &str, operation: &Operation) -> Result<()> {
    let mut stream = connect(interface)?;
    let talk = |stream: &mut UnixStream| -> io::Result<Zeroizing<Vec<u8>>> {
        stream.write_all(operation.text().as_bytes())?;
        stream.write_all(b"\n")?;
        read_answer(stream)
    };
    let answer =
        talk(&mut stream).with_context(|| format!("cannot talk to the daemon of {interface}"))?;
    let errno = std::str::from_utf8(&answer)
        .ok()
        .and_then(|text| text.trim_end().strip_prefix("errno=")?.parse::<i32>().ok());
    match errno {
        Some(0) => Ok(()),
        Some(errno) if errno.abs() == Errno::AddressInUse.code().abs() => {
            bail!("the port to listen on is taken: choose another ListenPort, or end what uses it")
        }
        Some(errno) => {
            let error = io::Error::from_raw_os_error(errno.abs());
            Err(error)
                .with_context(|| format!("the daemon of {interface} refuses the configuration"))
        }
        None => bail!("the daemon of {interface} gives no answer"),
    }
}

/// Asks for everything.
pub(super) fn get(interface: &str) -> Result<State> {
    let mut stream = connect(interface)?;
    let answer = stream
        .write_all(b"get=1\n\n")
        .and_then(|()| read_answer(&mut stream))
        .with_context(|| format!("cannot talk to the daemon of {interface}"))?;
    State::parse(&answer).with_context(|| format!("the daemon of {interface} makes no sense"))
}

pub(crate) fn connect(interface: &str) -> Result<UnixStream> {
    let path = socket_path(interface);
    let stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => anyhow::anyhow!(
            "{interface} is not up: no daemon listens on {}",
            path.display()
        ),
        io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("not allowed to talk to the daemon of {interface}: run this as root")
        }
        _ => anyhow::Error::new(error).context(format!("cannot connect to {}", path.display())),
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads up to the blank line that ends an answer, or to the end.
fn read_answer(stream: &mut UnixStream) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut answer = Zeroizing::new(Vec::with_capacity(1 << 16));
    let mut chunk = Zeroizing::new([0; 1 << 14]);
    while !answer.ends_with(b"\n\n") {
        let length = match stream.read(&mut *chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it does not answer",
                ));
            }
            Err(error) => return Err(error),
        };
        if answer.capacity() - answer.len() < length {
            // Growing in place would leave a copy behind that nobody wipes.
            let mut larger = Vec::with_capacity(2 * answer.capacity());
            larger.extend_from_slice(&answer);
            answer = Zeroizing::new(larger);
        }
        answer.extend_from_slice(&chunk[..length]);
    }
    Ok(answer)
}

impl State {
    /// Reads an answer to `get=1`; its keys are those of a `set` and a few more.
    fn parse(answer: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(answer).context("its answer is not text")?;
        let mut state = Self::default();
        let mut parser = Parser::default();
        for line in text.lines() {
            if let Some(errno) = line.strip_prefix("errno=") {
                anyhow::ensure!(errno == "0", "it answers with errno {errno}");
                return Ok(state);
            }
            if let Some(time) = line.strip_prefix("last_handshake_time_sec=") {
                if let Some(peer) = state.peers.last_mut() {
                    peer.latest_handshake = time.parse().context("a time is not a number")?;
                }
                continue;
            }
            if let Some(path) = line.strip_prefix("adit_datapath=") {
                state.bound = path != "none";
                continue;
            }
            // Keys that are not known are passed over, as wg(8) does.
            if let Ok(setting) = parser.line(line) {
                state.take(setting);
            }
        }
        bail!("its answer is cut short")
    }

    fn take(&mut self, setting: Setting) {
        let peer = self.peers.last_mut();
        match (setting, peer) {
            (Setting::PrivateKey(key), _) => self.private_key = key,
            (Setting::ListenPort(port), _) => self.listen_port = port,
            (Setting::FirewallMark(mark), _) => self.fwmark = mark,
            (Setting::Peer(public_key), _) => self.peers.push(PeerState {
                public_key,
                preshared_key: None,
                endpoint: None,
                keepalive: 0,
                allowed_ips: Vec::new(),
                latest_handshake: 0,
            }),
            (Setting::PresharedKey(key), Some(peer)) => peer.preshared_key = key,
            (Setting::Endpoint(address), Some(peer)) => peer.endpoint = Some(address),
            (Setting::PersistentKeepalive(seconds), Some(peer)) => peer.keepalive = seconds,
            (Setting::AllowedIp(prefix), Some(peer)) => peer.allowed_ips.push(prefix),
            _ => {}
        }
    }

    /// A tunnel to one peer with these prefixes.
    #[cfg(test)]
    pub(super) fn with_prefixes(prefixes: impl IntoIterator<Item = Prefix>) -> Self {
        let mut state = Self::default();
        state.take(Setting::Peer(PublicKey::from_bytes([7; 32])));
        for prefix in prefixes {
            state.take(Setting::AllowedIp(prefix));
        }
        state
    }

    /// Everything that goes through the tunnel.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.peers
            .iter()
            .flat_map(|peer| peer.allowed_ips.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_with_its_keys() {
        let key = "e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a";
        let zero = "0".repeat(64);
        let text = format!(
            "private_key={key}\nlisten_port=5\nfwmark=7\nadit_datapath=socket\nadit_tun_reads=3\npublic_key={key}\npreshared_key={key}\n\
             protocol_version=1\nendpoint=192.0.2.1:5\nlast_handshake_time_sec=9\nlast_handshake_time_nsec=1\n\
             tx_bytes=1\nrx_bytes=2\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\npublic_key={zero}\n\
             preshared_key={zero}\nerrno=0\n\n"
        );
        let state = State::parse(text.as_bytes()).unwrap();
        assert!(state.private_key.is_some());
        assert_eq!((state.listen_port, state.fwmark), (5, 7));
        assert!(state.bound);
        let [first, second] = &state.peers[..] else {
            panic!()
        };
        assert!(first.preshared_key.is_some() && second.preshared_key.is_none());
        assert_eq!((first.latest_handshake, first.keepalive), (9, 25));
        assert_eq!(state.prefixes().count(), 1);
        assert!(!format!("{state:?}").contains(&key[..8]));
    }

    #[test]
    fn an_answer_that_fails_or_ends_early_is_an_error() {
        for text in ["", "\n", "listen_port=1\n", "errno=-5\n\n", "\u{fffd}"] {
            assert!(State::parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(State::parse(b"\xff").is_err());
    }
}
