//! The program in front of UDP sockets.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use adit_ebpf::{maps, programs};
use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray};

use super::attach::io_error;
use super::steering::{LoadError, MapError, missing, program, refused};
use super::tables::duplicate;
use crate::sys::socket;

/// Keeps junk, dead receiver indices, and handshake messages above their limits out of the sockets it is attached to,
/// by the same maps as XDP. It stays loaded for as long as a socket has it.
#[derive(Clone)]
pub struct SocketFilter {
    program: Arc<OwnedFd>,
    dropped: Arc<PerCpuArray<MapData, u64>>,
}

impl fmt::Debug for SocketFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SocketFilter")
            .finish_non_exhaustive()
    }
}

impl SocketFilter {
    /// Loads the program.
    pub(super) fn load(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let filter: &mut aya::programs::SocketFilter = program(ebpf, programs::SOCKET)?;
        filter
            .load()
            .map_err(|error| refused(programs::SOCKET, &error))?;
        let fd = filter.fd().map_err(|error| io_error(&error));
        let fd = fd.and_then(|fd| fd.as_fd().try_clone_to_owned());
        let other = |error: &io::Error| LoadError::Other(error.to_string());
        let dropped = Self::dropped_map(ebpf).map_err(|error| other(&error.source))?;
        Ok(Self {
            program: Arc::new(fd.map_err(|error| other(&error))?),
            dropped: Arc::new(dropped),
        })
    }

    fn dropped_map(ebpf: &Ebpf) -> Result<PerCpuArray<MapData, u64>, MapError> {
        const MAP: &str = maps::FILTERED;
        let Some(Map::PerCpuArray(map)) = ebpf.map(MAP) else {
            return Err(missing(MAP));
        };
        PerCpuArray::try_from(Map::PerCpuArray(duplicate(map, MAP)?))
            .map_err(|error| MapError::new(MAP, &error))
    }

    /// Puts it in front of a UDP socket, in the place of the filter that it has.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub(crate) fn attach(&self, udp: BorrowedFd<'_>) -> io::Result<()> {
        let program = self.program.as_raw_fd();
        socket::set_option(udp, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, program)
    }

    /// Takes away whatever filter a socket has.
    pub(crate) fn detach(udp: BorrowedFd<'_>) {
        // ENOENT: it has none.
        let _ = socket::set_option(udp, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0);
    }

    /// Packets dropped so far, whichever sockets they were for. The kernel counts them as drops of those sockets, too.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn dropped(&self) -> io::Result<u64> {
        let values = self.dropped.get(&0, 0).map_err(|error| io_error(&error))?;
        Ok(values.iter().sum())
    }
}
