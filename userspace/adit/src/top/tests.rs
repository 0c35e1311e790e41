//! Whole screens, drawn from readings that are always the same.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent};
use ratatui::style::{Color, Modifier};

use super::model::tests::{flow, peer, reading};
use super::model::{Picture, Reading};
use super::screen::{Palette, draw};
use super::state::State;
use crate::inspect::flows::Row;

/// The drawing for README.md.
const DRAWING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/top.svg");
/// Writes [`DRAWING`] anew instead of comparing it.
const WRITE: &str = "ADIT_TEST_WRITE_DRAWINGS";

fn screen(state: &mut State, width: u16, height: u16, colours: bool) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(frame, state, Palette::new(colours)))
        .unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let mut text = String::new();
    for cells in buffer.content.chunks(width) {
        let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn type_keys(state: &mut State, keys: &str) {
    for key in keys.chars() {
        let code = match key {
            '↓' => KeyCode::Down,
            '\n' => KeyCode::Enter,
            key => KeyCode::Char(key),
        };
        state.press(KeyEvent::from(code));
    }
}

const HEAD: &str =
    "listen_port=51820\nadit_datapath=socket\nadit_queues=1\nadit_uptime_seconds=11520\n";

fn showing(before: Option<&Reading>, now: Reading) -> State {
    let mut state = State::new(Duration::from_secs(1));
    state.show(Picture::new(now, before));
    state
}

fn without_peers() -> State {
    showing(None, reading(Instant::now(), 0, HEAD, Some(Vec::new())))
}

fn flows(received: u64, sent: u64) -> Vec<Row> {
    let mut out = flow("192.0.2.2:51820", sent);
    out.direction = "out";
    vec![flow("192.0.2.2:51820", received), out]
}

fn two_peers() -> State {
    let start = Instant::now();
    let at = |second, datagrams, received, sent, dropped| {
        let answer = format!(
            "{HEAD}adit_udp_received_datagrams={datagrams}\nadit_udp_sent_datagrams={}\n\
             adit_drop_ebpf_dead_index=12\nadit_drop_ingress_replayed={dropped}\nadit_drop_egress_no_route=2\n{}{}",
            datagrams / 2,
            peer(2, received, sent, 9_940) + "adit_round_trip_us=12340\n",
            peer(3, 0, 0, 0),
        );
        reading(start, second, &answer, Some(flows(received, sent)))
    };
    let before = at(0, 1_000_000, 1_400_000_000, 30_000_000, 0);
    showing(
        Some(&before),
        at(1, 1_104_000, 1_551_250_000, 32_000_000, 3),
    )
}

/// As many as a table never has room for; none of them was ever heard of, but for every tenth.
fn thousand_peers() -> State {
    let start = Instant::now();
    let at = |second: u64| {
        let mut answer = HEAD.to_owned();
        for number in 0..1000_u64 {
            let (high, low) = (number / 256, number % 256);
            let key = format!("{high:02x}{low:02x}").repeat(16);
            let handshake = if number.is_multiple_of(10) {
                9_800 + number / 10
            } else {
                0
            };
            let bytes = if handshake == 0 {
                0
            } else {
                number * 1000 * (second + 5)
            };
            let _ = write!(
                answer,
                "public_key={key}\nendpoint=198.51.{high}.{low}:51820\nlast_handshake_time_sec={handshake}\n\
                 rx_bytes={bytes}\ntx_bytes={}\nallowed_ip=10.{high}.{low}.0/24\nallowed_ip=fd00:{number:x}::/64\n",
                bytes / 10
            );
        }
        reading(start, second, &answer, None)
    };
    showing(Some(&at(0)), at(1))
}

macro_rules! assert_screen {
    ($name:literal, $state:expr, $width:literal, $height:literal) => {
        insta::assert_snapshot!($name, text(&screen(&mut $state, $width, $height, false)))
    };
}

#[test]
fn no_peer() {
    let mut state = without_peers();
    assert_screen!("no_peer_80", state, 80, 24);
    assert_screen!("no_peer_120", state, 120, 40);
}

#[test]
fn two() {
    let mut state = two_peers();
    assert_screen!("two_80", state, 80, 24);
    assert_screen!("two_120", state, 120, 40);
    type_keys(&mut state, "↓");
    assert_screen!("two_selected", state, 80, 24);
    type_keys(&mut state, "vvvp");
    assert_screen!("two_drops", state, 80, 24);
}

#[test]
fn a_thousand() {
    let mut state = thousand_peers();
    assert_screen!("thousand_80", state, 80, 24);
    assert_screen!("thousand_120", state, 120, 40);
    type_keys(&mut state, "vsss/198.51.3.2");
    assert_screen!("thousand_filter", state, 80, 24);
    type_keys(&mut state, "\n?");
    assert_screen!("help", state, 80, 24);
}

#[test]
fn nothing_read_yet_and_trouble() {
    let mut state = State::new(Duration::from_secs(1));
    assert!(text(&screen(&mut state, 80, 24, true)).starts_with(" reading …"));
    state.trouble = Some("it does not \x1b[2Janswer".to_owned());
    let shown = text(&screen(&mut state, 80, 24, true));
    assert!(shown.ends_with(" it does not ?[2Janswer\n"), "{shown}");
}

/// However small or large, nothing panics, in any view.
#[test]
fn every_size_is_drawn() {
    for mut state in [without_peers(), two_peers(), thousand_peers()] {
        type_keys(&mut state, "↓");
        for help in [false, true] {
            for _ in 0..4 {
                for (width, height) in [(1, 1), (2, 3), (20, 5), (79, 9), (99, 24), (400, 100)] {
                    state.help = help;
                    screen(&mut state, width, height, true);
                }
                state.help = false;
                type_keys(&mut state, "v");
            }
        }
    }
}

#[test]
fn without_colours_nothing_is_coloured() {
    let mut state = two_peers();
    for (colours, expected) in [(false, false), (true, true)] {
        let buffer = screen(&mut state, 80, 24, colours);
        let coloured = buffer
            .content
            .iter()
            .any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
        assert_eq!(coloured, expected);
    }
}

/// A panic leaves the terminal as it was; the message is to be read on it. Where the program is built to abort, nothing but
/// the hook has a chance to do that, so that the guard is not let do it here.
#[test]
fn a_panic_restores_the_terminal() {
    const PANICS: &str = "ADIT_TEST_PANIC_ON_TERMINAL";
    if std::env::var_os(PANICS).is_some() {
        std::mem::forget(super::Screen::open().unwrap());
        panic!("on purpose");
    }
    let pair = openpty(None, None).unwrap();
    let line = || Stdio::from(pair.slave.try_clone().unwrap());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "top::tests::a_panic_restores_the_terminal",
        ])
        .env(PANICS, "1")
        .stdin(line())
        .stdout(line())
        .stderr(line())
        .spawn()
        .unwrap();
    let mut written = Vec::new();
    let mut master = File::from(pair.master);
    let mut chunk = [0; 4096];
    while !String::from_utf8_lossy(&written).contains("on purpose") {
        let length = master.read(&mut chunk).unwrap();
        written.extend_from_slice(&chunk[..length]);
    }
    let modes = tcgetattr(&pair.slave).unwrap().local_flags;
    assert!(modes.contains(LocalFlags::ECHO | LocalFlags::ICANON));
    let written = String::from_utf8_lossy(&written);
    let (taken, given) = written.split_once("\x1b[?1049l").unwrap();
    assert!(taken.contains("\x1b[?1049h"));
    let (cursor, message) = given.split_once("\x1b[?25h").unwrap();
    assert!(!cursor.contains("on purpose") && message.contains("on purpose"));
    // Nobody reads what else it says.
    drop(master);
    child.wait().unwrap();
}

