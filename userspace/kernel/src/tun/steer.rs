//! A program that spreads the flows over the queues of a device (`tun_ebpf_select_queue` in
//! `drivers/net/tun.c`).
//!
//! Left to itself the driver sends a flow to the queue by which its last answer was written. All
//! that one peer sends comes in by one thread, so all flows to that peer would go out by one thread,
//! too; and a flow that changes queues is reordered. The program hashes addresses and ports.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crate::sys::bpf::bpf_fd;
use crate::sys::ioctl;

/// `struct bpf_insn`: code, registers (source in the high half), offset, immediate.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The registers that matter: R0 is what loads give and the program returns; loads overwrite R1 to
/// R5 and take the packet from R6.
const R0: u8 = 0;
const R1: u8 = 1;
const R6: u8 = 6;
const HASH: u8 = 7;
const LENGTH: u8 = 8;

/// Spreads neighbouring values over all bits: 2^32 over the golden ratio.
const MIX: i32 = 0x9e37_79b1_u32.cast_signed();

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// `BPF_LD | BPF_ABS`: R0 = bytes of the packet in host order; past its end the program returns 0.
const fn load(size: u8, at: i32) -> Instruction {
    instruction(0x20 | size, R0, 0, 0, at)
}
const BYTE: u8 = 0x10;
const HALF: u8 = 0x08;
const WORD: u8 = 0x00;

/// `BPF_JMP | BPF_JEQ | BPF_K` and `BPF_JNE`.
const fn jump_if(register: u8, value: i32, over: i16) -> Instruction {
    instruction(0x15, register, 0, over, value)
}
const fn jump_unless(register: u8, value: i32, over: i16) -> Instruction {
    instruction(0x55, register, 0, over, value)
}
/// `BPF_JMP | BPF_JA`.
const fn jump(over: i16) -> Instruction {
    instruction(0x05, 0, 0, over, 0)
}
/// `BPF_ALU64 | BPF_MOV`.
const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}
const fn set(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}
/// `BPF_ALU`, on 32 bits, with an immediate: AND, LSH, RSH, MUL.
const fn and(register: u8, value: i32) -> Instruction {
    instruction(0x54, register, 0, 0, value)
}
const fn shift_left(register: u8, bits: i32) -> Instruction {
    instruction(0x64, register, 0, 0, bits)
}
const fn shift_right(register: u8, bits: i32) -> Instruction {
    instruction(0x74, register, 0, 0, bits)
}
const fn multiply(register: u8, value: i32) -> Instruction {
    instruction(0x24, register, 0, 0, value)
}
/// `BPF_ALU | BPF_XOR | BPF_X`: the hash takes in R0.
const TAKE_IN: Instruction = instruction(0xac, HASH, R0, 0, 0);
const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

const PROTOCOL_TCP: i32 = libc::IPPROTO_TCP;
const PROTOCOL_UDP: i32 = libc::IPPROTO_UDP;

/// Where the parts of [`PROGRAM`] begin. A jump is counted from the instruction after it.
const IPV6: i16 = 20;
const PORTS: i16 = 39;
const END: i16 = 44;

/// Fragments of IPv4 and packets with extension headers go by their addresses alone.
const PROGRAM: [Instruction; 48] = [
    copy(R6, R1),
    set(HASH, 0),
    load(BYTE, 0),
    shift_right(R0, 4),
    jump_if(R0, 6, IPV6 - 5),
    jump_unless(R0, 4, END - 6),
    // IPv4: source, destination, flags and fragment offset, header length, protocol.
    load(WORD, 12),
    TAKE_IN,
    multiply(HASH, MIX),
    load(WORD, 16),
    TAKE_IN,
    load(HALF, 6),
    and(R0, 0x3fff),
    jump_unless(R0, 0, END - 14),
    load(BYTE, 0),
    and(R0, 15),
    shift_left(R0, 2),
    copy(LENGTH, R0),
    load(BYTE, 9),
    jump(PORTS - 20),
    // IPv6: source, destination, next header.
    load(WORD, 8),
    TAKE_IN,
    load(WORD, 12),
    TAKE_IN,
    load(WORD, 16),
    TAKE_IN,
    load(WORD, 20),
    TAKE_IN,
    multiply(HASH, MIX),
    load(WORD, 24),
    TAKE_IN,
    load(WORD, 28),
    TAKE_IN,
    load(WORD, 32),
    TAKE_IN,
    load(WORD, 36),
    TAKE_IN,
    set(LENGTH, 40),
    load(BYTE, 6),
    // The ports.
    jump_if(R0, PROTOCOL_TCP, 1),
    jump_unless(R0, PROTOCOL_UDP, END - 41),
    multiply(HASH, MIX),
    instruction(0x40, R0, LENGTH, 0, 0), // BPF_LD | BPF_IND: both ports
    TAKE_IN,
    // The upper half of the product has something of every bit.
    multiply(HASH, MIX),
    shift_right(HASH, 16),
    copy(R0, HASH),
    EXIT,
];

/// Has the device choose queues by flow.
///
/// # Errors
/// The kernel takes no such program, or not from us.
pub(super) fn by_flow(queue: BorrowedFd<'_>) -> io::Result<()> {
    let program = load_program()?;
    ioctl::tun_set_steering(queue, program.as_fd())
}

/// `bpf_attr` of `BPF_PROG_LOAD`, as far as it is needed.
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

fn load_program() -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    const SOCKET_FILTER: u32 = 1;
    let attribute = Load {
        kind: SOCKET_FILTER,
        instruction_count: u32::try_from(PROGRAM.len()).map_err(io::Error::other)?,
        instructions: PROGRAM.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"adit_queue\0\0\0\0\0\0",
    };
    // SAFETY: the attribute names the program with its length, and the license; both are constants. The kernel writes nothing.
    unsafe { bpf_fd(PROG_LOAD, &attribute) }
}
