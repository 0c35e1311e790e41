//! Draws a [`State`]. Made for 80 × 24, with more columns from 100 on.

use std::net::SocketAddr;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table};

use super::figures::{bytes, rate, shortened, span};
use super::model::{Picture, Sort, Total};
use super::state::{State, View};
use crate::inspect::answer;
use crate::inspect::style::printable;

/// Lines above the tables.
const HEADER: u16 = 4;
/// Lines that tell of the selected peer.
const DETAILS: u16 = 3;
/// Columns from which there is room for allowed-ips.
const WIDE: u16 = 100;

const KEYS: &str =
    " q quit  s sort  r reverse  / filter  a active  v view  p pause  +- pace  ? help";
const HELP: [&str; 15] = [
    "q, Ctrl-C     quit",
    "s, S          sort by the next column, by the one before",
    "r             reverse the order",
    "/             filter by key, endpoint or allowed ip",
    "a             only peers with a session (handshake in the last 3 minutes)",
    "v             peers and flows, peers, flows, drops",
    "up, down      select a peer: whole key, allowed ips",
    "PgUp, PgDn, Home, End",
    "Esc           unselect; show all peers",
    "p, blank      pause",
    "+, -          read more often, less often",
    "Tab, n        next tunnel",
    "",
    "Rates are bits per second of UDP payload. IN is from the network.",
    "Any key closes this.",
];

/// How things stand out, with colours or without.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    colours: bool,
}

impl Palette {
    /// With colours or without.
    pub(super) fn new(colours: bool) -> Self {
        Self { colours }
    }

    fn coloured(self, colour: Color) -> Style {
        if self.colours {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    fn label(self) -> Style {
        self.coloured(Color::Cyan)
    }

    fn good(self) -> Style {
        self.coloured(Color::Green).add_modifier(Modifier::BOLD)
    }

    fn notice(self) -> Style {
        self.coloured(Color::Yellow)
    }

    fn bad(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn quiet(self) -> Style {
        self.coloured(Color::DarkGray)
    }

    fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
    }
}

/// Draws everything, and tells `state` how many rows there is room for.
pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State, palette: Palette) {
    let selected = state.selected_row().is_some() && matches!(state.view, View::Both | View::Peers);
    let [header, tables, details, bottom] = Layout::vertical([
        Constraint::Length(HEADER),
        Constraint::Fill(1),
        Constraint::Length(if selected { DETAILS } else { 0 }),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    // Taken out while the rest of the state is changed.
    if let Some(picture) = state.picture.take() {
        frame.render_widget(Paragraph::new(summary(&picture, state, palette)), header);
        match state.view {
            View::Both => {
                let (above, below) = share(tables, state.peers.len(), state.flows.len());
                state.picture = Some(picture);
                state.fit(rows_of(above), state.peers.len());
                let picture = state.picture.as_ref();
                if let Some(picture) = picture {
                    peers(frame, above, picture, state, palette);
                    flows(frame, below, picture, state, 0, palette);
                }
            }
            View::Peers => {
                state.picture = Some(picture);
                state.fit(rows_of(tables), state.peers.len());
                if let Some(picture) = &state.picture {
                    peers(frame, tables, picture, state, palette);
                }
            }
            View::Flows => {
                state.fit(rows_of(tables), state.flows.len());
                flows(frame, tables, &picture, state, state.first, palette);
                state.picture = Some(picture);
            }
            View::Drops => {
                state.fit(rows_of(tables), picture.drops.len());
                drops(frame, tables, &picture, state.first, palette);
                state.picture = Some(picture);
            }
        }
        if selected && let Some(picture) = &state.picture {
            frame.render_widget(
                Paragraph::new(details_of(picture, state, details.width, palette)),
                details,
            );
        }
    } else {
        frame.render_widget(Paragraph::new(" reading …"), header);
    }
    frame.render_widget(Paragraph::new(bottom_line(state, palette)), bottom);
    if state.help {
        help(frame, palette);
    }
}

/// Room below a table's heading.
fn rows_of(area: Rect) -> usize {
    usize::from(area.height.saturating_sub(1))
}

/// Divides the lines between peers and flows: each gets what it needs, and flows at most a third where both need more.
fn share(area: Rect, peers: usize, flows: usize) -> (Rect, Rect) {
    let height = usize::from(area.height);
    // A heading each, and at least one line that says that there are none.
    let (for_peers, for_flows) = (1 + peers.max(1), 1 + flows.max(1));
    let below = if for_peers + for_flows <= height {
        height - for_peers
    } else {
        for_flows
            .min(height - for_peers.min(height))
            .max(for_flows.min(height / 3))
    };
    let below = u16::try_from(below).unwrap_or(0);
    let [above, below] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(below)]).areas(area);
    (above, below)
}

/// The lines above the tables.
fn summary(picture: &Picture, state: &State, palette: Palette) -> Vec<Line<'static>> {
    let device = &picture.reading.tunnel.device;
    let label = |text: &'static str| Span::styled(text, palette.label());
    let mut first = vec![
        Span::raw(" "),
        Span::styled(printable(&picture.reading.tunnel.name), palette.good()),
    ];
    if device.listen_port != 0 {
        first.extend([label("  port "), device.listen_port.to_string().into()]);
    }
    if let Some(path) = &device.datapath {
        first.extend([label("  data path "), printable(path).into()]);
    }
    for xdp in &device.xdp {
        let copy = if xdp.zero_copy { "zero-copy" } else { "copy" };
        let text = format!(
            " ({} {}, {copy}, {} queues)",
            printable(&xdp.name),
            xdp.mode,
            xdp.queues
        );
        first.push(text.into());
    }
    if let Some(threads) = picture.reading.tunnel.device.counter("queues") {
        first.extend([label("  threads "), format!("{threads}+{threads}").into()]);
    }
    if let Some(uptime) = picture.reading.tunnel.device.counter("uptime_seconds") {
        first.extend([label("  up "), span(uptime).into()]);
    }
    if state.paused {
        first.extend([Span::raw("  "), Span::styled("PAUSED", palette.bad())]);
    } else {
        first.extend([
            label("  every "),
            format!("{} s", state.pace.as_secs_f64()).into(),
        ]);
    }

