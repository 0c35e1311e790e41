//! seccomp: which system calls a thread may still make.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_long, c_ulong, c_ushort};
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use thiserror::Error;

use super::memory::forbid_new_privileges;

/// A system call that may be made.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number: `SYS_…`.
    pub number: c_long,
    /// With which arguments.
    pub condition: Condition,
}

impl Call {
    /// With any arguments. The kernel remembers such calls, so that they cost next to nothing.
    #[must_use]
    pub const fn any(number: c_long) -> Self {
        Self {
            number,
            condition: Condition::Any,
        }
    }

    /// With one of `values` as argument `argument`, counted from 0.
    #[must_use]
    pub const fn with(number: c_long, argument: u8, values: &'static [u32]) -> Self {
        Self {
            number,
            condition: Condition::OneOf { argument, values },
        }
    }

    /// With none of `bits` in argument `argument`, counted from 0.
    #[must_use]
    pub const fn without(number: c_long, argument: u8, bits: u32) -> Self {
        Self {
            number,
            condition: Condition::Without { argument, bits },
        }
    }
}

/// What a call's arguments must be. Only the lower 32 bits of an argument are looked at: what is
/// judged here are `int`s.
#[derive(Clone, Copy, Debug)]
pub enum Condition {
    /// Anything.
    Any,
    /// One argument has one of these values.
    OneOf {
        /// Which, from 0.
        argument: u8,
        /// The values.
        values: &'static [u32],
    },
    /// One argument has none of these bits.
    Without {
        /// Which, from 0.
        argument: u8,
        /// The bits.
        bits: u32,
    },
}

/// What becomes of a call that is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not made and returns `EPERM`; the kernel logs it.
    Errno,
    /// It is made, and the kernel logs it.
    LogOnly,
}

/// Why there is no filter.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FilterError {
    /// The list makes no filter.
    #[error("the list of system calls cannot be made a filter")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel does not take it: it has no seccomp, or is itself confined.
    #[error("the kernel takes no filter of system calls")]
    Install(#[source] io::Error),
}

/// A filter, ready to be put on threads.
#[derive(Clone, Debug)]
pub struct CallFilter(BpfProgram);

impl CallFilter {
    /// Makes a filter that lets these calls through. A call may be in the list several times, with
    /// different conditions.
    ///
    /// # Errors
    /// [`FilterError::Compile`] for an argument beyond the sixth, or an architecture that it is not
    /// made for.
    pub fn new(
        calls: impl IntoIterator<Item = Call>,
        refusal: Refusal,
    ) -> Result<Self, FilterError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut unconditional = Vec::new();
        for call in calls {
            let of_call = rules.entry(call.number).or_default();
            match call.condition {
                Condition::Any => unconditional.push(call.number),
                Condition::OneOf { argument, values } => {
                    for value in values {
                        of_call.push(rule(argument, SeccompCmpOp::Eq, *value)?);
                    }
                }
                Condition::Without { argument, bits } => {
                    of_call.push(rule(argument, SeccompCmpOp::MaskedEq(bits.into()), 0)?);
                }
            }
        }
        // To the library, no rules means any arguments.
        for number in unconditional {
            rules.insert(number, Vec::new());
        }
        let refused = match refusal {
            Refusal::Errno => SeccompAction::Errno(libc::EPERM.unsigned_abs()),
            Refusal::LogOnly => SeccompAction::Log,
        };
        let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
        let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, architecture)?;
        Ok(Self(filter.try_into()?))
    }

    /// Puts the filter on the calling thread, for good. Threads it makes later have it, too. Calls of
    /// another architecture (32-bit ones) end the process.
    ///
    /// # Errors
    /// [`FilterError::Install`].
    pub fn install(&self) -> Result<(), FilterError> {
        // Without it, filters are for CAP_SYS_ADMIN only.
        forbid_new_privileges().map_err(FilterError::Install)?;
        install(&self.0).map_err(FilterError::Install)
    }
}

fn rule(
    argument: u8,
    operator: SeccompCmpOp,
    value: u32,
) -> Result<SeccompRule, seccompiler::BackendError> {
    let length = SeccompCmpArgLen::Dword;
    let condition = SeccompCondition::new(argument, length, operator, value.into())?;
    SeccompRule::new(vec![condition])
}

/// `struct sock_fprog`, `linux/filter.h`.
#[repr(C)]
struct Program {
    length: c_ushort,
    instructions: *const sock_filter,
}

