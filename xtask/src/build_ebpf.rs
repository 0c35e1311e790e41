//! `cargo xtask build-ebpf [--check]`: builds the eBPF programs into `ebpf/adit.bpf.o`.
//!
//! The object is committed, so that building Adit needs no BPF tool chain. BTF is kept, since the loader and
//! `bpftool` read it; DWARF is taken out. `--check` builds afresh with the recorded tool chain and fails when
//! instructions, maps or BTF differ.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _, build, elf};

use crate::{cargo, stage, workspace};

const TARGET: &str = "bpfel-unknown-none";
const BINARY: &str = "adit-bpf";
const OBJECT: &str = "ebpf/adit.bpf.o";
const RECORD: &str = "ebpf/adit.bpf.toolchain";

/// What Debian 12 has for it: a compiler, the source of `core`, and the LLVM that compiler uses.
const DEBIAN_PACKAGES: [&str; 6] = [
    "rustc-web",
    "rust-web-src",
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
];
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "0.13.0";

const INSTALL_HINT: &str = "\
`cargo xtask build-ebpf --install` installs a tool chain on Debian 12 (as root). Elsewhere:
  * `rustup toolchain install nightly --component rust-src`
  * `cargo install bpf-linker --version 0.13.0 --root target/tools`, with the LLVM that nightly uses
An ordinary build of Adit needs none of it: the object is part of the source.";

/// Options of the task.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    /// Write nothing; fail if the committed object is not what the source gives
    #[arg(long)]
    check: bool,
    /// First install what is missing (Debian 12, as root)
    #[arg(long)]
    install: bool,
}

impl Options {
    /// Checks the committed object, with a tool chain that is installed if need be.
    pub(crate) fn check_with_tool_chain() -> Self {
        Self {
            check: true,
            install: true,
        }
    }
}

/// A compiler that can build `core` for the BPF target, and a linker for its LLVM.
#[derive(Debug)]
struct Toolchain {
    rustc: PathBuf,
    sysroot: PathBuf,
    linker: PathBuf,
    /// The versions that decide what the object looks like.
    identity: String,
}

/// Builds the object, or checks the committed one.
///
/// # Errors
/// When there is no tool chain, when the build fails, or when the check finds a difference.
pub(crate) fn run(options: Options) -> Result<()> {
    let root = &workspace()?;
    if options.install {
        install(root)?;
    }
    let object = root.join(OBJECT);
    let record = root.join(RECORD);
    let recorded = fs::read_to_string(&record).unwrap_or_default();
    let toolchain = find(root, &recorded)?;
    if options.check {
        ensure!(
            toolchain.identity == recorded,
            "the committed object was built with\n{recorded}but the tool chain found is\n{}so they cannot be compared",
            toolchain.identity
        );
        let committed = fs::read(&object).with_context(|| format!("reading {OBJECT}"))?;
        compare(&committed, &build(root, &toolchain)?)
    } else {
        fs::write(&object, build(root, &toolchain)?)
            .with_context(|| format!("writing {OBJECT}"))?;
        fs::write(&record, &toolchain.identity).with_context(|| format!("writing {RECORD}"))
    }
}

/// Installs Debian's tool chain, unless there is a usable one already.
fn install(root: &Path) -> Result<()> {
    let recorded = fs::read_to_string(root.join(RECORD)).unwrap_or_default();
    if find(root, &recorded).is_ok_and(|found| found.identity == recorded) {
        return Ok(());
    }
    stage::run(Command::new("apt-get").args(["update", "--quiet"]))?;
    stage::run(
        Command::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(DEBIAN_PACKAGES)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    let linker = cargo(&[
        "install",
        "bpf-linker",
        "--version",
        LINKER_VERSION,
        "--locked",
    ])?
    .args(["--no-default-features", "--features", "llvm-22", "--root"])
    .arg(root.join("target/tools"))
    .env("LLVM_PREFIX", DEBIAN_LLVM)
    .status()
    .context("running cargo")?;
    ensure!(linker.success(), "installing bpf-linker failed ({linker})");
    Ok(())
}

/// The first usable tool chain, preferably the recorded one.
fn find(root: &Path, recorded: &str) -> Result<Toolchain> {
    let linker = find_linker(root)?;
    let linker_version = output(Command::new(&linker).arg("--version"))?;
    let mut missing = String::new();
    let mut usable = Vec::new();
    for (name, rustc) in compilers() {
        match toolchain(&rustc, &linker, &linker_version) {
            Ok(found) => usable.push(found),
            Err(error) => writeln!(missing, "  * {name}: {error:#}")?,
        }
    }
    let preferred = usable
        .iter()
        .position(|found| found.identity == recorded)
        .unwrap_or(0);
    if usable.is_empty() {
        bail!("no compiler for {TARGET} found:\n{missing}{INSTALL_HINT}");
    }
    Ok(usable.swap_remove(preferred))
}

/// Compilers worth asking, best first: rustup's nightly, Debian's, and whatever is in the path.
fn compilers() -> Vec<(&'static str, PathBuf)> {
    let mut found = Vec::new();
    if let Ok(path) =
        output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]))
    {
        found.push(("rustup's nightly", PathBuf::from(path.trim())));
    }
    found.push(("the distribution's rustc", PathBuf::from("/usr/bin/rustc")));
    found.push(("rustc in the path", PathBuf::from("rustc")));
    found
}

