//! Runs every target over its committed corpus: what fuzzing once found, and the ways it found into the code.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helper functions of tests; the output of a test that passes is hidden"
)]

use std::fs;
use std::path::Path;

/// Runs `target` over the files in `../corpus/NAME`.
fn replay(name: &str, target: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(name);
    let mut inputs: Vec<_> = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", corpus.display());
    // What is replayed last is what fails.
    for input in inputs {
        println!("{}", input.display());
        target(&fs::read(&input).unwrap());
    }
    target(&[]);
}

macro_rules! replay {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target), adit_fuzz::$target);
            }
        )*

        /// Fuzzers, corpora and these tests are of the same targets.
        #[test]
        fn every_target_is_replayed() {
            let mut targets = vec![$(stringify!($target)),*];
            targets.sort_unstable();
            for (folder, suffix) in [("../fuzz_targets", ".rs"), ("../corpus", "")] {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
                let mut found: Vec<_> = fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .map(|name| name.strip_suffix(suffix).unwrap().to_owned())
                    .collect();
                found.sort_unstable();
                assert_eq!(found, targets, "{folder}");
            }
        }
    };
}

replay! {
    aead cmsg coalesce config device ecn message replay_window routes split uapi uapi_answer virtio xsk_frame xsk_rings
}
