//! HTTP for those who read the metrics.
//!
//! It runs on the control thread, so that nothing here may take long, and a client may take nothing that others need: there
//! are at most 16 of them, each for ten seconds and one request, and the text is made anew at most four times a second.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::process::Process;
use super::snapshot::Measurable;
use super::text::Report;
use super::{Listener, Socket};

/// More clients than anybody runs; the oldest connection makes room for the next one.
const CONNECTIONS: usize = 16;
/// How long a connection may last: request, answer and all. Prometheus gives up after 10 seconds by default.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a request's head; the least that hyper takes.
const HEAD: usize = 8192;
/// How old an answer may be. One a millisecond must not cost more than one a second does.
const FRESH: Duration = Duration::from_millis(250);

/// The content type that OpenMetrics 1.0 demands, section "Overall Structure".
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers from one device.
struct Exporter<D> {
    device: Rc<RefCell<D>>,
    interface: String,
    peers: usize,
    process: Process,
    latest: RefCell<Latest>,
}

#[derive(Debug, Default)]
struct Latest {
    text: String,
    made: Option<Instant>,
    answers: u64,
}

impl<D: Measurable + 'static> Exporter<D> {
    fn text(&self) -> String {
        let mut latest = self.latest.borrow_mut();
        if latest.made.is_none_or(|made| made.elapsed() >= FRESH) {
            latest.answers += 1;
            let report = Report {
                interface: self.interface.clone(),
                snapshot: self.device.borrow().measure(self.peers),
                process: self.process.figures(),
                answers: latest.answers,
            };
            // An empty answer is what a failure would show; writing to a string has none.
            latest.text = report.text().unwrap_or_default();
            latest.made = Some(Instant::now());
        }
        latest.text.clone()
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<String> {
        let known = ["/", "/metrics"].contains(&request.uri().path());
        let allowed = [Method::GET, Method::HEAD].contains(request.method());
        let mut response = match (known, allowed) {
            (true, true) => Response::new(match request.uri().path() {
                "/metrics" => self.text(),
                _ => "adit: the metrics are at /metrics\n".to_owned(),
            }),
            (true, false) => status(StatusCode::METHOD_NOT_ALLOWED),
            (false, _) => status(StatusCode::NOT_FOUND),
        };
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        let headers = response.headers_mut();
        match (known, allowed) {
            (true, true) if request.uri().path() == "/metrics" => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS))
            }
            (true, false) => headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD")),
            _ => headers.insert(CONTENT_TYPE, plain),
        };
        response
    }
}

fn status(status: StatusCode) -> Response<String> {
    let mut response = Response::new(format!("adit: {status}\n"));
    *response.status_mut() = status;
    response
}

