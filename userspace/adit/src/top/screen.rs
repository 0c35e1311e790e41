//! Draws a [`State`]. Made for 80 × 24, with more columns from 100 on.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::figures::{bytes, rate, round_trip, span};
use super::model::{Picture, Total};
use super::state::{State, View};
use super::tables::{drops, endpoint, flows, peers, prefixes, rows_of};
use crate::inspect::style::printable;

/// Lines above the tables.
const HEADER: u16 = 4;
/// Lines that tell of the selected peer.
const DETAILS: u16 = 3;
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

    pub(super) fn good(self) -> Style {
        self.coloured(Color::Green).add_modifier(Modifier::BOLD)
    }

    fn notice(self) -> Style {
        self.coloured(Color::Yellow)
    }

    pub(super) fn bad(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub(super) fn quiet(self) -> Style {
        self.coloured(Color::DarkGray)
    }

    pub(super) fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub(super) fn selected(self) -> Style {
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
    let (above, below) = match state.view {
        View::Both => share(tables, state.peers.len(), state.flows.len()),
        View::Peers | View::Flows | View::Drops => (tables, Rect::ZERO),
    };
    let scrolled = match state.view {
        View::Both | View::Peers => state.peers.len(),
        View::Flows => state.flows.len(),
        View::Drops => state.picture.as_ref().map_or(0, |it| it.drops.len()),
    };
    if state.picture.is_some() {
        state.fit(rows_of(above), scrolled);
    }
    let state = &*state;
    if let Some(picture) = &state.picture {
        frame.render_widget(Paragraph::new(summary(picture, state, palette)), header);
        match state.view {
            View::Both => {
                peers(frame, above, picture, state, palette);
                flows(frame, below, picture, state, 0, palette);
            }
            View::Peers => peers(frame, above, picture, state, palette),
            View::Flows => flows(frame, above, picture, state, state.first, palette),
            View::Drops => drops(frame, above, picture, state.first, palette),
        }
        if selected {
            let lines = details_of(picture, state, details.width, palette);
            frame.render_widget(Paragraph::new(lines), details);
        }
    } else {
        frame.render_widget(Paragraph::new(" reading …"), header);
    }
    frame.render_widget(Paragraph::new(bottom_line(state, palette)), bottom);
    if state.help {
        help(frame, palette);
    }
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
    if peer.round_trip.is_some() {
        let text = round_trip(peer.round_trip);
        second.extend([label("  round trip "), text.into()]);
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
