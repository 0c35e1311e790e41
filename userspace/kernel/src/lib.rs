//! The Linux interfaces a userspace tunnel needs: TUN, UDP with GSO and GRO, netlink.
