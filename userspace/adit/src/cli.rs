//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use adit_packet::aead::Backend;
use anyhow::Context as _;
use clap::builder::FalseyValueParser;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::dataplane::helper::Helpers;
use crate::dataplane::transport;
use crate::steering::options::Underlay;
use crate::{daemon, hand_over, inspect, keys, metrics, quick, sandbox, steering, top};

const ENVIRONMENT: &str = "\
Environment:
  LOG_LEVEL                silent, error, warn (default), info, debug (or verbose), trace
  WG_TUN_FD                number of an open TUN device to use instead of making one
  WG_UAPI_FD               number of a listening socket to use instead of making one
  WG_PROCESS_FOREGROUND=1  the same as --foreground

The device is configured with `adit set` and `adit sync`, wg(8) or wg-quick(8).
Exit status: 0 success, 1 failure, 2 wrong usage.";

#[derive(Debug, Parser)]
#[command(
    name = "adit",
    version,
    about = "A WireGuard tunnel for Linux that runs in userspace",
    after_help = ENVIRONMENT,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    tunnel: TunnelArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a new private key
    Genkey,
    /// Read a private key from standard input and print its public key
    Pubkey,
    /// Print a new preshared key
    Genpsk,
    /// Bring up a tunnel from a wg-quick(8) file: device, addresses, routes, name servers
    ///
    /// The daemon takes its options from the environment: ADIT_DATAPATH and so on.
    Up(Tunnel),
    /// Take down what `adit up` or `wg-quick up` has brought up
    Down(Tunnel),
    /// Read wg-quick(8) files and show what is wrong with them
    Check {
        /// Files, or names of tunnels whose files are in /etc/wireguard
        #[arg(value_name = "CONF|IFACE", required = true)]
        configs: Vec<PathBuf>,
    },
    /// Change a running tunnel, with the arguments of wg(8)'s `set`
    Set {
        /// The tunnel
        #[arg(value_name = "IFACE")]
        interface: String,
        /// What to change
        #[arg(value_name = "ARGUMENTS", help = quick::set::ARGUMENTS, required = true, num_args = 1..,
            allow_hyphen_values = true, trailing_var_arg = true)]
        arguments: Vec<String>,
    },
    /// Make a running tunnel what a file says; peers that stay keep their sessions
    Sync {
        /// The tunnel
        #[arg(value_name = "IFACE")]
        interface: String,
        /// A file, or the name of a tunnel whose file is in /etc/wireguard
        #[arg(value_name = "CONF")]
        config: PathBuf,
    },
    /// Replace the daemon of a tunnel by one that runs this program; the tunnel stays
    ///
    /// The new daemon has the options of the old one, but for those given here or in the environment.
    Restart {
        /// The tunnel
        #[arg(value_name = "IFACE")]
        interface: String,
        #[command(flatten)]
        options: Box<DaemonArguments>,
    },
    /// Look up the names of endpoints again, of peers that have fallen silent
    Reresolve {
        #[command(flatten)]
        tunnel: Tunnel,
        /// Do it every so many seconds, until the tunnel is taken down
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "30", value_parser = pause)]
        every: Option<Duration>,
    },
    /// Show tunnels as wg(8) does, and how their packets come in
    Show {
        /// A tunnel, all of them, or their names
        #[arg(value_name = "IFACE|all|interfaces", default_value = "all")]
        interface: String,
        /// Print JSON, without private and preshared keys
        #[arg(long)]
        json: bool,
    },
    /// Show the packets and bytes of each outer flow
    Flows {
        /// The tunnel
        #[arg(value_name = "IFACE")]
        interface: String,
        /// Print again every so many seconds, with rates
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = pause)]
        watch: Option<Duration>,
        /// Print JSON; with --watch one object a line
        #[arg(long)]
        json: bool,
    },
    /// Watch the peers and flows of a tunnel
    Top {
        /// The tunnel; the first one by name if not given
        #[arg(value_name = "IFACE")]
        interface: Option<String>,
        /// Read it every so many seconds
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = pause)]
        every: Duration,
    },
    /// Say what this machine offers, what is in the way, and how packets would come in
    Doctor {
        /// Interfaces to look at, with commas between them; those with a default route if not given
        #[arg(
            long,
            env = "ADIT_UNDERLAY",
            value_name = "DEV",
            default_value = "auto"
        )]
        underlay: Underlay,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Tunnel {
    /// A file IFACE.conf, or the name of a tunnel whose file is in /etc/wireguard
    #[arg(value_name = "CONF|IFACE")]
    config: PathBuf,
    /// Say what is done
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Args)]
struct TunnelArguments {
    /// Name of the tunnel device to start
    #[arg(value_name = "IFACE", required = true)]
    interface: Option<String>,
    /// Stay in the foreground instead of returning when the device is ready
    #[arg(short, long)]
    foreground: bool,
    #[command(flatten)]
    options: DaemonArguments,
}

