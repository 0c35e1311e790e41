//! What `cargo xtask dist` makes: the package goes in, works, and goes out again; the tarball has the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use adit_tests::command::{output, run};
use adit_tests::wait::wait_until;
use adit_tests::wg::KeyPair;
use adit_tests::{Implementation, Namespace, name};
use anyhow::{Context as _, Result, ensure};

/// Makes package and tarball of the program under test, without building it again.
fn dist(output: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let program = Implementation::Adit.program()?.canonicalize()?;
    let mut command = Command::new(cargo);
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["run", "--quiet", "--package", "xtask", "--", "dist"])
        .arg("--output")
        .arg(output)
        .arg("--program")
        .arg(program);
    // It may have to build the renderer of the manual pages first, which has the whole daemon in it.
    let limit = Duration::from_secs(900);
    let made = adit_tests::command::Running::start(&mut command)?.finish(limit)?;
    ensure!(made.status.success(), "{}", made.stderr);
    Ok(())
}

/// The only file in a directory whose name ends so.
fn only(directory: &Path, end: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    let found: Vec<_> = paths
        .filter(|path| path.to_string_lossy().ends_with(end))
        .collect();
    ensure!(found.len() == 1, "{found:?}");
    found.into_iter().next().context("no file")
}

/// Files, links and folders below a directory, by relative path; without those of the package manager.
fn tree(root: &Path) -> Result<BTreeSet<String>> {
    let listing = run(Command::new("find")
        .args([
            ".",
            "-mindepth",
            "1",
            "-path",
            "./var/lib/dpkg",
            "-prune",
            "-o",
            "-print",
        ])
        .current_dir(root))?;
    Ok(listing.lines().map(|line| line[2..].to_owned()).collect())
}

/// The package manager, at work below another root and without what is installed there.
fn dpkg(root: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("dpkg");
    command.arg(format!("--root={}", root.display()));
    command.args(["--force-depends", "--force-script-chrootless"]);
    // Of this machine's own files dpkg only reads its settings, which may leave documents out.
    command.env("DPKG_ADMINDIR", root.join("var/lib/dpkg"));
    let done = output(command.args(arguments))?;
    ensure!(done.status.success(), "{}{}", done.stdout, done.stderr);
    Ok(done.stdout)
}

/// An empty system.
fn clean_root(parent: &Path) -> Result<PathBuf> {
    let root = parent.join("root");
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "etc", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("var/lib/dpkg/status"), "")?;
    Ok(root)
}

/// The program brings a tunnel up and down.
fn works(program: &Path) -> Result<()> {
    let namespace = Namespace::new()?;
    let interface = name::interface();
    let directory = tempfile::tempdir()?;
    let config = directory.path().join(format!("{interface}.conf"));
    let private = KeyPair::generate()?.private;
    fs::write(
        &config,
        format!("[Interface]\nPrivateKey = {private}\nAddress = 10.9.0.1/24\n"),
    )?;
    run(namespace.command(program).arg("up").arg(&config))?;
    ensure!(namespace.has_interface(&interface));
    let shown = run(namespace.command(program).args(["show", &interface]))?;
    ensure!(shown.contains(&interface), "{shown}");
    run(namespace.command(program).arg("down").arg(&config))?;
    wait_until("the daemon ends", Duration::from_secs(20), || {
        namespace.pids().is_empty()
    })
}

/// Every link of a document leads to a file that is shipped.
fn links_lead_somewhere(documents: &Path) -> Result<()> {
    let mut checked = 0;
    for document in tree(documents)?.iter().filter(|path| path.ends_with(".md")) {
        let path = documents.join(document);
        let text = fs::read_to_string(&path)?;
        let folder = path.parent().context("a folder")?;
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or(link);
            if !target.contains("://") && !target.is_empty() {
                ensure!(folder.join(target).exists(), "{document} links to {target}");
                checked += 1;
            }
        }
    }
    ensure!(checked >= 10, "only {checked} links");
    Ok(())
}

