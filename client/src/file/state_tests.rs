//! An open file: what each transition leaves of bases, versions and lengths.

use super::*;
use crate::file::dirty::Packed;
use crate::file::sealed::{To, Uploading, writes_of};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use wire::extent::ExtentWrite;

fn uploaded(_: &Packed, _: To) -> Uploading {
    Uploading { outcome: watch::channel(Some(Ok(None))).1, since: SystemTime::UNIX_EPOCH }
}

fn attr(version: u64, size: u64) -> InodeAttr {
    InodeAttr { version: Version(version), size, ..crate::testing::attr() }
}

/// Returns an empty file of which everything is known.
fn opened() -> Arc<FileState> {
    let page = ExtentPage { version: Version(1), size: 0, extents: Vec::new(), more_from: None };
    FileState::new(attr(1, 0), Some(&page), Arc::default(), 4 << 20)
}

fn write(file: &FileState, at: Option<u64>, data: &[u8]) {
    file.write(at, data, false, Timestamp::default()).unwrap();
}

/// Seals all that is written.
fn seal(file: &FileState) -> u64 {
    file.seal_rest(To::OwnBlock, uploaded).unwrap()
}

/// Returns what a commit of the first sealed piece writes.
fn commit_first(file: &FileState) -> Vec<ExtentWrite> {
    writes_of(&file.sealed_at(0, u64::MAX).unwrap().packed, None)
}

fn landing(writes: &[ExtentWrite], version: u64, base: u64, size: u64) -> Landing<'_> {
    Landing {
        attr: attr(version, size),
        base: Version(base),
        writes,
        append_from: None,
        appended_at: None,
        only_ours: version == base + 1,
        conflict: None,
    }
}

fn read(file: &FileState) -> Vec<u8> {
    match file.plan_read((0, 100), false) {
        Step::Done(bytes) => bytes.to_vec(),
        Step::Load(chunk) => panic!("asks for chunk {chunk:?}"),
        Step::Fetch(plan) => {
            let mut buffer = vec![b'.'; plan.range.end as usize];
            for extent in &plan.extents {
                let wire::extent::Source::Inline(bytes) = &extent.source else { panic!("not inline") };
                super::super::dirty::lay(extent.file_off, bytes, 0, &mut buffer);
            }
            plan.over.iter().for_each(|(at, bytes)| super::super::dirty::lay(*at, bytes, 0, &mut buffer));
            buffer
        }
    }
}

#[test]
fn a_commit_that_is_only_ours_becomes_the_base_of_what_was_written_meanwhile() {
    let file = opened();
    write(&file, Some(0), b"first");
    seal(&file);
    write(&file, Some(5), b"second");
    let writes = commit_first(&file);
    file.take_landing(landing(&writes, 2, 1, 5), 1, Instant::now());
    assert_eq!(file.base(), Version(2));
    assert_eq!(file.attr().size, 11, "with what was written meanwhile");
    assert_eq!(read(&file), b"firstsecond", "the commit is part of what is known");
}

/// Guards I6.
#[test]
fn writes_beside_those_of_others_keep_their_base_and_know_their_own_versions() {
    let file = opened();
    write(&file, Some(0), b"first");
    seal(&file);
    write(&file, Some(5), b"second");
    let writes = commit_first(&file);
    // Others have made version 2.
    file.take_landing(landing(&writes, 3, 1, 90), 1, Instant::now());
    let basis = file.basis(Instant::now());
    assert_eq!((basis.base, basis.own), (Version(1), vec![Version(3)]));
    assert!(matches!(file.plan_read((0, 100), false), Step::Load(_)), "what others wrote is not known");
    seal(&file);
    let writes = commit_first(&file);
    file.take_landing(landing(&writes, 4, 1, 90), 1, Instant::now());
    let basis = file.basis(Instant::now());
    assert_eq!((basis.base, basis.own), (Version(4), Vec::new()), "nothing waits: all of it was seen");
}