    let peers = &device.peers;
    let active = peers.iter().filter(|peer| picture.is_active(peer)).count();
    let mut second = traffic(" in ", &picture.received, palette);
    second.extend([
        label("   peers "),
        peers.len().to_string().into(),
        label("  active "),
        active.to_string().into(),
    ]);
    if state.peers.len() != peers.len() {
        second.extend([label("  shown "), state.peers.len().to_string().into()]);
    }
    let mut third = traffic(" out", &picture.sent, palette);
    let sorting = if state.choice.reversed {
        format!("{}, reversed", state.choice.sort.name())
    } else {
        state.choice.sort.name().to_owned()
    };
    third.extend([label("   by "), sorting.into()]);
    vec![
        first.into(),
        second.into(),
        third.into(),
        drops_line(picture, palette),
    ]
}

/// One direction: columns that do not move when the numbers change.
fn traffic(name: &'static str, total: &Total, palette: Palette) -> Vec<Span<'static>> {
    let bits = rate(total.bits_per_second);
    // A unit has its blank in front already.
    let unit = if bits.ends_with(|c: char| c.is_ascii_alphabetic()) {
        "bit/s"
    } else {
        " bit/s"
    };
    let mut spans = vec![
        Span::styled(name, palette.label()),
        format!("{:>13}", bits + unit).into(),
    ];
    if let Some(packets) = total.packets_per_second {
        spans.push(format!("{:>8} packets/s", rate(Some(packets))).into());
    }
    spans.push(format!("  {:>8}", bytes(total.bytes)).into());
    spans
}

/// Reasons in the order of `adit show`; those that grow stand out.
fn drops_line(picture: &Picture, palette: Palette) -> Line<'static> {
    let mut spans = vec![Span::styled(" drops ", palette.label())];
    if picture.drops.is_empty() {
        spans.push("none".into());
    }
    // Those that happen now come first: the line may be too short for all.
    let mut drops: Vec<_> = picture.drops.iter().collect();
    drops.sort_by(|a, b| {
        let rate = |per_second: Option<f64>| per_second.unwrap_or(0.0);
        rate(b.per_second).total_cmp(&rate(a.per_second))
    });
    for (place, drops) in drops.iter().enumerate() {
        let separator = if place == 0 { "" } else { ", " };
        let reason = printable(&drops.reason).replace('_', " ");
        let text = format!("{separator}{} {reason}", drops.packets);
        match drops.per_second.filter(|rate| *rate > 0.0) {
            Some(growth) => spans.push(Span::styled(
                format!("{text} (+{}/s)", rate(Some(growth))),
                palette.bad(),
            )),
            None => spans.push(text.into()),
        }
    }
    spans.into()
}

