//! Why packets go back to the UDP socket, and how often that was.

use std::fmt::{self, Write as _};

/// How XDP was lost on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Detached,
    Replaced,
    InterfaceGone,
    InterfaceDown,
    Stalled,
    Unclaimed,
    Socket,
}

impl Loss {
    const ALL: [Self; 7] = [
        Self::Detached,
        Self::Replaced,
        Self::InterfaceGone,
        Self::InterfaceDown,
        Self::Stalled,
        Self::Unclaimed,
        Self::Socket,
    ];

    /// As counters name it.
    fn name(self) -> &'static str {
        match self {
            Self::Detached => "detached",
            Self::Replaced => "replaced",
            Self::InterfaceGone => "interface_gone",
            Self::InterfaceDown => "interface_down",
            Self::Stalled => "stalled",
            Self::Unclaimed => "unclaimed",
            Self::Socket => "socket",
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Detached => "the XDP program was detached",
            Self::Replaced => "the XDP program was replaced by another",
            Self::InterfaceGone => "the interface is gone",
            Self::InterfaceDown => "the interface is down",
            Self::Stalled => "packets are steered but do not arrive",
            Self::Unclaimed => "an AF_XDP socket was taken out of its map",
            Self::Socket => "its AF_XDP socket failed",
        })
    }
}

/// How often each has happened, on any interface.
#[derive(Debug, Default)]
pub(super) struct Losses([u64; Loss::ALL.len()]);

impl Losses {
    /// Counts a loss.
    pub(super) fn note(&mut self, loss: Loss) {
        self.0[loss as usize] += 1;
    }

    /// Appends the counts to the answer of `get=1`.
    pub(super) fn describe(&self, answer: &mut String) {
        for (loss, count) in Loss::ALL.into_iter().zip(self.0) {
            // Writing to a String cannot fail.
            let _ = writeln!(answer, "adit_xdp_lost_{}={count}", loss.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_has_a_count_of_its_own() {
        let mut losses = Losses::default();
        for (times, loss) in Loss::ALL.into_iter().enumerate() {
            for _ in 0..times {
                losses.note(loss);
            }
        }
        let mut answer = String::new();
        losses.describe(&mut answer);
        let expected: String = Loss::ALL
            .into_iter()
            .enumerate()
            .map(|(times, loss)| format!("adit_xdp_lost_{}={times}\n", loss.name()))
            .collect();
        assert_eq!(answer, expected);
    }
}
