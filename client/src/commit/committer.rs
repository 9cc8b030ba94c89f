//! Making sealed content part of its file: the owner of what is on its way from memory to metad.
//!
//! *Sealing* cuts written bytes into blocks, which are uploaded at once in the background while the application writes
//! on. *Committing* makes everything that was sealed part of the file, in the order of sealing (I7), with the version
//! it is based on (I6). Content that could not be committed stays, and the next flush tries again.
//!
//! The committer does not know what else was done here and must reach metad first: a flush sends the write-back queue
//! first, and the queue commits content in its turn.

use super::beside;
use super::fragments::Fragments;
use super::outcome::{Outcome, Pages, Way, judge};
use super::plan::{Draft, Plan};
use super::uploader::Uploader;
use super::window::Window;
use crate::OnConflict;
use crate::error::unexpected_reply;
use crate::file::sealed::{To, Uploading};
use crate::file::state::{FileState, Landing, Next, Unsaved};
use crate::journal::Journal;
use crate::kernel::Kernel;
use crate::known::Known;
use crate::known::leased::LeasedSession;
use crate::meta::session::{BatchFailed, SpareIno};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use wire::FsError;
use wire::attr::{InodeAttr, Timestamp};
use wire::ids::{ChunkIndex, Ino};
use wire::limits::UPLOAD_FRESH_MS;
use wire::op::{ConflictPolicy, Name, Op, OpReply};

/// A chunk in more pieces than this is compacted.
const COMPACT_EXTENTS: u32 = 1024;

/// Returns whether an error says that there is no room, and that there will be none until something is removed.
pub(crate) fn is_full(error: FsError) -> bool {
    matches!(error, FsError::NoSpace | FsError::QuotaExceeded)
}

/// Commits content.
pub(crate) struct Committer {
    session: Arc<LeasedSession>,
    uploader: Arc<Uploader>,
    window: Window,
    journal: Option<Arc<Journal>>,
    kernel: Arc<Kernel>,
    /// Chunks in many pieces.
    fragments: Arc<Fragments>,
    /// Where names led when they were last looked up.
    known: Arc<Known>,
    on_conflict: OnConflict,
    host: String,
}

/// The parts that a committer works with.
pub(crate) struct Parts {
    pub session: Arc<LeasedSession>,
    pub uploader: Arc<Uploader>,
    pub journal: Option<Arc<Journal>>,
    pub kernel: Arc<Kernel>,
    pub fragments: Arc<Fragments>,
    pub known: Arc<Known>,
}

impl Committer {
    /// Creates a committer that holds up to `window_bytes` of uncommitted content and names conflict copies after this
    /// host.
    pub fn new(parts: Parts, window_bytes: u64, on_conflict: OnConflict, host: String) -> Self {
        let Parts { session, uploader, journal, kernel, fragments, known } = parts;
        let window = Window::new(window_bytes);
        Self { session, uploader, window, journal, kernel, fragments, known, on_conflict, host }
    }

    /// Returns the count of uncommitted bytes.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Returns the uploader.
    pub fn uploader(&self) -> &Arc<Uploader> {
        &self.uploader
    }

    /// Uploads blocks that are written from end to end. Called after each write.
    pub fn seal_full(&self, file: &FileState) {
        file.seal_full(|packed, to| self.uploader.begin(packed, to));
    }

    /// Seals everything that is written. Small content may share a block with content of other files, if `to` says so.
    /// Returns the number of the last sealed piece, also if it was sealed before.
    pub fn seal_rest(&self, file: &FileState, to: To) -> Option<u64> {
        file.seal_rest(to, |packed, to| self.uploader.begin(packed, to))
    }

    /// Commits what was sealed up to this number. On return it is durable (I7). The caller must hold the file's flush
    /// lock, and must not drop this future: a commit whose answer is not taken in would look like another session's
    /// change.
    ///
    /// # Errors
    /// `Stale` when some of the content is elsewhere than in the file ([`Stopped::Elsewhere`]); otherwise why the rest
    /// of it stays.
    pub async fn commit_upto(&self, file: &FileState, last: u64) -> Result<(), Stopped> {
        let mut result = Ok(());
        while file.has_sealed_upto(last) {
            match self.commit_next(file, last).await {
                Ok(Ok(())) => {}
                // The remaining content is committed all the same.
                Ok(Err(error)) => result = Err(error),
                // The file was removed meanwhile, and its content is about to be dropped.
                Err(_) if file.is_unreadable() => return Ok(()),
                Err(error) => return Err(Stopped::Stays(error)),
            }
        }
        file.note_committed(result);
        result.map_err(Stopped::Elsewhere)
    }

