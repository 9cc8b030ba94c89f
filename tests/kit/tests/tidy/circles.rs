//! The files of a crate do not use each other in a circle: each can be read and tested with only the files below it.

use crate::graph::{Graph, circles};
use crate::sources::{only, sources};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Folders of the crates.
const CRATES: [&str; 12] = [
    "wire",
    "metad",
    "blockd",
    "client",
    "mount",
    "embed",
    "surf",
    "bench",
    "tests/kit",
    "tests/sim",
    "tests/fuzzing",
    "tests/fuse",
];

/// Crates whose circles are being taken apart.
const EXCEPTIONS: &[&str] = &[];

#[test]
fn no_files_of_a_crate_use_each_other_in_a_circle() {
    let sources = sources();
    let (mut found, mut shown) = (BTreeSet::new(), String::new());
    for folder in CRATES {
        let graph = Graph::of(&sources, folder);
        for circle in circles(&graph.uses) {
            found.insert(folder.to_owned());
            if !EXCEPTIONS.contains(&folder) {
                shown += &show(&graph, &circle);
            }
        }
    }
    only(&found, EXCEPTIONS, &format!("files use each other in a circle:\n{shown}\n"));
}

/// The files of a circle, and the uses that close it.
fn show(graph: &Graph, circle: &[usize]) -> String {
    let mut text = String::new();
    for at in circle {
        for (to, by) in graph.uses[*at].iter().filter(|(to, _)| circle.contains(to)) {
            writeln!(text, "{} uses {}: {by}", graph.files[*at].name, graph.files[*to].name).unwrap();
        }
    }
    text
}
