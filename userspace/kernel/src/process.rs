//! What a daemon asks of its own process: a session of its own, a umask, inherited descriptors.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::sys;

/// Makes the process the leader of a new session, without a controlling terminal.
///
/// # Errors
/// `EPERM` when it leads a process group already.
pub fn become_session_leader() -> io::Result<()> {
    sys::setsid()
}

/// Makes the child that `command` starts the leader of a new session, so that it survives the
/// terminal.
pub fn start_in_new_session(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe call.
    unsafe { command.pre_exec(sys::setsid) };
}

/// Hands `fd` to the child that `command` starts and returns the number the child finds it under,
/// to be told to the child in its environment. This process keeps the descriptor for as long as
/// `command` lives.
///
/// # Errors
/// `EMFILE` when the process is out of descriptors.
pub fn pass_to_child(command: &mut Command, fd: &OwnedFd) -> io::Result<RawFd> {
    // A duplicate, so that the number stays taken until the child has been started. It is never a
    // standard stream: `try_clone` gives numbers from 3 up.
    let passed = fd.try_clone()?;
    let number = passed.as_raw_fd();
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe call; moving
    // `passed` into it keeps the number valid.
    unsafe { command.pre_exec(move || sys::set_close_on_exec(passed.as_raw_fd(), false)) };
    Ok(number)
}

/// Takes over a descriptor that was inherited from the parent under a known number, as in
/// `WG_TUN_FD=3`, and makes it close-on-exec.
///
/// # Errors
/// `InvalidInput` for a standard stream, or for a descriptor that is close-on-exec: that one was
/// opened by this process and has an owner. `EBADF` when the number is not open.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(sys::invalid("the standard streams cannot be taken over"));
    }
    let flags = sys::descriptor_flags(number)?;
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(sys::invalid("the descriptor was not inherited"));
    }
    sys::set_close_on_exec(number, true)?;
    // SAFETY: nobody else owns it: what the standard library and this crate open is
    // close-on-exec, this one was not until now, and so cannot be taken twice.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Standard error leads elsewhere until this is dropped, or for good with [`keep`](Self::keep).
#[derive(Debug)]
#[must_use = "standard error is restored when this is dropped"]
pub struct StandardError {
    previous: Option<OwnedFd>,
}

impl StandardError {
    /// Sends what is written to standard error from now on to `file`.
    ///
    /// # Errors
    /// `EMFILE` when the process is out of descriptors.
    pub fn redirect(file: &OwnedFd) -> io::Result<Self> {
        let previous = io::stderr().as_fd().try_clone_to_owned()?;
        sys::replace_standard_error(file.as_fd())?;
        Ok(Self {
            previous: Some(previous),
        })
    }

    /// Lets go of where it led before.
    pub fn keep(mut self) {
        self.previous = None;
    }
}

impl Drop for StandardError {
    fn drop(&mut self) {
        if let Some(previous) = self.previous.take() {
            // The number is open, so there is nothing to run out of.
            let _ = sys::replace_standard_error(previous.as_fd());
        }
    }
}

/// Sets the process-wide umask until it is dropped. Meant for the start, before there are other
/// threads.
#[derive(Debug)]
#[must_use = "the umask is restored when this is dropped"]
pub struct UmaskGuard {
    previous: libc::mode_t,
}

impl UmaskGuard {
    /// Sets the umask, as in `0o077`.
    pub fn set(mask: u32) -> Self {
        Self {
            previous: sys::umask(mask),
        }
    }
}

impl Drop for UmaskGuard {
    fn drop(&mut self) {
        sys::umask(self.previous);
    }
}

/// Whether the process runs with the rights of root. (Capabilities may be fewer.)
#[must_use]
pub fn is_root() -> bool {
    sys::effective_user() == 0
}

/// Names the calling thread as `ps -T` and `/proc` show it. Longer names are cut at 15 bytes.
///
/// # Errors
/// `InvalidInput` if the name contains a NUL.
pub fn name_this_thread(name: &str) -> io::Result<()> {
    let name = CString::new(name).map_err(|_| sys::invalid("NUL in a thread name"))?;
    sys::set_thread_name(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::IntoRawFd;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn temporary_file() -> File {
        static FILES: AtomicU32 = AtomicU32::new(0);
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let name = format!("adit-process-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    #[test]
    fn only_inherited_descriptors_can_be_taken_over_and_only_once() {
        assert!(inherited_fd(0).is_err());
        assert!(inherited_fd(-1).is_err());
        assert_eq!(
            inherited_fd(1_000_000).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        let file = temporary_file();
        assert!(inherited_fd(file.as_raw_fd()).is_err());

        let number = file.into_raw_fd();
        sys::set_close_on_exec(number, false).unwrap();
        let taken = inherited_fd(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert_eq!(sys::descriptor_flags(number).unwrap(), libc::FD_CLOEXEC);
        assert!(inherited_fd(number).is_err());
    }

    #[test]
    fn a_child_gets_the_descriptor_and_a_session_of_its_own() {
        let mut file = temporary_file();
        let mut command = Command::new("/bin/sh");
        let number = pass_to_child(&mut command, &file.try_clone().unwrap().into()).unwrap();
        start_in_new_session(&mut command);
        let script = format!("echo \"$$ $(ps -o sid= -p $$)\" >&{number}");
        let status = command.arg("-c").arg(script).status().unwrap();
        assert!(status.success());
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let numbers: Vec<_> = text.split_whitespace().collect();
        assert_eq!(numbers.len(), 2);
        assert_eq!(numbers[0], numbers[1], "process and session id");
        // The parent's copy stays close-on-exec.
        assert_eq!(sys::descriptor_flags(number).unwrap(), libc::FD_CLOEXEC);
        file.write_all(b"still open").unwrap();
    }

    #[test]
    fn umask_is_restored() {
        let before = sys::umask(0o022);
        {
            let _guard = UmaskGuard::set(0o077);
            assert_eq!(sys::umask(0o077), 0o077);
        }
        assert_eq!(sys::umask(before), 0o022);
    }

    #[test]
    fn standard_error_leads_elsewhere_and_back() {
        // In a process of its own: other tests write to standard error, too.
        const CHILD: &str = "ADIT_TEST_STANDARD_ERROR";
        if std::env::var_os(CHILD).is_some() {
            let file = temporary_file();
            let mut reader = file.try_clone().unwrap();
            let redirected = StandardError::redirect(&file.into()).unwrap();
            io::stderr().write_all(b"elsewhere").unwrap();
            drop(redirected);
            io::stderr().write_all(b"and back").unwrap();
            let mut text = String::new();
            reader.rewind().unwrap();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "elsewhere");
            return;
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([
            "--exact",
            "--nocapture",
            "process::tests::standard_error_leads_elsewhere_and_back",
        ]);
        let output = command.env(CHILD, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert!(
            text.contains("and back") && !text.contains("elsewhere"),
            "{text}"
        );
    }

    #[test]
    fn thread_is_named() {
        std::thread::spawn(|| {
            name_this_thread("adit-test-thread-long").unwrap();
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            assert_eq!(name.trim_end(), "adit-test-threa");
        })
        .join()
        .unwrap();
    }
}
