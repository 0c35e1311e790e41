//! What the keys have set, and what they do. Nothing here asks or draws.

use std::time::Duration;

use adit_protocol::PublicKey;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Choice, Picture};

/// Times between two readings to choose from, in milliseconds.
const PACES: [u64; 7] = [500, 1000, 2000, 5000, 10_000, 30_000, 60_000];
/// Longer filters match nothing.
const LONGEST_FILTER: usize = 100;

/// Which tables are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum View {
    /// Peers above flows.
    #[default]
    Both,
    Peers,
    Flows,
    Drops,
}

impl View {
    fn next(self) -> Self {
        match self {
            Self::Both => Self::Peers,
            Self::Peers => Self::Flows,
            Self::Flows => Self::Drops,
            Self::Drops => Self::Both,
        }
    }
}

/// What a key asks of those who read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Leave.
    Quit,
    /// Read at this pace.
    Pace(Duration),
    /// Stop reading, or go on.
    Pause(bool),
    /// Read the next tunnel by name.
    NextTunnel,
}

/// All that decides what the screen shows of a picture.
#[derive(Debug)]
pub(super) struct State {
    /// The latest picture, once there is one.
    pub(super) picture: Option<Picture>,
    /// Why there is no newer one.
    pub(super) trouble: Option<String>,
    pub(super) choice: Choice,
    pub(super) view: View,
    /// The filter is being typed.
    pub(super) typing: bool,
    pub(super) paused: bool,
    pub(super) help: bool,
    /// Time between two readings.
    pub(super) pace: Duration,
    /// Whose details are shown.
    pub(super) selected: Option<PublicKey>,
    /// Indices of the chosen peers, and of the chosen flows.
    pub(super) peers: Vec<usize>,
    pub(super) flows: Vec<usize>,
    /// First row of the peers, flows or drops that is shown.
    pub(super) first: usize,
    /// Rows that the latest drawing had room for.
    pub(super) page: usize,
}

impl State {
    /// Nothing read yet.
    pub(super) fn new(pace: Duration) -> Self {
        Self {
            picture: None,
            trouble: None,
            choice: Choice::default(),
            view: View::default(),
            typing: false,
            paused: false,
            help: false,
            pace,
            selected: None,
            peers: Vec::new(),
            flows: Vec::new(),
            first: 0,
            page: 1,
        }
    }

    /// Shows this from now on.
    pub(super) fn show(&mut self, picture: Picture) {
        self.trouble = None;
        self.picture = Some(picture);
        self.choose();
    }

    fn choose(&mut self) {
        let Some(picture) = &self.picture else {
            return;
        };
        self.peers = picture.choose_peers(&self.choice);
        self.flows = picture.choose_flows(&self.choice);
        if self.selected.is_some() && self.selected_row().is_none() {
            self.selected = None;
        }
    }

    /// Place of the selected peer among the chosen.
    pub(super) fn selected_row(&self) -> Option<usize> {
        let peers = &self.picture.as_ref()?.reading.tunnel.device.peers;
        let selected = self.selected?;
        self.peers
            .iter()
            .position(|&index| peers[index].public_key == selected)
    }

    /// Notes how many rows fit, and scrolls so that the selected one is among them.
    pub(super) fn fit(&mut self, page: usize, rows: usize) {
        self.page = page.max(1);
        if self.has_peers()
            && let Some(row) = self.selected_row()
        {
            self.first = self.first.clamp((row + 1).saturating_sub(self.page), row);
        }
        self.first = self.first.min(rows.saturating_sub(self.page));
    }

    fn has_peers(&self) -> bool {
        matches!(self.view, View::Both | View::Peers)
    }

