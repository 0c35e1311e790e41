//! The configuration protocol: what clients say to the daemon, and what daemons answer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use adit::inspect::answer::Device;
use adit::uapi::Errno;
use adit::uapi::request::{Parser, Setting};
use adit::uapi::server::{Configurable, converse};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::script::Script;

/// The first byte says how the stream comes in pieces, the others are what a client sends.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let piece = script.byte();
    let text = script.rest();
    let whole = conversation(text, usize::MAX);
    assert_eq!(
        conversation(text, usize::from(piece) + 1),
        whole,
        "in pieces"
    );
    for line in answer_lines(&whole.0) {
        assert!(
            matches!(
                line,
                "" | "errno=0" | "errno=-22" | "errno=-71" | "listen_port=1"
            ),
            "{line}"
        );
    }
    for line in String::from_utf8_lossy(text).lines() {
        for before in [None, Some(format!("public_key={}", "07".repeat(32)))] {
            let mut parser = Parser::default();
            if let Some(before) = &before {
                parser.line(before).unwrap();
            }
            let Ok(setting) = parser.line(line) else {
                continue;
            };
            let written = written(&setting);
            let mut again = Parser::default();
            if let Some(before) = &before {
                again.line(before).unwrap();
            }
            let read = again.line(&written).unwrap();
            assert_eq!(self::written(&read), written, "{line}");
        }
    }
}

/// The bytes are a daemon's answer to `get=1`.
pub fn answer(bytes: &[u8]) {
    match Device::parse(bytes) {
        Ok(device) => {
            // Peers and counters have a line each at the least.
            let lines = bytes.split(|byte| *byte == b'\n').count();
            assert!(device.peers.len() <= lines && device.counters.len() <= lines);
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}

fn answer_lines(answer: &[u8]) -> impl Iterator<Item = &str> {
    std::str::from_utf8(answer).unwrap().lines()
}

/// The setting as `wg(8)` would write it.
fn written(setting: &Setting) -> String {
    let hex = |bytes: &[u8; 32]| bytes.map(|byte| format!("{byte:02x}")).concat();
    let key = |key: Option<&[u8; 32]>| hex(key.unwrap_or(&[0; 32]));
    match setting {
        Setting::PrivateKey(private) => {
            format!(
                "private_key={}",
                key(private.as_ref().map(|key| key.as_bytes()))
            )
        }
        Setting::ListenPort(port) => format!("listen_port={port}"),
        Setting::FirewallMark(mark) => format!("fwmark={mark}"),
        Setting::ReplacePeers => "replace_peers=true".into(),
        Setting::Peer(public) => format!("public_key={}", hex(public.as_bytes())),
        Setting::Remove => "remove=true".into(),
        Setting::UpdateOnly => "update_only=true".into(),
        Setting::PresharedKey(shared) => {
            format!(
                "preshared_key={}",
                key(shared.as_ref().map(|key| key.as_bytes()))
            )
        }
        Setting::Endpoint(address) => format!("endpoint={address}"),
        Setting::PersistentKeepalive(seconds) => {
            format!("persistent_keepalive_interval={seconds}")
        }
        Setting::ReplaceAllowedIps => "replace_allowed_ips=true".into(),
        Setting::AllowedIp(prefix) => format!("allowed_ip={prefix}"),
        Setting::RemoveAllowedIp(prefix) => format!("allowed_ip=-{prefix}"),
        Setting::ProtocolVersion => "protocol_version=1".into(),
    }
}

/// Remembers what was applied.
#[derive(Default)]
struct Recorder(Vec<String>);

impl Configurable for Recorder {
    fn apply(&mut self, settings: Vec<Setting>) -> Result<(), Errno> {
        self.0.push(
            settings
                .iter()
                .map(|setting| written(setting) + "\n")
                .collect(),
        );
        Ok(())
    }

    fn describe(&self, answer: &mut String) {
        answer.push_str("listen_port=1\n");
    }
}

/// Has the daemon's side read `text` in pieces of this many bytes; its answer, and the operations applied.
fn conversation(text: &[u8], piece: usize) -> (Vec<u8>, Vec<String>) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    }
    let device = RefCell::new(Recorder::default());
    let mut answer = Vec::new();
    let stream = Pieces {
        text,
        piece,
        answer: &mut answer,
    };
    RUNTIME
        .with(|runtime| runtime.block_on(converse(stream, &device)))
        .unwrap();
    (answer, device.into_inner().0)
}

/// A stream in memory.
struct Pieces<'a> {
    text: &'a [u8],
    piece: usize,
    answer: &'a mut Vec<u8>,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.text.len().min(self.piece).min(buffer.remaining());
        let (now, later) = self.text.split_at(count);
        buffer.put_slice(now);
        self.text = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = bytes.len().min(self.piece);
        self.answer.extend(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
