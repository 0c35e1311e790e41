//! The `adit` daemon and command-line tool.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Counts what each thread allocates, so that a running daemon can show that its data threads
/// allocate nothing per packet.
#[global_allocator]
static ALLOCATOR: adit_kernel::alloc::CountingAllocator = adit_kernel::alloc::CountingAllocator;

fn main() -> ExitCode {
    adit::cli::run()
}
