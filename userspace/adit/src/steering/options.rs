//! What the command line says about the data path.

use clap::{Args, ValueEnum};

/// How packets come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Datapath {
    /// AF_XDP where XDP attaches in native mode and pays, else the UDP socket
    #[default]
    Auto,
    /// AF_XDP, or fail
    Xdp,
    /// The UDP socket alone; nothing bypasses the network stack
    Socket,
}

/// Where in the receive path the XDP program may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// Native; with `--datapath xdp` generic where there is no native
    #[default]
    Auto,
    /// In the driver only
    Native,
    /// In the network stack: works on every interface, and saves little
    Generic,
}

/// Whether packets go out by AF_XDP where they come in by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum XdpTransmit {
    /// Where the driver sends without copying; elsewhere one UDP message with GSO is cheaper
    #[default]
    Auto,
    /// Also where each packet is copied
    On,
    /// By the UDP socket alone
    Off,
}

/// The interfaces that carry the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Underlay {
    /// Those that the routes to the peers use.
    #[default]
    Auto,
    /// These and no others.
    Devices(Vec<String>),
}

impl std::str::FromStr for Underlay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let names: Vec<String> = text.split(',').map(str::to_owned).collect();
        if names.iter().any(String::is_empty) {
            return Err(
                "expected auto, or names of interfaces with commas between them".to_owned(),
            );
        }
        Ok(Self::Devices(names))
    }
}

/// All of it.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// How packets come in
    #[arg(long, env = "ADIT_DATAPATH", value_enum, default_value_t)]
    pub datapath: Datapath,
    /// Interfaces that carry the tunnel: auto, or DEV[,DEV…]
    #[arg(
        long,
        env = "ADIT_UNDERLAY",
        value_name = "DEV",
        default_value = "auto"
    )]
    pub underlay: Underlay,
    /// Where the XDP program may run
    #[arg(long, env = "ADIT_XDP_MODE", value_enum, default_value_t)]
    pub xdp_mode: XdpMode,
    /// Whether packets go out by AF_XDP, too
    #[arg(long, env = "ADIT_XDP_TRANSMIT", value_enum, default_value_t)]
    pub xdp_transmit: XdpTransmit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underlay_is_auto_or_names() {
        assert_eq!("auto".parse(), Ok(Underlay::Auto));
        let names = |names: &[&str]| {
            Ok(Underlay::Devices(
                names.iter().map(|&name| name.to_owned()).collect(),
            ))
        };
        assert_eq!("eth0".parse(), names(&["eth0"]));
        assert_eq!("eth0,eth1".parse(), names(&["eth0", "eth1"]));
        assert!("".parse::<Underlay>().is_err());
        assert!("eth0,,eth1".parse::<Underlay>().is_err());
    }
}
