//! What a session answers without metad: attributes, names and listings on which it holds read leases.
//!
//! metad says with an answer whether the session holds leases on it, recalls them before anybody changes what was
//! answered, and waits for the acknowledgement. So an answer is cached unless any of it was recalled, or changed here,
//! since it was asked for. It is used while the leases hold, which keep-alives extend. Operations under delegations
//! that are not sent yet ([`crate::queue`]) are *pinned* here.
//!
//! - [`Known`] is one lock around one [`state::State`], which is pure: `leases`, `attrs`, `names`, `listings`, `pins`
//!   and `walks` are its parts. `now` is passed in.
//! - [`leased::LeasedSession`] asks and changes, and has the answers cached here.
//! - [`held_locks::HeldLocks`] are the advisory locks that the session holds.
//!
//! The lock is a leaf: nothing else is locked while it is held.

mod attrs;
pub mod held_locks;
mod learning;
pub mod leased;
mod leases;
mod listings;
mod names;
mod pinning;
mod pins;
pub mod state;
pub mod walks;

pub use leases::Mark;
pub use listings::{Listed, PageKey};
pub use names::Place;
pub use pins::Pinned;

use crate::ordered::{Ordered, Rank};
use state::State;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use walks::Next;
use wire::FsError;
use wire::attr::InodeAttr;
use wire::ids::{Ino, Version};
use wire::op::{ExtentPage, ListedDir, Op, OpReply};
use wire::sys::since_boot;

/// The most inodes, names and recalls that are remembered.
const INODES_MAX: usize = 65_536;

/// The time.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// By [`since_boot`], which goes on while the machine sleeps: leases count by it.
    pub boot: Duration,
    /// By a clock that stands still while the machine sleeps: the kernel counts by it.
    pub awake: Instant,
}

impl Now {
    /// Returns the machine's time.
    #[must_use]
    pub fn here() -> Self {
        Self { boot: since_boot(), awake: Instant::now() }
    }
}

/// Where a name leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameState {
    /// To this inode.
    Leads(Ino),
    /// Nowhere.
    Absent,
    /// Not known.
    Unknown,
}

/// Counts down by one. True when it was the last.
pub(crate) fn count_down(counts: &mut HashMap<Ino, usize>, ino: Ino) -> bool {
    let count = counts.get_mut(&ino).expect("counted when it began");
    *count -= 1;
    let last = *count == 0;
    if last {
        counts.remove(&ino);
    }
    last
}

/// What this session knows under leases, and from its own operations.
pub struct Known {
    state: Ordered<State>,
}

impl Default for Known {
    fn default() -> Self {
        Self { state: Ordered::new(Rank::Known, State::default()) }
    }
}

/// A question for directories ahead of a walk, until it is dropped.
pub struct AskingAhead<'a> {
    known: &'a Known,
    dir: Ino,
    _answered: watch::Sender<()>,
}

impl Drop for AskingAhead<'_> {
    fn drop(&mut self) {
        self.known.state.lock().walks.end(self.dir);
    }
}

