use super::leases::LEASE_USED;
use super::*;
use crate::kernel::{BELIEF_MARGIN, KERNEL_TRUST, KERNEL_TRUST_ALONE};
use crate::testing;
use proptest::prelude::*;
use wire::ids::Version;
use wire::op::{ConflictCopy, NewInode, RenameMode};

const DIR: Ino = Ino(1);
const PAGE: PageKey = PageKey { dir: DIR, after: 0, limit: 10, plus: false };

fn attr(ino: u64, version: u64) -> InodeAttr {
    InodeAttr { ino: Ino(ino), version: Version(version), ..testing::attr() }
}

fn holding() -> Known {
    let known = Known::default();
    known.attached();
    known.extend(since_boot(), known.mark(), false);
    known
}

fn create(name: &[u8], ino: u64) -> Op {
    let node = NewInode::Regular;
    Op::Create { parent: DIR, name: name.to_vec(), ino: Ino(ino), node, mode: 0o644, umask: 0, uid: 0, gid: 0 }
}

#[test]
fn nothing_is_used_without_leases_or_when_they_have_run_out() {
    let known = Known::default();
    known.attached();
    known.learn_attr(&attr(7, 1), known.mark());
    assert_eq!(known.attr(Ino(7)), None);
    known.extend(since_boot().saturating_sub(LEASE_USED), known.mark(), false);
    assert_eq!(known.attr(Ino(7)), None);
    known.extend(since_boot(), known.mark(), false);
    assert_eq!(known.attr(Ino(7)), Some(attr(7, 1)));
    known.empty();
    known.attached();
    known.extend(since_boot(), known.mark(), false);
    assert_eq!(known.attr(Ino(7)), None);
}

#[test]
fn an_answer_asked_for_before_metad_counts_our_leases_is_not_cached() {
    let known = holding();
    known.empty();
    let mark = known.mark();
    known.learn_attr(&attr(7, 1), known.mark());
    known.attached();
    known.learn_attr(&attr(8, 1), mark);
    known.extend(since_boot(), mark, false);
    known.learn_attr(&attr(9, 1), known.mark());
    assert_eq!(known.attr(Ino(9)), None, "the extension was asked for before");
    known.extend(since_boot(), known.mark(), false);
    assert_eq!(known.attr(Ino(9)), Some(attr(9, 1)));
    assert!(known.attr(Ino(7)).is_none() && known.attr(Ino(8)).is_none());
}

#[test]
fn an_answer_recalled_while_it_is_asked_for_is_not_cached() {
    let known = holding();
    let mark = known.mark();
    known.recall(&[Ino(7), DIR]);
    known.learn_attr(&attr(7, 1), mark);
    known.learn_name(DIR, b"name", Some(Ino(7)), mark);
    assert!(known.attr(Ino(7)).is_none() && known.name(DIR, b"name").is_none());
    let mark = known.mark();
    known.learn_attr(&attr(7, 2), mark);
    known.learn_name(DIR, b"name", Some(Ino(7)), mark);
    assert_eq!(known.name(DIR, b"name"), Some(Ok(attr(7, 2))));
    known.recall(&[DIR]);
    assert!(known.name(DIR, b"name").is_none() && known.attr(Ino(7)).is_some());
}

#[test]
fn a_change_of_ours_is_known_from_its_answer_if_that_is_leased() {
    let known = holding();
    known.learn_name(DIR, b"new", None, known.mark());
    known.learn_name(DIR, b"other", None, known.mark());
    known.learn_attr(&attr(1, 1), known.mark());
    let ops = [create(b"new", 7)];
    let mark = known.change(&ops);
    assert!(known.name(DIR, b"new").is_none() && known.attr(DIR).is_none());
    let replies = [OpReply::Attr(attr(7, 1))];
    known.changed(mark, &ops, &replies, Some(&[attr(1, 2)]), &[]);
    assert_eq!(known.name(DIR, b"new"), Some(Ok(attr(7, 1))));
    assert_eq!(known.name(DIR, b"other"), Some(Err(FsError::NotFound)), "it was not touched");
    assert_eq!(known.attr(DIR), Some(attr(1, 2)));

    let ops = [create(b"more", 8)];
    let mark = known.change(&ops);
    known.changed(mark, &ops, &[OpReply::Attr(attr(8, 1))], None, &[]);
    assert!(known.name(DIR, b"more").is_none() && known.attr(Ino(8)).is_none() && known.attr(DIR).is_none());
}