fn toolchain(rustc: &Path, linker: &Path, linker_version: &str) -> Result<Toolchain> {
    let sysroot = PathBuf::from(output(Command::new(rustc).args(["--print", "sysroot"]))?.trim());
    ensure!(
        sysroot.join("lib/rustlib/src/rust/library/core").is_dir(),
        "the standard library's source (rust-src) is not installed"
    );
    let verbose = output(Command::new(rustc).arg("-vV"))?;
    let mut identity = String::new();
    for key in ["release: ", "commit-hash: ", "LLVM version: "] {
        let value = verbose
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or("unknown");
        writeln!(identity, "rustc {key}{value}")?;
    }
    writeln!(identity, "{}", linker_version.trim())?;
    Ok(Toolchain {
        rustc: rustc.to_owned(),
        sysroot,
        linker: linker.to_owned(),
        identity,
    })
}

fn find_linker(root: &Path) -> Result<PathBuf> {
    let installed = root.join("target/tools/bin/bpf-linker");
    if installed.is_file() {
        return Ok(installed);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!("bpf-linker is neither in target/tools/bin nor in the path\n{INSTALL_HINT}")
        })
}

/// Builds the programs and returns the stripped object.
fn build(root: &Path, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), PathBuf::from)
        .join("bpf");
    let status = cargo(&["build", "--release", "--features", "programs"])?
        .args(["--package", "adit-ebpf", "--bin", BINARY])
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTC", &toolchain.rustc)
        // Stable compilers build core for other targets too, when told so.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(root, toolchain)?)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTUP_TOOLCHAIN")
        .status()
        .context("running cargo")?;
    ensure!(
        status.success(),
        "building the eBPF programs failed ({status})"
    );
    let built = fs::read(target.join(TARGET).join("release").join(BINARY))
        .context("reading the built object")?;
    strip(&built)
}

/// Compiler flags, separated as `CARGO_ENCODED_RUSTFLAGS` wants them.
fn rustflags(root: &Path, toolchain: &Toolchain) -> Result<String> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    // Rust's tarballs carry no generic path for core; Debian builds it below /usr/src.
    let library = toolchain.sysroot.join("lib/rustlib/src/rust");
    let library_source = fs::canonicalize(&library).unwrap_or_else(|_| library.clone());
    let mut flags = vec![
        // BTF is made from full debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // A single unit lets small functions disappear: the stack of a program is 512 bytes.
        "-Ccodegen-units=1".to_owned(),
        // Every architecture that has both XDP drivers and a JIT reads packet fields at any address.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
    ];
    // Paths of this machine must not end up in the object: they differ elsewhere. The last match counts.
    for registry in registries(&home) {
        flags.push(format!(
            "--remap-path-prefix={}=registry",
            registry.display()
        ));
    }
    flags.push(format!(
        "--remap-path-prefix={}=rust",
        library_source.display()
    ));
    flags.push(format!("--remap-path-prefix={}=rust", library.display()));
    flags.push(format!("--remap-path-prefix={}=adit", root.display()));
    Ok(flags.join("\x1f"))
}

