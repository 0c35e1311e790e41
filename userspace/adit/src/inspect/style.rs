//! How numbers and times are written, and when there are colours. Units and words are those of `wg show`.

use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    colour: bool,
}

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Keys of a listing.
    Bold,
    /// An interface; something fine.
    Good,
    /// A peer; something to look at.
    Notice,
    /// Something in the way.
    Bad,
    /// A unit.
    Unit,
}

impl Tone {
    /// SGR parameters, ECMA-48 section 8.3.117.
    const fn parameters(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Good => "32",
            Self::Notice => "33",
            Self::Bad => "31",
            Self::Unit => "36",
        }
    }
}

impl Style {
    /// Never colours.
    pub(crate) const PLAIN: Self = Self { colour: false };
    /// Always does.
    #[cfg(test)]
    pub(crate) const COLOURED: Self = Self { colour: true };

    /// For standard output: colours on a terminal, unless the environment says otherwise; see [`wants_colours`].
    pub(crate) fn for_stdout() -> Self {
        let variable = |name| env::var(name).ok();
        Self {
            colour: wants_colours(variable, io::stdout().is_terminal()),
        }
    }

    /// Whether anything is coloured.
    pub(crate) fn has_colours(self) -> bool {
        self.colour
    }

    /// `text`, coloured if there are colours.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        if self.colour {
            format!("\x1b[{}m{text}\x1b[0m", tone.parameters())
        } else {
            text.to_owned()
        }
    }

    /// `text`, coloured and bold if there are colours.
    pub(crate) fn paint_bold(self, tone: Tone, text: &str) -> String {
        if self.colour {
            let (tone, bold) = (tone.parameters(), Tone::Bold.parameters());
            format!("\x1b[{tone};{bold}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A number of bytes: `1.21 KiB`.
    pub(crate) fn bytes(self, bytes: u64) -> String {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut unit = 0;
        #[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
        let mut value = bytes as f64;
        while value >= 1024.0 && unit < UNITS.len() - 1 {
            value /= 1024.0;
            unit += 1;
        }
        let name = self.paint(Tone::Unit, UNITS[unit]);
        if unit == 0 {
            format!("{bytes} {name}")
        } else {
            format!("{value:.2} {name}")
        }
    }

    /// A short time: `12.3 ms`.
    pub(crate) fn milliseconds(self, time: Duration) -> String {
        let unit = self.paint(Tone::Unit, "ms");
        format!("{:.1} {unit}", time.as_secs_f64() * 1e3)
    }

    /// A span of time: `1 minute, 3 seconds`; empty for 0.
    pub(crate) fn span(self, mut seconds: u64) -> String {
        let mut text = String::new();
        for (length, name) in [
            (365 * 24 * 60 * 60, "year"),
            (24 * 60 * 60, "day"),
            (60 * 60, "hour"),
            (60, "minute"),
            (1, "second"),
        ] {
            let count = seconds / length;
            seconds %= length;
            if count > 0 {
                let separator = if text.is_empty() { "" } else { ", " };
                let plural = if count == 1 { "" } else { "s" };
                let unit = self.paint(Tone::Unit, &format!("{name}{plural}"));
                // Writing to a String cannot fail.
                let _ = write!(text, "{separator}{count} {unit}");
            }
        }
        text
    }

    /// How long ago `then` was, both in seconds of one clock.
    pub(crate) fn ago(self, now: u64, then: u64) -> String {
        match now.checked_sub(then) {
            Some(0) => "Now".to_owned(),
            Some(seconds) => format!("{} ago", self.span(seconds)),
            None => format!(
                "({})",
                self.paint(
                    Tone::Bad,
                    "System clock wound backward; connection problems may ensue."
                )
            ),
        }
    }
}

/// What the environment says of colours, most particular first: `WG_COLOR_MODE` as for `wg`, `NO_COLOR`
/// (<https://no-color.org>), `CLICOLOR_FORCE` (<https://bixense.com/clicolors>), and a terminal that knows no colours.
fn wants_colours(variable: impl Fn(&'static str) -> Option<String>, terminal: bool) -> bool {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    match variable("WG_COLOR_MODE").as_deref() {
        Some("always") => true,
        Some("never") => false,
        _ if set("NO_COLOR").is_some() => false,
        _ if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
        _ => terminal && variable("TERM").is_none_or(|value| value != "dumb"),
    }
}

/// A rate in bits per second: `1.21 Gbit/s`.
pub(crate) fn bit_rate(bits_per_second: f64) -> String {
    const UNITS: [&str; 5] = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    let mut value = bits_per_second.max(0.0);
    let mut unit = 0;
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.2} {}", UNITS[unit])
    }
}