/// Guards I6.
#[test]
fn the_base_of_uncommitted_content_does_not_move_with_anything_that_others_do() {
    let file = opened();
    write(&file, Some(0), b"ours");
    assert!(file.refresh(&attr(5, 50), None));
    assert_eq!((file.base(), file.newest_version()), (Version(1), None));
    let page = ExtentPage { version: Version(6), size: 60, extents: Vec::new(), more_from: None };
    assert_eq!(file.take_listing(0..CHUNK_BYTES, &[page], false), Listing::Moved);
    assert_eq!(file.base(), Version(1));
    assert!(!file.refresh(&attr(4, 40), None), "an answer that was overtaken");
    file.drop_uncommitted();
    assert!(!file.refresh(&attr(6, 60), None));
    assert_eq!((file.base(), file.attr().size), (Version(6), 60));
}

#[test]
fn content_of_others_behind_ours_can_be_read_and_appended_content_stays_together() {
    let file = opened();
    write(&file, None, b"ours");
    assert!(file.refresh(&attr(2, 50), None));
    assert!(matches!(file.plan_read((40, 100), false), Step::Load(_)));
    let page = ExtentPage { version: Version(3), size: 60, extents: Vec::new(), more_from: None };
    file.take_listing(0..CHUNK_BYTES, &[page], false);
    assert!(matches!(file.plan_read((50, 100), false), Step::Fetch(plan) if plan.range == (50..60)));
    write(&file, None, b", too");
    seal(&file);
    let writes: Vec<_> = commit_first(&file).iter().map(|write| (write.file_off, write.len)).collect();
    assert_eq!(writes, [(0, 9)]);
}

/// Guards I6.
#[test]
fn a_page_that_showed_appended_content_before_that_landed_elsewhere_is_not_compared() {
    let page = ExtentPage { version: Version(1), size: 100, extents: Vec::new(), more_from: None };
    let file = FileState::new(attr(1, 100), Some(&page), Arc::default(), 4 << 20);
    write(&file, None, b"ours");
    seal(&file);
    let writes = commit_first(&file);
    // Others have appended 50 bytes, and the kernel has dropped its pages.
    assert!(file.refresh(&attr(2, 150), None));
    let drop = file.begin_drop();
    file.end_drop(drop);
    assert!(matches!(file.plan_read((0, 4096), false), Step::Load(_)), "a page has ours over theirs");
    let elsewhere = Landing { append_from: Some(100), appended_at: Some(150), ..landing(&writes, 3, 1, 154) };
    file.take_landing(elsewhere, 1, Instant::now());
    let seen = file.seen(&(100..154));
    assert!(matches!(seen.below, Below::Unknown) && seen.range == (100..154));
    file.write_changed(&seen, &[b'x'; 54], None, Timestamp::default()).unwrap();
    let basis = file.basis(Instant::now());
    assert_eq!((basis.base, basis.own), (Version(1), Vec::new()), "versions 2 and 3 are in conflict with it");
}

/// Guards I6. The kernel does not always know where the file ends when a program appends to it.
#[test]
fn a_page_in_which_appended_content_is_at_a_wrong_place_replaces_neither_what_is_there_nor_that_content() {
    let file = opened();
    assert!(file.refresh(&attr(2, 150), None));
    let drop = file.begin_drop();
    file.end_drop(drop);
    let page = ExtentPage { version: Version(2), size: 150, extents: Vec::new(), more_from: None };
    file.take_listing(0..CHUNK_BYTES, &[page], false);
    let (at, _) = file.write(None, b"ours", false, Timestamp::default()).unwrap();
    assert_eq!(at, 150);
    file.note_misplaced(at, 100, 4);
    seal(&file);
    let writes = commit_first(&file);
    let in_place = Landing { append_from: Some(150), appended_at: Some(150), ..landing(&writes, 3, 2, 154) };
    file.take_landing(in_place, 1, Instant::now());
    let mut at = 96;
    let mut shown = Vec::new();
    while at < 160 {
        let seen = file.seen(&(at..160));
        shown.push((at, matches!(seen.below, Below::Read(_))));
        at = seen.range.end;
    }
    assert_eq!(shown, [(96, true), (100, false), (104, true), (150, false), (154, true)]);
    let seen = file.seen(&(100..154));
    file.write_changed(&seen, b"ours", None, Timestamp::default()).unwrap();
    let basis = file.basis(Instant::now());
    assert_eq!((basis.base, basis.own), (Version(0), Vec::new()), "all that is in the file is in conflict with it");
}

