//! The configuration protocol beyond what `wg` uses, and everything that is not the protocol.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use adit_tests::daemon::Options;
use adit_tests::ping::ping_all;
use adit_tests::tunnel::{Family, Pair, PairOptions};
use adit_tests::uapi::{self, connect, errno, read_answer, request, request_on};
use adit_tests::wait::wait_until;
use adit_tests::wg::{hex, random_public_keys};
use adit_tests::{Daemon, Namespace, process, wg};
use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

const EINVAL: i32 = Errno::EINVAL as i32;
const EPROTO: i32 = Errno::EPROTO as i32;
const EADDRINUSE: i32 = Errno::EADDRINUSE as i32;

/// `wg` expects a negative number on `set`.
fn refuses(interface: &str, operation: &str, error: i32) -> Result<()> {
    let answer = request(interface, operation)?;
    ensure!(errno(&answer)? == -error, "{operation:?}: {answer:?}");
    Ok(())
}

fn accepts(interface: &str, operation: &str) -> Result<()> {
    let answer = request(interface, operation)?;
    ensure!(errno(&answer)? == 0, "{operation:?}: {answer:?}");
    Ok(())
}

/// Values of `key` in a `get`.
fn values(interface: &str, key: &str) -> Result<Vec<String>> {
    let answer = request(interface, "get=1")?;
    Ok(answer
        .into_iter()
        .filter(|(k, _)| k == key)
        .map(|(_, v)| v)
        .collect())
}

#[test]
fn order_of_a_get() -> Result<()> {
    let namespace = Namespace::new()?;
    let daemon = Daemon::start(&namespace, &Options::default())?;
    let interface = daemon.interface();
    let keys: Vec<_> = random_public_keys(2)?
        .iter()
        .map(|key| hex(key))
        .collect::<Result<_>>()?;
    let private = hex(&wg::KeyPair::generate()?.private)?;
    accepts(
        interface,
        &format!(
            "set=1\nprivate_key={private}\nlisten_port=0\nfwmark=9\nreplace_peers=true\n\
             public_key={}\nendpoint=192.0.2.1:7\npersistent_keepalive_interval=3\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\n\
             public_key={}\npreshared_key={private}\nprotocol_version=1",
            keys[0], keys[1],
        ),
    )?;
    let answer = request(interface, "get=1")?;
    // Keys of our own may come before the first peer; wg ignores them.
    let order: Vec<_> = answer
        .iter()
        .map(|(key, _)| key.as_str())
        .filter(|key| !key.starts_with("adit_"))
        .collect();
    ensure!(
        order[..3] == ["private_key", "listen_port", "fwmark"],
        "{order:?}"
    );
    ensure!(
        order[3] == "public_key" && order.last() == Some(&"errno"),
        "{order:?}"
    );
    let first: Vec<_> = answer
        .iter()
        .skip_while(|(_, value)| *value != keys[0])
        .take(10)
        .collect();
    let expected = [
        ("public_key", keys[0].as_str()),
        ("preshared_key", &"0".repeat(64)),
        ("protocol_version", "1"),
        ("endpoint", "192.0.2.1:7"),
        ("last_handshake_time_sec", "0"),
        ("last_handshake_time_nsec", "0"),
        ("tx_bytes", "0"),
        ("rx_bytes", "0"),
        ("persistent_keepalive_interval", "3"),
    ];
    for (found, wanted) in first.iter().zip(expected) {
        ensure!((found.0.as_str(), found.1.as_str()) == wanted, "{first:?}");
    }
    ensure!(first[9].0 == "allowed_ip", "{first:?}");
    Ok(())
}

#[test]
fn several_operations_on_one_connection() -> Result<()> {
    let namespace = Namespace::new()?;
    let daemon = Daemon::start(&namespace, &Options::default())?;
    let stream = connect(daemon.interface())?;
    for port in 42_000..42_010 {
        ensure!(errno(&request_on(&stream, &format!("set=1\nlisten_port={port}"))?)? == 0);
        let answer = request_on(&stream, "get=1")?;
        ensure!(
            answer.contains(&("listen_port".to_owned(), port.to_string())),
            "{answer:?}"
        );
    }
    // An operation that fails does not end the connection either, once it was read to its end.
    ensure!(errno(&request_on(&stream, "set=1\nlisten_port=42")?)? == 0);
    Ok(())
}

