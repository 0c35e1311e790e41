//! Who is measured: Adit by its two ways in, its peers, and the machine without a tunnel.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use adit_tests::command::installed;
use adit_tests::daemon::{Options, adit_path, boringtun_path};
use anyhow::{Context as _, Result, ensure};

use super::results::ContenderInfo;

/// Name of the ceiling.
pub(crate) const NO_TUNNEL: &str = "no-tunnel";

/// A tunnel daemon, or none.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    /// The name it goes by.
    pub(crate) name: String,
    /// The way in that `ADIT_DATAPATH` names, for Adit itself.
    pub(crate) datapath: Option<&'static str>,
    /// Shell command that starts it in the foreground, `%i` standing for the interface; `None` for no tunnel.
    command: Option<String>,
    /// Answers to `--version`.
    program: Option<String>,
    missing: Option<String>,
}

impl Contender {
    fn no_tunnel() -> Self {
        Self {
            name: NO_TUNNEL.to_owned(),
            datapath: None,
            command: None,
            program: None,
            missing: None,
        }
    }

    fn adit(program: &str, datapath: &'static str) -> Self {
        Self {
            name: format!("adit-{datapath}"),
            datapath: Some(datapath),
            ..Self::peer("", program, "-f %i")
        }
    }

    fn peer(name: &str, program: &str, arguments: &str) -> Self {
        Self {
            name: name.to_owned(),
            datapath: None,
            command: Some(format!("{} {arguments}", quoted(program))),
            program: Some(program.to_owned()),
            missing: None,
        }
    }

    fn missing(name: &str, reason: &str) -> Self {
        Self {
            missing: Some(reason.to_owned()),
            ..Self::peer(name, name, "-f %i")
        }
    }

    /// From `NAME=COMMAND %i`.
    fn given(argument: &str) -> Result<Self> {
        let (name, command) = argument
            .split_once('=')
            .with_context(|| format!("--peer {argument}: not NAME='COMMAND %i'"))?;
        ensure!(
            !name.is_empty() && command.contains("%i"),
            "--peer {argument}: not NAME='COMMAND %i'; %i stands for the interface"
        );
        Ok(Self {
            name: name.to_owned(),
            datapath: None,
            command: Some(command.to_owned()),
            program: command.split_whitespace().next().map(str::to_owned),
            missing: None,
        })
    }

    /// Can it be measured?
    pub(crate) fn available(&self) -> bool {
        self.missing.is_none()
    }

    /// Does it run a daemon?
    pub(crate) fn is_tunnel(&self) -> bool {
        self.command.is_some()
    }

    /// How the harness starts it.
    pub(crate) fn options(&self) -> Options {
        let mut environment = BTreeMap::from([("LOG_LEVEL".to_owned(), "error".to_owned())]);
        if let Some(datapath) = self.datapath {
            environment.insert("ADIT_DATAPATH".to_owned(), datapath.to_owned());
        }
        Options {
            command: self.command.clone(),
            environment,
            ..Options::default()
        }
    }

    /// What the results tell of it.
    pub(crate) fn info(&self) -> ContenderInfo {
        ContenderInfo {
            name: self.name.clone(),
            command: self.shown_command(),
            version: self.version(),
            missing: self.missing.clone(),
            own: self.datapath.is_some(),
            ceiling: !self.is_tunnel(),
        }
    }

    /// The command without the directory of its program, which says nothing elsewhere.
    fn shown_command(&self) -> String {
        let Some(command) = &self.command else {
            return String::new();
        };
        let datapath = self
            .datapath
            .map(|datapath| format!("ADIT_DATAPATH={datapath} "));
        let (program, arguments) = command.split_once(' ').unwrap_or((command, ""));
        let program = program.trim_matches('\'');
        let name = program.rsplit('/').next().unwrap_or(program);
        format!("{}{name} {arguments}", datapath.unwrap_or_default())
    }

    /// The first line that `--version` prints.
    fn version(&self) -> Option<String> {
        let output = Command::new(self.program.as_ref()?)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().next()?.trim().to_owned();
        (output.status.success() && !line.is_empty()).then_some(line)
    }
}

/// For a shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// No tunnel, Adit by socket and by XDP, wireguard-go and boringtun where they are found, and those given.
///
/// # Errors
/// Adit does not build, or a given one is not `NAME=COMMAND %i` or has the name of another.
pub(crate) fn contenders(given: &[String]) -> Result<Vec<Contender>> {
    let adit = adit_path()?;
    let adit = adit.to_str().context("path of adit is not UTF-8")?;
    let mut all = vec![
        Contender::no_tunnel(),
        Contender::adit(adit, "socket"),
        Contender::adit(adit, "xdp"),
    ];
    all.push(if installed("wireguard-go") {
        Contender::peer("wireguard-go", "wireguard-go", "-f %i")
    } else {
        Contender::missing("wireguard-go", "not installed: run `cargo xtask setup`")
    });
    all.push(match boringtun_path() {
        Ok(path) => Contender::peer(
            "boringtun",
            path.to_str().context("path of boringtun is not UTF-8")?,
            "--foreground --disable-drop-privileges --verbosity error %i",
        ),
        Err(error) => Contender::missing("boringtun", &format!("{error:#}")),
    });
    for argument in given {
        let peer = Contender::given(argument)?;
        ensure!(
            all.iter().all(|other| other.name != peer.name),
            "--peer {argument}: there is a {} already",
            peer.name
        );
        all.push(peer);
    }
    Ok(all)
}

/// No tunnel and the given ones, for tests of what is done with contenders.
#[cfg(test)]
pub(crate) fn no_tunnel_and(given: &[String]) -> Vec<Contender> {
    let given = given
        .iter()
        .filter_map(|argument| Contender::given(argument).ok());
    std::iter::once(Contender::no_tunnel())
        .chain(given)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_peer_has_a_name_and_a_command() {
        let peer = Contender::given("other=/opt/x/other --foreground %i").unwrap();
        assert_eq!(peer.name, "other");
        assert_eq!(peer.shown_command(), "other --foreground %i");
        assert_eq!(peer.program.as_deref(), Some("/opt/x/other"));
        for wrong in ["other", "=cmd %i", "other=cmd"] {
            assert!(Contender::given(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn adit_is_told_its_way_in_and_named_by_it() {
        let adit = Contender::adit("/some where/adit", "xdp");
        assert_eq!(adit.name, "adit-xdp");
        assert_eq!(adit.options().environment["ADIT_DATAPATH"], "xdp");
        assert_eq!(adit.options().command.unwrap(), "'/some where/adit' -f %i");
        assert!(adit.info().own && !adit.info().ceiling);
    }

    #[test]
    fn what_is_not_there_has_a_reason_and_no_version() {
        let gone = Contender::missing("no-such-daemon-anywhere", "not installed");
        assert!(!gone.available());
        assert_eq!(gone.info().version, None);
        assert_eq!(gone.info().missing.as_deref(), Some("not installed"));
    }
}
