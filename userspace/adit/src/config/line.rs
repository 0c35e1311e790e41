//! Lines: what is a section's header, what a key and what its value, and where in the text they are.

use std::ops::Range;

/// A part of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// The characters.
    pub(super) text: &'a str,
    /// Byte offset of the first one.
    pub(super) start: usize,
}

impl<'a> Piece<'a> {
    /// Where it is.
    pub(super) fn span(self) -> Range<usize> {
        self.start..self.start + self.text.len()
    }

    /// Without blanks at its ends.
    pub(super) fn trimmed(self) -> Self {
        let front = self.text.len() - self.text.trim_start().len();
        Self {
            text: self.text.trim(),
            start: self.start + front,
        }
    }

    /// The part that `range` is of it.
    fn part(self, range: Range<usize>) -> Self {
        Self {
            text: &self.text[range.clone()],
            start: self.start + range.start,
        }
    }

    /// The parts between separators, trimmed. Of an empty piece there is one, empty.
    pub(super) fn split(self, separator: impl Fn(char) -> bool) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut from = 0;
        for (at, character) in self.text.char_indices().filter(|(_, c)| separator(*c)) {
            parts.push(self.part(from..at).trimmed());
            from = at + character.len_utf8();
        }
        parts.push(self.part(from..self.text.len()).trimmed());
        parts
    }
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// `[Name]`; the piece is all of it.
    Section(Piece<'a>),
    /// `Key = value`, both trimmed, and what a comment took away behind the value.
    Setting {
        key: Piece<'a>,
        value: Piece<'a>,
        comment: &'a str,
    },
    /// Neither.
    Other(Piece<'a>),
}

/// The lines that are not blank once their comments are gone.
pub(super) fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut start = 0;
    text.split_inclusive('\n').filter_map(move |line| {
        let whole = Piece { text: line, start };
        start += line.len();
        let comment = line.find('#').unwrap_or(line.len());
        let content = whole.part(0..comment).trimmed();
        if content.text.is_empty() {
            return None;
        }
        if content.text.starts_with('[') {
            return Some(Line::Section(content));
        }
        let Some(equals) = content.text.find('=') else {
            return Some(Line::Other(content));
        };
        Some(Line::Setting {
            key: content.part(0..equals).trimmed(),
            value: content.part(equals + 1..content.text.len()).trimmed(),
            comment: line[comment..].trim_end(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_know_where_they_are() {
        let text = "\n# c\n [Peer] # x\r\n\tA  = b , c#d\nnothing\n= x";
        let all: Vec<_> = lines(text).collect();
        assert_eq!(all.len(), 4);
        let Line::Section(section) = all[0] else {
            panic!("{:?}", all[0])
        };
        assert_eq!(&text[section.span()], "[Peer]");
        let Line::Setting {
            key,
            value,
            comment,
        } = all[1]
        else {
            panic!("{:?}", all[1])
        };
        assert_eq!((&text[key.span()], &text[value.span()]), ("A", "b , c"));
        assert_eq!(comment, "#d");
        let parts = value.split(|c| c == ',');
        let spans: Vec<_> = parts.iter().map(|part| &text[part.span()]).collect();
        assert_eq!(spans, ["b", "c"]);
        assert!(matches!(all[2], Line::Other(piece) if piece.text == "nothing"));
        assert!(matches!(all[3], Line::Setting { key, .. } if key.text.is_empty()));
    }

    #[test]
    fn empty_values_are_pieces_too() {
        let Some(Line::Setting { value, .. }) = lines("DNS =\n").next() else {
            panic!()
        };
        assert_eq!(value.span(), 5..5);
        assert_eq!(value.split(|c| c == ',').len(), 1);
    }
}