/// Renames `a` to `b`.
fn rename() -> Op {
    let (name, new_name) = (b"a".to_vec(), b"b".to_vec());
    Op::Rename { parent: DIR, name, new_parent: DIR, new_name, mode: RenameMode::Replace, released: None, seen: None }
}

#[test]
fn an_answer_that_a_later_change_of_ours_overtook_is_not_cached() {
    let known = holding();
    let first = [rename()];
    let mark = known.change(&first);
    let second = [create(b"c", 9)];
    known.change(&second);
    let moved = OpReply::Renamed { moved: attr(7, 1), replaced: None, orphaned: false };
    known.changed(mark, &first, &[moved], Some(&[attr(1, 5)]), &[]);
    assert_eq!(known.attr(DIR), None);
    assert!(known.name(DIR, b"a").is_none() && known.name(DIR, b"b").is_none());
}

/// Another client has just made the second name.
#[test]
fn a_name_that_stayed_because_the_other_one_led_to_the_same_inode_is_not_absent() {
    let known = holding();
    let ops = [rename()];
    let mark = known.change(&ops);
    known.changed(mark, &ops, &[OpReply::Done], Some(&[attr(1, 2)]), &[]);
    assert_eq!(known.name_state(DIR, b"a"), NameState::Unknown);
    assert_eq!(known.name_state(DIR, b"b"), NameState::Unknown);
}

/// An answer may lack an operation that was done before the question and sent while the answer was under way.
#[test]
fn an_answer_shows_whether_a_change_of_ours_was_under_way_meanwhile() {
    let known = holding();
    let before = known.mark();
    let change = [Op::SetAttr { ino: Ino(7), change: wire::attr::AttrChange::default() }];
    let changing = known.change(&change);
    assert!(known.was_changed_here(Ino(7), before) && !known.was_changed_here(Ino(8), before));
    let between = known.mark();
    assert!(!known.was_changed_here(Ino(7), between), "it is not sent yet, and still shown");
    known.changed(changing, &change, &[OpReply::Attr(attr(7, 2))], None, &[]);
    assert!(known.was_changed_here(Ino(7), between) && !known.was_changed_here(Ino(7), known.mark()));
}

/// All names of a directory that was made here are known.
#[test]
fn a_file_made_while_its_directory_was_changed_is_not_absent() {
    let known = holding();
    let dir = Ino(2);
    let make = |parent, name: &[u8], ino, node| {
        let (mode, umask, uid, gid) = (0o755, 0, 0, 0);
        [Op::Create { parent, name: name.to_vec(), ino: Ino(ino), node, mode, umask, uid, gid }]
    };
    let made = make(DIR, b"dir", dir.0, NewInode::Directory);
    let mark = known.change(&made);
    known.changed(mark, &made, &[OpReply::Attr(attr(2, 1))], Some(&[attr(1, 2)]), &[]);
    assert_eq!(known.name_state(dir, b"a"), NameState::Absent);
    let first = make(dir, b"a", 8, NewInode::Regular);
    let mark = known.change(&first);
    known.change(&make(dir, b"b", 9, NewInode::Regular));
    known.changed(mark, &first, &[OpReply::Attr(attr(8, 1))], Some(&[attr(2, 3)]), &[]);
    assert_eq!(known.name_state(dir, b"a"), NameState::Unknown);
}

/// Others ask about the directory in which it is made: nothing more is done to it here, and it still has to be sent to
/// metad.
#[test]
fn an_inode_made_here_stays_unknown_to_metad_though_others_ask() {
    let known = holding();
    let made = Pinned { attrs: vec![attr(7, 1)], made: Some(Ino(7)), names: Vec::new() };
    known.state.lock().pin(1, made);
    assert!(known.is_ahead_in(Ino(7)) && known.is_delegated(&[Ino(7)]));
    known.recall(&[DIR, Ino(7)]);
    assert!(!known.is_delegated(&[Ino(7)]));
    assert!(known.is_ahead_in(Ino(7)) && known.is_made_here(Ino(7)));
    known.state.lock().unpin(1, &[Ino(7)], &[], Now::here());
    assert!(!known.is_ahead_in(Ino(7)));
}

