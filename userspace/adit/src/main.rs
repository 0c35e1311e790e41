//! The `adit` daemon and command-line tool.
#![forbid(unsafe_code)]

fn main() {}
