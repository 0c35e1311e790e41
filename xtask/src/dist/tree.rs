//! The files of a release, laid out for one way of installing them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::documents;
use crate::workspace;

/// Where the units expect the program, as they stand in the repository.
const PROGRAM: &str = "/usr/local/bin/adit";

/// Units, in `userspace/adit/packaging`.
const UNITS: [&str; 3] = [
    "adit@.service",
    "adit-reresolve@.service",
    "adit-reresolve@.timer",
];

/// Where files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Below a prefix, which is `/usr/local` unless the units are edited.
    Prefix,
    /// Below the root of a Debian system.
    Debian,
}

/// What does not stand in the repository.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    /// The program, stripped.
    pub(super) program: &'a Path,
    /// Manual pages and completions.
    pub(super) rendered: &'a Path,
    /// The licences of what the program is linked with.
    pub(super) licences: String,
}

/// A tree of files in a directory of its own.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    /// The folder below which `bin`, `lib` and `share` are.
    prefix: PathBuf,
}

impl Tree {
    /// Lays the files out.
    ///
    /// # Errors
    /// A file is missing, or cannot be written.
    pub(super) fn new(root: &Path, layout: Layout, contents: &Contents<'_>) -> Result<Self> {
        let prefix = match layout {
            Layout::Prefix => PathBuf::new(),
            Layout::Debian => "usr".into(),
        };
        let tree = Self {
            root: root.to_owned(),
            prefix,
        };
        let program = fs::read(contents.program).context("the program")?;
        tree.write(&tree.prefix.join("bin/adit"), &program, 0o755)?;
        tree.units(layout)?;
        tree.rendered(layout, contents.rendered)?;
        tree.documents()?;
        tree.share(
            "doc/adit/LICENSES-THIRD-PARTY",
            contents.licences.as_bytes(),
        )?;
        Ok(tree)
    }

    /// The directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a file, given by its path below the root.
    pub(super) fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        let path = self.root.join(path);
        let write = || -> std::io::Result<()> {
            let parent = path.parent().unwrap_or(&self.root);
            fs::create_dir_all(parent)?;
            // Whatever the umask is.
            let made = parent
                .ancestors()
                .take_while(|it| it.starts_with(&self.root));
            for directory in made {
                fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
            }
            fs::write(&path, content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        };
        write().with_context(|| path.display().to_string())
    }

    fn share(&self, path: &str, content: &[u8]) -> Result<()> {
        self.write(&self.prefix.join("share").join(path), content, 0o644)
    }

    fn units(&self, layout: Layout) -> Result<()> {
        for name in UNITS {
            let mut text = read(&format!("userspace/adit/packaging/{name}"))?;
            if layout == Layout::Debian {
                text = text.replace(PROGRAM, "/usr/bin/adit");
            }
            let path = self.prefix.join("lib/systemd/system").join(name);
            self.write(&path, text.as_bytes(), 0o644)?;
        }
        Ok(())
    }

    fn rendered(&self, layout: Layout, rendered: &Path) -> Result<()> {
        let pages = rendered.join("man");
        for entry in fs::read_dir(&pages).with_context(|| pages.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            self.share(&format!("man/man8/{name}"), &fs::read(entry.path())?)?;
        }
        let zsh = match layout {
            Layout::Prefix => "zsh/site-functions/_adit",
            Layout::Debian => "zsh/vendor-completions/_adit",
        };
        for (name, place) in [
            ("adit", "bash-completion/completions/adit"),
            ("_adit", zsh),
            ("adit.fish", "fish/vendor_completions.d/adit.fish"),
        ] {
            let script = fs::read(rendered.join("completions").join(name)).context(name)?;
            self.share(place, &script)?;
        }
        Ok(())
    }

    /// Documents are nearer to each other than in the repository; links between them follow.
    fn documents(&self) -> Result<()> {
        let places = places()?;
        for (source, place) in &places {
            let mut content = fs::read(workspace()?.join(source)).context(source.clone())?;
            if place.ends_with(".md") {
                let text = String::from_utf8(content).context(source.clone())?;
                content = documents::relink(&text, source, &places).into_bytes();
            }
            self.share(&format!("doc/adit/{place}"), &content)?;
        }
        Ok(())
    }
}

/// Documents that are shipped: where they are in the repository, and below `doc/adit`.
fn places() -> Result<BTreeMap<String, String>> {
    let mut places = BTreeMap::new();
    for name in [
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
    ] {
        places.insert(name.to_owned(), name.to_owned());
    }
    let docs = workspace()?.join("userspace/adit/docs");
    for entry in fs::read_dir(&docs).with_context(|| docs.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        places.insert(
            format!("userspace/adit/docs/{name}"),
            format!("docs/{name}"),
        );
    }
    for name in ["README.md", "grafana-dashboard.json", "alerts.yml"] {
        let source = format!("userspace/adit/packaging/{name}");
        places.insert(source, format!("packaging/{name}"));
    }
    Ok(places)
}

/// The text of a file of the repository.
pub(super) fn read(path: &str) -> Result<String> {
    fs::read_to_string(workspace()?.join(path)).with_context(|| path.to_owned())
}