/// As the library does it, with two flags that it does not know.
fn install(program: &[sock_filter]) -> io::Result<()> {
    // That refused calls are logged, and that filtered threads run as fast as others: before Linux
    // 5.16 seccomp switches on a mitigation against code that reads its own process (speculative
    // store bypass), which costs memory-bound work several percent. Here nothing foreign runs.
    let flags = libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // Linux 4.14 and 4.17; an older kernel refuses flags it does not know.
    [flags, libc::SECCOMP_FILTER_FLAG_LOG, 0]
        .into_iter()
        .map(|flags| install_with(program, flags))
        .find(|result| !matches!(result, Err(error) if error.raw_os_error() == Some(libc::EINVAL)))
        .unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::EINVAL)))
}

fn install_with(program: &[sock_filter], flags: c_ulong) -> io::Result<()> {
    let program = Program {
        length: c_ushort::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr(),
    };
    let operation: c_int = libc::SECCOMP_SET_MODE_FILTER as c_int;
    // SAFETY: pointer and length in the structure describe the borrowed slice, and the kernel copies
    // both. `sock_filter` of the library has the layout of the kernel's.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What any thread needs to end.
    const THREAD: [c_long; 8] = [
        libc::SYS_futex,
        libc::SYS_munmap,
        libc::SYS_madvise,
        libc::SYS_rt_sigprocmask,
        libc::SYS_sigaltstack,
        libc::SYS_exit,
        libc::SYS_write,
        libc::SYS_brk,
    ];

    /// Runs `test` on a thread that may make no other calls than those of a thread, and `calls`.
    fn filtered<T: Send + 'static>(
        calls: &[Call],
        refusal: Refusal,
        test: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let all = THREAD.map(Call::any).into_iter();
        let filter = CallFilter::new(all.chain(calls.iter().copied()), refusal).unwrap();
        std::thread::spawn(move || {
            filter.install().unwrap();
            test()
        })
        .join()
        .unwrap()
    }

    fn family_of_socket(family: c_int) -> Result<(), Option<c_int>> {
        crate::sys::socket::socket(family, libc::SOCK_DGRAM, 0)
            .map(drop)
            .map_err(|error| error.raw_os_error())
    }

    #[test]
    fn what_is_not_in_the_list_is_refused() {
        let parent = filtered(&[], Refusal::Errno, || {
            // SAFETY: takes nothing. The library's function does not set `errno`.
            let parent = unsafe { libc::syscall(libc::SYS_getppid) };
            (parent, io::Error::last_os_error().raw_os_error())
        });
        assert_eq!(parent, (-1, Some(libc::EPERM)));
    }

    #[test]
    fn what_is_logged_is_done() {
        // SAFETY: takes nothing.
        let parent = filtered(&[], Refusal::LogOnly, || unsafe { libc::getppid() });
        assert!(parent > 0);
    }

    #[test]
    fn arguments_decide() {
        const INET: u32 = libc::AF_INET.unsigned_abs();
        const UNIX: u32 = libc::AF_UNIX.unsigned_abs();
        let calls = [
            Call::with(libc::SYS_socket, 0, &[INET, UNIX]),
            Call::any(libc::SYS_close),
            Call::any(libc::SYS_fcntl),
        ];
        filtered(&calls, Refusal::Errno, || {
            assert_eq!(family_of_socket(libc::AF_INET), Ok(()));
            assert_eq!(family_of_socket(libc::AF_UNIX), Ok(()));
            assert_eq!(family_of_socket(libc::AF_NETLINK), Err(Some(libc::EPERM)));
        });
        let calls = [
            Call::without(libc::SYS_socket, 1, libc::SOCK_NONBLOCK.unsigned_abs()),
            Call::any(libc::SYS_close),
            Call::any(libc::SYS_fcntl),
        ];
        filtered(&calls, Refusal::Errno, || {
            assert_eq!(family_of_socket(libc::AF_INET), Err(Some(libc::EPERM)));
        });
    }

    #[test]
    fn a_call_without_conditions_overrides_those_with() {
        const UNIX: u32 = libc::AF_UNIX.unsigned_abs();
        let calls = [
            Call::any(libc::SYS_socket),
            Call::with(libc::SYS_socket, 0, &[UNIX]),
            Call::any(libc::SYS_close),
            Call::any(libc::SYS_fcntl),
        ];
        filtered(&calls, Refusal::Errno, || {
            assert_eq!(family_of_socket(libc::AF_INET), Ok(()));
        });
    }

    #[test]
    fn an_argument_that_no_call_has_makes_no_filter() {
        let call = Call::with(libc::SYS_socket, 6, &[1]);
        assert!(matches!(
            CallFilter::new([call], Refusal::Errno),
            Err(FilterError::Compile(_))
        ));
    }
}