fn check_package(package: &Path, scratch: &Path) -> Result<()> {
    let root = clean_root(scratch)?;
    let before = tree(&root)?;
    dpkg(&root, &["--install", &package.to_string_lossy()])?;
    let version = env!("CARGO_PKG_VERSION");
    let status = dpkg(&root, &["--status", "adit"])?;
    ensure!(
        status.contains("Status: install ok installed")
            && status.contains(&format!("Version: {version}\n"))
            && status.contains("Depends: libc6 (>= 2."),
        "{status}"
    );
    // Sums of all files are right.
    let wrong = dpkg(&root, &["--verify", "adit"])?;
    ensure!(wrong.is_empty(), "{wrong}");

    let program = root.join("usr/bin/adit");
    let answer = run(Command::new(&program).arg("--version"))?;
    ensure!(answer.trim() == format!("adit {version}"), "{answer}");
    works(&program)?;

    let page = root.join("usr/share/man/man8/adit-up.8.gz");
    let mut man = Command::new("man");
    let shown = run(man.arg("--local-file").arg(page).env("LC_ALL", "C.UTF-8"))?;
    ensure!(
        shown.contains("SYNOPSIS") && shown.contains(version),
        "{shown}"
    );
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/adit@.service"))?;
    ensure!(unit.contains("ExecStart=/usr/bin/adit up") && !unit.contains("/usr/local"));
    let documents = root.join("usr/share/doc/adit");
    links_lead_somewhere(&documents)?;
    for place in [
        "copyright",
        "LICENSES-THIRD-PARTY.gz",
        "packaging/grafana-dashboard.json",
        "docs/five-minutes.md",
    ] {
        ensure!(documents.join(place).is_file(), "{place}");
    }
    for place in [
        "bash-completion/completions/adit",
        "zsh/vendor-completions/_adit",
        "fish/vendor_completions.d/adit.fish",
    ] {
        ensure!(root.join("usr/share").join(place).is_file(), "{place}");
    }

    dpkg(&root, &["--purge", "adit"])?;
    let left: Vec<_> = tree(&root)?.difference(&before).cloned().collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn check_tarball(tarball: &Path, scratch: &Path) -> Result<()> {
    let prefix = scratch.join("local");
    fs::create_dir(&prefix)?;
    let mut tar = Command::new("tar");
    tar.args(["--strip-components=1", "--extract", "--file"]);
    run(tar.arg(tarball).arg("--directory").arg(&prefix))?;
    works(&prefix.join("bin/adit"))?;
    links_lead_somewhere(&prefix.join("share/doc/adit"))?;
    let files = tree(&prefix)?;
    for place in [
        "lib/systemd/system/adit@.service",
        "share/man/man8/adit.8",
        "share/zsh/site-functions/_adit",
        "share/doc/adit/LICENSE-MIT",
        "share/doc/adit/packaging/alerts.yml",
    ] {
        ensure!(files.contains(place), "{place} is not among {files:?}");
    }
    let unit = fs::read_to_string(prefix.join("lib/systemd/system/adit@.service"))?;
    ensure!(unit.contains("ExecStart=/usr/local/bin/adit up"));
    Ok(())
}

#[test]
fn a_package_goes_in_and_out() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let made = scratch.path().join("dist");
    dist(&made)?;
    check_package(&only(&made, ".deb")?, scratch.path())?;
    check_tarball(&only(&made, ".tar.gz")?, scratch.path())
}

/// The same source makes the same package and tarball.
#[test]
fn what_is_made_is_reproducible() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let made = ["one", "two"].map(|name| scratch.path().join(name));
    for directory in &made {
        dist(directory)?;
    }
    for end in [".deb", ".tar.gz"] {
        let read =
            |directory: &PathBuf| -> Result<Vec<u8>> { Ok(fs::read(only(directory, end)?)?) };
        ensure!(read(&made[0])? == read(&made[1])?, "{end}");
    }
    Ok(())
}