impl Known {
    /// Calls `work` with all that is known, while nothing of it changes. It must not take another lock.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut State, Now) -> R) -> R {
        work(&mut self.state.lock(), Now::here())
    }

    /// Returns a mark to take before a question.
    pub fn mark(&self) -> Mark {
        self.state.lock().leases.mark()
    }

    /// Returns a mark to take before a question, and whether this session is at work: then it asks for delegations,
    /// too.
    pub fn before_question(&self) -> (Mark, bool) {
        self.with(|state, now| (state.leases.mark(), state.is_at_work(now)))
    }

    /// Notes that something is changed here.
    pub fn note_work(&self) {
        self.with(|state, now| state.note_work(now));
    }

    /// Returns whether something was changed here a moment ago.
    pub fn is_at_work(&self) -> bool {
        self.with(|state, now| state.is_at_work(now))
    }

    /// Notes that metad has begun to count our leases. An answer that was asked for before is not cached.
    pub fn attached(&self) {
        self.state.lock().leases.attach();
    }

    /// Extends the leases from when this was asked (a time of [`since_boot`], and a mark taken with it).
    pub fn extend(&self, asked: Duration, mark: Mark, alone: bool) {
        self.with(|state, now| state.leases.extend(asked, mark, alone, now));
    }

    /// Returns how often metad may have gone on without this session: each time, others may have changed anything.
    pub fn lapses(&self) -> u64 {
        self.with(|state, now| state.leases.lapses(now))
    }

    /// Drops all leases: nothing is used or cached until [`Known::attached`]. Returns until when the kernel may believe
    /// something.
    pub fn empty(&self) -> Option<Instant> {
        self.state.lock().empty()
    }

    /// Gives all leases back to metad, and remains attached. Returns when to acknowledge.
    pub fn recall_all(&self) -> Option<Instant> {
        self.state.lock().recall_all()
    }

    /// Recalls these inodes, which others are about to change. Returns when to acknowledge: when nothing is believed of
    /// them here.
    pub fn recall(&self, inos: &[Ino]) -> Option<Instant> {
        self.with(|state, now| state.recall(inos, now))
    }

    /// Ends the delegations on these inodes. Cached answers remain valid.
    pub fn share(&self, inos: &[Ino]) {
        self.state.lock().share(inos);
    }

    /// Notes that another session arrives. Returns when to acknowledge: when nothing is believed here for long.
    pub fn company(&self) -> Option<Instant> {
        self.state.lock().company()
    }
}

/// Changes and answers.
impl Known {
    /// Begins a change by this session. Answers that are asked for from now on are not cached until [`Known::changed`].
    pub fn change(&self, ops: &[Op]) -> Mark {
        self.state.lock().change(ops)
    }

    /// Ends a change that was carried out, or has failed (no replies), or whose outcome is unknown.
    pub fn changed(
        &self,
        mark: Mark,
        ops: &[Op],
        replies: &[OpReply],
        leased: Option<&[InodeAttr]>,
        delegated: &[Ino],
    ) {
        self.with(|state, now| state.changed(mark, ops, replies, leased, (delegated, now)));
    }

    /// Notes that metad gave no lease on an inode, because others were changing it.
    pub fn note_crowded(&self, ino: Ino) {
        self.with(|state, now| {
            if state.leases.hold(now) {
                state.leases.note_crowded(ino, now);
            }
        });
    }

    /// Notes that a name was moved here from a directory to another one.
    pub fn note_moved(&self, parent: Ino, new_parent: Ino) {
        self.with(|state, now| state.note_moved(parent, new_parent, now));
    }

    /// Notes delegations that came with an answer that was asked for at `mark`.
    pub fn delegated(&self, inos: &[Ino], mark: Mark) {
        self.with(|state, now| state.leases.delegate(inos, mark, &[], now));
    }

    /// Caches attributes that were asked for at `mark`, with a lease.
    pub fn learn_attr(&self, attr: &InodeAttr, mark: Mark) {
        self.state.lock().learn_attr(attr, mark);
    }

    /// Caches where a name leads, and the attributes of the inode.
    pub fn learn_found(&self, parent: Ino, name: &[u8], attr: &InodeAttr, mark: Mark) {
        let mut state = self.state.lock();
        state.learn_attr(attr, mark);
        state.learn_name(parent, name, Some(attr.ino), mark);
    }

    /// Caches where a name leads, or that it is absent.
    pub fn learn_name(&self, parent: Ino, name: &[u8], ino: Option<Ino>, mark: Mark) {
        self.state.lock().learn_name(parent, name, ino, mark);
    }

    /// Caches part of a listing, with its names, attributes if it has them, and where content is stored.
    pub fn learn_page(&self, key: PageKey, listed: &Arc<Listed>, contents: Vec<(Ino, ExtentPage)>, mark: Mark) {
        self.with(|state, now| {
            if !contents.is_empty() {
                state.walks.note_contents((key.dir, key.after), now.awake);
            }
            state.learn_page(key, listed, contents, mark);
        });
    }

    /// Applies attributes after a commit of content from the queue.
    pub fn follow_commit(&self, committed: &InodeAttr) {
        self.state.lock().follow_commit(committed);
    }

    /// Unpins the operation of the entry of this number: metad has acknowledged it, and its answer is applied.
    pub fn unpin(&self, number: u64, inos: &[Ino], names: &[Place]) {
        self.with(|state, now| state.unpin(number, inos, names, now));
    }
}