#[derive(Debug, Args)]
struct DaemonArguments {
    /// Exchange single packets with the TUN device: no TSO, USO or GRO
    #[arg(long, env = "ADIT_NO_TUN_OFFLOAD", value_parser = FalseyValueParser::new())]
    no_tun_offload: bool,
    /// Send single datagrams: no UDP_SEGMENT
    #[arg(long, env = "ADIT_NO_GSO", value_parser = FalseyValueParser::new())]
    no_gso: bool,
    /// Receive single datagrams: no UDP_GRO
    #[arg(long, env = "ADIT_NO_GRO", value_parser = FalseyValueParser::new())]
    no_gro: bool,
    /// Pairs of threads that move packets, with a queue of the TUN device each; by the numbers of
    /// cores and of receive queues of the network interfaces if not given
    #[arg(long, env = "ADIT_QUEUES", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    queues: Option<u16>,
    /// When those threads have others do their cryptography
    #[arg(
        long,
        env = "ADIT_HELPERS",
        value_enum,
        default_value_t,
        value_name = "WHEN"
    )]
    helpers: Helpers,
    /// The AEAD implementation; the fastest that this processor has if not given
    #[arg(
        long,
        env = "ADIT_AEAD",
        value_name = "NAME",
        default_value = "auto",
        value_parser = transport::parse
    )]
    aead: Backend,
    /// Whether the daemon gives up what it does not need after the start
    #[arg(long, env = "ADIT_SANDBOX", value_enum, default_value_t)]
    sandbox: sandbox::Mode,
    #[command(flatten)]
    steering: steering::options::Options,
    #[command(flatten)]
    metrics: metrics::Options,
}

/// The command line as clap describes it, for manual pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs what the command line asks for. Failures are one line on standard error.
pub fn run() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        Some(Command::Genkey) => keys::genkey(),
        Some(Command::Pubkey) => keys::pubkey(),
        Some(Command::Genpsk) => keys::genpsk(),
        Some(Command::Up(Tunnel { config, verbose })) => {
            quick::up::run(&quick::up::Options { config, verbose })
        }
        Some(Command::Down(Tunnel { config, verbose })) => {
            quick::down::run(&quick::down::Options { config, verbose })
        }
        Some(Command::Check { configs }) => quick::check::run(&configs),
        Some(Command::Set {
            interface,
            arguments,
        }) => quick::set::run(&interface, &arguments),
        Some(Command::Sync { interface, config }) => quick::sync::run(&interface, &config),
        Some(Command::Restart { interface, options }) => {
            let given = matches.subcommand_matches("restart").unwrap_or(&matches);
            let given = given_options(&Cli::command(), given);
            if daemon::is_daemon() {
                daemon::take_over(&options.daemon(interface, false, given))
            } else {
                hand_over::restart::run(&interface).with_context(|| interface.clone())
            }
        }
        Some(Command::Reresolve { tunnel, every }) => {
            quick::reresolve::run(&quick::reresolve::Options {
                config: tunnel.config,
                every,
                verbose: tunnel.verbose,
            })
        }
        Some(Command::Show { interface, json }) => {
            inspect::show::run(&inspect::show::Options { interface, json })
        }
        Some(Command::Flows {
            interface,
            watch,
            json,
        }) => inspect::flows::run(&inspect::flows::Options {
            interface,
            watch,
            json,
        }),
        Some(Command::Top { interface, every }) => top::run(&top::Options { interface, every }),
        Some(Command::Doctor { underlay, json }) => {
            let underlay = match underlay {
                Underlay::Auto => None,
                Underlay::Devices(names) => Some(names),
            };
            let options = inspect::doctor::Options { underlay, json };
            return exit(inspect::doctor::run(&options));
        }
        None => {
            let given = given_options(&Cli::command(), &matches);
            start_tunnel(cli.tunnel, given)
        }
    };
    exit(result.map(|()| ExitCode::SUCCESS))
}

