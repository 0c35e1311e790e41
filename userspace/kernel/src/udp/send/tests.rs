//! Recovery of sends, against a kernel that fails on demand.
