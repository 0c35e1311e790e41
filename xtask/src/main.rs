//! Builds, sets up, demonstrates and tests Adit.
#![forbid(unsafe_code)]

fn main() {}