/// A batch makes a file and commits its content, and comes back without leases, but with a delegation on the new file.
#[test]
fn attributes_from_before_a_commit_are_not_used_once_the_commit_is_acknowledged() {
    let known = holding();
    known.state.lock().pin(1, Pinned { attrs: vec![attr(7, 1)], made: Some(Ino(7)), names: Vec::new() });
    let ops = [create(b"file", 7)];
    let mark = known.change(&ops);
    let committed = InodeAttr { size: 25, ..attr(7, 2) };
    known.changed(mark, &ops, &[OpReply::Attr(attr(7, 1))], None, &[Ino(7)]);
    known.state.lock().unpin(1, &[Ino(7)], &[], Now::here());
    assert_eq!(known.attr(Ino(7)), Some(attr(7, 1)), "the open file adds what is not committed");
    known.follow_commit(&committed);
    assert_eq!(known.attr(Ino(7)), None, "metad is asked");
    known.learn_attr(&committed, known.mark());
    known.follow_commit(&attr(7, 1));
    assert_eq!(known.attr(Ino(7)), Some(committed), "an older commit changes nothing");
}

#[test]
fn a_conflict_copy_makes_cached_listings_forgotten() {
    let known = holding();
    let listed = Arc::new(Listed { parent: DIR, entries: Vec::new(), end: true });
    known.learn_page(PAGE, &listed, Vec::new(), known.mark());
    assert!(known.page(PAGE).is_some());
    let copy = ConflictCopy { ino: Ino(9), parent: DIR, name: b"f.conflict".to_vec() };
    let reply = OpReply::Committed { attr: attr(7, 2), appended_at: None, conflict: Some(copy), chunk_extents: 1 };
    let mark = known.change(&[]);
    known.changed(mark, &[], &[reply], None, &[]);
    assert!(known.page(PAGE).is_none());
}

#[test]
fn a_recall_is_acknowledged_when_the_kernel_believes_nothing_of_it_any_more() {
    let known = holding();
    known.learn_attr(&attr(7, 1), known.mark());
    assert_eq!(known.recall(&[Ino(7)]), None, "nothing was given to it");
    known.learn_attr(&attr(8, 1), known.mark());
    assert_eq!(known.believe_attr(&attr(8, 2)), Duration::ZERO, "it is not what is known");
    assert_eq!(known.believe_attr(&attr(8, 1)), KERNEL_TRUST);
    assert!(known.recall(&[Ino(8)]).is_some_and(|at| at > Instant::now() + BELIEF_MARGIN));
    known.learn_attr(&attr(8, 2), known.mark());
    assert_eq!(known.believe_attr(&attr(8, 2)), Duration::ZERO, "it is contended");
    known.extend(since_boot(), known.mark(), true);
    known.learn_attr(&attr(9, 1), known.mark());
    assert_eq!(known.believe_attr(&attr(9, 1)), KERNEL_TRUST_ALONE);
    assert!(known.company().is_some_and(|at| at > Instant::now() + KERNEL_TRUST_ALONE / 2));
}

/// An answer from the time of a change here may be of before it, and nothing is recalled for a session's own change: others
/// may see the change before its answer is here.
#[test]
fn what_is_being_changed_here_is_not_learned_until_the_change_has_ended() {
    let known = holding();
    let ops = [create(b"new", 7)];
    let changing = known.change(&ops);
    known.learn_attr(&attr(1, 1), known.mark());
    known.learn_name(DIR, b"new", None, known.mark());
    assert!(known.attr(DIR).is_none() && known.name(DIR, b"new").is_none());
    let later = known.change(&[create(b"more", 8)]);
    known.changed(changing, &ops, &[], None, &[]);
    known.learn_attr(&attr(1, 2), known.mark());
    assert!(known.attr(DIR).is_none(), "another change is under way");
    known.changed(later, &[create(b"more", 8)], &[], None, &[]);
    known.learn_attr(&attr(1, 3), known.mark());
    assert_eq!(known.attr(DIR), Some(attr(1, 3)));
}

#[test]
fn the_kernel_believes_that_a_name_is_absent_only_where_nobody_else_is_at_work() {
    let known = holding();
    known.learn_name(DIR, b"name", None, known.mark());
    assert_eq!(known.believe_name(DIR, b"name", None), Duration::ZERO);
    known.delegated(&[DIR], known.mark());
    assert_eq!(known.believe_name(DIR, b"name", None), KERNEL_TRUST);
    known.share(&[DIR]);
    assert_eq!(known.believe_name(DIR, b"name", None), Duration::ZERO);
    known.extend(since_boot(), known.mark(), true);
    assert_eq!(known.believe_name(DIR, b"name", None), KERNEL_TRUST_ALONE);
}

