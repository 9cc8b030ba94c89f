use super::*;
use crate::linear::{Event, check};
use crate::workload::{Workload, outcome_text};
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

fn path(text: &str) -> Path {
    let names: Vec<char> = text.chars().filter(|c| *c != '/').collect();
    match names[..] {
        [name] => Path { dir: None, name },
        [dir, name] => Path { dir: Some(dir), name },
        _ => panic!("{text}"),
    }
}

/// A history of lanes, times, calls and their outcomes; each lane is on a mount of its own.
fn is_linearizable(history: &[(u32, u64, u64, Call, Outcome)]) -> bool {
    is_linearizable_on(history, |lane| lane)
}

/// Checks the history of lanes on these mounts.
fn is_linearizable_on(history: &[(u32, u64, u64, Call, Outcome)], mount: fn(u32) -> u32) -> bool {
    let events: Vec<_> = history
        .iter()
        .zip(1..)
        .map(|((lane, start, end, call, outcome), number)| Event {
            lane: *lane,
            start: *start,
            end: (*outcome != Outcome::Unknown).then_some(*end),
            op: Op { number, mount: mount(*lane), call: *call, outcome: outcome.clone() },
        })
        .collect();
    check(&Names, Tree::default(), &events).is_ok()
}

fn create(name: &str) -> Call {
    Call::Create(path(name), 0o600)
}

fn stat(name: &str) -> Call {
    Call::Stat(path(name))
}

fn file(ino: u64) -> Outcome {
    Outcome::Attributes { ino: Some(ino), is_dir: false, mode: 0o600, links: 1 }
}

fn made(ino: u64) -> Outcome {
    Outcome::Made(Some(ino))
}

const ABSENT: Outcome = Outcome::Failed(ENOENT);
const EXISTS: Outcome = Outcome::Failed(EEXIST);

#[test]
fn of_two_calls_that_create_a_name_one_succeeds() {
    assert!(is_linearizable(&[(1, 1, 5, create("a"), made(7)), (2, 1, 5, create("a"), EXISTS)]));
    assert!(!is_linearizable(&[(1, 1, 5, create("a"), made(7)), (2, 1, 5, create("a"), made(8))]));
    assert!(!is_linearizable(&[(1, 1, 5, create("a"), EXISTS), (2, 1, 5, create("a"), EXISTS)]));
}

#[test]
fn a_removed_file_is_not_seen_any_more() {
    let begin = [(1, 1, 2, create("a"), made(7)), (1, 3, 6, Call::Unlink(path("a")), Outcome::Done)];
    let with = |events: &[(u32, u64, u64, Call, Outcome)]| is_linearizable(&[&begin[..], events].concat());
    assert!(with(&[(2, 4, 5, stat("a"), file(7))]));
    assert!(with(&[(2, 4, 5, stat("a"), ABSENT)]));
    assert!(with(&[(2, 7, 8, stat("a"), ABSENT)]));
    assert!(!with(&[(2, 7, 8, stat("a"), file(7))]));
    assert!(!with(&[(2, 4, 5, stat("a"), ABSENT), (3, 6, 7, stat("a"), file(7))]));
}

#[test]
fn a_renamed_file_is_under_one_of_its_names_at_each_moment() {
    let begin = [(1, 1, 2, create("a"), made(7)), (1, 3, 100, Call::Rename(path("a"), path("b")), Outcome::Done)];
    let with = |events: &[(u32, u64, u64, Call, Outcome)]| is_linearizable(&[&begin[..], events].concat());
    assert!(with(&[(2, 4, 5, stat("a"), ABSENT), (2, 6, 7, stat("b"), file(7))]));
    assert!(with(&[(2, 4, 5, stat("b"), ABSENT), (2, 6, 7, stat("a"), ABSENT)]));
    assert!(!with(&[(2, 4, 5, stat("a"), ABSENT), (2, 6, 7, stat("b"), ABSENT)]));
    assert!(!with(&[(2, 4, 5, stat("b"), file(7)), (2, 6, 7, stat("a"), file(7))]));
    assert!(!with(&[(2, 4, 5, stat("b"), file(8))]));
}

