//! A client of the configuration protocol, without `wg`, for what `wg` would not say.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Directory of the sockets, the same for all WireGuard programs.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// Path of the socket of an interface.
#[must_use]
pub fn socket_path(interface: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{interface}.sock"))
}

/// Connects to the daemon of an interface. Reads and writes time out after 20 s.
///
/// # Errors
/// Nobody listens.
pub fn connect(interface: &str) -> Result<UnixStream> {
    let path = socket_path(interface);
    let stream = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Sends one operation, such as `get=1` or `set=1\nlisten_port=0`, without the blank line that ends it, and returns the
/// answer's `key=value` pairs, `errno` last.
///
/// # Errors
/// Nobody listens, or the answer does not end with a blank line.
pub fn request(interface: &str, operation: &str) -> Result<Vec<(String, String)>> {
    request_on(&connect(interface)?, operation)
}

/// [`request`] on a connection that may serve more than one.
///
/// # Errors
/// As [`request`].
pub fn request_on(mut stream: &UnixStream, operation: &str) -> Result<Vec<(String, String)>> {
    stream.write_all(format!("{}\n\n", operation.trim_end()).as_bytes())?;
    read_answer(stream)
}

/// Reads one answer.
///
/// # Errors
/// It does not end with a blank line.
pub fn read_answer(stream: &UnixStream) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if line.is_empty() {
            return Ok(pairs);
        }
        let (key, value) = line
            .split_once('=')
            .with_context(|| format!("line without '=': {line}"))?;
        pairs.push((key.to_owned(), value.to_owned()));
    }
    bail!("answer ends early: {pairs:?}")
}

/// The errno of an answer; its sign as the daemon gave it.
///
/// # Errors
/// There is none.
pub fn errno(answer: &[(String, String)]) -> Result<i32> {
    let (key, value) = answer.last().context("empty answer")?;
    if key != "errno" {
        bail!("answer ends with {key}={value}");
    }
    Ok(value.parse()?)
}

/// The daemon's own counter or state `key` from a `get`.
///
/// # Errors
/// The daemon does not answer or has no such key.
pub fn number(interface: &str, key: &str) -> Result<u64> {
    let answer = request(interface, "get=1")?;
    let value = answer.iter().find(|(k, _)| k == key).map(|(_, v)| v);
    Ok(value
        .with_context(|| format!("daemon does not tell {key}"))?
        .parse()?)
}