    /// Waits for the uploads of the next blocks and commits them together. Returns what to report to their writer.
    ///
    /// # Errors
    /// Returns why the content stays.
    async fn commit_next(&self, file: &FileState, last: u64) -> Result<Result<(), FsError>, FsError> {
        let mut plan = self.gather(file, last).await?;
        let mut is_first = true;
        let (answer, copy) = loop {
            let session = self.session.id();
            let (policy, copy) = self.policy(file, false).await?;
            let mut ops = vec![plan.op(file.ino(), policy)];
            ops.extend(self.journaled_content(file, &plan));
            match self.session.first_until_answered(ops).await {
                // I4: the session has ended meanwhile, and with it the inode number for a copy.
                Err(FsError::Invalid) if self.session.id() != session => {}
                // metad has other keys by now: what it could not check is sent again.
                Err(FsError::NotPermitted) if is_first && self.session.tickets().are_needed() => {
                    is_first = false;
                    plan = self.gather(file, last).await?;
                }
                answer => break (answer, copy),
            }
        };
        let way = Way::AtOnce { unlinked: file.attr().nlink == 0 };
        let outcome = judge(&plan, answer.and_then(committed), way);
        match &outcome {
            Outcome::Stays(error) => return Err(*error),
            Outcome::Beside => self.make_beside(file, &plan, None).await?,
            Outcome::Dropped => {
                tracing::warn!(ino = %file.ino(), "the file has no name, and was given up with the session: the content is dropped");
            }
            _ => {}
        }
        let report = outcome.report();
        self.take_outcome(file, &plan, outcome, copy);
        Ok(report)
    }

    /// Returns the next blocks up to number `last` as one commit, once they are stored.
    ///
    /// # Errors
    /// Returns why one is not stored; another attempt is under way.
    pub async fn gather(&self, file: &FileState, last: u64) -> Result<Plan, FsError> {
        let mut draft = Draft::default();
        while let Some(Next { packed, uploading }) = file.sealed_at(draft.pieces(), last) {
            if !draft.takes(&packed) {
                break;
            }
            let Uploading { mut outcome, since } = uploading;
            // An attempt that ended without an outcome has also failed.
            let ended = outcome.wait_for(Option::is_some).await.map_or(None, |stored| stored.clone());
            let stored = match ended.unwrap_or(Err(FsError::Io)) {
                // I10: the daemons may have deleted the block since, if this machine slept or metad was away for long.
                Ok(Some(stored)) if is_stale(since) || self.uploader.lacks_receipt(&stored) => {
                    self.uploader.renew(&stored).await.map(|()| Some(stored))
                }
                stored => stored,
            };
            match stored {
                Ok(stored) => draft.add(&packed, stored.as_ref()),
                Err(error) => {
                    // The next flush finds a new attempt under way.
                    file.upload_again(draft.pieces(), self.uploader.begin(&packed, To::OwnBlock));
                    return Err(error);
                }
            }
        }
        Ok(draft.finish(file.basis(Instant::now())))
    }

    /// Returns what metad is to remember of the journal with a commit that does not come from it, if the rest of the
    /// content may be in the journal.
    fn journaled_content(&self, file: &FileState, plan: &Plan) -> Option<Op> {
        let journal = self.journal.as_ref()?;
        file.has_more_than(plan.pieces()).then(|| {
            journal.note_content();
            Op::JournaledContent { journal: journal.id(), file: plan.journaled(file.ino()) }
        })
    }

    /// Returns what is appended to a name when another session was first.
    fn conflict_suffix(&self) -> Name {
        format!(".conflict-{}-{}", self.host, Timestamp::now().secs).into_bytes()
    }

    /// Returns the name of the file that is made beside `name` because another session was first.
    pub fn conflict_name(&self, name: &[u8]) -> Name {
        beside::conflict_name(name, self.conflict_suffix())
    }

    /// Returns what to do on a conflict, with an inode number for the copy. Content that is sent `late` is never
    /// refused: its writer may have been answered already that all is well.
    ///
    /// # Errors
    /// Returns why there is no number.
    pub async fn policy(&self, file: &FileState, late: bool) -> Result<(ConflictPolicy, Option<SpareIno>), FsError> {
        Ok(match self.on_conflict {
            OnConflict::Fail if !late => (ConflictPolicy::Fail, None),
            OnConflict::LastWriter => (ConflictPolicy::LastWriter, None),
            OnConflict::Copy | OnConflict::Fail => {
                let spare = self.session.spare_ino().await?;
                let suffix = self.conflict_suffix();
                debug_assert_ne!(spare.ino, file.ino(), "numbers are never used twice");
                (ConflictPolicy::Copy { ino: spare.ino, suffix }, Some(spare))
            }
        })
    }

    /// Applies the outcome of a commit. A file that goes beside must exist by now.
    pub fn take_outcome(&self, file: &FileState, plan: &Plan, outcome: Outcome, copy: Option<SpareIno>) {
        let (ino, pages, chunk_extents) = (file.ino(), outcome.pages(plan), outcome.chunk_extents());
        if let Some(unused) = copy.filter(|_| outcome.leaves_spare()) {
            self.session.return_spare(unused);
        }
        if let Some(copy) = outcome.new_copy() {
            tracing::warn!(
                %ino,
                copy = %String::from_utf8_lossy(&copy.name),
                "another session wrote the same bytes first; this content was kept as a conflict copy"
            );
        }
        if let Pages::Follow(from, to) = pages {
            self.kernel.follows(ino, from, to);
        }
        let made = outcome.made();
        if let Some(released) = take(outcome, file, plan, Instant::now()) {
            self.window.release(released);
        }
        let is_overtaken = made.is_some_and(|made| made < file.known_version());
        if pages == Pages::Old || is_overtaken {
            self.kernel.spoils_pages(ino);
        }
        if chunk_extents > COMPACT_EXTENTS
            && let Some(write) = plan.writes().last()
        {
            self.fragments.add(ino, ChunkIndex::of(write.file_off), chunk_extents);
        }
    }

