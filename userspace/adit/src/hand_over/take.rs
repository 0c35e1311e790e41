//! The successor's side.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use adit_kernel::descriptors;
use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::estate::Header;
use super::{AGREED, LIMIT, READY, REQUEST, TAKEN};
use crate::quick::client;
use crate::service::ServiceManager;

/// How long the daemon may take for an answer: to let its threads finish, and to write what there is.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than any header.
const LONGEST_HEADER: usize = 1 << 16;

/// Everything that a daemon had.
#[derive(Debug)]
pub struct Inheritance {
    /// The name that the tunnel was started under.
    pub interface: String,
    /// The daemon's process id.
    pub predecessor: u32,
    /// The queues of the TUN device.
    pub tun: Vec<OwnedFd>,
    /// The UDP sockets.
    pub udp: Vec<OwnedFd>,
    /// The configuration socket.
    pub listener: OwnedFd,
    /// Where the log goes.
    pub standard_error: OwnedFd,
    /// Where metrics are answered, and the socket.
    pub metrics: Option<(String, OwnedFd)>,
    /// The service manager.
    pub manager: Option<ServiceManager>,
    /// Device and peers, with keys; for the new control thread.
    pub configuration: Zeroizing<Vec<u8>>,
    /// The daemon.
    pub predecessor_stream: Predecessor,
}

/// The daemon that gives the tunnel up.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

/// Asks the daemon of `interface` for everything it has. From then on it stands still and waits for [`Predecessor::take`].
///
/// # Errors
/// No daemon, or one that does not hand over.
pub fn ask(interface: &str) -> Result<Inheritance> {
    let mut stream = client::connect(interface)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{REQUEST}\n\n").as_bytes())?;
    let (header, files, configuration) = receive(&stream).context("cannot take the tunnel over")?;
    let mut files = files.into_iter();
    let mut take = |count: usize| -> Vec<OwnedFd> { files.by_ref().take(count).collect() };
    let (tun, udp) = (take(header.tun_queues), take(header.udp_sockets));
    let mut next = || files.next().context("a descriptor is missing");
    let (listener, standard_error) = (next()?, next()?);
    let metrics = match header.metrics {
        Some(address) => Some((address, next()?)),
        None => None,
    };
    let manager = match header.manager {
        true => Some(ServiceManager::inherited(
            UnixDatagram::from(next()?),
            header.watchdog,
        )),
        false => None,
    };
    Ok(Inheritance {
        interface: header.interface,
        predecessor: header.pid,
        tun,
        udp,
        listener,
        standard_error,
        metrics,
        manager,
        configuration,
        predecessor_stream: Predecessor(stream),
    })
}

fn receive(stream: &UnixStream) -> Result<(Header, Vec<OwnedFd>, Zeroizing<Vec<u8>>)> {
    // Never grown: that would leave copies of keys behind.
    let mut read = Zeroizing::new(vec![0; LONGEST_HEADER]);
    let (mut length, mut files) = (0, Vec::new());
    let end = loop {
        if let Some(end) = read[..length].windows(2).position(|two| two == b"\n\n") {
            break end;
        }
        // A refusal is a blank line behind a line, too, so that this is not how it ends.
        ensure!(length < read.len(), "its answer is too long");
        match descriptors::receive(stream.as_fd(), &mut read[length..], &mut files) {
            Ok(0) => bail!("the daemon has closed the connection"),
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("the daemon does not answer")
            }
            Err(error) => return Err(error.into()),
        }
    };
    let text = std::str::from_utf8(&read[..end]).context("its answer is not text")?;
    refusal(text)?;
    let header = Header::parse(text)?;
    ensure!(
        header.descriptors() == files.len(),
        "{} descriptors came in place of {}",
        files.len(),
        header.descriptors()
    );
    let mut configuration = Zeroizing::new(vec![0; header.configuration]);
    let ahead = &read[end + 2..length];
    ensure!(
        ahead.len() <= configuration.len(),
        "there is more than there should be"
    );
    let (known, unknown) = configuration.split_at_mut(ahead.len());
    known.copy_from_slice(ahead);
    let mut stream = stream;
    stream.read_exact(unknown)?;
    Ok((header, files, configuration))
}

/// Fails if this is a refusal.
fn refusal(text: &str) -> Result<()> {
    match text.trim_start_matches('\n').strip_prefix("errno=") {
        Some("-16") => bail!("another restart is under way"),
        Some(errno) => bail!("the daemon refuses (errno {errno}): it is not adit, or too old"),
        None => Ok(()),
    }
}

impl Predecessor {
    /// Says that everything is ready, and takes the tunnel over: from now on it is ours.
    ///
    /// # Errors
    /// The daemon goes on itself, since we took too long, or has ended.
    pub fn take(&mut self) -> Result<()> {
        let context = "the daemon does not give the tunnel up";
        self.0
            .write_all(format!("{READY}\n\n").as_bytes())
            .context(context)?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n\n") {
            let mut byte = [0];
            match self.0.read(&mut byte).context(context)? {
                0 => bail!("{context}"),
                _ => answer.extend(byte),
            }
        }
        ensure!(
            answer == format!("{AGREED}\n\n").as_bytes(),
            "{context}: it goes on itself"
        );
        // For `has_ended`, and before it is too late to fail: a confined thread may not change it.
        self.0.set_nonblocking(true).context(context)?;
        self.0
            .write_all(format!("{TAKEN}\n\n").as_bytes())
            .context(context)
    }

    /// Waits until the daemon has ended, but not for ever. False if it goes on itself, since we were too slow: then
    /// the tunnel is not ours.
    pub async fn has_ended(self) -> bool {
        let wait = async {
            tokio::net::UnixStream::from_std(self.0)?
                .read(&mut [0])
                .await
        };
        match timeout(LIMIT, wait).await {
            // It has closed the connection, in order or not.
            Ok(Ok(0) | Err(_)) => true,
            Ok(Ok(_)) => false,
            Err(_) => {
                tracing::warn!("the daemon that ran before takes its time to end");
                true
            }
        }
    }
}