/// Text from outside, without what a terminal would act upon.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                '?'
            } else {
                character
            }
        })
        .collect()
}

/// Writes to standard output. That nobody reads any more (`| head`) is told by `false`.
///
/// # Errors
/// When the output cannot be written for another reason.
pub(crate) fn print(text: &str) -> Result<bool> {
    let mut output = io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

/// Lines of columns, as wide as they need to be; those named in `right` are set to the right. Colours must not be in the cells.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            let separator = if column == 0 { "" } else { "  " };
            let (before, after) = if right.contains(&column) {
                (padding.as_str(), "")
            } else {
                ("", padding.as_str())
            };
            let _ = write!(line, "{separator}{before}{cell}{after}");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_wg_does() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1_240, "1.21 KiB"),
            (5 << 20, "5.00 MiB"),
            (3 << 30, "3.00 GiB"),
            (1 << 40, "1.00 TiB"),
            (u64::MAX, "16777216.00 TiB"),
        ] {
            assert_eq!(Style::PLAIN.bytes(bytes), text);
        }
    }

    #[test]
    fn times_are_written_as_wg_does() {
        for (seconds, text) in [
            (1, "1 second"),
            (63, "1 minute, 3 seconds"),
            (3600, "1 hour"),
            (2 * 86_400 + 5, "2 days, 5 seconds"),
            (366 * 86_400, "1 year, 1 day"),
        ] {
            assert_eq!(Style::PLAIN.span(seconds), text);
        }
        assert_eq!(Style::PLAIN.ago(70, 7), "1 minute, 3 seconds ago");
        assert_eq!(Style::PLAIN.ago(7, 7), "Now");
        assert!(Style::PLAIN.ago(7, 8).starts_with("(System clock"));
    }

    #[test]
    fn units_are_coloured_and_plain_text_is_not() {
        assert_eq!(Style::COLOURED.bytes(5), "5 \x1b[36mB\x1b[0m");
        assert_eq!(Style::COLOURED.paint(Tone::Bold, "x"), "\x1b[1mx\x1b[0m");
        assert_eq!(Style::PLAIN.paint(Tone::Bold, "x"), "x");
    }

    #[test]
    fn the_environment_decides_on_colours() {
        let wants = |environment: &[(&str, &str)], terminal| {
            let variable = |name| {
                let mut found = environment.iter().filter(|(known, _)| *known == name);
                found.next().map(|(_, value)| (*value).to_owned())
            };
            wants_colours(variable, terminal)
        };
        assert!(wants(&[], true) && !wants(&[], false));
        assert!(wants(&[("TERM", "xterm")], true) && !wants(&[("TERM", "dumb")], true));
        assert!(!wants(&[("NO_COLOR", "1")], true) && wants(&[("NO_COLOR", "")], true));
        assert!(wants(&[("CLICOLOR_FORCE", "1")], false));
        assert!(!wants(&[("CLICOLOR_FORCE", "0")], false));
        assert!(!wants(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], true));
        for (mode, terminal, colours) in [
            ("always", false, true),
            ("never", true, false),
            ("auto", true, true),
            ("auto", false, false),
        ] {
            assert_eq!(wants(&[("WG_COLOR_MODE", mode)], terminal), colours);
        }
        assert!(wants(
            &[("WG_COLOR_MODE", "always"), ("NO_COLOR", "1")],
            false
        ));
    }

    #[test]
    fn rates_are_decimal() {
        assert_eq!(bit_rate(0.0), "0 bit/s");
        assert_eq!(bit_rate(999.4), "999 bit/s");
        assert_eq!(bit_rate(1_500_000.0), "1.50 Mbit/s");
        assert_eq!(bit_rate(-1.0), "0 bit/s");
    }

    #[test]
    fn terminals_get_no_commands_from_outside() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a?[2Jb?");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "10", "x"], ["bcd", "9", ""]];
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| (*cell).to_owned()).collect())
            .collect();
        assert_eq!(table(&rows, &[1]), "a    10  x\nbcd   9\n");
        assert_eq!(table(&[], &[]), "");
    }
}
