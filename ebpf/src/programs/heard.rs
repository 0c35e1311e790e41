//! Where the tunnel was reached.
//!
//! Another host's packets may come to one of our addresses at our port: behind a rule that forwards them (DNAT), which XDP
//! knows nothing of. They look like the tunnel's, down to an index that is not live here. So XDP drops only what comes
//! where an authentic message has come before.

use adit_ebpf::ListenerKey;

use crate::{
    maps::HEARD,
    words::{Words, bytes},
};

/// Whether an authentic message has come to this address and port.
#[inline(always)]
pub(crate) fn is_heard(destination: Words, port: u16) -> bool {
    let key = ListenerKey {
        address: bytes(destination),
        port: u32::from(port),
    };
    HEARD.get_ptr(key).is_some()
}
