//! Serves the configuration protocol on its socket.
//!
//! A `set` operation is read completely before any of it is applied, so that a slow client never
//! holds the device, and one that goes away in the middle changes nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeroize::{Zeroize as _, Zeroizing};

use super::Errno;
use super::request::{Parser, Setting};

/// What the protocol configures.
pub trait Configurable {
    /// Applies the settings of one operation in order, as far as possible.
    ///
    /// # Errors
    /// The first setting that fails ends the operation; those before it stay applied.
    fn apply(&mut self, settings: Vec<Setting>) -> Result<(), Errno>;

    /// Appends the answer to `get=1`, without the `errno` line.
    fn describe(&self, answer: &mut String);

    /// Appends the answer to `hand_over=options`, without the `errno` line.
    fn describe_options(&self, _answer: &mut String) {}
}

/// More clients than anybody runs; the oldest connection makes room for the next one.
const CONNECTIONS: usize = 64;
/// A client that neither sends nor takes anything for so long is gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes read at once, and so the longest line; the protocol's own are under 150.
const BUFFER: usize = 16 << 10;
/// Lines of the operations that are being read, of all connections together: 100,000 peers with ten lines each, twice.
const SETTINGS_LIMIT: usize = 1 << 21;

thread_local! {
    /// Settings that wait for the end of their operation. All connections are tasks of one thread.
    static WAITING: Cell<usize> = const { Cell::new(0) };
}

/// Accepts connections until the task is dropped; those there are live on. Clients that want to have the device handed over
/// to them ([`crate::hand_over`]) are passed on.
pub async fn serve<D: Configurable + 'static>(
    listener: Rc<UnixListener>,
    device: Rc<RefCell<D>>,
    heirs: mpsc::Sender<UnixStream>,
) {
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely; accepting again at once would spin.
                tracing::warn!(%error, "cannot accept a configuration connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.is_finished());
        while connections.len() >= CONNECTIONS {
            if let Some(oldest) = connections.pop_front() {
                oldest.abort();
            }
        }
        let (device, heirs) = (Rc::clone(&device), heirs.clone());
        connections.push_back(tokio::task::spawn_local(async move {
            match Connection::new(stream).run(&*device).await {
                Ok(None) => {}
                Ok(Some(mut connection)) => {
                    if heirs.capacity() == 0 {
                        let _ = connection.refuse(Errno::Busy).await;
                    } else {
                        // Fails only when the daemon ends.
                        let _ = heirs.try_send(connection.stream);
                    }
                }
                Err(error) => tracing::debug!(%error, "configuration connection ended"),
            }
        }));
    }
}

/// Serves one client until it closes or breaks the protocol.
///
/// # Errors
/// The stream failed, or the client neither sent nor took anything for a minute.
pub async fn converse<D: Configurable>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    device: &RefCell<D>,
) -> io::Result<()> {
    Connection::new(stream).run(device).await.map(drop)
}

