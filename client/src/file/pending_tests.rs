//! Uncommitted content: what each transition leaves.

use super::*;
use std::time::SystemTime;
use tokio::sync::watch;

const SLOT: u64 = 4 << 20;

/// Returns an upload that has ended inline.
fn uploaded(_: &Packed, _: To) -> Uploading {
    Uploading { outcome: watch::channel(Some(Ok(None))).1, since: SystemTime::UNIX_EPOCH }
}

fn pending() -> Pending {
    Pending::new(Dirty::new(std::sync::Arc::default(), SLOT))
}

fn time(secs: i64) -> Timestamp {
    Timestamp { secs, ..Timestamp::default() }
}

fn write(pending: &mut Pending, at: u64, data: &[u8]) {
    pending.write((Some(at), 0), data, false, time(1));
}

fn seal(pending: &mut Pending) -> Option<u64> {
    pending.seal_rest(To::OwnBlock, |_| false, uploaded)
}

fn content(pending: &Pending, len: usize) -> Vec<u8> {
    let mut buffer = vec![b'.'; len];
    pending.overlay(0, &mut buffer);
    buffer
}

#[test]
fn later_writes_lie_over_sealed_content() {
    let mut pending = pending();
    write(&mut pending, 0, b"aaaaaa");
    assert_eq!(seal(&mut pending), Some(1));
    write(&mut pending, 2, b"bb");
    assert_eq!(seal(&mut pending), Some(2));
    write(&mut pending, 3, b"c");
    assert_eq!(content(&pending, 8), b"aabcaa..");
    assert!(pending.covers(&(0..6)) && !pending.covers(&(0..7)));
    assert_eq!(pending.end(), 6);
    assert_eq!(pending.held(), 9, "both seals and what is dirty");
}

#[test]
fn only_content_that_was_all_appended_counts_as_that() {
    let mut pending = pending();
    pending.write((None, 10), b"one", false, time(1));
    pending.write((None, 13), b"two", false, time(2));
    assert_eq!(pending.appended_from(), Some(10));
    write(&mut pending, 0, b"elsewhere");
    assert_eq!(pending.appended_from(), None);
    pending.write((None, 16), b"three", false, time(3));
    assert_eq!(pending.appended_from(), None, "what was written elsewhere is still uncommitted");
}

#[test]
fn a_cut_drops_what_lies_behind_it_and_takes_the_rest_out_of_queue_and_journal() {
    let mut pending = pending();
    write(&mut pending, 0, b"aaaaaa");
    let upto = seal(&mut pending).unwrap();
    assert!(pending.enter_queue(upto) && pending.is_queued());
    pending.note_journaled(upto);
    write(&mut pending, 4, b"bbbb");
    assert_eq!(pending.cut(8), None, "nothing lies behind it");
    assert_eq!(pending.cut(5), Some(10 - 5));
    assert_eq!(content(&pending, 8), b"aaaab...");
    assert!(!pending.is_queued() && pending.journaled() == 0);
    assert_eq!(seal(&mut pending), Some(2), "numbers go on: the queue's entry finds nothing under the old one");
    assert_eq!(pending.cut(0), Some(5));
    assert!(pending.is_empty() && pending.mtime().is_none());
}

#[test]
fn content_enters_the_queue_once_and_again_only_when_the_queue_gives_it_back() {
    let mut pending = pending();
    write(&mut pending, 0, b"a");
    let first = seal(&mut pending).unwrap();
    assert!(pending.enter_queue(first) && !pending.enter_queue(first));
    write(&mut pending, 1, b"b");
    assert!(pending.first_is_queued() && !pending.is_queued());
    pending.leave_queue();
    assert!(!pending.first_is_queued());
    let last = seal(&mut pending).unwrap();
    assert!(pending.enter_queue(last) && pending.is_queued());
}

#[test]
fn the_window_counts_exactly_what_is_held_unless_counting_was_stopped() {
    let mut pending = pending();
    write(&mut pending, 0, &[1; 100]);
    seal(&mut pending);
    // Content that is overwritten before it is committed is held twice and released twice.
    write(&mut pending, 0, &[2; 60]);
    seal(&mut pending);
    assert_eq!(pending.held(), 160);
    assert_eq!(pending.drop_front(1), 100);
    assert_eq!(pending.stop_counting(), 60);
    write(&mut pending, 200, &[3; 10]);
    assert_eq!(pending.drop_all(), 10, "the rest has been given back before");
    assert!(pending.is_empty());
}

#[test]
fn small_content_goes_inline_where_there_is_room_and_nothing_sealed_waits_before_it() {
    let mut used = Vec::new();
    let mut pending = pending();
    write(&mut pending, 0, b"small");
    pending.seal_rest(
        To::SharedBlock,
        |_| true,
        |packed, to| {
            used.push(to);
            uploaded(packed, to)
        },
    );
    write(&mut pending, 0, b"again");
    pending.seal_rest(
        To::SharedBlock,
        |_| true,
        |packed, to| {
            used.push(to);
            uploaded(packed, to)
        },
    );
    write(&mut pending, 0, &[1; SHARED_BLOCK_PART_MAX + 1]);
    pending.seal_rest(
        To::SharedBlock,
        |_| true,
        |packed, to| {
            used.push(to);
            uploaded(packed, to)
        },
    );
    assert_eq!(used, [To::Metadata, To::SharedBlock, To::OwnBlock]);
}

#[test]
fn content_appended_meanwhile_follows_a_commit_that_landed_further_on() {
    let mut pending = pending();
    pending.write((None, 10), b"first", false, time(1));
    seal(&mut pending);
    pending.write((None, 15), b"sealed", false, time(1));
    seal(&mut pending);
    pending.write((None, 21), b"dirty", false, time(1));
    pending.drop_front(1);
    pending.follow_append(Some(10), Some(110), 15);
    assert_eq!(pending.appended_from(), Some(115));
    assert_eq!(&content(&pending, 126)[115..], b"sealeddirty");
}

#[test]
fn content_that_fills_a_hole_before_the_end_of_a_commit_is_not_appended_again() {
    let mut pending = pending();
    pending.write((None, 10), b"first", false, time(1));
    seal(&mut pending);
    pending.write((None, 15), b"second", false, time(1));
    seal(&mut pending);
    // For example, the second was committed before the first.
    pending.follow_append(Some(10), Some(10), 21);
    assert_eq!(pending.appended_from(), None);
}

#[test]
fn pieces_of_the_journal_are_appended_again_only_if_all_of_them_were() {
    let piece = |at, appended| Restored {
        packed: Packed { bytes: Bytes::from_static(b"abc"), pieces: vec![(at, 0, 3)] },
        appended,
        mtime: Some(time(at as i64)),
        clear_privileges: at == 3,
    };
    let begun = || uploaded(&piece(0, true).packed, To::OwnBlock);
    let mut all = pending();
    assert_eq!((all.restore(piece(3, true), begun()), all.restore(piece(0, true), begun())), (1, 2));
    assert_eq!((all.appended_from(), all.mtime(), all.clear_privileges()), (Some(0), Some(time(0)), true));
    assert!(all.is_queued() && all.journaled() == 2 && all.held() == 6);
    let mut some = pending();
    some.restore(piece(0, false), begun());
    some.restore(piece(3, true), begun());
    assert_eq!(some.appended_from(), None);
}
