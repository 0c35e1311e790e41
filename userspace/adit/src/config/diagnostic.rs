//! What is said about a wrong line, drawn as a compiler draws it. Secret keys are never in it.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::secret;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but probably does not say what was meant.
    Warning,
}

/// One thing that is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, beginning with the key.
    pub message: String,
    /// The bytes of the text that are at fault.
    pub span: Range<usize>,
    /// What was expected there.
    pub label: String,
    /// Another place that has to do with it, and what is there.
    pub related: Option<(Range<usize>, String)>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    pub(super) fn error(
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            span,
            label: label.into(),
            related: None,
            help: None,
        }
    }

    pub(super) fn warning(
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(span, message, label)
        }
    }

    pub(super) fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related = Some((span, label.into()));
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(super) fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }
}

/// Draws diagnostics of a text under the name of its file, with colours if wanted. Each ends with a line break and has an
/// empty line between it and the next.
#[must_use]
pub fn render(diagnostics: &[Diagnostic], file: &str, text: &str, colours: bool) -> String {
    let text = secret::masked(text);
    let renderer = if colours {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let mut drawn = Vec::new();
    for diagnostic in diagnostics {
        drawn.push(renderer.render(&[group(diagnostic, file, &text)]) + "\n");
    }
    drawn.join("\n")
}

fn group<'a>(diagnostic: &'a Diagnostic, file: &'a str, text: &'a str) -> Group<'a> {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut snippet = Snippet::source(text).path(file).annotation(
        AnnotationKind::Primary
            .span(diagnostic.span.clone())
            .label(diagnostic.label.as_str()),
    );
    if let Some((span, label)) = &diagnostic.related {
        let related = AnnotationKind::Context.span(span.clone());
        snippet = snippet.annotation(related.label(label.as_str()));
    }
    let mut group = level
        .primary_title(diagnostic.message.as_str())
        .element(snippet);
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    group
}
