//! Loaded into a daemon by `LD_PRELOAD`, stands between it and the C library, and makes some calls fail as the kernel
//! could: which, how and how often is said by a file that the tests write while the daemon runs ([`page`]). It can also
//! make the daemon's clocks run fast, so that sessions grow old in seconds.
//!
//! A failing call does not reach the kernel, except for one that is to be [`page::SHORT`]: that one is asked for less.

pub mod page;

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::AsRawFd as _;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use libc::{clockid_t, epoll_event, iovec, mmsghdr, msghdr, nfds_t, pollfd, sigset_t, timespec};
use page::{Call, NUMBERS};

type Numbers = [AtomicU64; NUMBERS];

/// The mapped file; null if there is none.
static NUMBERS_MAPPED: AtomicPtr<Numbers> = AtomicPtr::new(null_mut());

/// What the clocks showed at the start, by their number.
static STARTS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// Shorter reads are not of packets.
const PACKET_BUFFER: usize = 65_535;

/// The C library's function of this name.
macro_rules! next {
    ($name:ident: $type:ty) => {{
        static ADDRESS: AtomicUsize = AtomicUsize::new(0);
        let mut address = ADDRESS.load(Ordering::Relaxed);
        if address == 0 {
            let name = concat!(stringify!($name), "\0");
            // SAFETY: the name is NUL-terminated.
            let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast()) };
            address = found.expose_provenance();
            ADDRESS.store(address, Ordering::Relaxed);
        }
        let pointer = with_exposed_provenance_mut::<c_void>(address);
        // SAFETY: the C library has a function of this name, whose type is as its manual says, and for which this one
        // stands.
        unsafe { std::mem::transmute::<*mut c_void, $type>(pointer) }
    }};
}

/// Runs when the library is loaded, before the program: later the file may be out of reach.
extern "C" fn start() {
    for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME] {
        let mut time = timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let next = next!(clock_gettime: unsafe extern "C" fn(clockid_t, *mut timespec) -> c_int);
        // SAFETY: the pointer is to a live `timespec`.
        unsafe { next(clock, &raw mut time) };
        if let Some(start) = start_of(clock) {
            start.store(nanoseconds(&time), Ordering::Relaxed);
        }
    }
    let Some(path) = std::env::var_os(page::VARIABLE) else {
        return;
    };
    let Ok(file) = std::fs::File::options().read(true).write(true).open(path) else {
        return;
    };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let (length, fd) = (size_of::<Numbers>(), file.as_raw_fd());
    // SAFETY: a new mapping at an address that the kernel chooses.
    let mapped = unsafe { libc::mmap(null_mut(), length, protection, libc::MAP_SHARED, fd, 0) };
    if mapped != libc::MAP_FAILED {
        NUMBERS_MAPPED.store(mapped.cast(), Ordering::Release);
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

fn numbers() -> Option<&'static Numbers> {
    // SAFETY: null, or the address of a mapping of this length that is never undone; the tests write whole numbers.
    unsafe { NUMBERS_MAPPED.load(Ordering::Acquire).as_ref() }
}

/// How this call is to fail, if it is.
fn fault(call: Call) -> Option<u64> {
    let number = |which| numbers().map(|numbers| &numbers[call.position(which)]);
    let attempt = number(page::ATTEMPTS)?.fetch_add(1, Ordering::Relaxed);
    let rate = number(page::RATE)?.load(Ordering::Relaxed);
    let seed = numbers()?[page::SEED].load(Ordering::Relaxed);
    if rate == 0 || mix(seed ^ mix(attempt)) % 1000 >= rate {
        return None;
    }
    Some(number(page::FAULT)?.load(Ordering::Relaxed))
}

fn injected(call: Call) {
    if let Some(numbers) = numbers() {
        numbers[call.position(page::INJECTED)].fetch_add(1, Ordering::Relaxed);
    }
}

/// The finalizer of splitmix64: neighbouring numbers become unlike ones.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn fail(call: Call, errno: u64) -> c_int {
    injected(call);
    // SAFETY: the C library gives each thread such a place.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is the calling thread's own.
    unsafe { *place = c_int::try_from(errno).unwrap_or(libc::EIO) };
    -1
}

/// What this call is asked for if it is to be short: half, but something.
fn half(call: Call, count: c_uint) -> c_uint {
    if count > 1 {
        injected(call);
    }
    count.div_ceil(2)
}

/// # Safety
/// As `sendmmsg(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmmsg(
    fd: c_int,
    headers: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    type Next = unsafe extern "C" fn(c_int, *mut mmsghdr, c_uint, c_int) -> c_int;
    const CALL: Call = Call::SendMany;
    let count = match fault(CALL) {
        Some(page::SHORT) => half(CALL, count),
        Some(errno) => return fail(CALL, errno),
        None => count,
    };
    let next = next!(sendmmsg: Next);
    // SAFETY: as the caller vouches for, with no more headers.
    unsafe { next(fd, headers, count, flags) }
}

/// # Safety
/// As `recvmmsg(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmmsg(
    fd: c_int,
    headers: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    type Next = unsafe extern "C" fn(c_int, *mut mmsghdr, c_uint, c_int, *mut timespec) -> c_int;
    const CALL: Call = Call::ReceiveMany;
    let count = match fault(CALL) {
        Some(page::SHORT) => half(CALL, count),
        Some(errno) => return fail(CALL, errno),
        None => count,
    };
    let next = next!(recvmmsg: Next);
    // SAFETY: as the caller vouches for, with no more headers.
    unsafe { next(fd, headers, count, flags, timeout) }
}