#[test]
fn peer_keys() -> Result<()> {
    let namespace = Namespace::new()?;
    let daemon = Daemon::start(&namespace, &Options::default())?;
    let interface = daemon.interface();
    let key = hex(&random_public_keys(1)?[0])?;
    let peer = |rest: &str| accepts(interface, &format!("set=1\npublic_key={key}\n{rest}"));
    peer("update_only=true\nallowed_ip=10.1.0.0/16")?;
    ensure!(
        values(interface, "public_key")?.is_empty(),
        "update_only made a peer"
    );
    peer("allowed_ip=10.1.0.0/16\nallowed_ip=10.2.0.0/16")?;
    peer("allowed_ip=-10.1.0.0/16")?;
    ensure!(values(interface, "allowed_ip")? == ["10.2.0.0/16"]);
    peer("allowed_ip=-10.9.9.0/24")?;
    // Host bits beyond the prefix are cut off.
    peer("replace_allowed_ips=true\nallowed_ip=10.3.7.9/16")?;
    ensure!(values(interface, "allowed_ip")? == ["10.3.0.0/16"]);
    peer("update_only=true\npersistent_keepalive_interval=65535")?;
    ensure!(values(interface, "persistent_keepalive_interval")? == ["65535"]);
    peer("endpoint=[2001:db8::1]:65535")?;
    ensure!(values(interface, "endpoint")? == ["[2001:db8::1]:65535"]);
    peer("remove=true")?;
    ensure!(values(interface, "public_key")?.is_empty());
    peer("remove=true")?;
    peer("")?;
    accepts(interface, "set=1\nreplace_peers=true")?;
    ensure!(values(interface, "public_key")?.is_empty());
    Ok(())
}

#[test]
fn errors_by_number() -> Result<()> {
    let namespace = Namespace::new()?;
    let mut daemon = Daemon::start(&namespace, &Options::default())?;
    let interface = daemon.interface().to_owned();
    let interface = interface.as_str();
    let key = hex(&random_public_keys(1)?[0])?;
    for device in [
        "private_key=00",
        "private_key=zz",
        "listen_port=65536",
        "listen_port=-1",
        "listen_port=x",
        "fwmark=x",
        "fwmark=4294967296",
        "replace_peers=1",
        "replace_peers=false",
        "nonsense=1",
        "public_key=00",
        "endpoint=192.0.2.1:1",
        "allowed_ip=10.0.0.0/8",
        "=",
        "=1",
        "listen_port=",
    ] {
        refuses(interface, &format!("set=1\n{device}"), EINVAL)?;
    }
    for peer in [
        "endpoint=192.0.2.1",
        "endpoint=example.org:1",
        "endpoint=192.0.2.1:99999",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=fd00::/129",
        "allowed_ip=x",
        "preshared_key=0",
        "persistent_keepalive_interval=65536",
        "persistent_keepalive_interval=x",
        "remove=yes",
        "update_only=1",
        "replace_allowed_ips=0",
        "protocol_version=2",
        "listen_port_=1",
        "private_key_=x",
    ] {
        refuses(
            interface,
            &format!("set=1\npublic_key={key}\n{peer}"),
            EINVAL,
        )?;
    }
    refuses(interface, "set=1\nlisten_port", EPROTO)?;
    let taken = namespace.enter(|| std::net::UdpSocket::bind("0.0.0.0:42100"))??;
    // The port is bound when the device comes up, or at once when it is up.
    namespace.ip(&format!("link set {interface} up"))?;
    refuses(interface, "set=1\nlisten_port=42100", EADDRINUSE)?;
    drop(taken);
    // A program that another test is starting may hold a copy of the socket for a moment.
    wait_until("the port is free", Duration::from_secs(10), || {
        accepts(interface, "set=1\nlisten_port=42100").is_ok()
    })?;

    // What stands before the error was carried out.
    let answer = request(interface, "set=1\nlisten_port=42101\nnonsense=1\nfwmark=1")?;
    ensure!(errno(&answer)? == -EINVAL);
    ensure!(
        values(interface, "listen_port")? == ["42101"] && values(interface, "fwmark")?.is_empty()
    );
    ensure!(daemon.running());
    Ok(())
}

