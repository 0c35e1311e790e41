//! Bar charts as SVG, small enough to write ourselves.
//!
//! A figure is a grid of panels, a panel has a bar for each contender: the median as its length, a line from the least to
//! the most. Every panel has its own scale, from zero to the longest tunnel; the bare wire is cut off there. Text and
//! background change together with the reader's colour scheme, so that one file serves both.

use std::fmt::Write as _;

use super::statistics::{Statistics, readable};

/// Width of a figure in pixels: what a README on GitHub shows unscaled.
const WIDTH: f64 = 860.0;

const MARGIN: f64 = 24.0;
const GAP: f64 = 32.0;
const COLUMNS: usize = 2;

/// Room for the names of contenders, and for the values behind the bars.
const NAMES: f64 = 98.0;
const VALUES: f64 = 62.0;

const BAR: f64 = 15.0;
const BAR_STEP: f64 = 23.0;
const PANEL_HEAD: f64 = 44.0;
const PANEL_GAP: f64 = 22.0;
const TITLE: f64 = 58.0;
const FOOT_LINE: f64 = 16.0;

/// A picture of several panels.
#[derive(Debug)]
pub(crate) struct Figure {
    /// What it shows.
    pub(crate) title: String,
    /// Left to right, then down.
    pub(crate) panels: Vec<Panel>,
    /// Small lines below: machine, date, method.
    pub(crate) notes: Vec<String>,
}

/// One value of all contenders.
#[derive(Debug)]
pub(crate) struct Panel {
    /// What was done.
    pub(crate) title: String,
    /// What is shown of it, with the unit, and which way is better.
    pub(crate) subtitle: String,
    /// Top to bottom.
    pub(crate) bars: Vec<Bar>,
}

/// One contender.
#[derive(Debug)]
pub(crate) struct Bar {
    /// Its name.
    pub(crate) name: String,
    /// How it is drawn.
    pub(crate) style: Style,
    /// `None` if it has no value here.
    pub(crate) value: Option<Statistics>,
}

/// How a bar is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// One of ours; the number tells them apart.
    Own(usize),
    /// Another's.
    Other,
    /// Not a tunnel: an outline, and not part of the scale.
    Ceiling,
}

impl Style {
    fn class(self) -> &'static str {
        match self {
            Self::Own(0) => "own",
            Self::Own(_) => "own2",
            Self::Other => "other",
            Self::Ceiling => "ceiling",
        }
    }
}

