//! rtnetlink: the state of links, changes of addresses and routes, route lookup.
//!
//! Messages: `include/uapi/linux/rtnetlink.h`, `if_link.h`, `net_namespace.h`. The few that are
//! needed are written and read here byte by byte; a full codec would be many times this size.

mod address;
mod codec;
mod link;
mod monitor;
mod route;
mod socket;

pub use address::{LocalAddress, local_addresses};
pub use link::{Link, link_by_name, links};
pub use monitor::{LinkEvent, LinkMonitor};
pub use route::{RouteMonitor, route_interface};