    /// Does what a key says.
    pub(super) fn press(&mut self, key: KeyEvent) -> Option<Request> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then_some(Request::Quit);
        }
        if self.typing {
            self.type_filter(key.code);
            return None;
        }
        if std::mem::take(&mut self.help) {
            return None;
        }
        match key.code {
            KeyCode::Char('q') => return Some(Request::Quit),
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char('p' | ' ') => {
                self.paused = !self.paused;
                return Some(Request::Pause(self.paused));
            }
            KeyCode::Char('+' | '=') => return self.change_pace(false),
            KeyCode::Char('-') => return self.change_pace(true),
            KeyCode::Tab | KeyCode::Char('n') => {
                self.selected = None;
                self.first = 0;
                return Some(Request::NextTunnel);
            }
            KeyCode::Char('s' | '>') => self.sort(true),
            KeyCode::Char('S' | '<') => self.sort(false),
            KeyCode::Char('r') => {
                self.choice.reversed = !self.choice.reversed;
                self.choose();
            }
            KeyCode::Char('a') => {
                self.choice.active_only = !self.choice.active_only;
                self.choose();
            }
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('v') => {
                self.view = self.view.next();
                self.first = 0;
            }
            KeyCode::Esc => self.step_back(),
            KeyCode::Down | KeyCode::Char('j') => self.walk(1),
            KeyCode::Up | KeyCode::Char('k') => self.walk(-1),
            KeyCode::PageDown => self.walk(isize::try_from(self.page).unwrap_or(1)),
            KeyCode::PageUp => self.walk(-isize::try_from(self.page).unwrap_or(1)),
            KeyCode::Home | KeyCode::Char('g') => self.walk(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.walk(isize::MAX),
            _ => {}
        }
        None
    }

    /// Unselects; without a selection, shows all peers.
    fn step_back(&mut self) {
        if self.selected.take().is_none() {
            self.choice.filter.clear();
            self.choice.active_only = false;
            self.choose();
        }
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.choice.filter.clear();
            }
            KeyCode::Backspace => {
                self.choice.filter.pop();
            }
            KeyCode::Char(character)
                if !character.is_control() && self.choice.filter.len() < LONGEST_FILTER =>
            {
                self.choice.filter.push(character);
            }
            _ => return,
        }
        self.first = 0;
        self.choose();
    }

    fn sort(&mut self, forward: bool) {
        self.choice.sort = self.choice.sort.step(forward);
        self.first = 0;
        self.choose();
    }

    fn change_pace(&mut self, slower: bool) -> Option<Request> {
        let now = self.pace;
        let paces = PACES.map(Duration::from_millis);
        self.pace = if slower {
            paces.into_iter().find(|pace| *pace > now)
        } else {
            paces.into_iter().rev().find(|pace| *pace < now)
        }
        .unwrap_or(now);
        (self.pace != now).then_some(Request::Pace(self.pace))
    }

    /// Moves the selection among peers; scrolls elsewhere.
    fn walk(&mut self, rows: isize) {
        if !self.has_peers() {
            self.first = self.first.saturating_add_signed(rows);
            return;
        }
        let Some(last) = self.peers.len().checked_sub(1) else {
            return;
        };
        let row = match self.selected_row() {
            Some(row) => row.saturating_add_signed(rows).min(last),
            None if rows == isize::MAX => last,
            None => self.first.min(last),
        };
        if let Some(picture) = &self.picture {
            let peer = &picture.reading.tunnel.device.peers[self.peers[row]];
            self.selected = Some(peer.public_key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::model::tests::{peer, reading};
    use super::super::model::{Picture, Sort};
    use super::*;

    fn state(peers: u8) -> State {
        let mut state = State::new(Duration::from_secs(1));
        let answer: String = (1..=peers)
            .map(|number| peer(number, u64::from(number), 0, 9_999))
            .collect();
        state.show(Picture::new(
            reading(Instant::now(), 0, &answer, None),
            None,
        ));
        state
    }

    fn press(state: &mut State, code: KeyCode) -> Option<Request> {
        state.press(KeyEvent::from(code))
    }

    fn types(state: &mut State, text: &str) {
        for character in text.chars() {
            assert_eq!(press(state, KeyCode::Char(character)), None);
        }
    }

    #[test]
    fn q_and_control_c_leave_even_while_typing() {
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        let mut state = state(1);
        assert_eq!(press(&mut state, KeyCode::Char('q')), Some(Request::Quit));
        types(&mut state, "/q");
        assert!(state.typing && state.choice.filter == "q");
        assert_eq!(state.press(control_c), Some(Request::Quit));
    }

    #[test]
    fn a_filter_is_typed_kept_and_cleared() {
        let mut state = state(3);
        types(&mut state, "/192.0.2.2x");
        assert!(state.peers.is_empty());
        press(&mut state, KeyCode::Backspace);
        assert_eq!(state.peers.len(), 1);
        press(&mut state, KeyCode::Enter);
        assert!(!state.typing && state.peers.len() == 1);
        press(&mut state, KeyCode::Char('a'));
        press(&mut state, KeyCode::Esc);
        assert_eq!(state.peers.len(), 3);
        assert!(!state.choice.active_only);
        types(&mut state, "/10.0.1");
        press(&mut state, KeyCode::Esc);
        assert!(!state.typing && state.peers.len() == 3);
        types(&mut state, &format!("/{}", "x".repeat(1000)));
        assert_eq!(state.choice.filter.len(), LONGEST_FILTER);
    }

    #[test]
    fn the_selection_follows_its_peer_and_the_window_follows_the_selection() {
        let mut state = state(50);
        state.choice.sort = Sort::Peer;
        state.choose();
        state.fit(10, 50);
        press(&mut state, KeyCode::Down);
        assert_eq!(state.selected_row(), Some(0));
        press(&mut state, KeyCode::PageDown);
        state.fit(10, 50);
        assert_eq!((state.selected_row(), state.first), (Some(10), 1));
        press(&mut state, KeyCode::End);
        state.fit(10, 50);
        assert_eq!((state.selected_row(), state.first), (Some(49), 40));
        let selected = state.selected;
        press(&mut state, KeyCode::Char('r'));
        state.fit(10, 50);
        assert_eq!((state.selected_row(), state.first), (Some(0), 0));
        assert_eq!(state.selected, selected);
        press(&mut state, KeyCode::Up);
        assert_eq!(state.selected_row(), Some(0));
        // Filtered away.
        types(&mut state, "/nobody");
        assert_eq!(state.selected, None);
        press(&mut state, KeyCode::Enter);
        press(&mut state, KeyCode::Down);
        assert_eq!(state.selected, None);
    }

    #[test]
    fn other_views_scroll_within_bounds() {
        let mut state = state(1);
        press(&mut state, KeyCode::Char('v'));
        press(&mut state, KeyCode::Char('v'));
        assert_eq!(state.view, View::Flows);
        for key in [KeyCode::End, KeyCode::Down, KeyCode::PageDown] {
            press(&mut state, key);
        }
        state.fit(10, 25);
        assert_eq!(state.first, 15);
        press(&mut state, KeyCode::Home);
        assert_eq!(state.first, 0);
        state.fit(0, 0);
        assert_eq!((state.first, state.page), (0, 1));
    }

    #[test]
    fn the_pace_has_two_ends() {
        let mut state = state(0);
        assert_eq!(
            press(&mut state, KeyCode::Char('+')),
            Some(Request::Pace(Duration::from_millis(500)))
        );
        assert_eq!(press(&mut state, KeyCode::Char('+')), None);
        for _ in 0..10 {
            press(&mut state, KeyCode::Char('-'));
        }
        assert_eq!(state.pace, Duration::from_secs(60));
    }

    #[test]
    fn the_other_keys() {
        let mut state = state(2);
        assert_eq!(
            press(&mut state, KeyCode::Char('p')),
            Some(Request::Pause(true))
        );
        assert_eq!(
            press(&mut state, KeyCode::Char(' ')),
            Some(Request::Pause(false))
        );
        assert_eq!(press(&mut state, KeyCode::Tab), Some(Request::NextTunnel));
        press(&mut state, KeyCode::Char('s'));
        assert_eq!(state.choice.sort, Sort::RateIn);
        press(&mut state, KeyCode::Char('S'));
        assert_eq!(state.choice.sort, Sort::Rate);
        press(&mut state, KeyCode::Char('a'));
        assert!(state.choice.active_only);
        press(&mut state, KeyCode::Char('?'));
        assert!(state.help);
        // Any key closes the help, and does nothing else.
        assert_eq!(press(&mut state, KeyCode::Char('q')), None);
        assert!(!state.help);
    }
}