/// Text set to the right.
fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

fn heading(columns: &[(&'static str, bool)], palette: Palette) -> Row<'static> {
    let cells = columns.iter().map(|(name, to_the_right)| {
        if *to_the_right {
            right((*name).to_owned())
        } else {
            Cell::from(*name)
        }
    });
    Row::new(cells).style(palette.heading())
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

fn peers(frame: &mut Frame<'_>, area: Rect, picture: &Picture, state: &State, palette: Palette) {
    let wide = area.width >= WIDE;
    // Both of any length; they share what the figures leave.
    let endpoint_width = if wide {
        (area.width - 80) / 4 + 21
    } else {
        area.width.saturating_sub(59)
    };
    let mut columns = vec![
        (Sort::Peer, "PEER", false, Constraint::Length(11)),
        (
            Sort::Endpoint,
            "ENDPOINT",
            false,
            Constraint::Length(endpoint_width),
        ),
        (Sort::RateIn, "IN bit/s", true, Constraint::Length(8)),
        (Sort::RateOut, "OUT bit/s", true, Constraint::Length(9)),
        (Sort::Received, "RECEIVED", true, Constraint::Length(8)),
        (Sort::Sent, "SENT", true, Constraint::Length(8)),
        (Sort::Handshake, "HANDSHAKE", true, Constraint::Length(9)),
    ];
    let mut names: Vec<(&'static str, bool)> = columns
        .iter()
        .map(|(_, name, to_the_right, _)| (*name, *to_the_right))
        .collect();
    if wide {
        names.push(("  ALLOWED IPS", false));
        columns.push((Sort::Rate, "", false, Constraint::Fill(1)));
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
    let widths = columns.iter().map(|(_, _, _, width)| *width);
    let table = Table::new(rows, widths)
        .header(heading(&names, palette))
        .column_spacing(1);
    frame.render_widget(table, area);
    if state.peers.is_empty() {
        let text = if device.peers.is_empty() {
            " no peers: `adit set` or `wg set` adds them"
        } else {
            " no peer passes the filter"
        };
        instead(frame, area, text, palette);
    }
}

fn shortened_key(peer: &answer::Peer) -> String {
    let key = peer.public_key.to_base64();
    let start: String = key.chars().take(10).collect();
    format!("{start}…")
}

fn endpoint(endpoint: Option<SocketAddr>, width: usize) -> String {
    endpoint.map_or_else(
        || "(none)".to_owned(),
        |endpoint| shortened(&endpoint.to_string(), width),
    )
}

fn prefixes(peer: &answer::Peer) -> String {
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

fn flows(
    frame: &mut Frame<'_>,
    area: Rect,
    picture: &Picture,
    state: &State,
    first: usize,
    palette: Palette,
) {
    let Some(counts) = &picture.reading.tunnel.counts else {
        let heading = heading(&[("FLOWS", false)], palette);
        let table = Table::new(Vec::<Row<'_>>::new(), [Constraint::Fill(1)]).header(heading);
        frame.render_widget(table, area);
        let text = " not counted, or not to be read from here: `adit flows` says why";
        return instead(frame, area, text, palette);
    };
    let address = area.width.saturating_sub(41) / 2;
    let names = [
        ("LOCAL", false),
        ("", false),
        ("REMOTE", false),
        ("bit/s", true),
        ("PACKETS", true),
        ("BYTES", true),
        ("LAST SEEN", true),
    ];
    let widths = [
        Constraint::Length(address),
        Constraint::Length(2),
        Constraint::Length(address),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(9),
    ];
    let room = usize::from(address);
    let shown = state.flows.iter().skip(first).take(rows_of(area));
    let rows = shown.map(|&index| {
        let (flow, growth) = (&counts.flows[index], picture.flows[index]);
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
    let table = Table::new(rows, widths)
        .header(heading(&names, palette))
        .column_spacing(1);
    frame.render_widget(table, area);
    if state.flows.is_empty() {
        let text = if counts.flows.is_empty() {
            " no flows"
        } else {
            " no flow passes the filter"
        };
        instead(frame, area, text, palette);
    }
}

fn drops(frame: &mut Frame<'_>, area: Rect, picture: &Picture, first: usize, palette: Palette) {
    let names = [("DROPPED PACKETS", false), ("PACKETS", true), ("/s", true)];
    let widths = [
        Constraint::Length(40),
        Constraint::Length(20),
        Constraint::Length(7),
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
    let table = Table::new(rows, widths).header(heading(&names, palette));
    frame.render_widget(table, area);
    if picture.drops.is_empty() {
        instead(frame, area, " none", palette);
    }
}

/// What a row has no room for.
fn details_of(
    picture: &Picture,
    state: &State,
    width: u16,
    palette: Palette,
) -> Vec<Line<'static>> {
    let peers = &picture.reading.tunnel.device.peers;
    let Some(peer) = state
        .selected_row()
        .and_then(|row| peers.get(*state.peers.get(row)?))
    else {
        return Vec::new();
    };
    let label = |text: &'static str| Span::styled(text, palette.label());
    let mut second = vec![
        label(" endpoint "),
        endpoint(peer.endpoint, usize::from(width)).into(),
    ];
    if peer.keepalive != 0 {
        second.extend([
            label("  keepalive "),
            format!("{} s", peer.keepalive).into(),
        ]);
    }
    if peer.preshared_key {
        second.push(label("  preshared key"));
    }
    let prefixes: String = prefixes(peer)
        .chars()
        .take(usize::from(width).saturating_sub(13))
        .collect();
    vec![
        Line::from(vec![
            label(" peer "),
            Span::styled(peer.public_key.to_base64(), palette.notice()),
        ]),
        second.into(),
        Line::from(vec![label(" allowed ips "), prefixes.into()]),
    ]
}

fn bottom_line(state: &State, palette: Palette) -> Line<'static> {
    if state.typing {
        let filter = printable(&state.choice.filter);
        return Line::from(vec![
            Span::styled(" filter: ", palette.label()),
            filter.into(),
            "_".into(),
            Span::styled("   Enter keeps it, Esc clears it", palette.quiet()),
        ]);
    }
    if let Some(trouble) = &state.trouble {
        return Line::styled(format!(" {}", printable(trouble)), palette.bad());
    }
    let mut kept = Vec::new();
    if !state.choice.filter.is_empty() {
        kept.push(format!("filter: {}", printable(&state.choice.filter)));
    }
    if state.choice.active_only {
        kept.push("active peers only".to_owned());
    }
    if kept.is_empty() {
        Line::styled(KEYS, palette.quiet())
    } else {
        Line::from(vec![
            Span::styled(format!(" {}", kept.join("; ")), palette.notice()),
            Span::styled(
                "   / filter  a active  Esc shows all  ? help",
                palette.quiet(),
            ),
        ])
    }
}

fn help(frame: &mut Frame<'_>, palette: Palette) {
    let lines = HELP.map(|line| Line::from(format!(" {line}")));
    let widest = HELP.map(|line| line.chars().count()).into_iter().max();
    let size = (widest.unwrap_or(0) + 4, HELP.len() + 2);
    let area = frame.area();
    let width = u16::try_from(size.0).unwrap_or(0).min(area.width);
    let height = u16::try_from(size.1).unwrap_or(0).min(area.height);
    let middle = Rect {
        x: (area.width - width) / 2,
        y: (area.height - height) / 2,
        width,
        height,
    };
    let block = Block::bordered()
        .title(" adit top ")
        .border_style(palette.label());
    frame.render_widget(Clear, middle);
    frame.render_widget(Paragraph::new(Vec::from(lines)).block(block), middle);
}
