//! The whole system at work: daemons in network namespaces, configured by the stock tools, under real and under
//! hostile traffic. One module a theme.
#![forbid(unsafe_code)]

mod traffic;
