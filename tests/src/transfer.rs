//! TCP and UDP transfers whose every byte is checked, which iperf3 does not do.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::Namespace;
use crate::tunnel::{Family, Site};
use crate::wait::wait_for;

/// Longest silence within a transfer.
const SILENCE: Duration = Duration::from_secs(30);

/// Sends `bytes` over TCP from one namespace to an address in another, and checks what arrives.
///
/// # Errors
/// It does not arrive, or not as it was sent.
pub fn tcp(from: &Namespace, to: &Namespace, address: IpAddr, bytes: usize) -> Result<()> {
    let listener = to.enter(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
    let target = listener.local_addr()?;
    let transfer = || -> Result<()> {
        let client = from.enter(|| TcpStream::connect_timeout(&target, SILENCE))??;
        listener.set_nonblocking(true)?;
        let (server, _) = wait_for("connection is accepted", SILENCE, || listener.accept().ok())?;
        server.set_nonblocking(false)?;
        std::thread::scope(|scope| {
            let receiver = scope.spawn(move || receive(server, bytes));
            let sent = send(client, bytes);
            let received = receiver
                .join()
                .map_err(|_| anyhow::anyhow!("receiver panicked"))?;
            // A receiver that gives up makes the sender fail too: what it says is the cause.
            received.and(sent)
        })
    };
    transfer().with_context(|| format!("TCP transfer of {bytes} bytes to {target}"))
}

fn send(mut stream: TcpStream, bytes: usize) -> Result<()> {
    stream.set_write_timeout(Some(SILENCE))?;
    let mut block = vec![0; 1 << 16];
    let mut sent = 0;
    while sent < bytes {
        let length = block.len().min(bytes - sent);
        fill(&mut block[..length], sent);
        stream
            .write_all(&block[..length])
            .with_context(|| format!("sending, after {sent} bytes"))?;
        sent += length;
    }
    Ok(())
}

fn receive(mut stream: TcpStream, bytes: usize) -> Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    let mut received = 0;
    let mut block = vec![0; 1 << 16];
    let mut expected = vec![0; 1 << 16];
    loop {
        let length = match stream.read(&mut block) {
            Ok(length) => length,
            // With a timeout set, a process that was frozen and thawed is told so.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("receiving, after {received} bytes"));
            }
        };
        if length == 0 {
            ensure!(received == bytes, "only {received} bytes arrived");
            return Ok(());
        }
        fill(&mut expected[..length], received);
        ensure!(
            block[..length] == expected[..length],
            "wrong bytes after {received}"
        );
        received += length;
    }
}

/// A pattern whose period is no power of two, so that a lost or swapped packet shows.
fn fill(block: &mut [u8], position: usize) {
    for (byte, value) in block.iter_mut().zip((0..=250).cycle().skip(position % 251)) {
        *byte = value;
    }
}

/// [`tcp`] from left to right and from right to left, through the tunnel.
///
/// # Errors
/// As [`tcp`].
pub fn tcp_both_ways(left: &Site, right: &Site, inner: Family, bytes: usize) -> Result<()> {
    tcp(&left.namespace, &right.namespace, right.inner(inner), bytes)?;
    tcp(&right.namespace, &left.namespace, left.inner(inner), bytes)
}

/// [`tcp`] from left to right and from right to left, through the tunnel, at the same time.
///
/// # Errors
/// As [`tcp`].
pub fn tcp_at_once(left: &Site, right: &Site, inner: Family, bytes: usize) -> Result<()> {
    let one_way =
        |from: &Site, to: &Site| tcp(&from.namespace, &to.namespace, to.inner(inner), bytes);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| one_way(right, left));
        let this = one_way(left, right);
        let other = other
            .join()
            .map_err(|_| anyhow::anyhow!("transfer panicked"))?;
        this.context("left to right")?;
        other.context("right to left")
    })
}

/// Sends datagrams of the given lengths, one by one, each answered with the same bytes.
///
/// # Errors
/// One is not answered after three tries, or not with its own bytes.
pub fn udp_echo(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    lengths: &[usize],
) -> Result<()> {
    let server = to.enter(|| UdpSocket::bind(SocketAddr::new(address, 0)))??;
    let any = crate::relay::unspecified(address);
    let client = from.enter(|| UdpSocket::bind(SocketAddr::new(any, 0)))??;
    client.connect(server.local_addr()?)?;
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    }
    let mut buffer = vec![0; 1 << 16];
    for &length in lengths {
        let mut datagram = vec![0; length];
        fill(&mut datagram, length);
        let answered = (0..3).any(|_| {
            let mut exchange = || -> std::io::Result<bool> {
                client.send(&datagram)?;
                let (received, peer) = server.recv_from(&mut buffer)?;
                server.send_to(&buffer[..received], peer)?;
                let received = client.recv(&mut buffer)?;
                Ok(buffer[..received] == datagram)
            };
            exchange().unwrap_or(false)
        });
        ensure!(
            answered,
            "UDP datagram of {length} bytes to {address} does not come back"
        );
    }
    Ok(())
}
