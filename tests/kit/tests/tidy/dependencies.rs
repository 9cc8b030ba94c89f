//! Rules for crates of others: `deny.toml` has them, and these tests check those that need no network.

use crate::sources::only;
use kit::bins::workspace;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// All crates that are compiled for Linux, ours included.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let used: BTreeSet<&str> = nodes.iter().map(|node| word(node, "id")).collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.filter(|package| used.contains(word(package, "id"))).cloned().collect()
}

fn word<'a>(json: &'a Value, key: &str) -> &'a str {
    json[key].as_str().unwrap()
}

fn name_and_version(package: &Value) -> String {
    // cargo-deny omits the part of a version behind a `+`.
    let version = word(package, "version").split('+').next().unwrap();
    format!("{}@{version}", word(package, "name"))
}

fn deny() -> toml::Table {
    std::fs::read_to_string(workspace().join("deny.toml")).unwrap().parse().unwrap()
}

/// Returns whether licences from a list satisfy an SPDX expression. `/` is the `OR` of old manifests.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ").replace(" WITH ", "-WITH-");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (verdict, rest) = any_of(&words, allowed);
    assert!(rest.is_empty(), "`{expression}` is no licence expression");
    verdict
}

fn any_of<'a, 'w>(words: &'w [&'a str], allowed: &[&str]) -> (bool, &'w [&'a str]) {
    let (mut verdict, mut rest) = all_of(words, allowed);
    while let Some((&"OR", below)) = rest.split_first() {
        let (other, left) = all_of(below, allowed);
        (verdict, rest) = (verdict || other, left);
    }
    (verdict, rest)
}

fn all_of<'a, 'w>(words: &'w [&'a str], allowed: &[&str]) -> (bool, &'w [&'a str]) {
    let (mut verdict, mut rest) = one(words, allowed);
    while let Some((&"AND", below)) = rest.split_first() {
        let (other, left) = one(below, allowed);
        (verdict, rest) = (verdict && other, left);
    }
    (verdict, rest)
}

fn one<'a, 'w>(words: &'w [&'a str], allowed: &[&str]) -> (bool, &'w [&'a str]) {
    match words.split_first() {
        Some((&"(", below)) => {
            let (verdict, rest) = any_of(below, allowed);
            assert_eq!(rest.first(), Some(&")"), "a bracket is not closed");
            (verdict, &rest[1..])
        }
        Some((licence, rest)) => (allowed.contains(licence), rest),
        None => panic!("a licence is missing"),
    }
}

#[test]
fn expressions_of_licences_are_read_as_spdx_means_them() {
    let allowed = |expression| is_allowed(expression, &["MIT", "ISC"]);
    assert!(allowed("MIT") && allowed("GPL-3.0 OR MIT") && allowed("Apache-2.0/MIT") && allowed("MIT AND ISC"));
    assert!(!allowed("MIT AND GPL-3.0") && !allowed("Apache-2.0 WITH LLVM-exception"));
    assert!(allowed("GPL-3.0 OR MIT AND ISC") && !allowed("(GPL-3.0 OR MIT) AND Zlib"));
}

#[test]
fn every_crate_has_a_licence_that_is_allowed_and_comes_from_crates_io() {
    let deny = deny();
    let allowed: Vec<&str> =
        deny["licenses"]["allow"].as_array().unwrap().iter().map(|licence| licence.as_str().unwrap()).collect();
    for package in packages() {
        let name = name_and_version(&package);
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(is_allowed(licence, &allowed), "{name} has the licence {licence}");
        let source = package["source"].as_str();
        assert!(source.is_none_or(|source| source == CRATES_IO), "{name} comes from {source:?}");
    }
}

#[test]
fn no_crate_comes_in_two_versions_except_known_ones() {
    let deny = deny();
    let known: Vec<&str> =
        deny["bans"]["skip"].as_array().unwrap().iter().map(|entry| entry["crate"].as_str().unwrap()).collect();
    let packages = packages();
    let mut versions: BTreeMap<&str, Vec<(Vec<u64>, String)>> = BTreeMap::new();
    for package in &packages {
        let name = name_and_version(package);
        let numbers = name.rsplit('@').next().unwrap().split('.').filter_map(|number| number.parse().ok());
        versions.entry(word(package, "name")).or_default().push((numbers.collect(), name.clone()));
    }
    let older = versions.into_values().flat_map(|mut versions| {
        versions.sort();
        versions.pop();
        versions
    });
    let older: BTreeSet<String> = older.map(|(_, name)| name).collect();
    only(&older, &known, "crates come in two versions");
}
