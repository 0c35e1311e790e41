//! Numbers and times in few characters: three digits and a unit.

use std::time::Duration;

/// Bytes in at most 8 characters: `1.21 GiB`, `121 KiB`, `1023 B`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = [" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    scaled(bytes as f64, 1024.0, &UNITS)
}

/// Bits, packets or events per second in at most 6 characters: `1.21 G`, `121 k`, `999`; a dash while nothing is known.
pub(super) fn rate(per_second: Option<f64>) -> String {
    const UNITS: [&str; 7] = ["", " k", " M", " G", " T", " P", " E"];
    per_second.map_or_else(|| "-".to_owned(), |rate| scaled(rate, 1000.0, &UNITS))
}

/// Three significant digits, or four where the next unit begins at 1024.
fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let mut value = value.max(0.0);
    let mut unit = 0;
    // What would be rounded up to the base belongs to the next unit already.
    while value >= base - 0.5 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{}", units[unit])
}

/// A span of time in at most 7 characters: `12s`, `3m12s`, `2h05m`, `3d04h`, `412d`.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if minutes == 0 {
        format!("{seconds}s")
    } else if hours == 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else if days == 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else if days < 100 {
        format!("{days}d{:02}h", hours % 24)
    } else {
        format!("{days}d")
    }
}

/// A time to the peer and back in at most 7 characters: `0.8 ms`, `12.3 ms`, `1234 ms`; a dash if it is not known.
pub(super) fn round_trip(time: Option<Duration>) -> String {
    let Some(milliseconds) = time.map(|time| time.as_secs_f64() * 1e3) else {
        return "-".to_owned();
    };
    let decimals = usize::from(milliseconds < 99.95);
    format!("{milliseconds:.decimals$} ms")
}

/// At most `width` characters; what is too long loses its middle, since ports and ends of names tell things apart.
pub(super) fn shortened(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let Some(kept) = width.checked_sub(1) else {
        return String::new();
    };
    let tail = kept / 2;
    let head = kept - tail;
    let front = text.chars().take(head);
    let back = text.chars().skip(length - tail);
    front.chain(['…']).chain(back).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_have_four_digits() {
        let shown = |microseconds| round_trip(Some(Duration::from_micros(microseconds)));
        assert_eq!(round_trip(None), "-");
        assert_eq!(shown(840), "0.8 ms");
        assert_eq!(shown(12_340), "12.3 ms");
        assert_eq!(shown(99_960), "100 ms");
        assert_eq!(shown(1_234_000), "1234 ms");
    }

    #[test]
    fn bytes_have_three_digits() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1240, "1.21 KiB"),
            (12_400, "12.1 KiB"),
            (124_000, "121 KiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (1023 << 20, "1023 MiB"),
            (5 << 40, "5.00 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
            assert!(text.len() <= 8);
        }
    }

    #[test]
    fn rates_have_three_digits() {
        for (value, text) in [
            (Some(0.0), "0"),
            (Some(-1.0), "0"),
            (Some(0.4), "0"),
            (Some(999.4), "999"),
            (Some(999.7), "1.00 k"),
            (Some(1_234_000.0), "1.23 M"),
            (Some(99_949.0), "99.9 k"),
            (Some(99_951.0), "100 k"),
            (None, "-"),
        ] {
            assert_eq!(rate(value), text);
        }
    }

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (192, "3m12s"),
            (7500, "2h05m"),
            (3 * 86_400 + 4 * 3600, "3d04h"),
            (412 * 86_400, "412d"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn long_text_loses_its_middle() {
        assert_eq!(shortened("192.0.2.1:51820", 15), "192.0.2.1:51820");
        assert_eq!(shortened("[2001:db8::1]:51820", 11), "[2001…51820");
        assert_eq!(shortened("abc", 1), "…");
        assert_eq!(shortened("abc", 0), "");
    }
}