/// Answers for tunnel `interface`, with at most `peers` peers one by one, until the task is dropped. To be called in a runtime,
/// and before a sandbox closes; the task itself opens nothing.
///
/// # Errors
/// When the socket cannot be waited for.
pub fn serve<D: Measurable + 'static>(
    listener: Listener,
    device: Rc<RefCell<D>>,
    interface: String,
    peers: usize,
) -> io::Result<impl Future<Output = ()>> {
    let Listener {
        socket,
        file,
        process,
    } = listener;
    let exporter = Rc::new(Exporter {
        device,
        interface,
        peers,
        process,
        latest: RefCell::default(),
    });
    let socket = match socket {
        Socket::Tcp(socket) => Acceptor::Tcp(tokio::net::TcpListener::from_std(socket)?),
        Socket::Unix(socket) => Acceptor::Unix(tokio::net::UnixListener::from_std(socket)?),
    };
    Ok(async move {
        // Removed when the task is dropped.
        let _file = file;
        let mut connections = Connections::default();
        loop {
            let accepted = match &socket {
                Acceptor::Tcp(socket) => socket
                    .accept()
                    .await
                    .map(|(stream, _)| connections.add(stream, &exporter)),
                Acceptor::Unix(socket) => socket
                    .accept()
                    .await
                    .map(|(stream, _)| connections.add(stream, &exporter)),
            };
            if let Err(error) = accepted {
                // Out of file descriptors, most likely; accepting again at once would spin.
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    })
}

enum Acceptor {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

/// The clients of now, oldest first.
#[derive(Default)]
struct Connections(VecDeque<JoinHandle<()>>);

impl Connections {
    fn add<S, D>(&mut self, stream: S, exporter: &Rc<Exporter<D>>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
        D: Measurable + 'static,
    {
        self.0.retain(|connection| !connection.is_finished());
        while self.0.len() >= CONNECTIONS {
            if let Some(oldest) = self.0.pop_front() {
                oldest.abort();
            }
        }
        let exporter = Rc::clone(exporter);
        self.0.push_back(tokio::task::spawn_local(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = exporter.answer(&request);
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let connection = http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            match timeout(PATIENCE, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "connection for metrics ended"),
                Err(_) => tracing::debug!("connection for metrics took too long"),
            }
        }));
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        for connection in &self.0 {
            connection.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::super::Address;
    use super::super::snapshot::Snapshot;
    use super::super::text::tests::snapshot;
    use super::*;

    #[derive(Default)]
    struct Counted(Cell<u64>);

    impl Measurable for Counted {
        fn measure(&self, peers: usize) -> Snapshot {
            self.0.set(self.0.get() + 1);
            let mut snapshot = snapshot();
            snapshot.limit_peers(peers);
            snapshot
        }
    }

    /// Runs `clients` against a server; how often the device was measured.
    fn served<F: Future<Output = ()>>(clients: impl FnOnce(SocketAddr) -> F) -> u64 {
        let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
        let Socket::Tcp(socket) = &listener.socket else {
            panic!();
        };
        let address = socket.local_addr().unwrap();
        let device = Rc::new(RefCell::new(Counted::default()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let task = serve(listener, Rc::clone(&device), "wg0".to_owned(), 1).unwrap();
            let server = tokio::task::spawn_local(task);
            clients(address).await;
            assert!(!server.is_finished());
        });
        device.borrow().0.get()
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut answer = Vec::new();
        // A reset is what bytes that nobody reads lead to.
        let _ = stream.write_all(request.as_bytes()).await;
        while stream
            .read_buf(&mut answer)
            .await
            .is_ok_and(|read| read > 0)
        {}
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn metrics_are_answered_once_a_connection_and_computed_seldom() {
        let measured = served(|address| async move {
            for _ in 0..5 {
                let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
                assert!(answer.contains(&format!("content-type: {OPEN_METRICS}\r\n")));
                assert!(answer.ends_with("# EOF\n"));
                assert!(answer.contains("adit_peers_omitted{interface=\"wg0\"} 2\n"));
            }
        });
        assert!((1..5).contains(&measured), "{measured}");
    }

    #[test]
    fn other_requests_are_refused() {
        let measured = served(|address| async move {
            for (request, status) in [
                ("GET / HTTP/1.0\r\n\r\n", "200"),
                ("GET /other HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
                (
                    "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
                    "405",
                ),
                ("nonsense\r\n\r\n", "400"),
                (
                    &format!("GET /metrics?{} HTTP/1.1\r\n", "x".repeat(100_000)),
                    "4",
                ),
            ] {
                let answer = ask(address, request).await;
                let (_, found) = answer.split_once(' ').unwrap_or_default();
                assert!(found.starts_with(status), "{request}: {answer}");
            }
        });
        assert_eq!(measured, 0);
    }

    #[test]
    fn clients_that_keep_silent_make_room() {
        served(|address| async move {
            let mut silent = Vec::new();
            for _ in 0..5 * CONNECTIONS {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"GET /met").await.unwrap();
                silent.push(stream);
            }
            let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.ends_with("# EOF\n"));
        });
    }
}
