//! Finding and reading a configuration file.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use zeroize::Zeroizing;

use super::say;
use crate::config::diagnostic::render;
use crate::config::{self, Config, Parsed};
use crate::service::credentials_directory;

/// Where files are that are called by the name of their tunnel.
const DIRECTORY: &str = "/etc/wireguard";
/// Longer files are no configuration: a peer takes 200 bytes.
const LARGEST: u64 = 1 << 30;

/// A configuration file that was read.
pub(super) struct File {
    /// Without links on the way.
    pub(super) path: PathBuf,
    /// As the user called it.
    pub(super) shown: String,
    /// Its contents.
    text: Zeroizing<String>,
    /// From the service manager: nobody can write it.
    is_credential: bool,
}

impl File {
    /// Reads the file that `wg-quick` would read: `/etc/wireguard/NAME.conf` if the argument is a name, else the file
    /// itself. Before that, a name is looked for among the credentials that a service manager handed over.
    pub(super) fn read(argument: &Path) -> Result<Self> {
        let name = argument.to_str().filter(|text| is_name(text));
        let credential = name.and_then(|name| credential(credentials_directory(), name));
        let is_credential = credential.is_some();
        let path = match (credential, name) {
            (Some(path), _) => path,
            (None, Some(name)) => Path::new(DIRECTORY).join(format!("{name}.conf")),
            (None, None) => argument.to_owned(),
        };
        let shown = path.display().to_string();
        let text = read(&path).map_err(|error| {
            let here = argument.is_file() && path != argument;
            let missing = error.kind() == io::ErrorKind::NotFound;
            let error = anyhow::Error::new(error).context(format!("cannot read {shown}"));
            if missing && here {
                let meant = argument.display();
                return error.context(format!(
                    "{meant} is taken for the name of a tunnel; for the file write ./{meant}"
                ));
            }
            error
        })?;
        let text = Zeroizing::new(text);
        let text = match std::str::from_utf8(&text) {
            Ok(text) => Zeroizing::new(text.to_owned()),
            Err(error) => {
                let line = text[..error.valid_up_to()]
                    .split(|byte| *byte == b'\n')
                    .count();
                bail!("{shown}: line {line} is not text: expected UTF-8")
            }
        };
        let path = fs::canonicalize(&path).with_context(|| format!("cannot find {shown}"))?;
        Ok(Self {
            path,
            shown,
            text,
            is_credential,
        })
    }

    /// The tunnel's name, which the file's name gives.
    pub(super) fn interface(&self, argument: &Path) -> Result<String> {
        let stem = match argument.to_str() {
            Some(text) if is_name(text) => Some(text),
            _ => argument
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_suffix(".conf"))
                .filter(|stem| is_name(stem)),
        };
        let Some(stem) = stem else {
            bail!(
                "{}: expected a file called IFACE.conf, IFACE being a name of up to 15 letters, digits or any of _=+.-",
                self.shown
            )
        };
        ensure!(
            is_interface(stem),
            "{}: {stem} is not the name of an interface",
            self.shown
        );
        Ok(stem.to_owned())
    }

    /// Reads the text and shows what is wrong with it.
    pub(super) fn parse(&self) -> Parsed {
        let parsed = config::parse(&self.text);
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let drawn = render(&parsed.diagnostics, &self.shown, &self.text, colours);
        if !drawn.is_empty() {
            say(&drawn);
        }
        parsed
    }

    /// The configuration, if nothing is wrong with it.
    pub(super) fn config(&self) -> Result<Config> {
        let parsed = self.parse();
        match parsed.errors() {
            0 if self.is_credential && parsed.config.interface.save_config => bail!(
                "{}: SaveConfig = true needs a file, and a credential cannot be written",
                self.shown
            ),
            0 => Ok(parsed.config),
            1 => bail!("{}: 1 error", self.shown),
            errors => bail!("{}: {errors} errors", self.shown),
        }
    }

    /// Warns if everybody can read the keys. As `wg-quick` does, this looks at the directory too.
    pub(super) fn warn_of_readers(&self) {
        let others = |path: &Path| {
            fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
        };
        let inside = self.path.parent().is_none_or(others);
        if inside && others(&self.path) {
            say(&format!(
                "adit: warning: everybody can read the keys in {shown}: chmod 600 {shown}",
                shown = self.shown
            ));
        }
    }
}

/// The file of that name among a service's credentials.
fn credential(directory: Option<OsString>, name: &str) -> Option<PathBuf> {
    let path = Path::new(&directory?).join(format!("{name}.conf"));
    path.is_file().then_some(path)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe has no length, and `adit sync wg0 <(…)` reads one.
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if metadata.len() > LARGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read(path)
}

/// What `wg-quick` takes for the name of a tunnel.
fn is_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_=+.-".contains(c))
}

/// The kernel takes no interface of these names.
fn is_interface(name: &str) -> bool {
    name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_wg_quick() {
        for name in ["wg0", "a=b+c", "fifteen-letters", "..", "wg0.conf"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "sixteen-letters-", "a/b", "a b", "é"] {
            assert!(!is_name(name), "{name}");
        }
    }

    fn file(name: &str) -> Result<String> {
        let file = File {
            path: PathBuf::new(),
            shown: name.to_owned(),
            text: Zeroizing::default(),
            is_credential: false,
        };
        file.interface(Path::new(name))
    }

    #[test]
    fn the_name_of_the_file_is_the_name_of_the_tunnel() {
        assert_eq!(file("/a/b/wg0.conf").unwrap(), "wg0");
        assert_eq!(file("./wg.1.conf").unwrap(), "wg.1");
        assert_eq!(file("wg0").unwrap(), "wg0");
        for wrong in [
            "./wg0",
            "/a/.conf",
            "./sixteen-letters-.conf",
            "/a/...conf",
            "/a/b c.conf",
            "..",
        ] {
            assert!(file(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn credentials_come_first_and_cannot_be_saved() {
        let directory = std::env::temp_dir().join(format!("adit-creds-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let given = Some(directory.clone().into_os_string());
        assert_eq!(credential(given.clone(), "wg0"), None);
        fs::write(directory.join("wg0.conf"), "").unwrap();
        assert_eq!(credential(given, "wg0"), Some(directory.join("wg0.conf")));
        assert_eq!(credential(None, "wg0"), None);
        fs::remove_dir_all(directory).unwrap();

        let key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
        let file = |is_credential| File {
            path: PathBuf::new(),
            shown: "wg0.conf".to_owned(),
            text: format!("[Interface]\nPrivateKey = {key}\nSaveConfig = true\n").into(),
            is_credential,
        };
        assert!(file(false).config().is_ok());
        let refused = file(true).config().err().unwrap().to_string();
        assert!(refused.contains("SaveConfig"), "{refused}");
    }

    #[test]
    fn what_cannot_be_read_is_one_line() {
        let directory = tempdir();
        let path = directory.join("wg0.conf");
        fs::write(&path, b"[Interface]\n\xff\n").unwrap();
        let message = |path: &Path| format!("{:#}", File::read(path).err().unwrap());
        assert!(message(&path).contains("line 2 is not text"));
        assert!(message(&directory).contains("directory"));
        assert!(
            message(Path::new("no-such-tunnel")).contains("/etc/wireguard/no-such-tunnel.conf")
        );
        fs::remove_dir_all(directory).unwrap();
    }

    fn tempdir() -> PathBuf {
        let path = std::env::temp_dir().join(format!("adit-quick-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }
}
