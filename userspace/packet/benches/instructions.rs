//! Instructions that the hot path takes, counted by callgrind and compared with what is recorded in `instructions.txt`:
//! unlike time, they are the same in every run.
//!
//! ```sh
//! cargo bench --package adit-packet --bench instructions               # fails where a count is off by more than 3 %
//! cargo bench --package adit-packet --bench instructions -- --update   # records the counts of this build
//! ```
//! Counts belong to a compiler: another version may change them all. They do not depend on the processor as long as it
//! has AVX2: callgrind knows no more than that, and the C library is told to copy with SSE2.
#![allow(clippy::print_stdout, reason = "it reports to the one who runs it")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use adit_packet::aead::{Backend, Key, Record, TAG_LEN, open_batch, seal_batch};
use adit_packet::checksum;
use adit_packet::coalesce::{Coalescer, Offloads};
use adit_packet::split::Splitter;
use adit_protocol::{AllowedIps, Prefix};
use anyhow::{Context as _, Result, bail, ensure};
use common::{BATCH, super_packet};

/// Per cent of the recorded count.
const TOLERANCE: f64 = 3.0;
const SIZE: usize = 1440;
const STRIDE: usize = SIZE + TAG_LEN;

/// Prepares, does what is to be counted, and checks that it was done.
type Workload = fn() -> Result<()>;

/// What is counted, by name.
const WORKLOADS: [(&str, Workload); 9] = [
    ("split", split),
    ("coalesce", coalesce),
    ("checksum", checksum),
    ("lookup-v4", || lookup(false)),
    ("lookup-v6", || lookup(true)),
    ("portable-seal", || aead(Backend::Portable, false)),
    ("portable-open", || aead(Backend::Portable, true)),
    ("avx2-seal", || aead(Backend::Avx2, false)),
    ("avx2-open", || aead(Backend::Avx2, true)),
];

/// The one function in which callgrind counts.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
}

/// Once for what is found out once, such as the features of the processor; then counted.
fn count(mut work: impl FnMut()) {
    work();
    counted(&mut work);
}

fn split() -> Result<()> {
    let (header, packet, segments) = super_packet(SIZE);
    let mut arena = vec![0; BATCH * STRIDE];
    let mut written = 0;
    count(|| {
        let Ok(mut splitter) = Splitter::new(black_box(header), black_box(&packet)) else {
            return;
        };
        for slot in arena.chunks_mut(STRIDE) {
            written += usize::from(splitter.write_next(slot).is_some());
        }
    });
    ensure!(written == 2 * segments, "{written} packets were split off");
    Ok(())
}

fn coalesce() -> Result<()> {
    let (header, packet, segments) = super_packet(SIZE);
    let mut arena = vec![0; BATCH * STRIDE];
    let mut splitter = Splitter::new(header, &packet)?;
    let mut lengths = Vec::new();
    for slot in arena.chunks_mut(STRIDE) {
        lengths.extend(splitter.write_next(slot));
    }
    let mut coalescer = Coalescer::new(Offloads {
        tcp4: true,
        tcp6: true,
        udp4: true,
        udp6: true,
    });
    let mut merged = 0;
    // Merging rewrites the first packet's headers.
    let mut again = arena.clone();
    let mut turns = [&mut arena, &mut again].into_iter();
    count(|| {
        let Some(arena) = turns.next() else { return };
        let mut slots = arena.chunks_mut(STRIDE);
        let mut packets: [&mut [u8]; BATCH] = std::array::from_fn(|index| {
            let slot = slots.next().unwrap_or_default();
            &mut slot[..lengths.get(index).copied().unwrap_or(0)]
        });
        coalescer.coalesce(&mut packets, |slices, count| {
            black_box(slices);
            merged += count;
        });
    });
    ensure!(merged == 2 * segments, "{merged} packets were merged");
    Ok(())
}

fn checksum() -> Result<()> {
    let data: Vec<u8> = (0..=u8::MAX).cycle().take(BATCH * SIZE).collect();
    let mut sums = 0;
    count(|| {
        for packet in data.chunks(SIZE) {
            sums += checksum::sum(black_box(packet));
        }
    });
    ensure!(sums > 0, "nothing was summed");
    Ok(())
}

