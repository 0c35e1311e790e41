//! What a process gives up once it is set up: capabilities, files, system calls, and that what is
//! in its memory gets anywhere else.
//!
//! Nothing of it can be taken back. The policy, that is what is given up and what is kept, is its
//! caller's.
//!
//! | file | what | whom it holds for |
//! |---|---|---|
//! | `capabilities` | [`CapabilitySet`], dropping the others | the calling thread and those it makes later |
//! | `memory` | no core dumps, no swap | the process |
//! | `files` | Landlock: files, TCP, signals | the calling thread and those it makes later |
//! | `calls` | seccomp: system calls | the calling thread and those it makes later |

mod calls;
mod capabilities;
mod files;
mod memory;

pub use calls::{Call, CallFilter, Condition, FilterError, Refusal};
pub use capabilities::{Capability, CapabilitySet, keep_capabilities};
pub use files::{FileAccess, FileError, FileLimits, Landlock, limit_files};
pub use memory::{forbid_dumps, forbid_new_privileges, lock_memory};