/// Questions.
impl Known {
    /// Returns attributes, if they are known now.
    pub fn attr(&self, ino: Ino) -> Option<InodeAttr> {
        self.with(|state, now| state.attr(ino, now))
    }

    /// Returns what a name leads to, or that it is absent, if that is known now.
    pub fn name(&self, parent: Ino, name: &[u8]) -> Option<Result<InodeAttr, FsError>> {
        self.with(|state, now| {
            let found = state.name(parent, name, now)?;
            if let Ok(attr) = &found {
                state.places.put((parent, name.to_vec()), attr.ino);
            }
            Some(found)
        })
    }

    /// Returns whether this session was changing an inode at any time since it was asked about at `mark`.
    pub fn was_changed_here(&self, ino: Ino, mark: Mark) -> bool {
        self.state.lock().leases.is_changed_here_since(ino, mark)
    }

    /// Returns where a name leads, if that is known now.
    pub fn name_state(&self, parent: Ino, name: &[u8]) -> NameState {
        self.with(|state, now| state.name_state(parent, name, now))
    }

    /// Returns part of a listing, if all of it is known now.
    pub fn page(&self, key: PageKey) -> Option<Listed> {
        self.with(|state, now| state.page(key, now))
    }

    /// Returns whether this session alone may change all of these inodes, and no other session has leases on them.
    pub fn is_delegated(&self, inos: &[Ino]) -> bool {
        self.with(|state, now| inos.iter().all(|ino| state.is_delegated(*ino, now)))
    }

    /// Returns whether this session alone may change an inode, and no other one has content of it to commit.
    pub fn is_long_delegated(&self, ino: Ino) -> bool {
        self.with(|state, now| state.is_long_delegated(ino, now))
    }

    /// Returns whether the inode was made here and metad does not know it yet.
    pub fn is_made_here(&self, ino: Ino) -> bool {
        self.state.lock().pins.is_made_here(ino)
    }

    /// Returns whether metad does not know all names of a directory that this session knows.
    pub fn is_ahead_in(&self, dir: Ino) -> bool {
        let state = self.state.lock();
        state.pins.has_names_in(dir) || state.pins.is_made_here(dir)
    }

    /// Returns for how long the kernel may believe these attributes, which it is given now.
    pub fn believe_attr(&self, attr: &InodeAttr) -> Duration {
        self.with(|state, now| state.believe_attr(attr, now))
    }

    /// Returns for how long the kernel may believe that a name leads to an inode, or is absent, when it is given that
    /// now.
    pub fn believe_name(&self, parent: Ino, name: &[u8], ino: Option<Ino>) -> Duration {
        self.with(|state, now| state.believe_name(parent, name, ino, now))
    }
}

/// What is remembered without leases: hints, and what this session did itself.
impl Known {
    /// Notes where names lead, as was seen now.
    pub fn note_places(&self, places: impl IntoIterator<Item = (Place, Ino)>) {
        let mut state = self.state.lock();
        for (place, ino) in places {
            state.places.put(place, ino);
        }
    }

    /// Notes that a name leads nowhere, or that it is unknown where.
    pub fn forget_place(&self, parent: Ino, name: &[u8]) {
        self.state.lock().places.forget(&(parent, name.to_vec()));
    }

    /// Returns where a name led when it was last seen: a hint, never an answer.
    pub fn led_to(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
        self.state.lock().places.get(&(parent, name.to_vec()))
    }

    /// Returns a name of an inode, as it was last seen.
    pub fn place_of(&self, ino: Ino) -> Option<Place> {
        self.state.lock().places.of(ino)
    }

    /// Returns where the content of this version of a small file is stored, if the file was open or listed lately.
    pub fn content(&self, ino: Ino, version: Version) -> Option<ExtentPage> {
        self.with(|state, now| {
            // Attributes of what was changed here are known without leases, but others may go on then.
            let holds = state.leases.hold(now) || state.pins.is_ours_alone(ino);
            if holds { state.attrs.content(ino, version) } else { None }
        })
    }

    /// Remembers where the content of a small file is stored.
    pub fn remember_content(&self, ino: Ino, page: ExtentPage) {
        self.state.lock().attrs.put_content(ino, page);
    }