/// Colours are those of GitHub's own two schemes, so that a figure lies flat on its pages.
const STYLE: &str = "
text{font:13px system-ui,-apple-system,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif;fill:#1f2328}
.title{font-size:18px;font-weight:600}.head{font-weight:600}.small{font-size:12px;fill:#59636e}
.value{font-variant-numeric:tabular-nums}.background{fill:#ffffff}.axis{stroke:#d1d9e0}
.own{fill:#0969da}.own2{fill:#54aeff}.other{fill:#9aa4af}.ceiling{fill:none;stroke:#9aa4af;stroke-dasharray:4 3}
.spread{stroke:#1f2328;stroke-width:1.5}.gap{stroke:#ffffff;stroke-width:6}.cut{stroke:#9aa4af;stroke-width:1.5}
@media (prefers-color-scheme:dark){
text{fill:#f0f6fc}.small{fill:#9198a1}.background{fill:#0d1117}.axis{stroke:#3d444d}
.own{fill:#4493f8}.own2{fill:#a5d6ff}.other{fill:#656c76}.ceiling{stroke:#656c76}
.spread{stroke:#f0f6fc}.gap{stroke:#0d1117}.cut{stroke:#656c76}}
";

/// The figure as an SVG document.
pub(crate) fn render(figure: &Figure) -> String {
    let columns = COLUMNS.min(figure.panels.len()).max(1);
    let panel_width = (WIDTH - 2.0 * MARGIN - GAP * (float(COLUMNS) - 1.0)) / float(COLUMNS);
    let rows: Vec<_> = figure.panels.chunks(columns).collect();
    let row_height = |row: &[Panel]| {
        let bars = row.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
        PANEL_HEAD + float(bars) * BAR_STEP + PANEL_GAP
    };
    let body: f64 = rows.iter().map(|row| row_height(row)).sum();
    let height = TITLE + body + float(figure.notes.len()) * FOOT_LINE + MARGIN;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"{0}\">\n<title>{0}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"background\" width=\"{WIDTH}\" height=\"{height}\" rx=\"8\"/>\n",
        escaped(&figure.title)
    );
    text(
        &mut svg,
        "title",
        MARGIN,
        MARGIN + 14.0,
        "start",
        &figure.title,
    );
    let mut top = TITLE;
    for row in rows {
        for (column, panel) in row.iter().enumerate() {
            let left = MARGIN + float(column) * (panel_width + GAP);
            draw_panel(&mut svg, panel, left, top, panel_width);
        }
        top += row_height(row);
    }
    for note in &figure.notes {
        top += FOOT_LINE;
        text(&mut svg, "small", MARGIN, top - 4.0, "start", note);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(svg: &mut String, panel: &Panel, left: f64, top: f64, width: f64) {
    text(svg, "head", left, top + 12.0, "start", &panel.title);
    text(svg, "small", left, top + 30.0, "start", &panel.subtitle);
    let (axis, length) = (left + NAMES, width - NAMES - VALUES);
    let scale = scale(&panel.bars);
    let first = top + PANEL_HEAD;
    for (position, bar) in panel.bars.iter().enumerate() {
        let y = first + float(position) * BAR_STEP;
        draw_bar(svg, bar, (axis, y, length), scale);
    }
    let bottom = first + float(panel.bars.len()) * BAR_STEP - (BAR_STEP - BAR);
    let _ = writeln!(
        svg,
        "<line class=\"axis\" x1=\"{axis:.1}\" y1=\"{:.1}\" x2=\"{axis:.1}\" y2=\"{:.1}\"/>",
        first - 4.0,
        bottom + 4.0
    );
}

/// The value at the right end: the most that any tunnel came to, or the bare wire if there is nothing else.
fn scale(bars: &[Bar]) -> f64 {
    let most = |bars: &mut dyn Iterator<Item = &Bar>| {
        bars.filter_map(|bar| bar.value)
            .map(|value| value.most)
            .fold(0.0, f64::max)
    };
    let tunnels = most(&mut bars.iter().filter(|bar| bar.style != Style::Ceiling));
    if tunnels > 0.0 {
        tunnels
    } else {
        most(&mut bars.iter())
    }
}

fn draw_bar(svg: &mut String, bar: &Bar, (axis, y, length): (f64, f64, f64), scale: f64) {
    let baseline = y + BAR - 3.0;
    text(svg, "", axis - 8.0, baseline, "end", &bar.name);
    let Some(value) = bar.value else {
        text(svg, "small", axis + 6.0, baseline, "start", "failed");
        return;
    };
    let at = |value: f64| {
        if scale > 0.0 {
            length * (value / scale).min(1.0)
        } else {
            0.0
        }
    };
    let end = at(value.median);
    let _ = writeln!(
        svg,
        "<rect class=\"{}\" x=\"{axis:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\"/>",
        bar.style.class(),
        end.max(1.0)
    );
    let cut = value.median > scale;
    let mut right = end;
    if cut {
        // A gap across the bar between two strokes: it goes on for longer than is drawn.
        let x = axis + length * 0.92;
        for (class, shift) in [("gap", 0.0), ("cut", -3.0), ("cut", 3.0)] {
            let _ = writeln!(
                svg,
                "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
                x + shift - 4.0,
                y + BAR + 3.0,
                x + shift + 4.0,
                y - 3.0
            );
        }
    } else if value.count > 1 {
        let middle = y + BAR / 2.0;
        right = end.max(at(value.most));
        let _ = writeln!(
            svg,
            "<line class=\"spread\" x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\"/>",
            axis + at(value.least),
            axis + at(value.most)
        );
    }
    text(
        svg,
        "value",
        axis + right + 6.0,
        baseline,
        "start",
        &readable(value.median),
    );
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, anchor: &str, content: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escaped(content)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Figures have few of anything.
#[expect(clippy::cast_precision_loss, reason = "figures have few of anything")]
fn float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, style: Style, values: &[f64]) -> Bar {
        Bar {
            name: name.to_owned(),
            style,
            value: Statistics::of(values.to_vec()),
        }
    }

    fn figure() -> Figure {
        let bars = vec![
            bar("no-tunnel", Style::Ceiling, &[40.0]),
            bar("adit", Style::Own(0), &[3.0, 4.0, 5.0]),
            bar("R&D <x>", Style::Other, &[1.0]),
            bar("broken", Style::Other, &[]),
        ];
        Figure {
            title: "Throughput & more".to_owned(),
            panels: vec![Panel {
                title: "One TCP stream".to_owned(),
                subtitle: "Gbit/s, more is better".to_owned(),
                bars,
            }],
            notes: vec!["a machine".to_owned()],
        }
    }

    /// Values of an attribute of all elements of a class.
    fn attributes(svg: &str, class: &str, name: &str) -> Vec<f64> {
        svg.lines()
            .filter(|line| line.contains(&format!("class=\"{class}\"")))
            .filter_map(|line| {
                let (_, rest) = line.split_once(&format!(" {name}=\""))?;
                rest.split('"').next()?.parse().ok()
            })
            .collect()
    }

    #[test]
    fn bars_are_as_long_as_their_medians_and_the_ceiling_is_cut() {
        let svg = render(&figure());
        let width = |class| attributes(&svg, class, "width")[0];
        // The scale ends at the most of a tunnel: 5.
        assert!((width("own") / width("other") - 4.0).abs() < 0.05, "{svg}");
        assert!(
            (width("ceiling") / width("own") - 5.0 / 4.0).abs() < 0.01,
            "{svg}"
        );
        assert_eq!(attributes(&svg, "cut", "x1").len(), 2);
        assert_eq!(attributes(&svg, "spread", "x1").len(), 1);
        assert!(svg.contains(">40.0<") && svg.contains(">failed<"));
    }

    #[test]
    fn names_cannot_break_the_document() {
        let svg = render(&figure());
        assert!(svg.contains("R&amp;D &lt;x&gt;") && svg.contains("Throughput &amp; more"));
        let opened = svg.matches("<text ").count();
        assert_eq!(opened, svg.matches("</text>").count());
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn everything_lies_inside() {
        let svg = render(&figure());
        for class in ["own", "other", "ceiling"] {
            for (x, width) in attributes(&svg, class, "x")
                .into_iter()
                .zip(attributes(&svg, class, "width"))
            {
                assert!(x + width + VALUES <= WIDTH);
            }
        }
    }

    #[test]
    fn zeros_make_no_nonsense() {
        let mut zero = figure();
        zero.panels[0].bars = vec![bar("adit", Style::Own(0), &[0.0, 0.0])];
        let svg = render(&zero);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