#[test]
fn a_call_with_an_unknown_outcome_happens_at_most_once_and_stays() {
    let begin = [(1, 1, 2, create("a"), Outcome::Unknown)];
    let with = |events: &[(u32, u64, u64, Call, Outcome)]| is_linearizable(&[&begin[..], events].concat());
    assert!(with(&[(2, 4, 5, stat("a"), ABSENT), (2, 60, 61, stat("a"), file(7))]));
    assert!(!with(&[(2, 4, 5, stat("a"), file(7)), (2, 6, 7, stat("a"), ABSENT)]));
    assert!(!with(&[(2, 4, 5, stat("a"), file(7)), (2, 6, 7, stat("a"), file(8))]));
    assert!(with(&[(2, 4, 5, create("a"), made(7)), (2, 6, 7, stat("a"), file(7))]));
}

#[test]
fn a_call_acts_on_what_it_has_found_though_the_name_is_another_files_by_then() {
    let begin = [
        (1, 1, 2, create("a"), made(7)),
        (1, 3, 4, create("c"), made(8)),
        (1, 5, 6, Call::Link(path("a"), path("b")), Outcome::Done),
        (2, 10, 90, Call::Chmod(path("a"), 0o700), Outcome::Done),
        (1, 20, 30, Call::Rename(path("c"), path("a")), Outcome::Done),
    ];
    let of_b = |mode| Outcome::Attributes { ino: Some(7), is_dir: false, mode, links: 1 };
    let with = |events: &[(u32, u64, u64, Call, Outcome)]| is_linearizable(&[&begin[..], events].concat());
    assert!(with(&[(1, 40, 50, stat("b"), of_b(0o600)), (1, 95, 96, stat("b"), of_b(0o700))]));
    assert!(!with(&[(1, 95, 96, stat("b"), of_b(0o600)), (1, 97, 98, stat("a"), file(8))]));
    // It was called after the rename, and must not know the old file.
    let late = (2, 40, 90, Call::Chmod(path("a"), 0o700), Outcome::Done);
    let begin = [&begin[..3], &[begin[4].clone(), late]].concat();
    assert!(!is_linearizable(&[&begin[..], &[(1, 95, 96, stat("b"), of_b(0o700))]].concat()));
}

#[test]
fn a_read_after_a_write_has_closed_reads_it() {
    let (read, write) = (Call::Read(path("a")), Call::Write(path("a")));
    let begin = [(1, 1, 2, create("a"), made(7)), (1, 3, 4, write, Outcome::Done), (1, 5, 8, write, Outcome::Done)];
    let with = |events: &[(u32, u64, u64, Call, Outcome)]| is_linearizable(&[&begin[..], events].concat());
    assert!(with(&[(2, 6, 7, read, Outcome::Content(2)), (2, 9, 10, read, Outcome::Content(3))]));
    assert!(!with(&[(2, 9, 10, read, Outcome::Content(2))]));
    assert!(!with(&[(2, 6, 7, read, Outcome::Content(0))]));
    assert!(!with(&[
        (2, 6, 7, read, Outcome::Content(3)),
        (3, 7, 8, read, Outcome::Content(3)),
        (2, 9, 10, read, Outcome::Content(9))
    ]));
    // A writer that got a conflict has changed nothing.
    let lost = (2, 5, 6, write, Outcome::Failed(ESTALE));
    assert!(with(&[lost.clone(), (2, 9, 10, read, Outcome::Content(3))]));
    assert!(!with(&[lost, (2, 9, 10, read, Outcome::Content(4))]));
}

#[test]
fn a_listing_has_every_name_that_was_there_and_no_other() {
    let begin = [
        (1, 1, 2, create("a"), made(7)),
        (1, 3, 4, create("b"), made(8)),
        (1, 10, 20, Call::Unlink(path("a")), Outcome::Done),
        (1, 21, 30, create("c"), made(9)),
    ];
    let listed = |start, end, names: &str| {
        let listing = (2, start, end, Call::List, Outcome::Names(names.chars().collect::<BTreeSet<char>>()));
        is_linearizable(&[&begin[..], &[listing]].concat())
    };
    assert!(listed(5, 6, "ab") && listed(40, 41, "bc"));
    assert!(listed(5, 41, "ab") && listed(5, 41, "b") && listed(5, 41, "bc") && listed(5, 41, "abc"));
    assert!(!listed(5, 6, "a") && !listed(5, 6, "abc") && !listed(40, 41, "abc") && !listed(5, 41, "ac"));
}

