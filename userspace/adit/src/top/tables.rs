//! The tables of peers, flows and drops.

use std::net::SocketAddr;

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::Style;
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table};

use super::figures::{bytes, rate, round_trip, shortened, span};
use super::model::Picture;
use super::screen::Palette;
use super::state::State;
use crate::inspect::answer;
use crate::inspect::style::printable;

/// Columns from which there is room for allowed-ips.
const WIDE: u16 = 100;

/// Room below a table's heading.
pub(super) fn rows_of(area: Rect) -> usize {
    usize::from(area.height.saturating_sub(1))
}

/// Text set to the right.
fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// A column: its heading, which side its cells are set to, its width.
struct Column {
    heading: &'static str,
    to_the_right: bool,
    width: Constraint,
}

/// A column of text.
fn text(heading: &'static str, width: Constraint) -> Column {
    Column {
        heading,
        to_the_right: false,
        width,
    }
}

/// A column of figures.
fn figures(heading: &'static str, width: u16) -> Column {
    Column {
        heading,
        to_the_right: true,
        width: Constraint::Length(width),
    }
}

fn table<'a>(
    columns: &[Column],
    rows: impl IntoIterator<Item = Row<'a>>,
    palette: Palette,
) -> Table<'a> {
    let headings = columns.iter().map(|column| {
        if column.to_the_right {
            right(column.heading.to_owned())
        } else {
            Cell::from(column.heading)
        }
    });
    let heading = Row::new(headings).style(palette.heading());
    Table::new(rows, columns.iter().map(|column| column.width)).header(heading)
}

/// Writes what there is instead of rows.
fn instead(frame: &mut Frame<'_>, area: Rect, text: &'static str, palette: Palette) {
    if area.height > 1 {
        let below = Rect {
            y: area.y + 1,
            height: 1,
            ..area
        };
        frame.render_widget(Line::styled(text, palette.quiet()), below);
    }
}

/// The peers that there is room for, from the first that is to be shown.
pub(super) fn peers(
    frame: &mut Frame<'_>,
    area: Rect,
    picture: &Picture,
    state: &State,
    palette: Palette,
) {
    let wide = area.width >= WIDE;
    // Both of any length; they share what the figures leave.
    let endpoint_width = if wide {
        (area.width - 88) / 4 + 21
    } else {
        area.width.saturating_sub(59)
    };
    let mut columns = vec![
        text("PEER", Constraint::Length(11)),
        text("ENDPOINT", Constraint::Length(endpoint_width)),
        figures("IN bit/s", 8),
        figures("OUT bit/s", 9),
        figures("RECEIVED", 8),
        figures("SENT", 8),
        figures("HANDSHAKE", 9),
    ];
    if wide {
        columns.push(figures("RTT", 7));
        columns.push(text("  ALLOWED IPS", Constraint::Fill(1)));
    }
    let device = &picture.reading.tunnel.device;
    let selected = state.selected_row();
    let page = rows_of(area);
    let shown = state.peers.iter().enumerate().skip(state.first).take(page);
    let rows = shown.map(|(place, &index)| {
        let (peer, rates) = (&device.peers[index], &picture.peers[index]);
        let mut cells = vec![
            Cell::from(shortened_key(peer)),
            Cell::from(endpoint(peer.endpoint, usize::from(endpoint_width))),
            right(rate(rates.received)),
            right(rate(rates.sent)),
            right(bytes(peer.received)),
            right(bytes(peer.sent)),
            right(
                picture
                    .handshake_age(peer)
                    .map_or_else(|| "never".to_owned(), span),
            ),
        ];
        if wide {
            cells.push(right(round_trip(peer.round_trip)));
            cells.push(Cell::from(format!("  {}", prefixes(peer))));
        }
        let style = if selected == Some(place) {
            palette.selected()
        } else if rates.received > Some(0.0) || rates.sent > Some(0.0) {
            palette.good()
        } else if picture.is_active(peer) {
            Style::new()
        } else {
            palette.quiet()
        };
        Row::new(cells).style(style)
    });
    frame.render_widget(table(&columns, rows, palette), area);
    if state.peers.is_empty() {
        let why = if device.peers.is_empty() {
            " no peers: `adit set` or `wg set` adds them"
        } else {
            " no peer passes the filter"
        };
        instead(frame, area, why, palette);
    }
}

