//! `unsafe` may only be in a crate's `sys.rs`, and nowhere in a crate that needs none.

use crate::graph::tokens;
use crate::sources::{Source, only, sources};
use std::collections::BTreeSet;

/// Files beside `sys.rs` with calls of the system's library.
const EXCEPTIONS: &[&str] = &[
    "tests/kit/src/command.rs",
    "tests/kit/src/fault.rs",
    "tests/kit/src/proxy/forward.rs",
    "tests/kit/src/surf.rs",
    "tests/kit/src/workload.rs",
];

fn is_unsafe(source: &Source) -> bool {
    tokens(&source.code).iter().any(|token| token == "unsafe")
}

#[test]
fn unsafe_code_stands_in_one_file_of_a_crate() {
    let sources = sources();
    let elsewhere = sources.iter().filter(|source| !source.is_test() && !source.path.ends_with("sys.rs"));
    let found: BTreeSet<String> = elsewhere.filter(|source| is_unsafe(source)).map(Source::name).collect();
    only(&found, EXCEPTIONS, "unsafe code belongs into sys.rs");
}

/// A program beside a library is a crate of its own, even if the library needs `unsafe`.
#[test]
fn a_crate_without_unsafe_code_forbids_it() {
    let sources = sources();
    let roots = sources.iter().filter(|source| {
        let path = source.name();
        (path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs")) && path.split('/').count() <= 4
    });
    let mut silent = Vec::new();
    for root in roots {
        let name = root.name();
        let folder = name.rsplit_once('/').expect("it lies in a folder").0;
        let has_library = sources.iter().any(|source| source.name() == format!("{folder}/lib.rs"));
        let is_alone = name.ends_with("main.rs") && has_library;
        let own = sources
            .iter()
            .filter(|source| if is_alone { source.name() == name } else { source.path.starts_with(folder) });
        let needs = own.into_iter().any(|source| source.text.contains("unsafe {") || is_unsafe(source));
        if !needs && !root.text.contains("#![forbid(unsafe_code)]") {
            silent.push(name);
        }
    }
    assert!(silent.is_empty(), "they do not forbid unsafe code: {silent:#?}");
}
