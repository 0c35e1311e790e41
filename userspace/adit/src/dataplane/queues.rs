//! How many pairs of data threads a machine should have.

use std::thread;

use adit_kernel::netlink;

/// More have nothing to add: by then what the threads share, the kernel's queues first of all, is
/// what bounds them.
const MOST: usize = 8;

/// What is usual on this machine, if nobody says otherwise.
pub fn usual() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let links = netlink::links().unwrap_or_default();
    let links = links.iter().filter(|link| !link.loopback);
    let receive_queues = links.map(|link| link.rx_queues as usize).max();
    choose(cores, receive_queues.unwrap_or(1))
}

/// A pair keeps two cores busy. And where one core does all of the kernel's receiving, that one is
/// as busy as the first pair, so others would wait for it.
fn choose(cores: usize, receive_queues: usize) -> usize {
    (cores / 2).min(receive_queues).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cores_and_a_receive_queue_for_each_pair() {
        for (cores, receive_queues, expected) in [
            (1, 1, 1),
            (2, 8, 1),
            (4, 8, 2),
            (8, 1, 1),
            (8, 2, 2),
            (16, 16, 8),
            (64, 64, 8),
        ] {
            assert_eq!(choose(cores, receive_queues), expected);
        }
        assert!((1..=MOST).contains(&usual()));
    }
}