/// One client: its stream and what was read ahead of it.
struct Connection<S> {
    stream: S,
    /// Keys pass through here, hence fixed (never moved) and wiped.
    buffer: Zeroizing<Vec<u8>>,
    start: usize,
    end: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Zeroizing::new(vec![0; BUFFER]),
            start: 0,
            end: 0,
        }
    }

    /// The connection again if its client wants to have the device handed over.
    async fn run<D: Configurable>(mut self, device: &RefCell<D>) -> io::Result<Option<Self>> {
        loop {
            let operation = match self.line().await? {
                Line::End => return Ok(None),
                Line::TooLong => Operation::Unknown,
                Line::Text(line) => match line {
                    "" => continue,
                    "get=1" => Operation::Get,
                    "set=1" => Operation::Set,
                    "hand_over=options" => Operation::Options,
                    "hand_over=1" => return Ok(Some(self)),
                    _ => Operation::Unknown,
                },
            };
            match operation {
                Operation::Get => {
                    let answer = {
                        let mut answer = Zeroizing::new(String::new());
                        device.borrow().describe(&mut answer);
                        answer.push_str("errno=0\n\n");
                        answer
                    };
                    self.send(answer.as_bytes()).await?;
                }
                Operation::Options => {
                    let mut answer = String::new();
                    device.borrow().describe_options(&mut answer);
                    answer.push_str("errno=0\n\n");
                    self.send(answer.as_bytes()).await?;
                }
                // The connection ends, since where the next operation starts is unknown.
                Operation::Unknown => {
                    self.refuse(Errno::Protocol).await?;
                    return Ok(None);
                }
                Operation::Set => {
                    let Some((settings, parsed)) = self.settings().await? else {
                        return Ok(None);
                    };
                    let applied = device.borrow_mut().apply(settings);
                    let errno = applied.and(parsed).err().map_or(0, Errno::code);
                    self.send(format!("errno={errno}\n\n").as_bytes()).await?;
                }
            }
        }
    }

    /// Reads the lines of a `set` up to the blank line: what stands before the first wrong line,
    /// and whether there was one. `None` if the client went away before the blank line.
    async fn settings(&mut self) -> io::Result<Option<(Vec<Setting>, Result<(), Errno>)>> {
        let mut parser = Parser::default();
        let mut settings = Vec::new();
        let mut room = Room::default();
        let mut result = Ok(());
        loop {
            match self.line().await? {
                Line::End => return Ok(None),
                Line::TooLong => {
                    self.refuse(Errno::Protocol).await?;
                    return Ok(None);
                }
                Line::Text("") => return Ok(Some((settings, result))),
                Line::Text(_) if result.is_err() => {}
                Line::Text(_) if !room.take() => result = Err(Errno::Invalid),
                Line::Text(line) => match parser.line(line) {
                    Ok(setting) => settings.push(setting),
                    Err(errno) => result = Err(errno),
                },
            }
        }
    }

    /// The next line without its newline.
    async fn line(&mut self) -> io::Result<Line<'_>> {
        let mut searched = self.start;
        loop {
            let unread = &self.buffer[searched..self.end];
            if let Some(position) = unread.iter().position(|&byte| byte == b'\n') {
                let line = self.start..searched + position;
                self.start = line.end + 1;
                // What is not text cannot be a valid line either: one error for both.
                return Ok(
                    std::str::from_utf8(&self.buffer[line]).map_or(Line::TooLong, Line::Text)
                );
            }
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
                self.buffer[self.end..].zeroize();
            }
            if self.end == BUFFER {
                return Ok(Line::TooLong);
            }
            searched = self.end;
            let read = self.stream.read(&mut self.buffer[self.end..]);
            match timeout(PATIENCE, read).await?? {
                0 => return Ok(Line::End),
                read => self.end += read,
            }
        }
    }

    async fn refuse(&mut self, errno: Errno) -> io::Result<()> {
        self.send(format!("errno={}\n\n", errno.code()).as_bytes())
            .await
    }

    async fn send(&mut self, mut answer: &[u8]) -> io::Result<()> {
        while !answer.is_empty() {
            let sent = timeout(PATIENCE, self.stream.write(answer)).await??;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            answer = &answer[sent..];
        }
        Ok(())
    }
}

/// Settings of one operation among those that [`SETTINGS_LIMIT`] is for, until it has been read or given up.
#[derive(Default)]
struct Room {
    taken: usize,
}

impl Room {
    /// Takes room for one more; false if there is none.
    fn take(&mut self) -> bool {
        let waiting = WAITING.get();
        if waiting >= SETTINGS_LIMIT {
            return false;
        }
        WAITING.set(waiting + 1);
        self.taken += 1;
        true
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        WAITING.set(WAITING.get() - self.taken);
    }
}

enum Operation {
    Get,
    Set,
    Options,
    Unknown,
}