    /// Returns attributes of a directory as they were when it was removed here. POSIX lets a process whose working
    /// directory it is, or that has it open, go on asking.
    pub fn removed_dir(&self, ino: Ino) -> Option<InodeAttr> {
        self.state.lock().attrs.removed_dir(ino)
    }

    /// Notes that something was removed here.
    pub fn note_removed(&self, attr: &InodeAttr) {
        self.state.lock().attrs.note_removed(attr);
    }
}

/// Walks.
impl Known {
    /// Notes that a directory was listed from its start.
    pub(crate) fn walk_listed(&self, listed: &Listed) {
        self.with(|state, now| state.walks.listed(listed, now.awake));
    }

    /// Returns what a walk that comes to this directory now will need.
    pub(crate) fn walk_from(&self, dir: Ino) -> Option<Next> {
        self.with(|state, now| state.walks.from(dir, now.awake))
    }

    /// Notes the answer to what was asked for ahead.
    pub(crate) fn walk_answered(&self, asked: Next, tree: &[ListedDir]) {
        self.state.lock().walks.answered(asked, tree);
    }

    /// Returns what a walk that comes to this directory needs next.
    pub(crate) fn walk_on(&self, dir: Ino) -> Option<Next> {
        self.state.lock().walks.go_on(dir)
    }

    /// Begins to ask for a directory in the background, unless that has begun before.
    pub(crate) fn begin_asking_ahead(&self, dir: Ino) -> Option<AskingAhead<'_>> {
        let answered = self.state.lock().walks.begin(dir)?;
        Some(AskingAhead { known: self, dir, _answered: answered })
    }

    /// Waits for the answer if a directory is being asked for in the background. Returns whether it was.
    pub(crate) async fn wait_asked_ahead(&self, dir: Ino) -> bool {
        let asking = self.state.lock().walks.asking(dir);
        let Some(mut answered) = asking else { return false };
        // Nothing is ever sent: the sender is dropped when there is an answer.
        let _ = answered.changed().await;
        true
    }

    /// Returns whether it makes sense to ask for a delegation on this inode.
    pub(crate) fn may_ask_for(&self, ino: Ino) -> bool {
        self.with(|state, now| state.walks.may_ask_for(ino, now.awake))
    }

    /// Notes that a delegation is about to be asked for. True when there were several within a short time.
    pub(crate) fn is_one_of_many(&self) -> bool {
        self.with(|state, now| state.walks.is_one_of_many(now.awake))
    }

    /// Notes that a name of this directory was not known. True when it is time to ask for all of its names, if there
    /// are at most this many.
    pub(crate) fn missed(&self, dir: Ino, names_max: u64) -> bool {
        self.with(|state, now| {
            let ours = state.pins.has_names_in(dir) || state.pins.is_made_here(dir);
            let small = state.attr(dir, now).is_some_and(|attr| attr.size <= names_max);
            !ours && small && state.walks.missed(dir, now.awake)
        })
    }

    /// Notes that a file was opened whose content is not here.
    pub(crate) fn note_opened(&self, ino: Ino) {
        self.with(|state, now| state.walks.note_opened(ino, now.awake));
    }

    /// Notes that a file was opened without knowing where its content is stored. Returns its directory when it is time to
    /// ask for that of all files in it, if there are at most this many names.
    pub(crate) fn unread(&self, ino: Ino, names_max: u64) -> Option<Ino> {
        self.with(|state, now| {
            state.walks.note_opened(ino, now.awake);
            let (dir, _) = state.places.of(ino)?;
            let ours = state.pins.has_names_in(dir) || state.pins.is_made_here(dir);
            let small = state.attr(dir, now).is_some_and(|attr| attr.size <= names_max);
            (!ours && small && state.walks.unread(dir, now.awake)).then_some(dir)
        })
    }

    /// Returns whether it is worth asking where content is stored along with this page.
    pub(crate) fn may_ask_for_contents(&self, page: PageKey) -> bool {
        self.with(|state, now| state.walks.may_ask_for_contents((page.dir, page.after), now.awake))
    }
}

#[cfg(test)]
mod known_tests;