#[test]
fn a_listing_of_several_versions_is_taken_only_when_there_is_no_other() {
    let file = opened();
    let page = |version| ExtentPage { version: Version(version), size: 10, extents: Vec::new(), more_from: None };
    let torn = [page(2), page(3)];
    assert_eq!(file.take_listing(0..CHUNK_BYTES, &torn, false), Listing::Torn);
    assert_eq!(file.take_listing(0..CHUNK_BYTES, &torn, true), Listing::Moved);
    assert_eq!(file.take_listing(0..CHUNK_BYTES, &[page(2)], false), Listing::Torn, "older than what is known");
    assert_eq!(file.take_listing(0..CHUNK_BYTES, &[page(3)], false), Listing::Taken);
}

#[test]
fn a_change_of_length_by_us_is_no_conflict_and_keeps_what_is_known_below() {
    let file = opened();
    write(&file, Some(0), b"content");
    seal(&file);
    let writes = commit_first(&file);
    file.take_landing(landing(&writes, 2, 1, 7), 1, Instant::now());
    write(&file, Some(0), b"C");
    assert!(!file.changed_here(&attr(3, 4), Some(4)), "nobody else");
    assert_eq!((file.base(), file.cut_uncommitted(4)), (Version(3), 0));
    assert_eq!(read(&file), b"Cont");
    assert!(file.changed_here(&attr(5, 4), Some(4)), "version 4 was another's");
    assert_eq!(file.base(), Version(3), "what is not committed has not seen that");
}

/// Guards I6.
#[test]
fn whatever_ends_earlier_content_later_content_is_based_on_what_is_known_then() {
    type End = fn(&FileState) -> u64;
    fn cut(file: &FileState) -> u64 {
        file.changed_here(&attr(3, 0), Some(0));
        file.cut_uncommitted(0)
    }
    let ends: [(End, _); 3] = [
        (|file: &FileState| file.drop_sealed(1), (Version(2), false, false, 10)),
        (FileState::drop_uncommitted, (Version(2), false, false, 10)),
        (cut, (Version(3), false, false, 5)),
    ];
    for (end, expected) in ends {
        let file = opened();
        // Others have made version 2, and a page of version 1 comes back.
        assert!(file.refresh(&attr(2, 10), None));
        let seen = file.seen(&(0..20));
        file.write_changed(&seen, &[b'x'; 20], None, Timestamp::default()).unwrap();
        seal(&file);
        let waiting = (file.base(), file.picture(u64::MAX).late, file.has_whole_pages(), file.attr().size);
        assert_eq!(waiting, (Version(1), true, true, 20));
        assert_eq!(end(&file), 20);
        write(&file, Some(0), b"later");
        let later = (file.base(), file.picture(u64::MAX).late, file.has_whole_pages(), file.attr().size);
        assert_eq!(later, expected);
    }
}

/// Guards I6.
#[test]
fn pages_that_are_read_from_a_mixture_of_versions_are_judged_whole_by_the_oldest() {
    let file = FileState::new(attr(1, 20), None, Arc::default(), 4 << 20);
    let page = |version, more_from| ExtentPage { version: Version(version), size: 20, extents: Vec::new(), more_from };
    let torn = [page(2, Some(CHUNK_BYTES)), page(3, None)];
    assert_eq!(file.take_listing(0..2 * CHUNK_BYTES, &torn, false), Listing::Torn);
    assert_eq!(file.take_listing(0..2 * CHUNK_BYTES, &torn, true), Listing::Moved);
    for _ in 0..2 {
        // The kernel drops all, and reads anew.
        let drop = file.begin_drop();
        file.end_drop(drop);
        read(&file);
        assert!(!file.pages_show_present());
    }
    let seen = file.seen(&(0..20));
    assert!(matches!(seen.below, Below::Unknown));
    file.write_changed(&seen, &[b'x'; 20], None, Timestamp::default()).unwrap();
    assert_eq!((file.base(), file.known_version()), (Version(2), Version(3)));
}

