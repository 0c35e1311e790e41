//! What the documents name exists: every link between files, and every command and option of `adit`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use adit_tests::Implementation;
use adit_tests::command::run;
use anyhow::{Context as _, Result, bail, ensure};

/// Documents outside of [`FOLDERS`].
const FILES: [&str; 5] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
];
const FOLDERS: [&str; 2] = ["userspace/adit/docs", "userspace/adit/packaging"];

/// Names of tunnels in the documents, and what stands for one. Anything else in their place is a command.
const TUNNELS: [&str; 5] = ["wg0", "wg1", "IFACE", "%i", "…"];

/// A fenced block.
pub(crate) struct Block<'a> {
    /// What stands behind the fence.
    pub(crate) tag: &'a str,
    /// The lines inside, each with its end.
    pub(crate) text: String,
}

/// The fenced blocks of a document.
pub(crate) fn blocks(document: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if let Some(tag) = line.strip_prefix("```") {
            let inside = lines.by_ref().take_while(|line| *line != "```");
            let text = inside.map(|line| format!("{line}\n")).collect();
            blocks.push(Block { tag, text });
        }
    }
    blocks
}

/// The rows of the table in a document whose headings begin with these, each in cells.
pub(crate) fn table(path: &str, headings: &[&str]) -> Result<Vec<Vec<String>>> {
    let text = prose(&read(path)?);
    let cells = |line: &str| -> Option<Vec<String>> {
        let inside = line.strip_prefix('|')?.strip_suffix('|')?;
        Some(
            inside
                .split('|')
                .map(|cell| cell.trim().to_owned())
                .collect(),
        )
    };
    let mut lines = text.lines().map(cells);
    let columns = lines
        .find_map(|row| {
            row.filter(|row| {
                row.iter()
                    .zip(headings)
                    .all(|(cell, heading)| cell == heading)
            })
        })
        .with_context(|| format!("{path} has no table {headings:?}"))?
        .len();
    // Below the headings is a line of hyphens.
    let rows: Vec<_> = lines.skip(1).map_while(|row| row).collect();
    ensure!(
        rows.iter().all(|row| row.len() == columns),
        "{path}: {headings:?} has rows of different length"
    );
    Ok(rows)
}