/// # Safety
/// As `read(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(fd: c_int, buffer: *mut c_void, length: usize) -> isize {
    type Next = unsafe extern "C" fn(c_int, *mut c_void, usize) -> isize;
    if length >= PACKET_BUFFER
        && let Some(errno @ 1..) = fault(Call::TunRead)
    {
        return fail(Call::TunRead, errno) as isize;
    }
    let next = next!(read: Next);
    // SAFETY: as the caller vouches for.
    unsafe { next(fd, buffer, length) }
}

/// # Safety
/// As `writev(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, buffers: *const iovec, count: c_int) -> isize {
    type Next = unsafe extern "C" fn(c_int, *const iovec, c_int) -> isize;
    if let Some(errno @ 1..) = fault(Call::TunWrite) {
        return fail(Call::TunWrite, errno) as isize;
    }
    let next = next!(writev: Next);
    // SAFETY: as the caller vouches for.
    unsafe { next(fd, buffers, count) }
}

/// # Safety
/// As `ppoll(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ppoll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    type Next =
        unsafe extern "C" fn(*mut pollfd, nfds_t, *const timespec, *const sigset_t) -> c_int;
    const CALL: Call = Call::Poll;
    // Without descriptors it is a pause, which is not to be made shorter.
    if count > 0 {
        match fault(CALL) {
            Some(page::SHORT) => {
                injected(CALL);
                return 0;
            }
            Some(errno) => return fail(CALL, errno),
            None => {}
        }
    }
    // SAFETY: null, or a pointer to what the caller has set.
    let asked = unsafe { timeout.as_ref() };
    let shorter = asked.map(|time| timespec_of(nanoseconds(time).div_ceil(speed())));
    let timeout = shorter.as_ref().map_or(std::ptr::null(), |time| time);
    let next = next!(ppoll: Next);
    // SAFETY: as the caller vouches for, and the timeout is null or outlives the call.
    unsafe { next(fds, count, timeout, mask) }
}

/// # Safety
/// As `epoll_wait(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_wait(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout: c_int,
) -> c_int {
    type Next = unsafe extern "C" fn(c_int, *mut epoll_event, c_int, c_int) -> c_int;
    const CALL: Call = Call::EpollWait;
    match fault(CALL) {
        Some(page::SHORT) => {
            injected(CALL);
            return 0;
        }
        Some(errno) if errno == libc::EINTR as u64 || !on_main_thread() => {
            return fail(CALL, errno);
        }
        _ => {}
    }
    let milliseconds = u64::try_from(timeout).map(|limit| limit.div_ceil(speed()));
    let timeout = milliseconds.map_or(timeout, |limit| c_int::try_from(limit).unwrap_or(timeout));
    let next = next!(epoll_wait: Next);
    // SAFETY: as the caller vouches for.
    unsafe { next(set, events, count, timeout) }
}

/// # Safety
/// As `recvmsg(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(fd: c_int, header: *mut msghdr, flags: c_int) -> isize {
    type Next = unsafe extern "C" fn(c_int, *mut msghdr, c_int) -> isize;
    if let Some(errno @ 1..) = fault(Call::ReceiveNetlink) {
        return fail(Call::ReceiveNetlink, errno) as isize;
    }
    let next = next!(recvmsg: Next);
    // SAFETY: as the caller vouches for.
    unsafe { next(fd, header, flags) }
}

/// # Safety
/// As `clock_gettime(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let next = next!(clock_gettime: unsafe extern "C" fn(clockid_t, *mut timespec) -> c_int);
    // SAFETY: as the caller vouches for.
    let result = unsafe { next(clock, time) };
    let start = start_of(clock).map_or(0, |start| start.load(Ordering::Relaxed));
    let fast = start != 0 && speed() > 1 && result == 0;
    // SAFETY: the call has just succeeded in writing there.
    if let Some(time) = unsafe { time.as_mut() }.filter(|_| fast) {
        let passed = nanoseconds(time).saturating_sub(start);
        *time = timespec_of(start + passed * speed());
    }
    result
}

/// Where the start of this clock stands, if it is one of those that can run fast.
fn start_of(clock: clockid_t) -> Option<&'static AtomicU64> {
    match clock {
        libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME => {
            STARTS.get(usize::try_from(clock).unwrap_or(usize::MAX))
        }
        _ => None,
    }
}

fn speed() -> u64 {
    numbers().map_or(1, |numbers| {
        numbers[page::CLOCK].load(Ordering::Relaxed).max(1)
    })
}

fn nanoseconds(time: &timespec) -> u64 {
    let whole = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    let rest = Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0));
    u64::try_from((whole + rest).as_nanos()).unwrap_or(u64::MAX)
}

fn timespec_of(nanoseconds: u64) -> timespec {
    let time = Duration::from_nanos(nanoseconds);
    timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

fn on_main_thread() -> bool {
    // SAFETY: takes nothing and cannot fail.
    let thread = unsafe { libc::gettid() };
    // SAFETY: takes nothing and cannot fail.
    let process = unsafe { libc::getpid() };
    thread == process
}