#[test]
fn directories_are_removed_empty_and_nothing_is_made_in_one_that_is_gone() {
    let begin = [(1, 1, 2, Call::Mkdir(path("a"), 0o700), Outcome::Done), (1, 3, 4, create("a/x"), made(7))];
    let with = |events: &[(u32, u64, u64, Call, Outcome)]| is_linearizable(&[&begin[..], events].concat());
    let rmdir = Call::Rmdir(path("a"));
    assert!(with(&[(1, 5, 6, rmdir, Outcome::Failed(ENOTEMPTY))]));
    assert!(!with(&[(1, 5, 6, rmdir, Outcome::Done)]));
    let unlink = (1, 5, 6, Call::Unlink(path("a/x")), Outcome::Done);
    let removed = (1, 7, 8, rmdir, Outcome::Done);
    assert!(with(&[unlink.clone(), removed.clone(), (2, 7, 9, create("a/y"), ABSENT)]));
    assert!(!with(&[unlink.clone(), removed.clone(), (2, 7, 9, create("a/y"), made(8))]));
    assert!(with(&[(1, 5, 6, Call::Rename(path("a/x"), path("a")), Outcome::Failed(ENOTEMPTY))]));
}

#[test]
fn a_name_that_is_being_removed_may_be_found_on_the_same_mount_until_that_call_returns_and_nowhere_else() {
    let unlinked = Outcome::Attributes { ino: Some(7), is_dir: false, mode: 0o600, links: 0 };
    let begin = [
        (1, 1, 2, create("a"), made(7)),
        (1, 3, 4, create("b"), made(8)),
        (1, 5, 20, Call::Unlink(path("a")), Outcome::Done),
    ];
    let seen = |start, outcome| (2, start, start + 1, stat("a"), outcome);
    // It is gone, as the number of its links shows, and is found all the same.
    let link = (2, 9, 10, Call::Link(path("a"), path("b")), EXISTS);
    let going = [&begin[..], &[seen(7, unlinked.clone()), link]].concat();
    assert!(is_linearizable_on(&going, |_| 0));
    assert!(!is_linearizable(&going), "not on another mount");
    let later = [&begin[..], &[seen(30, unlinked)]].concat();
    assert!(!is_linearizable_on(&later, |_| 0), "not once the call has returned");
    // Before it is removed it has its links.
    let alive = [
        (1, 1, 2, create("a"), made(7)),
        seen(7, Outcome::Attributes { ino: Some(7), is_dir: false, mode: 0o600, links: 0 }),
    ];
    assert!(!is_linearizable_on(&alive, |_| 0));
}

/// A local filesystem is linearizable: each call takes effect under locks. So its histories must be accepted, and must
/// be refused when one outcome in them is changed.
#[test]
fn a_history_of_a_local_filesystem_is_accepted_and_a_changed_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let workload = Workload::new(dir.path(), 3, 11);
    for number in 0..4 {
        // A local filesystem uses inode numbers again at once.
        workload.spawn(dir.path(), &format!("worker-{number}"), number == 0, false);
    }
    crate::until("enough calls", Duration::from_secs(60), || (workload.count() > 6_000).then_some(()));
    let histories = workload.stop(Duration::from_secs(60));
    for history in &histories {
        let succeeded = history.iter().filter(|event| !matches!(event.op.outcome, Outcome::Failed(_))).count();
        assert!(succeeded > history.len() / 5, "{succeeded} of {}", history.len());
        check(&Names, Tree::default(), history).unwrap();
    }
    // What cannot have been: more links than there are names, and content that nobody wrote. Not every area need have
    // seen both calls.
    let seen = |wanted: fn(&Outcome) -> bool| {
        let places = histories.iter().enumerate();
        places
            .flat_map(|(area, history)| history.iter().enumerate().map(move |(at, event)| (area, at, event)))
            .find(|(_, _, event)| wanted(&event.op.outcome))
            .map(|(area, at, event)| (area, at, event.op.outcome.clone()))
            .expect("thousands of calls have looked at files")
    };
    let (area, at, mut other) = seen(|outcome| matches!(outcome, Outcome::Attributes { is_dir: false, .. }));
    let Outcome::Attributes { links, .. } = &mut other else { panic!("{other:?}") };
    *links = 99;
    let (read_area, read_at, _) = seen(|outcome| matches!(outcome, Outcome::Content(1..)));
    for (area, at, outcome) in [(area, at, other), (read_area, read_at, Outcome::Content(u32::MAX))] {
        let mut tampered = histories[area].clone();
        tampered[at].op.outcome = outcome;
        assert!(check(&Names, Tree::default(), &tampered).is_err());
    }
    assert_eq!(outcome_text(&histories), outcome_text(&histories.clone()));
    assert!(fs::read_dir(dir.path()).unwrap().count() == 3);
}
