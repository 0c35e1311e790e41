//! Helpers for whole-system tests in network namespaces.