fn shortened_key(peer: &answer::Peer) -> String {
    let key = peer.public_key.to_base64();
    let start: String = key.chars().take(10).collect();
    format!("{start}…")
}

/// An endpoint in so many columns.
pub(super) fn endpoint(endpoint: Option<SocketAddr>, width: usize) -> String {
    endpoint.map_or_else(
        || "(none)".to_owned(),
        |endpoint| shortened(&endpoint.to_string(), width),
    )
}

/// Allowed ips in one line.
pub(super) fn prefixes(peer: &answer::Peer) -> String {
    if peer.allowed_ips.is_empty() {
        return "(none)".to_owned();
    }
    let prefixes: Vec<String> = peer
        .allowed_ips
        .iter()
        // A line has room for no more.
        .take(32)
        .map(|(address, length)| format!("{address}/{length}"))
        .collect();
    prefixes.join(", ")
}

/// The flows that there is room for, from `first` on.
pub(super) fn flows(
    frame: &mut Frame<'_>,
    area: Rect,
    picture: &Picture,
    state: &State,
    first: usize,
    palette: Palette,
) {
    let Some(flows) = &picture.reading.tunnel.flows else {
        let columns = [text("FLOWS", Constraint::Fill(1))];
        frame.render_widget(table(&columns, [], palette), area);
        let why = " not counted, or not to be read from here: `adit flows` says why";
        return instead(frame, area, why, palette);
    };
    let address = area.width.saturating_sub(41) / 2;
    let columns = [
        text("LOCAL", Constraint::Length(address)),
        text("", Constraint::Length(2)),
        text("REMOTE", Constraint::Length(address)),
        figures("bit/s", 7),
        figures("PACKETS", 8),
        figures("BYTES", 8),
        figures("LAST SEEN", 9),
    ];
    let room = usize::from(address);
    let shown = state.flows.iter().skip(first).take(rows_of(area));
    let rows = shown.map(|&index| {
        let (flow, growth) = (&flows[index], picture.flows[index]);
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        let packets = rate(Some(flow.packets as f64));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole seconds are shown; a float that does not fit is cut to what does"
        )]
        let age = flow.last_seen_seconds as u64;
        let row = Row::new([
            Cell::from(shortened(&flow.local.to_string(), room)),
            Cell::from(if flow.direction == "in" { "<-" } else { "->" }),
            Cell::from(shortened(&flow.remote.to_string(), room)),
            right(rate(growth)),
            right(packets),
            right(bytes(flow.bytes)),
            right(span(age)),
        ]);
        if growth > Some(0.0) {
            row.style(palette.good())
        } else {
            row
        }
    });
    frame.render_widget(table(&columns, rows, palette), area);
    if state.flows.is_empty() {
        let why = if flows.is_empty() {
            " no flows"
        } else {
            " no flow passes the filter"
        };
        instead(frame, area, why, palette);
    }
}

/// Reasons to drop packets, from `first` on.
pub(super) fn drops(
    frame: &mut Frame<'_>,
    area: Rect,
    picture: &Picture,
    first: usize,
    palette: Palette,
) {
    let columns = [
        text("DROPPED PACKETS", Constraint::Length(40)),
        figures("PACKETS", 20),
        figures("/s", 7),
    ];
    let shown = picture.drops.iter().skip(first).take(rows_of(area));
    let rows = shown.map(|drops| {
        let row = Row::new([
            Cell::from(printable(&drops.reason).replace('_', " ")),
            right(drops.packets.to_string()),
            right(rate(drops.per_second)),
        ]);
        if drops.per_second > Some(0.0) {
            row.style(palette.bad())
        } else {
            row
        }
    });
    frame.render_widget(table(&columns, rows, palette), area);
    if picture.drops.is_empty() {
        instead(frame, area, " none", palette);
    }
}