enum Line<'a> {
    Text(&'a str),
    /// Over the limit, or not text.
    TooLong,
    End,
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[derive(Default)]
    struct Recorder {
        operations: Vec<Vec<Setting>>,
    }

    impl Configurable for Recorder {
        fn apply(&mut self, settings: Vec<Setting>) -> Result<(), Errno> {
            self.operations.push(settings);
            Ok(())
        }

        fn describe(&self, answer: &mut String) {
            answer.push_str("listen_port=1\n");
        }
    }

    /// Runs the bytes through one connection; the answer, and the operations applied.
    fn conversation(request: &[u8]) -> (String, Vec<Vec<Setting>>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let device = RefCell::new(Recorder::default());
            let (mut client, server) = UnixStream::pair().unwrap();
            let talk = async {
                let (mut reading, mut writing) = client.split();
                let send = async {
                    let _ = writing.write_all(request).await;
                    let _ = writing.shutdown().await;
                };
                let receive = async {
                    // Up to the end, or to the reset that bytes nobody reads lead to.
                    let mut answer = Vec::new();
                    while reading
                        .read_buf(&mut answer)
                        .await
                        .is_ok_and(|read| read > 0)
                    {}
                    String::from_utf8(answer).unwrap()
                };
                tokio::join!(send, receive).1
            };
            let (served, answer) = tokio::join!(converse(server, &device), talk);
            let _ = served;
            (answer, device.into_inner().operations)
        })
    }

    #[test]
    fn several_operations_on_one_connection() {
        let (answer, operations) = conversation(
            b"get=1\n\nset=1\nlisten_port=7\n\nset=1\nfwmark=1\nreplace_peers=true\n\n",
        );
        assert_eq!(answer, "listen_port=1\nerrno=0\n\nerrno=0\n\nerrno=0\n\n");
        assert_eq!(operations.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_stands_before_a_wrong_line_is_applied_and_the_rest_is_not() {
        let (answer, operations) =
            conversation(b"set=1\nlisten_port=7\nnonsense=1\nfwmark=1\n\nget=1\n\n");
        assert_eq!(answer, "errno=-22\n\nlisten_port=1\nerrno=0\n\n");
        assert_eq!(operations.iter().map(Vec::len).collect::<Vec<_>>(), [1]);
        assert_eq!(conversation(b"set=1\nnonsense\n\n").0, "errno=-71\n\n");
    }

    #[test]
    fn a_client_that_leaves_in_the_middle_changes_nothing() {
        let (answer, operations) = conversation(b"set=1\nlisten_port=7\n");
        assert_eq!((answer.as_str(), operations.len()), ("", 0));
        let (answer, operations) = conversation(b"set=1\nlisten_po");
        assert_eq!((answer.as_str(), operations.len()), ("", 0));
    }

    #[test]
    fn operations_that_never_end_share_one_limit() {
        let mut one = Room {
            taken: SETTINGS_LIMIT - 1,
        };
        WAITING.set(one.taken);
        let mut other = Room::default();
        assert!(one.take() && !one.take() && !other.take());
        let operations = b"set=1\nlisten_port=7\n\n";
        let (answer, applied) = conversation(operations);
        assert_eq!(answer, "errno=-22\n\n");
        assert!(applied.iter().all(Vec::is_empty));
        drop((one, other));
        assert_eq!(WAITING.get(), 0);
        assert_eq!(conversation(operations).0, "errno=0\n\n");
    }

    #[test]
    fn options_are_told_and_whoever_wants_the_device_is_not_served_further() {
        assert_eq!(
            conversation(b"hand_over=options\n\nget=1\n\n").0,
            "errno=0\n\nlisten_port=1\nerrno=0\n\n"
        );
        assert_eq!(conversation(b"hand_over=1\n\nget=1\n\n").0, "");
        assert_eq!(conversation(b"hand_over=2\n\n").0, "errno=-71\n\n");
    }

    #[test]
    fn endless_lines_and_other_bytes_end_the_connection() {
        let mut megabyte = b"set=1\nprivate_key=".to_vec();
        megabyte.resize(1 << 20, b'0');
        assert_eq!(conversation(&megabyte).0, "errno=-71\n\n");
        assert_eq!(conversation(b"\xff\xfe\x00\n\n").0, "errno=-71\n\n");
        assert_eq!(conversation(b"hello\n\n").0, "errno=-71\n\n");
        assert_eq!(conversation(b"").0, "");
    }

    #[test]
    fn the_oldest_of_too_many_connections_makes_room() {
        let path = std::env::temp_dir().join(format!("adit-uapi-many-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let started = Instant::now();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let listener = Rc::new(UnixListener::bind(&path).unwrap());
            let device = Rc::new(RefCell::new(Recorder::default()));
            let (heirs, _waiting) = mpsc::channel(1);
            tokio::task::spawn_local(serve(listener, device, heirs));
            let mut idle = Vec::new();
            for _ in 0..3 * CONNECTIONS {
                idle.push(UnixStream::connect(&path).await.unwrap());
            }
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(b"get=1\n\n").await.unwrap();
            let expected = b"listen_port=1\nerrno=0\n\n";
            let mut answer = [0; 23];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, expected);
        });
        assert!(started.elapsed() < PATIENCE);
        std::fs::remove_file(path).unwrap();
    }
}