/// Directories that hold the unpacked sources of dependencies.
fn registries(home: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(home.join("registry/src"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    found.sort();
    found
}

/// Takes DWARF out of the object and leaves BTF in.
fn strip(built: &[u8]) -> Result<Vec<u8>> {
    let mut builder = build::elf::Builder::read(built).context("parsing the built object")?;
    let mut removed = Vec::new();
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        if name.starts_with(b".debug_") || name.starts_with(b".rel.debug_") {
            section.delete = true;
            removed.push(section.id());
        }
    }
    for symbol in &mut builder.symbols {
        symbol.delete |= symbol
            .section
            .is_some_and(|section| removed.contains(&section));
    }
    // LLVM keeps all names in one table; the writer wants one for sections and one for symbols.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    builder
        .write(&mut stripped)
        .context("writing the stripped object")?;
    for needed in [".BTF", ".BTF.ext"] {
        let present = object::File::parse(&*stripped)?
            .section_by_name(needed)
            .is_some();
        ensure!(
            present,
            "the object has no {needed} section; does bpf-linker match the compiler's LLVM?"
        );
    }
    Ok(stripped)
}

/// Compares two objects section by section.
fn compare(committed: &[u8], fresh: &[u8]) -> Result<()> {
    let (committed, fresh) = (sections(committed)?, sections(fresh)?);
    let mut differing: Vec<&str> = Vec::new();
    for (name, contents) in &fresh {
        if !committed.contains(&(name.clone(), contents.clone())) {
            differing.push(name);
        }
    }
    for (name, _) in &committed {
        if !fresh.iter().any(|(other, _)| other == name) {
            differing.push(name);
        }
    }
    ensure!(
        differing.is_empty(),
        "{OBJECT} is not what the source gives; these sections differ: {}. Run `cargo xtask build-ebpf`.",
        differing.join(", ")
    );
    Ok(())
}

/// What decides how the object behaves: instructions, data, relocations, map definitions and BTF.
///
/// `.BTF.ext` is left out: of its contents only line numbers can change while everything else stays.
fn sections(object: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let file = object::File::parse(object).context("parsing the object")?;
    let mut all = Vec::new();
    for section in file.sections() {
        let name = section.name()?.to_owned();
        let table = matches!(section.kind(), object::SectionKind::Metadata)
            && !name.starts_with(".rel")
            && !name.starts_with(".BTF");
        if table
            || name.is_empty()
            || name.ends_with(".BTF.ext")
            || name == ".symtab"
            || name == ".strtab"
        {
            continue;
        }
        all.push((name, section.data()?.to_vec()));
    }
    ensure!(
        matches!(file.flags(), object::FileFlags::Elf { .. })
            && file.architecture() == object::Architecture::Bpf,
        "not an eBPF object"
    );
    Ok(all)
}

/// Runs a command and returns what it prints.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("running {name}"))?;
    ensure!(
        output.status.success(),
        "{name} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed() -> Vec<u8> {
        fs::read(workspace().unwrap().join(OBJECT)).unwrap()
    }

    fn offset(object: &[u8], section: &str) -> usize {
        let file = object::File::parse(object).unwrap();
        let section = file.section_by_name(section).unwrap();
        usize::try_from(section.file_range().unwrap().0).unwrap()
    }

    #[test]
    fn one_other_instruction_or_type_is_found() {
        let original = committed();
        compare(&original, &original).unwrap();
        for section in ["xdp.frags", "classifier", ".BTF", ".maps", ".rodata"] {
            let mut changed = original.clone();
            let at = offset(&original, section) + 40;
            changed[at] ^= 1;
            let error = compare(&original, &changed).unwrap_err().to_string();
            assert!(error.contains(section), "{section}: {error}");
        }
    }

    #[test]
    fn the_object_names_no_place_of_the_machine_that_built_it() {
        let object = committed();
        for place in ["/home/", "/root/", "/usr/", "/rustc-"] {
            let found = object
                .windows(place.len())
                .any(|bytes| bytes == place.as_bytes());
            assert!(!found, "{place}");
        }
        let root = workspace().unwrap();
        let root = root.to_str().unwrap().as_bytes();
        assert!(!object.windows(root.len()).any(|bytes| bytes == root));
    }

    #[test]
    fn debug_information_is_gone_and_btf_is_there() {
        let object = committed();
        let file = object::File::parse(&*object).unwrap();
        assert!(file.section_by_name(".BTF").is_some());
        assert!(file.section_by_name(".debug_info").is_none());
    }
}
