use super::*;
use crate::testing;
use wire::ids::Version;
use wire::op::{NewInode, RenameMode};

const DIR: Ino = Ino(1);

fn attr(ino: u64, version: u64) -> InodeAttr {
    InodeAttr { ino: Ino(ino), version: Version(version), ..testing::attr() }
}

fn holding() -> Known {
    let cache = Known::default();
    cache.attached();
    cache.extend(since_boot(), cache.mark(), false);
    cache
}

fn create(name: &[u8], ino: u64) -> Op {
    let node = NewInode::Regular;
    Op::Create { parent: DIR, name: name.to_vec(), ino: Ino(ino), node, mode: 0o644, umask: 0, uid: 0, gid: 0 }
}

#[test]
fn nothing_is_used_without_leases_or_when_they_have_run_out() {
    let cache = Known::default();
    cache.attached();
    cache.learn_attr(&attr(7, 1), cache.mark());
    assert_eq!(cache.attr(Ino(7)), None);
    cache.extend(since_boot().saturating_sub(USED), cache.mark(), false);
    assert_eq!(cache.attr(Ino(7)), None);
    cache.extend(since_boot(), cache.mark(), false);
    assert_eq!(cache.attr(Ino(7)), Some(attr(7, 1)));
    cache.empty();
    cache.attached();
    cache.extend(since_boot(), cache.mark(), false);
    assert_eq!(cache.attr(Ino(7)), None);
}

#[test]
fn what_was_asked_before_metad_counts_our_leases_is_not_kept() {
    let cache = holding();
    cache.empty();
    let mark = cache.mark();
    cache.learn_attr(&attr(7, 1), cache.mark());
    cache.attached();
    cache.learn_attr(&attr(8, 1), mark);
    cache.extend(since_boot(), mark, false);
    cache.learn_attr(&attr(9, 1), cache.mark());
    assert_eq!(cache.attr(Ino(9)), None, "the extension was asked for before");
    cache.extend(since_boot(), cache.mark(), false);
    assert_eq!(cache.attr(Ino(9)), Some(attr(9, 1)));
    assert!(cache.attr(Ino(7)).is_none() && cache.attr(Ino(8)).is_none());
}

#[test]
fn what_is_recalled_while_it_is_asked_for_is_not_kept() {
    let cache = holding();
    let mark = cache.mark();
    cache.recall(&[Ino(7), DIR]);
    cache.learn_attr(&attr(7, 1), mark);
    cache.learn_name(DIR, b"name", Some(Ino(7)), mark);
    assert!(cache.attr(Ino(7)).is_none() && cache.name(DIR, b"name").is_none());
    let mark = cache.mark();
    cache.learn_attr(&attr(7, 2), mark);
    cache.learn_name(DIR, b"name", Some(Ino(7)), mark);
    assert_eq!(cache.name(DIR, b"name"), Some(Ok(attr(7, 2))));
    cache.recall(&[DIR]);
    assert!(cache.name(DIR, b"name").is_none() && cache.attr(Ino(7)).is_some());
}

#[test]
fn a_change_of_ours_is_known_from_its_answer_if_that_is_leased() {
    let cache = holding();
    cache.learn_name(DIR, b"new", None, cache.mark());
    cache.learn_name(DIR, b"other", None, cache.mark());
    cache.learn_attr(&attr(1, 1), cache.mark());
    let ops = [create(b"new", 7)];
    let mark = cache.change(&ops);
    assert!(cache.name(DIR, b"new").is_none() && cache.attr(DIR).is_none());
    let replies = [OpReply::Attr(attr(7, 1))];
    cache.changed(mark, &ops, &replies, Some(&[attr(1, 2)]), &[]);
    assert_eq!(cache.name(DIR, b"new"), Some(Ok(attr(7, 1))));
    assert_eq!(cache.name(DIR, b"other"), Some(Err(FsError::NotFound)), "it was not touched");
    assert_eq!(cache.attr(DIR), Some(attr(1, 2)));

    let ops = [create(b"more", 8)];
    let mark = cache.change(&ops);
    cache.changed(mark, &ops, &[OpReply::Attr(attr(8, 1))], None, &[]);
    assert!(cache.name(DIR, b"more").is_none() && cache.attr(Ino(8)).is_none() && cache.attr(DIR).is_none());
}

#[test]
fn an_answer_that_a_later_change_of_ours_overtook_is_not_kept() {
    let cache = holding();
    let first = [Op::Rename {
        parent: DIR,
        name: b"a".to_vec(),
        new_parent: DIR,
        new_name: b"b".to_vec(),
        mode: RenameMode::Replace,
        released: None,
    }];
    let mark = cache.change(&first);
    let second = [create(b"c", 9)];
    cache.change(&second);
    let moved = OpReply::Renamed { moved: attr(7, 1), replaced: None, orphaned: false };
    cache.changed(mark, &first, &[moved], Some(&[attr(1, 5)]), &[]);
    assert_eq!(cache.attr(DIR), None);
    assert!(cache.name(DIR, b"a").is_none() && cache.name(DIR, b"b").is_none());
}

#[test]
fn a_conflict_copy_is_missing_in_no_listing() {
    let cache = holding();
    let listed = Arc::new(Listed { parent: DIR, entries: Vec::new(), end: true });
    cache.learn_page(DIR, (0, 10, false), &listed, cache.mark());
    assert!(cache.page(DIR, (0, 10, false)).is_some());
    let copy = ConflictCopy { ino: Ino(9), parent: DIR, name: b"f.conflict".to_vec() };
    let reply = OpReply::Committed { attr: attr(7, 2), appended_at: None, conflict: Some(copy), chunk_extents: 1 };
    let mark = cache.change(&[]);
    cache.changed(mark, &[], &[reply], None, &[]);
    assert!(cache.page(DIR, (0, 10, false)).is_none());
}

#[test]
fn a_recall_is_acknowledged_when_the_kernel_believes_nothing_of_it_any_more() {
    let cache = holding();
    cache.learn_attr(&attr(7, 1), cache.mark());
    assert_eq!(cache.recall(&[Ino(7)]), None, "nothing was handed over");
    cache.learn_attr(&attr(8, 1), cache.mark());
    assert_eq!(cache.believe_attr(&attr(8, 2)), Duration::ZERO, "it is not what is known");
    assert_eq!(cache.believe_attr(&attr(8, 1)), BELIEVED);
    assert!(cache.recall(&[Ino(8)]).is_some_and(|at| at > Instant::now() + MARGIN));
    cache.learn_attr(&attr(8, 2), cache.mark());
    assert_eq!(cache.believe_attr(&attr(8, 2)), Duration::ZERO, "it is contended");
    cache.extend(since_boot(), cache.mark(), true);
    cache.learn_attr(&attr(9, 1), cache.mark());
    assert_eq!(cache.believe_attr(&attr(9, 1)), BELIEVED_ALONE);
    assert!(cache.company().is_some_and(|at| at > Instant::now() + BELIEVED_ALONE / 2));
}
