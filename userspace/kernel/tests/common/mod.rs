//! What the tests that need root share: private namespaces and `ip(8)` in them.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use adit_kernel::netns::NetworkNamespace;
use adit_kernel::poll::{Interest, PollFd, poll};
use adit_kernel::process::is_root;

/// Long enough for a busy machine; only failures take it.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A namespace of the test's own.
pub fn namespace() -> NetworkNamespace {
    assert!(
        is_root(),
        "this test needs root: it makes network namespaces and TUN devices"
    );
    NetworkNamespace::new_private().expect("a private network namespace")
}

/// Binds a port that may have been ours a moment ago: a program that another test is starting holds
/// a copy of every descriptor between its fork and its exec, of closed sockets too.
pub fn patiently<T, E: std::fmt::Debug>(bind: impl Fn() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bind() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            result => return result.unwrap(),
        }
    }
}

/// Runs `ip` in the namespace of the calling thread.
pub fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .expect("ip");
    assert!(status.success(), "ip {arguments}");
}

/// What `ip` prints.
pub fn ip_output(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip");
    assert!(output.status.success(), "ip {arguments}");
    String::from_utf8(output.stdout).unwrap()
}

/// How `ip link set … netns` may refer to `namespace`.
pub fn path(namespace: &NetworkNamespace) -> String {
    format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        namespace.as_fd().as_raw_fd()
    )
}

/// Waits until `fd` is readable.
pub fn wait(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, Interest::Read)];
    poll(&mut fds, Some(PATIENCE)).unwrap() == 1
}

/// Whether `fd` is readable now.
pub fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, Interest::Read)];
    poll(&mut fds, Some(Duration::ZERO)).unwrap() == 1
}