/// Ten thousand peers, an address each; a thousand lookups all over them.
fn lookup(ipv6: bool) -> Result<()> {
    let address = |n: u32| -> IpAddr {
        if ipv6 {
            Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(n) << 16).into()
        } else {
            Ipv4Addr::from_bits(10 << 24 | n).into()
        }
    };
    let mut prefixes = AllowedIps::default();
    for n in 0..10_000 {
        let length = if ipv6 { 128 } else { 32 };
        prefixes.insert(Prefix::new(address(n * 3), length)?, n);
    }
    let table = prefixes.to_table();
    let mut found = 0;
    count(|| {
        for n in 0..1000 {
            let owner = table.lookup(black_box(address(n * 7919 % 10_000 * 3)));
            found += usize::from(owner.is_some());
        }
    });
    ensure!(found == 2000, "{found} addresses were found");
    Ok(())
}

fn aead(backend: Backend, open: bool) -> Result<()> {
    ensure!(
        backend.is_available(),
        "this processor does not have what the backend {backend} needs"
    );
    let key = Key::new(backend, &[7; 32]);
    let mut bodies = vec![vec![0x5a; STRIDE]; 16];
    let mut records: Vec<Record<'_>> = (0..)
        .zip(&mut bodies)
        .map(|(counter, body)| Record {
            counter,
            body,
            authentic: false,
        })
        .collect();
    if open {
        seal_batch(&key, &mut records);
        open_batch(&key, &mut records);
        seal_batch(&key, &mut records);
        counted(&mut || open_batch(&key, &mut records));
    } else {
        count(|| seal_batch(&key, &mut records));
    }
    ensure!(records.iter().all(|record| record.authentic), "not sealed");
    Ok(())
}

/// Runs a workload of this program under callgrind and gives its count.
fn run(name: &str) -> Result<u64> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let out = std::env::temp_dir().join(format!("adit-instructions-{}", std::process::id()));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--toggle-collect=*counted*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["--workload", name])
        // Of its copying loops, the one that all processors have.
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-ERMS,-FSRM",
        )
        .output()
        .context("cannot run valgrind: install the package of that name")?;
    let report = fs::read_to_string(&out);
    let _ = fs::remove_file(&out);
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let report = report.with_context(|| format!("{name}: callgrind left no report"))?;
    let total = report
        .lines()
        .find_map(|line| line.strip_prefix("totals: "))
        .with_context(|| format!("{name}: callgrind's report has no total"))?;
    let total = total
        .trim()
        .parse()
        .with_context(|| format!("{name}: {total}"))?;
    // Less than that is the call alone: the function was not recognised.
    ensure!(
        total > 1000,
        "{name}: callgrind counted {total} instructions only"
    );
    Ok(total)
}

fn figures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt")
}

fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    let version = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    version.unwrap_or_else(|_| "unknown".to_owned())
}

fn update() -> Result<()> {
    let mut text = format!(
        "# cargo bench --package adit-packet --bench instructions -- --update\n# {}\n",
        compiler()
    );
    for (name, _) in WORKLOADS {
        let count = run(name)?;
        println!("{name:14} {count:9}");
        writeln!(text, "{name} {count}")?;
    }
    let path = figures();
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn check() -> Result<()> {
    let path = figures();
    let text = fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}; --update makes it", path.display()))?;
    let recorded: BTreeMap<&str, u64> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, count) = line.split_once(' ').context("no count")?;
            Ok((name, count.parse()?))
        })
        .collect::<Result<_>>()
        .with_context(|| format!("{} is damaged; --update makes it anew", path.display()))?;
    let mut off = Vec::new();
    for (name, _) in WORKLOADS {
        let count = run(name)?;
        let Some(recorded) = recorded.get(name).copied() else {
            bail!("{name} is not recorded yet: run this with --update");
        };
        #[expect(clippy::cast_precision_loss, reason = "millions at most")]
        let change = (count as f64 / recorded as f64 - 1.0) * 100.0;
        println!("{name:14} {count:9} instructions, {change:+6.2} %");
        if change.abs() > TOLERANCE {
            off.push(name);
        }
    }
    let compiler = compiler();
    let by = if text.contains(&compiler) {
        String::new()
    } else {
        format!("; they were recorded with another compiler than {compiler}")
    };
    ensure!(
        off.is_empty(),
        "more than {TOLERANCE} % off what is recorded: {}{by}; if that is meant, run this with --update",
        off.join(", ")
    );
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().position(|one| one == "--workload") {
        Some(at) => {
            let name = arguments.get(at + 1).map_or("", String::as_str);
            match WORKLOADS.iter().find(|(known, _)| *known == name) {
                Some((_, work)) => work(),
                None => Err(anyhow::anyhow!("there is no workload {name:?}")),
            }
        }
        None if arguments.iter().any(|one| one == "--update") => update(),
        None => check(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `--nocapture` and the like do not exist here: standard error is for this line alone.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{error:#}\n"));
            ExitCode::FAILURE
        }
    }
}
