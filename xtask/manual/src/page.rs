//! Manual pages, all of section 8: what `adit` does is an administrator's work.
//!
//! Name, synopsis, options and commands come from clap. What clap does not know stands in `pages/NAME.man`, in roff: what is
//! before the first heading there goes on with the description, the rest comes after the options.

use anyhow::{Context as _, Result};
use clap::{Arg, Command};
use clap_mangen::Man;
use roff::{Roff, bold, roman};

/// The section of the manual.
const SECTION: &str = "8";

/// The hand-written part of a page; `adit` for the main one.
fn written(command: &str) -> Option<&'static str> {
    Some(match command {
        "adit" => include_str!("../pages/adit.man"),
        "check" => include_str!("../pages/check.man"),
        "doctor" => include_str!("../pages/doctor.man"),
        "down" => include_str!("../pages/down.man"),
        "flows" => include_str!("../pages/flows.man"),
        "genkey" => include_str!("../pages/genkey.man"),
        "genpsk" => include_str!("../pages/genpsk.man"),
        "pubkey" => include_str!("../pages/pubkey.man"),
        "reresolve" => include_str!("../pages/reresolve.man"),
        "restart" => include_str!("../pages/restart.man"),
        "set" => include_str!("../pages/set.man"),
        "show" => include_str!("../pages/show.man"),
        "sync" => include_str!("../pages/sync.man"),
        "top" => include_str!("../pages/top.man"),
        "up" => include_str!("../pages/up.man"),
        _ => return None,
    })
}

/// The pages of the program and its subcommands: names of files, and contents.
///
/// # Errors
/// A subcommand without a hand-written part.
pub(crate) fn all(date: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let mut program = adit::cli::command()
        .override_usage("adit [OPTIONS] IFACE\nadit COMMAND …")
        .subcommand_help_heading("COMMANDS");
    program.build();
    let names: Vec<String> = program.get_subcommands().map(page_name).collect();
    let mut pages = vec![render(&program, date, &names)?];
    for subcommand in program.get_subcommands() {
        pages.push(render(subcommand, date, &names)?);
    }
    Ok(pages)
}

/// `adit-up` for `adit up`.
fn page_name(command: &Command) -> String {
    let name = command.get_display_name().unwrap_or(command.get_name());
    name.to_owned()
}

fn render(command: &Command, date: &str, subcommands: &[String]) -> Result<(String, Vec<u8>)> {
    let name = page_name(command);
    let written = written(command.get_name())
        .with_context(|| format!("{name}: there is no page in xtask/manual/pages"))?;
    let start = if written.starts_with(".SH ") {
        0
    } else {
        written.find("\n.SH ").map_or(written.len(), |at| at + 1)
    };
    let (description, sections) = written.split_at(start);

    let man = Man::new(command.clone().mut_args(plain))
        .section(SECTION)
        .date(date)
        .source(concat!("Adit ", env!("CARGO_PKG_VERSION")))
        .manual("Adit");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    page.extend(description.as_bytes());
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend(sections.as_bytes());
    see_also(&name, subcommands).to_writer(&mut page)?;
    Ok((format!("{name}.{SECTION}"), page))
}

/// A flag has no values worth listing, though clap has a parser for what its variable says.
fn plain(argument: Arg) -> Arg {
    let flag = !argument.get_action().takes_values();
    argument.hide_possible_values(flag)
}

fn see_also(name: &str, subcommands: &[String]) -> Roff {
    let ours: Vec<&str> = match name {
        "adit" => subcommands.iter().map(String::as_str).collect(),
        _ => vec!["adit"],
    };
    let others = ["wg", "wg-quick", "bpftool-map"];
    let pages: Vec<&str> = ours.into_iter().chain(others).collect();
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for (position, page) in pages.iter().enumerate() {
        let end = if position + 1 == pages.len() {
            ""
        } else {
            ", "
        };
        line.extend([bold(*page), roman(format!("({SECTION}){end}"))]);
    }
    roff.text(line);
    roff
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn text(page: &[u8]) -> String {
        String::from_utf8(page.to_vec()).unwrap()
    }

    fn page(name: &str) -> String {
        let pages = all("2026-11-23").unwrap();
        text(&pages.iter().find(|(found, _)| found == name).unwrap().1)
    }

    /// As lintian does; `man` warns of what groff warns of.
    fn warnings(page: &[u8]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("page.8");
        fs::write(&file, page).unwrap();
        let output = std::process::Command::new("man")
            .args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"])
            .arg(&file)
            .env("LC_ALL", "C.UTF-8")
            .env("MANROFFSEQ", "")
            .env("MANWIDTH", "80")
            .output()
            .expect("man is there: cargo xtask setup installs it");
        assert!(output.status.success(), "{output:?}");
        assert!(output.stdout.starts_with(b"x T utf8"), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    #[test]
    fn pages_render_without_warnings() {
        let pages = all("2026-11-23").unwrap();
        assert!(pages.len() > 10);
        for (name, page) in pages {
            assert_eq!(warnings(&page), "", "{name}:\n{}", text(&page));
        }
        assert_ne!(warnings(b".TH X 8\n.SH NAME\n.frobnicate\n"), "");
    }

    /// Every command in an example is one that the program takes.
    #[test]
    fn examples_are_command_lines() {
        let mut checked = 0;
        for (name, page) in all("").unwrap() {
            let page = text(&page);
            let examples = page.split(".EX\n").skip(1);
            let lines = examples.filter_map(|rest| rest.split_once("\n.EE"));
            for line in lines.flat_map(|(block, _)| block.lines()) {
                let line = line.replace("\\-", "-");
                let words = line.split(' ').skip_while(|word| word.contains('='));
                let words: Vec<_> = words
                    .take_while(|word| !["<", ">"].contains(word))
                    .collect();
                if words[0] == "adit" {
                    let parsed = adit::cli::command().try_get_matches_from(&words);
                    assert!(parsed.is_ok(), "{name}: {line}: {parsed:?}");
                    checked += 1;
                }
            }
        }
        assert!(checked >= 20, "only {checked}");
    }

    #[test]
    fn the_main_page_has_all_there_is_to_say() {
        let main = page("adit.8");
        for heading in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "COMMANDS",
            "ENVIRONMENT",
            "FILES",
            "\"EXIT STATUS\"",
            "EXAMPLES",
            "\"SEE ALSO\"",
        ] {
            let with_quotes = format!(".SH {heading}\n");
            let found = main.contains(&with_quotes) || main.contains(&with_quotes.replace('"', ""));
            assert!(found, "{heading}:\n{main}");
        }
        let mut command = adit::cli::command();
        let help = command.render_help().to_string();
        let (_, environment) = help.split_once("Environment:\n").unwrap();
        let variables = environment
            .lines()
            .map_while(|line| line.strip_prefix("  "));
        for line in variables {
            let name = line.split([' ', '=']).next().unwrap();
            assert!(main.contains(name), "{name}");
        }
    }
}
