//! Rules for single files: they are short, finished, and marked where they hold an invariant.

use crate::sources::{Source, only, sources};
use kit::bins::workspace;
use kit::fault::files_below;
use std::collections::BTreeSet;

/// Invariants that the sources hold and guard.
const INVARIANTS: std::ops::RangeInclusive<u32> = 1..=11;

/// A file with more lines than this, without its tests, hides a second idea.
const LINES_MAX: usize = 500;

/// Exceptions to [`LINES_MAX`].
const FILES_OVER_LINES_MAX: &[&str] = &["metad/src/lease/table.rs", "wire/src/op.rs"];

#[test]
fn every_invariant_has_a_line_that_holds_it_and_a_test_that_guards_it() {
    let sources = sources();
    for number in INVARIANTS {
        let marks = [format!("// I{number}:"), format!("// I{number} ")];
        let guard = format!("Guards I{number}.");
        let short = format!("I{number}");
        let is_held = |source: &Source| source.is_shipped() && marks.iter().any(|mark| source.text.contains(mark));
        let names = |line: &str| {
            line.contains("Guards I") && line.split(|c: char| !c.is_alphanumeric()).any(|word| word == short)
        };
        let is_guarded = |source: &Source| source.text.contains(&guard) || source.text.lines().any(names);
        assert!(sources.iter().any(is_held), "no line is marked `// I{number}:`");
        assert!(sources.iter().any(is_guarded), "no test says `Guards I{number}.`");
    }
}

#[test]
fn no_work_is_left_for_later_in_the_sources() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    for source in sources() {
        for word in words {
            assert!(!source.text.contains(word), "{} says {word}", source.name());
        }
    }
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let sources = sources();
    let lines = |source: &Source| source.text.lines().count() - source.test_lines;
    let long = sources.iter().filter(|source| !source.is_test() && lines(source) > LINES_MAX);
    let long: BTreeSet<String> = long.map(Source::name).collect();
    only(&long, FILES_OVER_LINES_MAX, &format!("files have more than {LINES_MAX} lines without tests"));
}

/// Examples in docstrings would be tests that a runner of binaries does not see.
#[test]
fn docstrings_hold_no_code_to_run() {
    for source in sources() {
        let fences = source.text.lines().map(str::trim_start).filter(|line| line.starts_with("//"));
        let mut fences =
            fences.map(|line| line.trim_start_matches(['/', '!']).trim()).filter(|line| line.starts_with("```"));
        while let Some(open) = fences.next() {
            assert_eq!(open, "```text", "in {}", source.name());
            assert_eq!(fences.next(), Some("```"), "in {}", source.name());
        }
    }
}

/// Documents that name files as `path.rs`, or things in a file as `path.rs:name`.
fn documents() -> Vec<std::path::PathBuf> {
    let root = workspace();
    let mut documents = files_below(&root.join("docs"));
    documents.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root.join(name)));
    documents.retain(|path| path.extension().is_some_and(|end| end == "md"));
    documents
}

#[test]
fn files_and_names_in_documents_exist() {
    let sources = sources();
    let mut wrong = BTreeSet::new();
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        // Every second part stands between backticks.
        for said in text.split('`').skip(1).step_by(2).filter(|said| said.contains(".rs") && !said.contains([' ', '*']))
        {
            let (path, name) = said.split_once(':').unwrap_or((said, ""));
            let name = name.rsplit([':', '.']).next().unwrap();
            let is_there = |source: &Source| source.path.ends_with(path) && source.text.contains(name);
            if path.ends_with(".rs") && path.contains('/') && !sources.iter().any(is_there) {
                wrong.insert(format!("{}: {said}", document.file_name().unwrap().to_string_lossy()));
            }
        }
    }
    assert!(wrong.is_empty(), "documents name what is not there: {wrong:#?}");
}
