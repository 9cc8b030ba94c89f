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

/// Files of metad that ask for the time of day. Leases, sessions, and how long somebody was silent go by a clock that
/// cannot be set.
const TIME_OF_DAY: &[&str] = &[
    // The age of unreferenced blocks; a clock that is set forward is noticed.
    "metad/src/cluster/gc.rs",
    // When a recovery was made, and from where numbers go on.
    "metad/src/recovery.rs",
    // When a backup was made.
    "metad/src/server/backup.rs",
    // The times of files.
    "metad/src/server/clock.rs",
];

#[test]
fn metads_grant_and_wait_by_a_clock_that_cannot_be_set() {
    let asks = |source: &&Source| {
        let words = ["Timestamp::now", "SystemTime"];
        source.name().starts_with("metad/src") && words.iter().any(|word| source.code.contains(word))
    };
    let found: BTreeSet<String> = sources().iter().filter(asks).map(Source::name).collect();
    only(&found, TIME_OF_DAY, "files of metad ask for the time of day");
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

/// What stands in backticks in a document and has as many underscores as this is the name of a test.
const TEST_NAME_UNDERSCORES_MIN: usize = 4;

/// Returns whether a name is the one that a document gives, in which `…` stands for any part.
fn is_named(name: &str, said: &str) -> bool {
    match said.split_once('…') {
        Some((start, end)) => name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end),
        None => name == said,
    }
}

#[test]
fn tests_that_documents_name_exist() {
    let sources = sources();
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '…';
    let is_test_name = |said: &&str| {
        let words = said.matches('_').count();
        let is_long = words >= TEST_NAME_UNDERSCORES_MIN || (words > 0 && said.matches('…').count() == 1);
        // Metrics have long names, too.
        is_long && said.chars().all(is_part) && !said.starts_with("surf_")
    };
    let functions: BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| source.text.split("fn ").skip(1))
        .map(|rest| &rest[..rest.find(|c: char| !is_part(c)).unwrap_or(rest.len())])
        .collect();
    let (mut wrong, mut seen) = (BTreeSet::new(), 0);
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for said in text.split('`').skip(1).step_by(2).filter(is_test_name) {
            seen += 1;
            if !functions.iter().any(|name| is_named(name, said)) {
                wrong.insert(format!("{}: {said}", document.file_name().unwrap().to_string_lossy()));
            }
        }
    }
    assert!(wrong.is_empty(), "documents name tests that do not exist: {wrong:#?}");
    assert!(seen > 50, "only {seen} names of tests were found in documents");
}

#[test]
fn a_name_may_be_cut_anywhere() {
    assert!(
        is_named("a_b_c", "a_b_c")
            && is_named("a_b_c", "a_…")
            && is_named("a_b_c", "…_c")
            && is_named("a_b_c", "a_…_c")
    );
    assert!(!is_named("a_b_c", "a_b") && !is_named("a_b_c", "b_…") && !is_named("a_b", "a_b…_b"));
}
