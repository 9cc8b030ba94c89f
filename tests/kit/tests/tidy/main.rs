//! The sources' own rules: who may depend on whom, where each foreign library stands, and that every invariant has a
//! line that holds it and a test that guards it.
#![allow(missing_docs)]

use kit::bins::workspace;
use kit::fault::files_below;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates, and those of ours that they may depend on.
const EDGES: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("metad", &["wire"]),
    ("blockd", &["wire"]),
    ("client", &["wire"]),
    ("embed", &["wire", "metad", "blockd"]),
    ("mount", &["wire", "client", "embed"]),
    ("surf", &["wire", "client", "embed"]),
    ("bench", &[]),
    ("kit", &["wire"]),
];

/// Invariants that come with leases and the journal; everything else must be held and guarded.
const NOT_YET: &[u32] = &[8];
/// Files longer than this hide a second idea.
const LINES_MAX: usize = 700;

fn sources() -> Vec<(PathBuf, String)> {
    let root = workspace();
    let crates = ["wire", "metad", "blockd", "client", "mount", "embed", "surf", "bench", "tests"];
    crates
        .iter()
        .flat_map(|name| files_below(&root.join(name)))
        .filter(|path| path.extension().is_some_and(|end| end == "rs"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(&root).unwrap().to_owned(), text)
        })
        .collect()
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests") || path.to_string_lossy().ends_with("tests.rs")
}

#[test]
fn crates_depend_only_downwards() {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    let mut seen = 0;
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == name) else { continue };
        seen += 1;
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            let production = dependency["kind"].is_null();
            if production && names.contains(&on) {
                assert!(allowed.contains(&on), "{name} must not depend on {on}");
            }
        }
    }
    assert_eq!(seen, EDGES.len(), "a crate is missing from the list");
}

#[test]
fn each_foreign_library_stands_behind_one_module() {
    let homes: &[(&str, &[&str])] = &[
        ("openraft::", &["metad/src/raft"]),
        ("raft_engine::", &["metad/src/raft"]),
        ("sled::", &["metad/src/store"]),
        ("quinn::", &["wire/src/quic"]),
        ("fuser::", &["mount/src", "bench/src/null"]),
    ];
    for (path, text) in sources() {
        for (library, allowed) in homes {
            let used = text.lines().any(|line| line.contains(library) && !line.trim_start().starts_with("//"));
            let at_home = allowed.iter().any(|home| path.to_string_lossy().starts_with(home));
            assert!(!used || at_home || path.ends_with("tidy/main.rs"), "{} uses {library}", path.display());
        }
    }
}

#[test]
fn every_invariant_has_a_line_that_holds_it_and_a_test_that_guards_it() {
    let sources = sources();
    for number in (1..=11).filter(|number| !NOT_YET.contains(number)) {
        let marks = [format!("// I{number}:"), format!("// I{number} ")];
        let guard = format!("Guards I{number}.");
        let short = format!("I{number}");
        let held = sources.iter().any(|(path, text)| !is_test(path) && marks.iter().any(|mark| text.contains(mark)));
        let guarded = sources.iter().any(|(_, text)| {
            text.contains(&guard)
                || text.lines().any(|line| {
                    line.contains("Guards I") && line.split(|c: char| !c.is_alphanumeric()).any(|word| word == short)
                })
        });
        assert!(held, "no line is marked `// I{number}:`");
        assert!(guarded, "no test says `Guards I{number}.`");
    }
}

#[test]
fn no_work_is_left_for_later_in_the_sources() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    for (path, text) in sources() {
        for word in words {
            assert!(!text.contains(word), "{} says {word}", path.display());
        }
    }
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let long: BTreeMap<PathBuf, usize> = sources()
        .into_iter()
        .filter(|(path, _)| !is_test(path))
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}