#[test]
fn the_kernel_believes_nothing_of_what_metad_gave_no_lease_on() {
    let known = holding();
    known.note_crowded(Ino(7));
    known.learn_attr(&attr(7, 1), known.mark());
    assert_eq!(known.believe_attr(&attr(7, 1)), Duration::ZERO);
    assert_eq!(known.attr(Ino(7)), Some(attr(7, 1)), "it is known all the same");
}

/// Whoever has content of a file that is not committed asks about it soon after its lease was taken.
#[test]
fn a_delegation_counts_as_long_after_a_while_and_at_once_on_what_was_made_here() {
    let known = holding();
    known.delegated(&[Ino(7)], known.mark());
    assert!(known.is_delegated(&[Ino(7)]) && !known.is_long_delegated(Ino(7)));
    let later = Now { awake: Now::here().awake + Duration::from_secs(2), ..Now::here() };
    known.delegated(&[Ino(7)], known.mark());
    assert!(known.with(|state, _| state.is_long_delegated(Ino(7), later)), "one that is renewed keeps its age");
    known.share(&[Ino(7)]);
    assert!(!known.with(|state, _| state.is_long_delegated(Ino(7), later)), "it has ended");
    let ops = [create(b"new", 8)];
    let mark = known.change(&ops);
    known.changed(mark, &ops, &[OpReply::Attr(attr(8, 1))], Some(&[attr(1, 2)]), &[Ino(8)]);
    assert!(known.is_long_delegated(Ino(8)));
}

/// The kernel moves what it believes of a name with the name.
#[test]
fn a_recall_of_the_directory_to_which_a_name_was_moved_waits_for_what_the_kernel_believes_of_the_name() {
    let known = holding();
    let new_dir = Ino(2);
    known.note_moved(DIR, new_dir);
    assert_eq!(known.recall(&[new_dir]), None, "it believes nothing");
    known.learn_found(DIR, b"name", &attr(7, 1), known.mark());
    assert_eq!(known.believe_name(DIR, b"name", Some(Ino(7))), KERNEL_TRUST);
    known.note_moved(DIR, new_dir);
    assert!(known.recall(&[new_dir]).is_some_and(|at| at > Instant::now()));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// metad answers a question; the answer is under way.
    Ask,
    /// An answer arrives.
    Arrive(usize),
    /// Another session changes the inode: metad recalls it first.
    Recall,
    /// This session begins a change, metad applies it, or its answer arrives.
    Begin,
    Apply,
    Finish {
        leased: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Ask),
        (0_usize..4).prop_map(Step::Arrive),
        Just(Step::Recall),
        Just(Step::Begin),
        Just(Step::Apply),
        any::<bool>().prop_map(|leased| Step::Finish { leased }),
    ];
    prop::collection::vec(step, 0..60)
}

/// One inode at metad, and the messages between metad and a session.
#[derive(Default)]
struct Exchange {
    version: u64,
    answers: Vec<(Mark, u64)>,
    /// A change of ours that is under way, and the version that it has made.
    changing: Option<(Mark, Option<u64>)>,
}

impl Exchange {
    fn take(&mut self, known: &Known, step: Step) {
        let ops = [Op::SetAttr { ino: Ino(7), change: wire::attr::AttrChange::default() }];
        match step {
            Step::Ask => self.answers.push((known.mark(), self.version)),
            Step::Arrive(index) if index < self.answers.len() => {
                let (mark, version) = self.answers.remove(index);
                known.learn_attr(&attr(7, version), mark);
            }
            Step::Recall => {
                known.recall(&[Ino(7)]);
                self.version += 1;
            }
            Step::Begin if self.changing.is_none() => self.changing = Some((known.change(&ops), None)),
            Step::Apply => {
                if let Some((_, made @ None)) = &mut self.changing {
                    self.version += 1;
                    *made = Some(self.version);
                }
            }
            Step::Finish { leased } => {
                if let Some((mark, Some(made))) = self.changing {
                    let leased = leased.then_some(&[][..]);
                    known.changed(mark, &ops, &[OpReply::Attr(attr(7, made))], leased, &[]);
                    self.changing = None;
                }
            }
            Step::Arrive(_) | Step::Begin => {}
        }
    }
}

proptest! {
    /// Guards I2.
    #[test]
    fn no_old_answer_is_used_however_answers_recalls_and_changes_overtake_each_other(steps in steps()) {
        let (known, mut exchange) = (holding(), Exchange::default());
        for step in steps {
            exchange.take(&known, step);
            let answered = known.attr(Ino(7)).map(|attr| attr.version.0);
            prop_assert!(answered.is_none_or(|version| version == exchange.version), "{answered:?}");
        }
    }
}