/// What stands in backticks in a line.
pub(crate) fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// A document without its fenced blocks.
fn prose(document: &str) -> String {
    let mut inside = false;
    let lines = document.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    lines.map(|line| format!("{line}\n")).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of a file, whose path is given from the root of the repository.
pub(crate) fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

/// Files of the documents, and the unit files, by paths from the root.
fn files(extensions: &[&str]) -> Result<Vec<String>> {
    let mut found: Vec<String> = FILES.map(str::to_owned).into();
    for folder in FOLDERS {
        for entry in fs::read_dir(root().join(folder)).context(folder)? {
            found.push(format!("{folder}/{}", entry?.file_name().to_string_lossy()));
        }
    }
    found.retain(|path| {
        let extension = Path::new(path).extension().and_then(|e| e.to_str());
        extension.is_some_and(|extension| extensions.contains(&extension))
    });
    ensure!(found.len() >= extensions.len(), "{found:?}");
    found.sort();
    Ok(found)
}

/// What `[…](…)` leads to.
fn links(prose: &str) -> impl Iterator<Item = &str> {
    let ends = prose.split("](").skip(1);
    ends.filter_map(|rest| rest.split_once(')').map(|(link, _)| link))
}

/// The anchor that a heading gets where Markdown is shown: lower case, blanks to hyphens, punctuation left out.
fn anchor(heading: &str) -> String {
    let letters = heading.trim_start_matches('#').trim().chars();
    letters
        .filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            _ if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

fn check_link(document: &str, link: &str) -> Result<()> {
    if link.contains("://") {
        return Ok(());
    }
    let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
    let own = Path::new(document);
    let path = match file {
        "" => own.to_owned(),
        file => own.parent().unwrap_or(own).join(file),
    };
    ensure!(root().join(&path).exists(), "{document} links to {link}");
    if !fragment.is_empty() {
        let text = read(&path.to_string_lossy())?;
        let text = prose(&text);
        let mut headings = text.lines().filter(|line| line.starts_with('#'));
        ensure!(
            headings.any(|heading| anchor(heading) == fragment),
            "{document} links to {link}, and there is no such heading"
        );
    }
    Ok(())
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let mut checked = 0;
    for document in files(&["md"])? {
        for link in links(&prose(&read(&document)?)) {
            check_link(&document, link)?;
            checked += 1;
        }
    }
    ensure!(checked >= 10, "only {checked} links");
    for wrong in ["no-such-file.md", "README.md#no-such-heading", "#nothing"] {
        ensure!(check_link("README.md", wrong).is_err(), "{wrong}");
    }
    check_link("userspace/adit/docs/faq.md", "../../../README.md#limits")
}

/// An option, as the program's help tells of it.
#[derive(Default)]
struct Opt {
    takes_value: bool,
    /// What the value may be; nothing here if it may be anything.
    values: BTreeSet<String>,
}

/// Options by name.
type Opts = BTreeMap<String, Opt>;

/// What the program understands.
struct CommandLine {
    /// Where a tunnel is started.
    start: Opts,
    commands: BTreeMap<String, Opts>,
    /// All words in the help of [`Self::start`], for names of variables.
    words: BTreeSet<String>,
}

impl CommandLine {
    /// Asks clap, by way of `--help`.
    fn of_the_program() -> Result<Self> {
        let program = Implementation::Adit.program()?;
        let help = |command: Option<&str>| -> Result<String> {
            run(Command::new(&program).args(command).arg("--help"))
        };
        let main = help(None)?;
        let (_, commands) = main.split_once("Commands:\n").context("no commands")?;
        let names = commands.lines().map_while(|line| {
            let name = line.strip_prefix("  ")?.split(' ').next()?;
            (!name.is_empty()).then_some(name)
        });
        let mut found = BTreeMap::new();
        for name in names {
            found.insert(name.to_owned(), options(&help(Some(name))?));
        }
        ensure!(found.len() >= 8, "{main}");
        let words = main.split(|c: char| !c.is_ascii_uppercase() && c != '_');
        Ok(Self {
            start: options(&main),
            commands: found,
            words: words.map(str::to_owned).collect(),
        })
    }

    /// Judges what comes after `adit`.
    fn check(&self, words: &[&str]) -> Result<()> {
        let mut options = &self.start;
        let mut command = None;
        let mut rest = words.iter();
        while let Some(&word) = rest.next() {
            // `set` has words of wg(8) behind it.
            if command == Some("set") {
                break;
            }
            if word.starts_with('-') {
                let next = rest.clone().next().copied();
                if check_option(options, word, next)? {
                    rest.next();
                }
            } else if command.is_none() {
                command = Some(word);
                match self.commands.get(word) {
                    Some(known) => options = known,
                    None => ensure!(TUNNELS.contains(&word), "{word} is no command"),
                }
            }
        }
        Ok(())
    }

    /// Judges an option that is named in the text, without a command before it.
    fn check_alone(&self, option: &str, value: Option<&str>) -> Result<()> {
        let mut places = self.commands.values().chain([&self.start]);
        ensure!(
            places.any(|options| check_option(options, option, value).is_ok()),
            "{option} {value:?} is no option"
        );
        Ok(())
    }
}

/// Whether the option's value is the next word.
fn check_option(options: &Opts, word: &str, next: Option<&str>) -> Result<bool> {
    if matches!(word, "--help" | "--version" | "-h" | "-V" | "--") {
        return Ok(false);
    }
    let (name, attached) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    };
    let known = options
        .get(name)
        .with_context(|| format!("{name} is no option"))?;
    if let Some(value) = attached.or(next)
        && !known.values.is_empty()
    {
        let mut values = value.split('|').map(|value| value.trim_end_matches('\\'));
        ensure!(
            values.all(|value| known.values.contains(value)),
            "{value} is no value of {name}"
        );
    }
    Ok(known.takes_value && attached.is_none())
}

/// Reads the options out of clap's help.
fn options(help: &str) -> Opts {
    let mut options = Opts::new();
    let mut latest = Vec::new();
    for line in help.lines().map(str::trim_start) {
        if let Some(value) = line.strip_prefix("- ") {
            let value = value.split(':').next().unwrap_or(value);
            for name in &latest {
                let option: &mut Opt = options.entry(String::clone(name)).or_default();
                option.values.insert(value.to_owned());
            }
        } else if line.starts_with('-') {
            let words = line.split(' ').map(|word| word.trim_end_matches(','));
            let words: Vec<_> = words
                .take_while(|word| word.starts_with(['-', '<', '[']))
                .collect();
            latest.clear();
            for name in words.iter().filter(|word| word.starts_with('-')) {
                let takes_value = words.iter().any(|word| word.starts_with('<'));
                let option = Opt {
                    takes_value,
                    ..Opt::default()
                };
                options.insert((*name).to_owned(), option);
                latest.push((*name).to_owned());
            }
        }
    }
    options
}

/// Code in a line of text.
fn spans(prose: &str) -> impl Iterator<Item = &str> {
    prose
        .split("\n\n")
        .flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2))
}

