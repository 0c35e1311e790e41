//! Log set-up: the level comes from `LOG_LEVEL`, lines go to standard error.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;

/// Reads a level as `wireguard-go` does: `silent`, `error`, `verbose` (its name for debug), and
/// beside these `warn`, `info`, `debug` and `trace`.
pub fn parse_level(text: &str) -> Option<LevelFilter> {
    Some(match text {
        "silent" | "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" | "verbose" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    })
}

/// Installs the subscriber. Warnings and errors are shown where nothing was asked for: a warning
/// is worth somebody's attention by definition.
///
/// The service manager's journal stamps lines itself, so only a terminal gets times.
pub fn start(level: LevelFilter) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    // A second call (in tests) keeps the first subscriber, which is what is wanted.
    let _ = if std::io::stderr().is_terminal() {
        builder.try_init()
    } else {
        builder.without_time().try_init()
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_levels() {
        assert_eq!(parse_level("silent"), Some(LevelFilter::OFF));
        assert_eq!(parse_level("verbose"), Some(LevelFilter::DEBUG));
        assert_eq!(parse_level("error"), Some(LevelFilter::ERROR));
        assert_eq!(parse_level("loud"), None);
    }
}