/// Whatever comes in, the daemon answers with an error or hangs up, and goes on with its work.
#[test]
fn everything_but_the_protocol() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let interface = pair.left.interface().to_owned();
    let pid = pair.left.daemon.pid();
    let sockets = process::unix_sockets(pid)?;
    let before = pair.left.dump()?;

    let mut random = vec![0; 1 << 16];
    for length in [1, 100, 4096, 1 << 16] {
        getrandom(&mut random[..length])?;
        throw(&interface, &random[..length])?;
    }
    let key = hex(&random_public_keys(1)?[0])?;
    let long = "x".repeat(1 << 20);
    for text in [
        "\n",
        "\n\n\n\n",
        "get",
        "get=",
        "get=2\n\n",
        "get=1",
        "set",
        "set=1",
        "set=2\n\n",
        "set=1\nlisten_po",
        "set=1\nprivate_key=0011",
        "put=1\n\n",
        "get=1\nset=1\n\n",
        "set=1\nget=1\n\n",
        "set=1\n\0\n\n",
        "\u{fffd}=1\n\n",
        "set=1\r\n\r\n",
        &format!("set=1\npublic_key={key}\nremove=true\npublic_key={key}\nremove"),
        &long,
        &format!("{long}\n\n"),
        &format!("set=1\n{long}=1\n\n"),
        &format!("set=1\nprivate_key={long}\n\n"),
        &format!("set=1\npublic_key={key}\nremove=true\nallowed_ip={long}\n\n"),
    ] {
        throw(&interface, text.as_bytes())?;
    }
    // Abandoned in the middle of a request, and of an answer.
    for _ in 0..200 {
        connect(&interface)?.write_all(b"set=1\nlisten_port=")?;
        connect(&interface)?.write_all(b"get=1\n\n")?;
        drop(connect(&interface)?);
    }
    // Idle connections keep nobody else out.
    let idle: Vec<_> = (0..200).filter_map(|_| connect(&interface).ok()).collect();
    ensure!(idle.len() == 200, "only {} connections", idle.len());
    ensure!(errno(&request(&interface, "get=1")?)? == 0);
    ensure!(pair.left.dump()?.peers.len() == 1);
    drop(idle);

    wait_until("connections are closed", Duration::from_secs(30), || {
        process::unix_sockets(pid).is_ok_and(|now| now <= sockets)
    })
    .with_context(|| {
        format!(
            "{sockets} connections before, {:?} now",
            process::unix_sockets(pid)
        )
    })?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 3, 56)?;
    let after = pair.left.dump()?;
    ensure!(
        after.private_key == before.private_key && after.listen_port == before.listen_port,
        "{after:?}"
    );
    ensure!(after.peers.keys().eq(before.peers.keys()), "{after:?}");
    pair.check_running()
}

/// Writes bytes, says that there are no more, and reads whatever comes until the daemon hangs up.
fn throw(interface: &str, bytes: &[u8]) -> Result<()> {
    let mut stream = connect(interface)?;
    // The daemon may hang up in the middle of too long a line.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).with_context(|| {
            format!(
                "no end after {:?}…",
                String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
            )
        }),
    }
}

fn getrandom(bytes: &mut [u8]) -> Result<()> {
    let mut source = std::fs::File::open("/dev/urandom")?;
    Ok(source.read_exact(bytes)?)
}

/// A slow reader and a slow writer do not hold up the others, nor the traffic.
#[test]
fn slow_clients_hold_up_nobody() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let interface = pair.left.interface().to_owned();
    let keys = random_public_keys(2000)?;
    let config: String = keys
        .iter()
        .map(|key| format!("[Peer]\nPublicKey = {key}\n"))
        .collect();
    wg::apply(&pair.left.namespace, "addconf", &interface, &config)?;
    // Asks for far more than a socket buffer holds, and reads nothing.
    let mut slow_reader = connect(&interface)?;
    slow_reader.set_write_timeout(Some(Duration::from_secs(1)))?;
    for _ in 0..50 {
        if slow_reader.write_all(b"get=1\n\n").is_err() {
            break;
        }
    }
    let mut slow_writer = connect(&interface)?;
    slow_writer.write_all(b"set=1\nfwm")?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 20, 56)?;
    ensure!(pair.left.dump()?.peers.len() == 2001);
    slow_writer.write_all(b"ark=77\n\n")?;
    ensure!(errno(&read_answer(&slow_writer)?)? == 0);
    ensure!(pair.left.dump()?.fwmark == 77);
    pair.check_running()
}

/// The socket is for root only.
#[test]
fn socket_permissions() -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let namespace = Namespace::new()?;
    let daemon = Daemon::start(&namespace, &Options::default())?;
    let metadata = std::fs::metadata(uapi::socket_path(daemon.interface()))?;
    ensure!(
        metadata.mode() & 0o077 == 0 && metadata.uid() == 0,
        "{:o}",
        metadata.mode()
    );
    Ok(())
}
