//! The rooms of the client, each a file with its folder: the picture in the documents shows which room uses which.

use crate::graph::{Graph, circles, tokens};
use crate::sources::{only, sources};
use kit::bins::workspace;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;

/// The picture stands between these two lines.
const DOCUMENT: &str = "docs/ARCHITECTURE.md";
const BEGIN: &str = "## The rooms of the client\n";
const FENCE: &str = "\n```text\n";

/// Rooms, and the rooms that each uses.
type Rooms = BTreeMap<String, BTreeSet<String>>;

fn room(file: &str) -> String {
    let inner = file.trim_start_matches("client/src/").trim_end_matches(".rs");
    inner.split('/').next().expect("a path has a first part").to_owned()
}

fn rooms(graph: &Graph) -> Rooms {
    let mut rooms = Rooms::new();
    for (file, uses) in graph.files.iter().zip(&graph.uses) {
        let (from, used) = (room(&file.name), uses.keys().map(|to| room(&graph.files[*to].name)));
        let used: Vec<_> = used.filter(|to| *to != from).collect();
        rooms.entry(from).or_default().extend(used);
    }
    rooms
}

/// Draws one line for each room, above the rooms that it uses. The line lists the rooms that it uses, without those
/// that another room in the line uses already.
fn draw(rooms: &Rooms) -> String {
    let mut left: Rooms = rooms.clone();
    let mut text = String::new();
    let width = rooms.keys().map(String::len).max().unwrap_or(0);
    while !left.is_empty() {
        let used: BTreeSet<&String> = left.values().flatten().collect();
        let top: Vec<String> = left.keys().filter(|room| !used.contains(room)).cloned().collect();
        assert!(!top.is_empty(), "rooms use each other in a circle: {left:#?}");
        for room in top {
            let uses = left.remove(&room).expect("it is left");
            let is_implied = |to: &String| uses.iter().any(|by| by != to && reaches(rooms, by, to));
            let direct: Vec<&str> = uses.iter().filter(|to| !is_implied(to)).map(String::as_str).collect();
            writeln!(text, "{}", format!("{room:width$}  {}", direct.join(" ")).trim_end()).expect("a text takes all");
        }
    }
    text
}

fn reaches(rooms: &Rooms, from: &str, to: &str) -> bool {
    rooms[from].iter().any(|next| next == to || reaches(rooms, next, to))
}

#[test]
fn the_picture_of_the_clients_rooms_agrees_with_their_files() {
    let graph = Graph::of(&sources(), "client");
    assert!(circles(&graph.uses).is_empty(), "there is nothing to draw while files use each other in a circle");
    let drawn = draw(&rooms(&graph));
    let document = fs::read_to_string(workspace().join(DOCUMENT)).expect("the document can be read");
    let shown = document.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(FENCE)).map_or("", |(_, rest)| rest);
    let shown = shown.split_once("```").map_or(shown, |(shown, _)| shown);
    assert!(shown == drawn, "{DOCUMENT} shows\n{shown}\nbut the files say\n{drawn}");
}

#[test]
fn a_room_that_is_used_by_way_of_another_is_not_drawn() {
    let set = |uses: &[&str]| uses.iter().map(|room| (*room).to_owned()).collect();
    let rooms =
        Rooms::from([("a".to_owned(), set(&["b", "c"])), ("b".to_owned(), set(&["c"])), ("c".to_owned(), set(&[]))]);
    assert_eq!(draw(&rooms), "a  b\nb  c\nc\n");
}

/// A room must do its work without the whole client.
#[test]
fn the_client_is_implemented_by_its_operations_alone() {
    for source in sources().iter().filter(|source| source.path.starts_with("client/src")) {
        let name = source.name();
        let is_there = tokens(&source.code).windows(2).any(|pair| pair[0] == "impl" && pair[1] == "Client");
        assert!(!is_there || room(&name) == "ops", "{name} has an `impl Client`");
    }
}

/// Files with an `RwLock`, which has no rank: no other lock of the client is taken under it.
const RW_LOCKS: &[&str] = &[];

/// Locks that are held over an `.await` are tokio's, and are listed in the documentation of the lock order.
#[test]
fn every_lock_of_the_client_has_a_place_in_the_lock_order() {
    let mut rw_locks = BTreeSet::new();
    for source in sources().iter().filter(|source| source.path.starts_with("client/src") && !source.is_test()) {
        let name = source.name();
        let tokens = tokens(&source.code);
        let is_foreign = |at: usize| ["parking_lot", "sync"].contains(&tokens[at].as_str()) && tokens[at + 1] == "::";
        let paths = (0..tokens.len().saturating_sub(2)).filter(|at| is_foreign(*at));
        for at in paths.filter(|at| *at < 2 || tokens[at - 2] != "tokio") {
            let end = tokens[at..].iter().position(|token| token == ";").map_or(tokens.len(), |end| at + end);
            let named = if tokens[at + 2] == "{" { &tokens[at + 2..end] } else { &tokens[at + 2..at + 3] };
            let names = |lock: &str| named.iter().any(|token| token == lock);
            assert!(!names("Mutex") || name == "client/src/ordered.rs", "{name} has a mutex without a rank");
            if names("RwLock") {
                rw_locks.insert(name.clone());
            }
        }
    }
    only(&rw_locks, RW_LOCKS, "files have an `RwLock` that the documentation of the lock order does not mention");
}