#[test]
fn an_answer_that_a_commit_has_overtaken_does_not_make_the_file_shorter() {
    let file = opened();
    write(&file, Some(0), b"content");
    seal(&file);
    let writes = commit_first(&file);
    file.take_landing(landing(&writes, 2, 1, 7), 1, Instant::now());
    assert_eq!(file.overlaid(attr(1, 0)).size, 7);
    assert_eq!(file.overlaid(attr(3, 2)).size, 2);
    write(&file, Some(5), b"longer");
    assert_eq!(file.overlaid(attr(3, 2)).size, 11);
}

#[test]
fn an_error_is_reported_once_and_a_conflict_outlives_later_commits() {
    let file = opened();
    assert!(file.is_well());
    file.note_committed(Err(FsError::Stale));
    file.note_committed(Ok(()));
    assert!(!file.is_well() && file.wants_flush());
    assert_eq!((file.take_unreported(), file.take_unreported()), (Some(FsError::Stale), None));
    file.report_later(FsError::NoSpace);
    file.note_committed(Ok(()));
    assert_eq!(file.take_unreported(), None, "there was room after all");
}

#[test]
fn writes_after_a_conflict_go_into_the_same_copy_until_the_writer_knows_or_pauses() {
    let (file, now) = (opened(), Instant::now());
    write(&file, Some(0), b"first");
    seal(&file);
    let writes = commit_first(&file);
    file.take_landing(Landing { conflict: Some(Ino(77)), ..landing(&writes, 3, 1, 9) }, 1, now);
    assert_eq!(file.basis(now).diverted, Some(Ino(77)));
    assert_eq!(file.basis(now + MORE_THAN_DIVERTED_FOR).diverted, None);
    file.report_later(FsError::Stale);
    write(&file, Some(0), b"more");
    file.take_unreported();
    assert!(file.is_diverted(), "that belongs to what is in the copy");
    file.drop_uncommitted();
    file.report_later(FsError::Stale);
    file.take_unreported();
    assert!(!file.is_diverted());
}

const MORE_THAN_DIVERTED_FOR: Duration = Duration::from_secs(6);

#[test]
fn content_that_the_policy_refuses_takes_no_room_and_no_more_of_it_is_accepted() {
    let file = opened();
    file.add_handle();
    write(&file, Some(0), b"refused");
    let upto = seal(&file);
    file.enter_queue(upto);
    assert_eq!(file.note_unsaved(FsError::Stale), Unsaved { released: 7, unheard: false });
    assert_eq!(file.write(Some(0), b"more", false, Timestamp::default()), Err(FsError::Stale));
    assert!(!file.is_wanted() && !file.is_to_be_committed(true) && !file.is_queued() && file.may_queue().is_none());
    assert_eq!(file.remove_handle(), (true, true));
    assert_eq!(file.note_unsaved(FsError::Stale), Unsaved { released: 0, unheard: true });
    assert_eq!(file.drop_uncommitted(), 0);
    assert_eq!(file.write(Some(0), b"more", false, Timestamp::default()), Ok((0, 4)));
}

#[test]
fn a_file_without_handles_is_idle_once_nothing_waits_and_its_small_content_is_remembered() {
    let file = opened();
    file.add_handle();
    assert!(!file.idle().0);
    write(&file, Some(0), b"content");
    file.remove_handle();
    assert!(!file.idle().0);
    seal(&file);
    let writes = commit_first(&file);
    file.take_landing(landing(&writes, 2, 1, 7), 1, Instant::now());
    let (idle, page) = file.idle();
    assert!(idle && page.is_some_and(|page| page.version == Version(2) && page.size == 7 && page.extents.len() == 1));
    file.refresh(&attr(3, 9), None);
    assert_eq!(file.idle(), (true, None), "nothing is known of version 3");
}

#[test]
fn content_in_the_queue_outlives_a_removal_and_other_content_does_not() {
    let file = opened();
    write(&file, Some(0), b"queued");
    let upto = seal(&file);
    file.enter_queue(upto);
    assert!(!file.lose_last_name() && file.is_wanted());
    file.note_unsaved(FsError::NoSpace);
    assert!(file.lose_last_name() && !file.is_wanted() && file.is_unreadable());
}