fn exit(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        report(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn start_tunnel(arguments: TunnelArguments, given: Vec<(String, String)>) -> anyhow::Result<()> {
    let Some(interface) = arguments.interface else {
        // clap demands the name unless a subcommand is given.
        Cli::command()
            .error(
                clap::error::ErrorKind::MissingRequiredArgument,
                "the name of the tunnel device is missing",
            )
            .exit()
    };
    let foreground = arguments.foreground
        || std::env::var_os("WG_PROCESS_FOREGROUND").is_some_and(|value| value == "1");
    daemon::run(&arguments.options.daemon(interface, foreground, given))
}

impl DaemonArguments {
    fn daemon(
        self,
        interface: String,
        foreground: bool,
        given: Vec<(String, String)>,
    ) -> daemon::Options {
        daemon::Options {
            interface,
            foreground,
            tun_offload: !self.no_tun_offload,
            gso: !self.no_gso,
            gro: !self.no_gro,
            queues: self.queues.map(usize::from),
            helpers: self.helpers,
            aead: self.aead,
            sandbox: self.sandbox,
            steering: self.steering,
            metrics: self.metrics,
            given,
        }
    }
}

/// Options of the daemon that were given on the command line or in the environment, as environment variables: for the
/// daemon that takes this one's place.
fn given_options(command: &clap::Command, matches: &ArgMatches) -> Vec<(String, String)> {
    let given = |argument: &clap::Arg| {
        let name = argument.get_env()?.to_str()?;
        let id = argument.get_id().as_str();
        let source = matches.value_source(id)?;
        if source == ValueSource::DefaultValue {
            return None;
        }
        let value = matches.get_raw(id)?.next()?.to_str()?;
        (!value.contains('\n')).then(|| (name.to_owned(), value.to_owned()))
    };
    let log_level = std::env::var(daemon::LOG_LEVEL).ok();
    let log_level = log_level.map(|level| (daemon::LOG_LEVEL.to_owned(), level));
    let options = command.get_arguments().filter_map(given);
    options.chain(log_level).collect()
}

/// A time to wait, in seconds.
fn pause(text: &str) -> Result<Duration, String> {
    // A day is as good as for ever; less than this is a busy loop.
    text.parse()
        .ok()
        .filter(|seconds| (0.1..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected seconds, from 0.1 to 86400".to_owned())
}

#[expect(
    clippy::print_stderr,
    reason = "the one line a person sees of a failure"
)]
fn report(message: &str) {
    eprintln!("adit: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn interface_alone_starts_a_tunnel() {
        let cli = Cli::try_parse_from(["adit", "-f", "--no-gso", "wg0"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.tunnel.interface.as_deref(), Some("wg0"));
        let options = &cli.tunnel.options;
        assert!(cli.tunnel.foreground && options.no_gso && !options.no_gro);
    }

    #[test]
    fn options_that_were_given_are_told_as_variables() {
        let given = |line: &str| {
            let matches = Cli::command()
                .try_get_matches_from(line.split(' '))
                .unwrap();
            let matches = matches.subcommand_matches("restart").unwrap_or(&matches);
            let mut given = given_options(&Cli::command(), matches);
            given.retain(|(name, _)| name.starts_with("ADIT_"));
            let mut given: Vec<String> = given
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            given.sort_unstable();
            given.join(" ")
        };
        assert_eq!(given("adit wg0"), "");
        let options =
            "--no-gso --queues 2 --underlay a,b --metrics unix:/m --datapath auto --aead portable";
        let expected = "ADIT_AEAD=portable ADIT_DATAPATH=auto ADIT_METRICS=unix:/m ADIT_NO_GSO=true \
                        ADIT_QUEUES=2 ADIT_UNDERLAY=a,b";
        assert_eq!(given(&format!("adit -f {options} wg0")), expected);
        assert_eq!(given(&format!("adit restart {options} wg0")), expected);
    }

    /// What is told must be all that can be given.
    #[test]
    fn every_option_of_the_daemon_has_a_variable() {
        let command = Cli::command();
        for argument in command
            .get_arguments()
            .filter(|argument| !argument.is_positional())
        {
            let id = argument.get_id().as_str();
            let of_this_process = ["foreground", "help", "version"].contains(&id);
            assert!(of_this_process || argument.get_env().is_some(), "{id}");
        }
    }

    #[test]
    fn watching_takes_seconds_or_none() {
        let watch = |arguments: &[&str]| {
            let words = ["adit", "flows"].iter().chain(arguments);
            match Cli::try_parse_from(words).ok()?.command {
                Some(Command::Flows { watch, .. }) => Some(watch),
                _ => None,
            }
        };
        assert_eq!(watch(&["wg0"]), Some(None));
        let seconds = |seconds| Some(Some(Duration::from_secs_f64(seconds)));
        assert_eq!(watch(&["wg0", "--watch"]), seconds(1.0));
        assert_eq!(watch(&["wg0", "--watch", "2.5"]), seconds(2.5));
        assert_eq!(watch(&["wg0", "--watch", "--json"]), seconds(1.0));
        for wrong in ["0", "-1", "nan", "inf", "x"] {
            assert_eq!(
                watch(&["wg0", &format!("--watch={wrong}")]),
                None,
                "{wrong}"
            );
        }
        assert_eq!(watch(&[]), None);
    }

    #[test]
    fn arguments_of_set_are_passed_on_as_they_are() {
        let words = "adit set wg0 peer K allowed-ips -10.0.0.0/8 --remove";
        match Cli::try_parse_from(words.split(' ')).unwrap().command {
            Some(Command::Set {
                interface,
                arguments,
            }) => {
                assert_eq!(interface, "wg0");
                assert_eq!(
                    arguments.join(" "),
                    "peer K allowed-ips -10.0.0.0/8 --remove"
                );
            }
            _ => panic!(),
        }
        assert!(Cli::try_parse_from(["adit", "set", "wg0"]).is_err());
    }

    #[test]
    fn a_tunnel_may_be_called_like_a_command() {
        let cli = Cli::try_parse_from(["adit", "--", "up"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.tunnel.interface.as_deref(), Some("up"));
    }

    #[test]
    fn nothing_at_all_is_wrong_usage() {
        let error = Cli::try_parse_from(["adit"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(Cli::try_parse_from(["adit", "genkey"]).is_ok());
        assert!(Cli::try_parse_from(["adit", "wg0", "genkey"]).is_err());
    }
}
