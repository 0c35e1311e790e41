//! The daemon's side: everything is offered, and given up when the successor has taken it.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use adit_kernel::descriptors;
use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::estate::{ALWAYS, Header};
use super::{AGREED, GOES_ON, LIMIT, READY, TAKEN};
use crate::control::Control;

/// How often the service manager is told that all is well while the data threads stand still.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How often it is looked whether the data threads stand.
const STANDING: Duration = Duration::from_millis(1);
/// Longer than anything that the successor says.
const LONGEST_LINE: usize = 64;

/// What the daemon has beside its device.
#[derive(Debug)]
pub struct Belongings<'a> {
    /// The name that the tunnel was started under.
    pub interface: &'a str,
    /// The configuration socket.
    pub listener: BorrowedFd<'a>,
    /// Where metrics are answered, and the socket.
    pub metrics: Option<(String, BorrowedFd<'a>)>,
}

/// Hands everything over to the process behind `heir`. The answer is whether it has taken it; if not, the device is as it was
/// before.
pub async fn hand_over(
    control: &Rc<RefCell<Control>>,
    belongings: &Belongings<'_>,
    heir: &mut UnixStream,
) -> bool {
    tracing::info!("another daemon asks to take the tunnel over");
    control.borrow_mut().stand_still();
    let offered = async {
        tokio::select! {
            result = timeout(LIMIT, offer(control, belongings, heir)) => match result {
                Ok(result) => result,
                Err(_) => Err(anyhow::anyhow!("it took more than {LIMIT:?}")),
            },
            () = signs_of_life(control) => Ok(()),
        }
    };
    match offered.await {
        Ok(()) => {
            let successor = heir.peer_cred().ok().and_then(|peer| peer.pid());
            let successor = successor.and_then(|pid| u32::try_from(pid).ok());
            control.borrow().name_successor(successor);
            true
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, "the tunnel was not taken over, and goes on here");
            // One that is only slow must not start.
            let _ = heir.try_write(format!("{GOES_ON}\n\n").as_bytes());
            control.borrow_mut().go_on();
            false
        }
    }
}

/// Never ends.
async fn signs_of_life(control: &Rc<RefCell<Control>>) {
    loop {
        control.borrow().report_alive();
        sleep(SIGN_OF_LIFE).await;
    }
}

async fn offer(
    control: &Rc<RefCell<Control>>,
    belongings: &Belongings<'_>,
    heir: &mut UnixStream,
) -> Result<()> {
    while !control.borrow().stands_still() {
        sleep(STANDING).await;
    }
    let (header, files, configuration) =
        collect(&control.borrow(), belongings).context("cannot collect what there is")?;
    send(heir, &header, &files, &configuration)
        .await
        .context("cannot send what there is")?;
    drop((files, configuration));
    expect(heir, READY).await?;
    heir.write_all(format!("{AGREED}\n\n").as_bytes()).await?;
    expect(heir, TAKEN).await
}

fn collect(
    control: &Control,
    belongings: &Belongings<'_>,
) -> Result<(Header, Vec<OwnedFd>, Zeroizing<String>)> {
    let configuration = control.describe_estate();
    let shared = control.dataplane();
    let sockets = shared.sockets.load();
    let udp: Vec<BorrowedFd<'_>> = sockets
        .iter()
        .flat_map(|group| group.descriptors())
        .collect();
    let manager = control.service_manager();
    let header = Header {
        interface: belongings.interface.to_owned(),
        pid: std::process::id(),
        tun_queues: shared.queues(),
        udp_sockets: udp.len(),
        always: ALWAYS,
        metrics: belongings
            .metrics
            .as_ref()
            .map(|(address, _)| address.clone()),
        manager: manager.is_some(),
        watchdog: manager.and_then(|manager| manager.watchdog()),
        configuration: configuration.len(),
    };
    let standard_error = io::stderr();
    let files = shared
        .tun_queues()
        .map(|tun| tun.as_fd())
        .chain(udp)
        .chain([belongings.listener, standard_error.as_fd()])
        .chain(belongings.metrics.as_ref().map(|(_, socket)| *socket))
        .chain(manager.map(|manager| manager.socket()))
        .map(|file| file.try_clone_to_owned())
        .collect::<io::Result<_>>()?;
    Ok((header, files, configuration))
}

async fn send(
    heir: &UnixStream,
    header: &Header,
    files: &[OwnedFd],
    configuration: &str,
) -> io::Result<()> {
    for files in files.chunks(descriptors::MOST) {
        let line = format!("descriptors={}\n", files.len());
        let files: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
        send_all(heir, line.as_bytes(), &files).await?;
    }
    let text = format!("{}\n", header.text());
    send_all(heir, text.as_bytes(), &[]).await?;
    send_all(heir, configuration.as_bytes(), &[]).await
}

async fn send_all(
    heir: &UnixStream,
    mut bytes: &[u8],
    mut files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = heir
            .async_io(Interest::WRITABLE, || {
                descriptors::send(heir.as_fd(), bytes, files)
            })
            .await?;
        bytes = &bytes[sent..];
        files = &[];
    }
    Ok(())
}

/// Reads the next line that is not blank.
async fn expect(heir: &mut UnixStream, wanted: &str) -> Result<()> {
    let mut line = Vec::new();
    loop {
        let byte = match heir.read_u8().await {
            Ok(byte) => byte,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                bail!("it has ended before it said {wanted}")
            }
            Err(error) => return Err(error).with_context(|| format!("before it said {wanted}")),
        };
        match byte {
            b'\n' if line.is_empty() => {}
            b'\n' => break,
            byte => line.push(byte),
        }
        if line.len() > LONGEST_LINE {
            break;
        }
    }
    if line == wanted.as_bytes() {
        Ok(())
    } else {
        bail!("it said something else than {wanted}")
    }
}
