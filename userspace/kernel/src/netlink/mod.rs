//! rtnetlink: the state of links, changes of addresses and routes, route lookup; giving interfaces
//! addresses, routes and rules.
//!
//! Messages: `include/uapi/linux/rtnetlink.h`, `if_link.h`, `net_namespace.h`. The few that are
//! needed are written and read here byte by byte; a full codec would be many times this size.

mod address;
mod codec;
mod interface;
mod link;
mod monitor;
mod neighbour;
mod next_hop;
mod path_mtu;
mod route;
mod rule;
mod socket;
mod table;

pub use address::{LocalAddress, local_addresses};
pub use interface::{InterfaceAddress, add_address, delete_link, interface_addresses, set_up};
pub use link::{Link, link_by_name, links};
pub use monitor::{LinkEvent, LinkMonitor};
pub use neighbour::{
    Neighbour, NeighbourChange, NeighbourMonitor, Reachability, confirm_neighbour, neighbour,
};
pub use next_hop::{NextHop, Outbound, next_hop};
pub use path_mtu::path_mtu;
pub use route::{RouteMonitor, route_interface};
pub use rule::{Rule, add_rule, delete_rule, rules};
pub use table::{MAIN_TABLE, TableRoute, add_route, route_to, routes};