/// The commands of a line of shell, each in words, without variables that are set for it.
fn commands(line: &str) -> impl Iterator<Item = Vec<&str>> {
    let line = line.split(" #").next().unwrap_or(line);
    line.split([';', '|', '&', '(', ')']).map(|command| {
        let words = command.split([' ', '\t', '\n', '"', '\'']);
        words
            .filter(|word| !word.is_empty())
            .skip_while(|word| word.contains('=') || *word == "sudo")
            .take_while(|word| !word.starts_with(['<', '>']))
            .collect()
    })
}

fn check_line(line: &str, known: &CommandLine) -> Result<usize> {
    let mut checked = 0;
    for words in commands(line) {
        if let [program, arguments @ ..] = &words[..]
            && (*program == "adit" || program.ends_with("/adit"))
        {
            known.check(arguments).with_context(|| line.to_owned())?;
            checked += 1;
        }
    }
    Ok(checked)
}

/// Commands in one document; how many there are.
fn check_commands(document: &str, known: &CommandLine) -> Result<usize> {
    let mut checked = 0;
    for block in blocks(document) {
        if block.tag.starts_with("sh") {
            for line in block.text.lines() {
                checked += check_line(line, known)?;
            }
        }
    }
    for span in spans(&prose(document)) {
        let words: Vec<_> = span.split_whitespace().collect();
        match words[..] {
            [option] if option.starts_with("--") => known.check_alone(option, None)?,
            // A table has its bars escaped.
            [option, value] if option.starts_with("--") => {
                known.check_alone(option, Some(value))?
            }
            _ => checked += check_line(span, known)?,
        }
    }
    let names = document.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    for name in names.filter(|name| name.starts_with("ADIT_") && !name.starts_with("ADIT_TEST_")) {
        ensure!(
            name == "ADIT_" || known.words.contains(name),
            "{name} is no variable"
        );
    }
    Ok(checked)
}

#[test]
fn commands_exist() -> Result<()> {
    let known = CommandLine::of_the_program()?;
    let mut checked = 0;
    for document in files(&["md"])? {
        checked += check_commands(&read(&document)?, &known).context(document)?;
    }
    ensure!(checked >= 50, "only {checked} commands");

    for wrong in [
        "`adit frobnicate wg0`",
        "`adit show wg0 --colour`",
        "`adit --datapath quic wg0`",
        "`--datapath=quic`",
        "`--frobnicate`",
        "`ADIT_FROBNICATE`",
        "```sh\nsleep 1; adit up -q wg0\n```\n",
    ] {
        ensure!(check_commands(wrong, &known).is_err(), "{wrong}");
    }
    check_commands("`adit -f --datapath xdp --underlay eth0,eth1 wg0`", &known)?;
    check_commands("`adit flows wg0 --watch 2 --json`", &known)?;
    Ok(())
}

#[test]
fn units_start_what_there_is() -> Result<()> {
    let known = CommandLine::of_the_program()?;
    let mut checked = 0;
    for unit in files(&["service"])? {
        if !unit.ends_with(".service") {
            bail!("{unit}");
        }
        for line in read(&unit)?.lines() {
            if let Some((_, command)) = line.split_once('=')
                && line.starts_with("Exec")
            {
                checked += check_line(command, &known).context(unit.clone())?;
            }
        }
    }
    ensure!(checked >= 3, "only {checked} commands");
    Ok(())
}
