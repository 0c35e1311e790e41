//! Links of documents that are moved.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// A document, `source` in the repository, with links that lead where `places` puts their targets. Links to what is not shipped
/// become plain text.
pub(super) fn relink(text: &str, source: &str, places: &BTreeMap<String, String>) -> String {
    let mut moved = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("](") {
        let Some(end) = rest[at..].find(')') else {
            break;
        };
        let target = &rest[at + 2..at + end];
        moved.push_str(&rest[..at]);
        match follow(target, source, places) {
            Some(target) => {
                moved.push_str("](");
                moved.push_str(&target);
                moved.push(')');
            }
            None => {
                if let Some(bracket) = moved.rfind('[') {
                    moved.remove(bracket);
                }
            }
        }
        rest = &rest[at + end + 1..];
    }
    moved + rest
}

/// The new target; `None` if there is none.
fn follow(target: &str, source: &str, places: &BTreeMap<String, String>) -> Option<String> {
    let (file, fragment) = match target.find('#') {
        Some(at) => target.split_at(at),
        None => (target, ""),
    };
    if target.contains("://") || file.is_empty() {
        return Some(target.to_owned());
    }
    let directory = Path::new(source).parent()?;
    let wanted = normal(&directory.join(file));
    let place = Path::new(places.get(wanted.to_str()?)?);
    let from = Path::new(places.get(source)?).parent()?;
    let up = from.components().map(|_| Component::ParentDir);
    let relative: PathBuf = match place.strip_prefix(from) {
        Ok(near) => near.to_owned(),
        Err(_) => up.chain(place.components()).collect(),
    };
    Some(format!("{}{fragment}", relative.to_str()?))
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => _ = normal.pop(),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_follow_their_targets() {
        let places = [
            ("README.md", "README.md"),
            ("a/docs/faq.md", "docs/faq.md"),
            ("a/docs/top.md", "docs/top.md"),
            ("a/packaging/README.md", "packaging/README.md"),
        ]
        .map(|(source, place)| (source.to_owned(), place.to_owned()))
        .into();
        let relink = |text, source| relink(text, source, &places);
        assert_eq!(
            relink(
                "x [faq](a/docs/faq.md#why) and [net](https://a.b/c)",
                "README.md"
            ),
            "x [faq](docs/faq.md#why) and [net](https://a.b/c)"
        );
        assert_eq!(
            relink(
                "[r](../../README.md) [p](../packaging/README.md) [t](top.md) [h](#here)",
                "a/docs/faq.md"
            ),
            "[r](../README.md) [p](../packaging/README.md) [t](top.md) [h](#here)"
        );
        assert_eq!(
            relink("[what](src/lib.rs) is [left](gone.md#x).", "README.md"),
            "what is left."
        );
    }
}
