//! The Debian package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use adit_tests::command;
use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

use super::Release;
use super::tree::{Tree, read};
use crate::stage::run;

/// Libraries that the program may need, and the packages they are in. All of the C library's are in one.
const LIBRARIES: [(&str, &str); 4] = [
    ("libc.so.6", "libc6"),
    ("libm.so.6", "libc6"),
    ("ld-linux-", "libc6"),
    ("libgcc_s.so.1", "libgcc-s1"),
];

const DESCRIPTION: &str = "WireGuard tunnel in userspace
 Adit carries a WireGuard tunnel in a process instead of the kernel. It is
 configured by wg(8), by wg-quick(8), or by itself from the same files, and
 works with every WireGuard peer. Bulk data is exchanged with the kernel in
 super-packets of up to 64 KB, and where it pays, an eBPF program steers the
 tunnel's packets past the network stack into AF_XDP sockets.";

const COPYRIGHT: &str = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Adit

Files: *
Copyright: the authors of Adit
License: Expat or Apache-2.0
Comment: The texts are in /usr/share/doc/adit/LICENSE-MIT and
 /usr/share/common-licenses/Apache-2.0. Those of the crates that the program is
 linked with are in /usr/share/doc/adit/LICENSES-THIRD-PARTY.gz.

License: Expat
 See /usr/share/doc/adit/LICENSE-MIT.

License: Apache-2.0
 See /usr/share/common-licenses/Apache-2.0.
";

/// Makes a package of the tree. `program` is what is in it, for the libraries that it needs.
///
/// # Errors
/// A library that no package is known for; a tool that fails.
pub(super) fn build(
    tree: &Tree,
    program: &Path,
    output: &Path,
    release: &Release,
) -> Result<PathBuf> {
    let architecture = architecture()?;
    tree.write(
        Path::new("usr/share/doc/adit/copyright"),
        COPYRIGHT.as_bytes(),
        0o644,
    )?;
    compress(tree)?;
    let files = files(tree.root())?;
    let bytes: u64 = files
        .iter()
        .filter_map(|path| fs::metadata(tree.root().join(path)).ok())
        .map(|metadata| metadata.len())
        .sum();
    let sums = command::run(Command::new("md5sum").args(&files).current_dir(tree.root()))?;
    let control = format!(
        "Package: adit\nVersion: {}\nArchitecture: {architecture}\nMaintainer: the authors of Adit\n\
         Installed-Size: {}\nDepends: {}\nRecommends: nftables\nSuggests: bpftool, openresolv, wireguard-tools\n\
         Section: net\nPriority: optional\nDescription: {DESCRIPTION}\n",
        release.version,
        bytes.div_ceil(1024),
        dependencies(&fs::read(program)?)?,
    );
    tree.write(Path::new("DEBIAN/control"), control.as_bytes(), 0o644)?;
    tree.write(Path::new("DEBIAN/md5sums"), sums.as_bytes(), 0o644)?;
    for name in ["postinst", "prerm", "postrm"] {
        let script = read(&format!("userspace/adit/packaging/debian/{name}"))?;
        tree.write(&Path::new("DEBIAN").join(name), script.as_bytes(), 0o755)?;
    }
    let package = output.join(format!("adit_{}_{architecture}.deb", release.version));
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.env("SOURCE_DATE_EPOCH", &release.time);
    run(dpkg
        .args(["--root-owner-group", "--build"])
        .arg(tree.root())
        .arg(&package)
        .stdout(std::process::Stdio::null()))?;
    Ok(package)
}

/// Debian's name of this machine's architecture.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("{other}: no package is made for this architecture"),
    }
}

/// Compresses what Debian's policy wants compressed: manual pages, and the longest of the documents.
fn compress(tree: &Tree) -> Result<()> {
    let share = tree.root().join("usr/share");
    let mut found = vec![share.join("doc/adit/LICENSES-THIRD-PARTY")];
    for entry in fs::read_dir(share.join("man/man8"))? {
        found.push(entry?.path());
    }
    run(Command::new("gzip").arg("-9n").args(found))
}

/// All files below a directory, by paths relative to it, sorted.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                found.push(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The packages of the libraries that a program needs, the C library in the oldest version that will do.
fn dependencies(program: &[u8]) -> Result<String> {
    let file = object::File::parse(program).context("the program")?;
    // Names of libraries and of versions of their symbols are among these strings.
    let section = file.section_by_name(".dynstr").context("no .dynstr")?;
    let data = section.data()?;
    let strings = data
        .split(|byte| *byte == 0)
        .filter_map(|s| std::str::from_utf8(s).ok());
    let mut needs_gcc = false;
    let mut version = None;
    for string in strings {
        if let Some(number) = string.strip_prefix("GLIBC_").and_then(parse_version) {
            version = version.max(Some(number));
        } else if string.contains(".so.") {
            let known = LIBRARIES.iter().find(|(name, _)| string.starts_with(name));
            let (_, package) = known.with_context(|| format!("no package known for {string}"))?;
            needs_gcc |= *package == "libgcc-s1";
        }
    }
    let (major, minor) = version.context("the program needs no C library")?;
    ensure!(major == 2, "a C library of version {major}");
    let gcc = if needs_gcc { ", libgcc-s1" } else { "" };
    Ok(format!("libc6 (>= {major}.{minor}){gcc}"))
}

/// `2.34`, and `2.3.4` without its last part.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert_eq!(parse_version("2.34"), Some((2, 34)));
        assert_eq!(parse_version("2.3.4"), Some((2, 3)));
        assert_eq!(parse_version("PRIVATE"), None);
        assert!(parse_version("2.34") > parse_version("2.9"));
    }

    #[test]
    fn the_c_library_is_found() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let found = dependencies(&own).unwrap();
        assert!(found.starts_with("libc6 (>= 2."), "{found}");
    }
}
