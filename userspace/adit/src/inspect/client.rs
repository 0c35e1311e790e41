//! Asking a running daemon over its configuration socket.

use std::fs;
use std::io::{self, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_kernel::netlink;
use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{getsockopt, sockopt};
use zeroize::Zeroizing;

use super::answer::Device;
use crate::uapi::socket::DIRECTORY;

/// A daemon that is alive answers within milliseconds; one with a million peers within seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than what a million peers make of an answer.
const LONGEST_ANSWER: usize = 1 << 30;

/// Names of the tunnels whose daemons listen, sorted.
///
/// # Errors
/// When the directory of sockets cannot be read; that it is not there means there are none.
pub(crate) fn tunnels() -> Result<Vec<String>> {
    tunnels_in(Path::new(DIRECTORY))
}

fn tunnels_in(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", directory.display()));
        }
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name.strip_suffix(".sock")?;
            (is_name(name) && listens(&entry.path())).then(|| name.to_owned())
        })
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// A file that nobody listens on is what a killed daemon left behind. That we may not connect does not mean nobody listens.
fn listens(path: &Path) -> bool {
    match UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

/// Whether somebody listens on the socket of `interface`.
pub(crate) fn is_there(interface: &str) -> bool {
    is_name(interface) && listens(&socket_path(interface))
}

/// What the kernel takes as the name of an interface (`dev_valid_name()`, net/core/dev.c).
pub(crate) fn is_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_ascii_whitespace())
}

/// Fails unless `interface` could be one.
pub(crate) fn check_name(interface: &str) -> Result<()> {
    ensure!(
        is_name(interface),
        "{interface:?} is not the name of an interface"
    );
    Ok(())
}

/// Asks the daemon of `interface` to describe its device.
///
/// # Errors
/// In one line that says whether there is no such tunnel, or what is wrong with it.
pub(crate) fn describe(interface: &str) -> Result<Device> {
    check_name(interface)?;
    let path = socket_path(interface);
    let stream = connect(interface, &path)?;
    let answer =
        ask(stream).with_context(|| format!("cannot talk to the daemon of {interface}"))?;
    Device::parse(&answer).with_context(|| format!("cannot read what {} says", path.display()))
}

/// The process behind the socket of `interface`, if it is in another mount namespace than this one.
pub(crate) fn daemon_elsewhere(interface: &str) -> Option<i32> {
    let stream = UnixStream::connect(socket_path(interface)).ok()?;
    let pid = getsockopt(&stream, sockopt::PeerCredentials).ok()?.pid();
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    (namespace(&pid.to_string())? != namespace("self")?).then_some(pid)
}

fn socket_path(interface: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{interface}.sock"))
}

fn connect(interface: &str, path: &Path) -> Result<UnixStream> {
    let error = match UnixStream::connect(path) {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            no_such_tunnel(interface, path)
        }
        io::ErrorKind::PermissionDenied => {
            bail!("not allowed to talk to the daemon of {interface}: run this as root")
        }
        _ => Err(error).with_context(|| format!("cannot connect to {}", path.display())),
    }
}

fn no_such_tunnel(interface: &str, path: &Path) -> Result<UnixStream> {
    let kind = netlink::link_by_name(interface)
        .ok()
        .flatten()
        .map(|link| link.kind);
    match kind {
        Some(Some(kind)) if kind == "wireguard" => {
            bail!(
                "{interface} is a tunnel of the kernel's own WireGuard: use `wg show {interface}`"
            )
        }
        Some(_) => bail!(
            "no tunnel {interface}: there is such an interface, but no daemon listens on {}",
            path.display()
        ),
        None => bail!(
            "no tunnel {interface}: no daemon listens on {}",
            path.display()
        ),
    }
}

fn ask(mut stream: UnixStream) -> io::Result<SecretBuffer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"get=1\n\n")?;
    read_answer(&mut stream)
}

/// Reads up to the blank line that ends an answer.
fn read_answer(stream: &mut impl Read) -> io::Result<SecretBuffer> {
    let mut answer = SecretBuffer(Zeroizing::new(Vec::with_capacity(1 << 16)));
    let mut chunk = Zeroizing::new([0; 1 << 14]);
    while !answer.ends_with(b"\n\n") {
        match stream.read(&mut *chunk) {
            // Cut short; the parser says so.
            Ok(0) => break,
            Ok(length) => answer.extend(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it does not answer",
                ));
            }
            Err(error) => return Err(error),
        }
        if answer.len() > LONGEST_ANSWER {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its answer does not end",
            ));
        }
    }
    Ok(answer)
}

/// Bytes with keys among them, wiped when they are dropped and when they move to a larger place.
struct SecretBuffer(Zeroizing<Vec<u8>>);

impl SecretBuffer {
    fn extend(&mut self, bytes: &[u8]) {
        if self.0.capacity() - self.0.len() < bytes.len() {
            let mut larger = Vec::with_capacity(2 * self.0.capacity() + bytes.len());
            larger.extend_from_slice(&self.0);
            // The smaller one is wiped as it is dropped.
            self.0 = Zeroizing::new(larger);
        }
        self.0.extend_from_slice(bytes);
    }
}

impl std::ops::Deref for SecretBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn names_are_those_the_kernel_takes() {
        for name in ["wg0", "a", "fifteen-letters", "wg0.1"] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "../wg0",
            "a b",
            "a:b",
            "sixteen-letters-",
            "a\n",
        ] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(describe("../../etc/passwd").is_err());
    }

    #[test]
    fn a_tunnel_that_is_not_there_is_one_line() {
        let error = format!("{:#}", describe("adit-not-there").unwrap_err());
        assert!(error.starts_with("no tunnel adit-not-there:"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn only_sockets_with_a_listener_count() {
        let directory = std::env::temp_dir().join(format!("adit-client-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        assert!(tunnels_in(&directory).unwrap().is_empty());
        fs::create_dir(&directory).unwrap();
        let living: Vec<_> = ["b", "a"]
            .map(|name| UnixListener::bind(directory.join(format!("{name}.sock"))).unwrap())
            .into();
        drop(UnixListener::bind(directory.join("stale.sock")).unwrap());
        fs::write(directory.join("file.sock"), "").unwrap();
        drop(UnixListener::bind(directory.join("other.socket")).unwrap());
        assert_eq!(tunnels_in(&directory).unwrap(), ["a", "b"]);
        drop(living);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn an_answer_ends_with_a_blank_line_and_may_be_long() {
        let mut long = b"x=1\n".repeat(40_000);
        long.extend_from_slice(b"errno=0\n\n");
        let answer = read_answer(&mut long.as_slice()).unwrap();
        assert_eq!(answer[..], long[..]);
        let cut = read_answer(&mut &b"x=1\n"[..]).unwrap();
        assert_eq!(&cut[..], b"x=1\n");
    }
}