/// The drawing in the documents shows what the program shows.
#[test]
fn the_drawing_is_of_today() {
    let mut state = two_peers();
    type_keys(&mut state, "↓");
    let drawing = svg(&screen(&mut state, 80, 16, true));
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(DRAWING, &drawing).unwrap();
    }
    let shown = std::fs::read_to_string(Path::new(DRAWING)).unwrap();
    assert!(
        shown == drawing,
        "{DRAWING} is not what is drawn: run this test with {WRITE}=1"
    );
}

/// A screen as a drawing: one text element for each run of equal cells.
fn svg(buffer: &Buffer) -> String {
    let (width, height) = (buffer.area.width, buffer.area.height);
    let (pixels_wide, pixels_high) = (u32::from(width) * 9 + 20, u32::from(height) * 18 + 20);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {pixels_wide} {pixels_high}\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#1d1f21\"/>\n\
         <g font-family=\"monospace\" font-size=\"15\" xml:space=\"preserve\">\n"
    );
    for (row, cells) in buffer.content.chunks(usize::from(width)).enumerate() {
        let mut column = 0;
        for run in cells.chunk_by(|a, b| a.fg == b.fg && a.modifier == b.modifier) {
            let symbols: String = run.iter().map(ratatui::buffer::Cell::symbol).collect();
            let (x, y) = (10 + column * 9, 10 + row * 18);
            column += run.len();
            let reversed = run[0].modifier.contains(Modifier::REVERSED);
            if symbols.trim().is_empty() && !reversed {
                continue;
            }
            let mut colour = colour(run[0].fg);
            if reversed {
                let length = run.len() * 9;
                let _ = writeln!(
                    text,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{length}\" height=\"18\" fill=\"{colour}\"/>"
                );
                colour = "#1d1f21";
            }
            let weight = if run[0].modifier.contains(Modifier::BOLD) {
                " font-weight=\"bold\""
            } else {
                ""
            };
            let symbols = symbols
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;");
            let _ = writeln!(
                text,
                "<text x=\"{x}\" y=\"{}\" textLength=\"{}\" fill=\"{colour}\"{weight}>{symbols}</text>",
                y + 14,
                run.len() * 9
            );
        }
    }
    text.push_str("</g>\n</svg>\n");
    text
}

fn colour(colour: Color) -> &'static str {
    match colour {
        Color::Red => "#e06c75",
        Color::Green => "#98c379",
        Color::Yellow => "#e5c07b",
        Color::Cyan => "#56b6c2",
        Color::DarkGray => "#7f848e",
        _ => "#d7dae0",
    }
}
