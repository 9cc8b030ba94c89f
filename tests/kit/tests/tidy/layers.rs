//! Rules for dependencies: which crate may depend on which, and which module may use a library of others.

use crate::sources::{only, sources};
use kit::bins::workspace;
use std::collections::BTreeSet;
use std::process::Command;

/// Crates, and the crates of this repository on which they may depend.
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
    ("sim", &["wire", "metad", "client", "kit"]),
    ("fuzzing", &["wire", "metad", "blockd", "client"]),
];

/// Test binaries beside `it`, and why they need a process of their own.
const OWN_BINARIES: [(&str, &str); 2] = [("metad", "million"), ("kit", "tidy")];

/// Dependencies that are not used yet.
const UNUSED: &[&str] = &[];

fn packages() -> Vec<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn word<'a>(json: &'a serde_json::Value, key: &str) -> &'a str {
    json[key].as_str().unwrap()
}

#[test]
fn crates_depend_only_downwards() {
    let names: Vec<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    let mut seen = 0;
    for package in packages() {
        let name = word(&package, "name");
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == name) else { continue };
        seen += 1;
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = word(dependency, "name");
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
        ("fuser::", &["mount/src", "bench/src/null", "tests/kit/src/powerloss"]),
    ];
    for source in sources() {
        for (library, allowed) in homes {
            let at_home = allowed.iter().any(|home| source.name().starts_with(home));
            assert!(at_home || !source.code.contains(library), "{} uses {library}", source.name());
        }
    }
}

/// Linking a test binary takes longer than most tests.
#[test]
fn a_crate_has_one_binary_of_integration_tests() {
    for package in packages() {
        let name = word(&package, "name");
        let targets = package["targets"].as_array().unwrap().iter();
        let tests: Vec<&str> = targets
            .filter(|target| target["kind"][0] == "test")
            .map(|target| word(target, "name"))
            .filter(|test| !OWN_BINARIES.contains(&(name, test)))
            .collect();
        assert!(tests.len() <= 1, "{name} has {tests:?}: make them modules of tests/it/main.rs");
    }
}

#[test]
fn every_dependency_is_used() {
    let sources = sources();
    let (mut used, mut unused): (BTreeSet<String>, BTreeSet<String>) = Default::default();
    for package in packages() {
        let manifest = std::path::Path::new(word(&package, "manifest_path"));
        let folder = manifest.parent().unwrap().strip_prefix(workspace()).unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = word(dependency, "name");
            let path = format!("{}::", name.replace('-', "_"));
            let mut own = sources.iter().filter(|source| source.path.starts_with(folder));
            if !own.any(|source| source.text.contains(&path)) {
                unused.insert(format!("{} {name}", folder.display()));
            }
            used.insert(name.to_owned());
        }
    }
    only(&unused, UNUSED, "crates depend on what they do not use");
    let manifest = std::fs::read_to_string(workspace().join("Cargo.toml")).unwrap();
    let listed = manifest.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next()).unwrap();
    for line in listed.lines().filter(|line| line.contains('=')) {
        let name = line.split([' ', '=']).next().unwrap();
        assert!(used.contains(name), "no crate uses {name}");
    }
}