    /// Notes that content could not be committed, and stays with the file: the next `fsync` or `close` gets the error.
    /// Returns whether nobody is left to ask for the content.
    #[must_use]
    pub fn content_failed(&self, file: &FileState, error: FsError) -> bool {
        if is_full(error) {
            self.window.fail(error);
        }
        let Unsaved { released, unheard } = file.note_unsaved(error);
        if released > 0 {
            self.window.release(released);
        }
        unheard
    }

    /// Drops uncommitted content: either nobody can read it any more, or its writer has been answered that it is
    /// refused.
    pub async fn discard(&self, file: &FileState) {
        let _one = file.begin_flush().await;
        self.window.release(file.drop_uncommitted());
    }

    /// Puts the content of a file that others have removed into a new file beside where it was, together with what
    /// metad is to remember of the journal. Later writes go to the new file, too.
    ///
    /// # Errors
    /// Returns why this attempt failed; nothing was done in that case.
    pub async fn make_beside(&self, file: &FileState, plan: &Plan, journaled: Option<&Op>) -> Result<(), FsError> {
        let place = self.known.place_of(file.ino());
        let (mut parent, name) = place.unwrap_or((self.session.root(), format!("inode-{}", file.ino()).into_bytes()));
        let mut name = self.conflict_name(&name);
        let attr = file.attr();
        loop {
            let ino = self.session.next_ino().await?;
            let made = super::plan::beside((parent, &name), ino, &attr, plan.writes());
            // It is stamped like everything that is sent late: it does not wait for another session that has something
            // to send, too.
            let at = self.session.stamp();
            let made = made.map(|op| Op::Deferred { at, expect: Vec::new(), op: Box::new(op) });
            match self.session.submit_batch(made.into_iter().chain(journaled.cloned()).collect()).await {
                Ok(_) => {
                    tracing::warn!(
                        ino = %file.ino(),
                        copy = %String::from_utf8_lossy(&name),
                        "the file was removed elsewhere while it was written here; what was written is kept"
                    );
                    file.divert(ino, Instant::now());
                    return Ok(());
                }
                Err(BatchFailed { error: FsError::Exists, .. }) => name = self.conflict_name(&name),
                // There is a new session by now.
                Err(BatchFailed { error: FsError::SessionExpired, .. }) => {}
                Err(BatchFailed { error: FsError::NotFound | FsError::NotADirectory, .. })
                    if parent != self.session.root() =>
                {
                    parent = self.session.root();
                }
                Err(BatchFailed { error, .. }) => return Err(error),
            }
        }
    }
}

/// Returns the reply to a commit.
///
/// # Errors
/// `Io` for a reply to anything else.
pub(crate) fn committed(reply: OpReply) -> Result<OpReply, FsError> {
    if matches!(reply, OpReply::Committed { .. }) { Ok(reply) } else { Err(unexpected_reply()) }
}

/// Applies the outcome of a commit to the file's state. A file that goes beside must exist by now. Returns how many bytes
/// less the window counts; `None` when all of the content stays.
pub(super) fn take(outcome: Outcome, file: &FileState, plan: &Plan, now: Instant) -> Option<u64> {
    Some(match outcome {
        Outcome::InFile { attr, appended_at, only_ours, .. } => {
            file.take_landing(landing(plan, attr, appended_at, only_ours, None), plan.pieces(), now)
        }
        Outcome::InNewCopy { attr, copy, .. } => {
            file.take_landing(landing(plan, attr, None, false, Some(copy.ino)), plan.pieces(), now)
        }
        Outcome::InSameCopy { copy } => file.take_diverted(copy.ino, plan.pieces(), now),
        Outcome::Dropped | Outcome::Beside => file.drop_sealed(plan.pieces()),
        Outcome::CopyGone => {
            file.end_diversion();
            return None;
        }
        Outcome::Stays(_) => return None,
    })
}

fn landing(
    plan: &Plan,
    attr: InodeAttr,
    appended_at: Option<u64>,
    only_ours: bool,
    conflict: Option<Ino>,
) -> Landing<'_> {
    let basis = plan.basis();
    Landing {
        attr,
        base: basis.base,
        writes: plan.writes(),
        append_from: basis.append_from,
        appended_at,
        only_ours,
        conflict,
    }
}

/// Why some content of a file was not committed into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stopped {
    /// All of it is committed, but some of it elsewhere than into the file.
    Elsewhere(FsError),
    /// Uncommitted content stays.
    Stays(FsError),
}

/// Returns whether an upload was so long ago that daemons may have deleted the block.
fn is_stale(since: SystemTime) -> bool {
    // A clock that was set back proves nothing.
    since.elapsed().map_or(true, |age| age > Duration::from_millis(UPLOAD_FRESH_MS))
}
