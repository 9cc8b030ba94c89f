//! The metadata state machine: commands in the order of the Raft log, applied to an ordered map.
//!
//! It is deterministic: it uses no clock (the leader stamps each command), no randomness, no I/O beyond the map, and no
//! order that depends on a hash map. Two replicas that apply the same commands hold the same bytes.
//!
//! - [`keys`] is the key space, [`view`] the map with changes over it, [`numbered`] the form of values that snapshots
//!   keep, [`rules`] the version of all this.
//! - One file per table, each with the preconditions of its operations: [`inode`], `dentry`, `extent`, `commit`,
//!   `xattr`, `acl`, `lock`, `orphan`, [`blockref`], [`session`], `deferred`. [`remains`] has what ended sessions leave,
//!   [`hidden`] what was cut off files, which `clearing` removes. [`uses`] finds the files of a block.
//!   [`retention`] decides which unreferenced blocks are retained, [`token`] counts the uses of join tokens, [`tickets`] has the keys of block tickets, [`cert`] remembers what was
//!   issued and revoked, [`audit`] what has happened to it. [`operator`] makes what operators ask for, unless they were
//!   revoked meanwhile.
//! - `judge` decides what a confined client may do: `subtree` knows what it may see, by `backlinks`, and `access` whose
//!   rights it has, and `walks` takes the ways from one directory to the next. `borders` is what the leader asks about it beforehand.
//! - [`read`] answers questions, [`check`] looks for contradictions, [`repair`] mends them, [`recovery`] goes on from a
//!   state of the past. `index` knows which tables follow from others.

mod access;
mod acl;
mod attr;
pub mod audit;
mod backlinks;
pub mod blockref;
pub(crate) mod borders;
pub mod cert;
pub mod cert_keys;
pub mod check;
mod clearing;
mod commit;
mod deferred;
pub(crate) mod dentry;
pub mod extent;
pub mod hidden;
mod index;
pub mod inode;
pub mod journal_keys;
pub(crate) mod judge;
pub mod keys;
pub(crate) mod lifetime;
pub(crate) mod lock;
pub mod numbered;
pub mod operator;
pub mod orphan;
pub mod read;
pub mod recovery;
pub mod remains;
pub mod repair;
pub mod retention;
pub mod rules;
pub mod session;
pub mod settings;
pub(crate) mod subtree;
pub mod tickets;
pub mod token;
pub mod token_keys;
pub mod trust;
pub mod uses;
pub mod view;
mod walks;
mod xattr;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use view::View;
use wire::FsError;
use wire::attr::Timestamp;
use wire::cert::Term;
use wire::ids::{BlockHash, Ino, SessionId, TokenId, Version};
use wire::layout::Layout;
use wire::limits::CHUNK_BYTES;
use wire::message::cert::{AuditRecord, RenewRefusal, Renewal};
use wire::message::check::CheckId;
use wire::message::enroll::EnrollRefusal;
use wire::op::{Batch, BatchReply, Op, OpFailed, OpReply};
use wire::revoked::Revoked;
use wire::ticket::TicketKey;
use wire::tls::Subject;
use wire::token::NewToken;
use wire::trust::SignedTrust;

/// The content of a Raft entry. Variants are only ever appended: old logs must replay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// First entry of a cluster.
    Init {
        /// The cluster's name.
        cluster: String,
        /// Replicas and synced replicas per block.
        replicas: u8,
        /// See `Layout::min_sync`.
        min_sync: u8,
    },
    /// Batches of any sessions, each atomic.
    Batches(Vec<(SessionId, Batch)>),
    /// A new session.
    OpenSession(session::Opening),
    /// Sessions that end because they were closed or fell silent.
    CloseSessions(Vec<SessionId>),
    /// A new block layout; refused unless its epoch is the next one.
    SetLayout(Layout),
    /// The daemons have dropped these blocks (I10).
    BlocksDropped(Vec<BlockHash>),
    /// Continue to delete what ended sessions have left, the content of removed inodes, and what was cut off others.
    Reap,
    /// Retain all blocks that something refers to now (I10).
    PinBlocks {
        /// Name of the pin.
        name: String,
        /// For how many milliseconds.
        keep_ms: u64,
    },
    /// Retain them no longer.
    ReleasePin {
        /// Name of the pin.
        name: String,
    },
    /// Delete blocks again, after a recovery.
    ResumeDeletion,
    /// Mend what a check has found, unless another check has mended something since, or this was done already.
    Repair(repair::Repairing),
    /// A place in the log at which metads compare their states. It changes nothing.
    Mark(CheckId),
    /// A new join token.
    CreateToken(NewToken),
    /// Let nobody use a join token any more.
    RevokeToken(TokenId),
    /// A newcomer uses a join token.
    UseToken(token::Use),
    /// The time of some join tokens is over, by the stamp of this.
    ExpireTokens,
    /// A newcomer uses a join token, and gets a certificate.
    Enroll(cert::Enrolling),
    /// A certificate is renewed.
    Renew(Renewal),
    /// Certificates are refused from now on.
    Revoke(cert::Revoking),
    /// Certificates are refused no more.
    Allow {
        /// Which ones.
        list: Vec<Revoked>,
        /// Who asks.
        asker: cert::Asker,
    },
    /// Set the life of certificates that are issued from now on.
    SetCertLife {
        /// Milliseconds.
        ms: u64,
        /// Who asks.
        asker: cert::Asker,
    },
    /// Record something in the audit.
    Note(AuditRecord),
    /// A change that an operator has asked for. It is not made if the operator is revoked by then.
    ByOperator {
        /// Who asks.
        asker: cert::Asker,
        /// What.
        change: operator::Change,
    },
    /// Other CAs are trusted from now on.
    SetTrust(SignedTrust),
    /// A key that signs block tickets from now on.
    AddTicketKey(TicketKey),
    /// What was cut off these files is removed, and does not count as allocated any more.
    SettleCuts(Vec<Ino>),
}

/// A command with the time at which the leader accepted it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stamped {
    /// The leader's clock.
    pub now: Timestamp,
    /// The command.
    pub command: Command,
}

/// Why a batch was not applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refused {
    /// The session is unknown or has ended.
    NoSession,
    /// The reply was acknowledged and is forgotten, or the batch's number is out of the window.
    OutOfWindow,
    /// The batches before it in its entry of the log did as much as one entry may do. It left nothing behind, and may be
    /// sent again.
    EntryFull,
}

/// The result of a command, for the node that proposed it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CommandReply {
    /// Nothing to report.
    Done,
    /// One outcome per batch.
    Batches(Vec<Result<BatchReply, Refused>>),
    /// Number of the new session.
    Session(SessionId),
    /// The command no longer fits the state and changed nothing.
    Stale,
    /// Whether each repair was made.
    Repaired(Vec<bool>),
    /// Whom the newcomer's certificate is for, or why there is none.
    Enrolled(Result<Subject, EnrollRefusal>),
    /// Whom the newcomer's certificate is for, and for how long, or why there is none.
    Issued(Result<(Subject, Term), EnrollRefusal>),
    /// For how long the renewed certificate is valid, or why there is none.
    Renewed(Result<Term, RenewRefusal>),
    /// What has become of a change to what is revoked.
    Revoked(cert::Outcome),
    /// There is no session: why.
    Failed(FsError),
}

/// What operations know besides the state.
#[derive(Clone)]
pub(crate) struct Context {
    /// The leader's time for the command; for an operation done under a delegation, the session's time for that.
    pub now: Timestamp,
    /// The leader's time in any case, or that of the newest pin if it is later. A session's time shortens no grace
    /// period.
    pub entry: Timestamp,
    /// The session that asks.
    pub session: SessionId,
    /// The directory that is the root for this session.
    pub root: Ino,
    /// Where a conflict copy goes, if the session is one of a confined client.
    pub copy_to: Option<commit::CopyTo>,
}

impl Command {
    /// Returns whether the command takes only a few look-ups, so that it may be applied where nothing may block. The sessions
    /// that are `confined` count: what they do, and what others remove from their sight or lock, takes walks upwards.
    #[must_use]
    pub fn is_light(&self, confined: &BTreeSet<SessionId>) -> bool {
        const LIGHT_OPS: usize = 8;
        const LIGHT_WRITES: usize = 64;
        let is_small = |op: &Op| {
            !matches!(op.plain(), Op::ReleaseOrphans { .. })
                && writes_of(op).is_some_and(|writes| writes <= LIGHT_WRITES)
        };
        let walks = |session: &SessionId, batch: &Batch| {
            let concerns_others =
                |op: &Op| matches!(op.plain(), Op::Unlink { .. } | Op::Rename { .. } | Op::SetLock { .. });
            batch.caller.is_some()
                || !confined.is_empty() && (confined.contains(session) || batch.ops.iter().any(concerns_others))
        };
        match self {
            Self::Batches(batches) if batches.iter().any(|(session, batch)| walks(session, batch)) => false,
            Self::Batches(batches) => {
                let mut ops = batches.iter().flat_map(|(_, batch)| &batch.ops);
                batches.iter().map(|(_, batch)| batch.ops.len()).sum::<usize>() <= LIGHT_OPS && ops.all(is_small)
            }
            // It may end another session, with all that this one holds, or follow a long path.
            Self::OpenSession(opening) => {
                opening.resumes.is_none() && opening.token.is_none() && opening.confined.is_none()
            }
            _ => false,
        }
    }

    /// Returns whether the command may end sessions.
    #[must_use]
    pub fn ends_sessions(&self) -> bool {
        match self {
            Self::CloseSessions(_) => true,
            Self::OpenSession(opening) => opening.resumes.is_some() || opening.token.is_some(),
            Self::ByOperator { change, .. } => matches!(change, operator::Change::CloseSessions(_)),
            _ => false,
        }
    }
}

/// Applies a command.
pub fn apply(view: &mut View, stamped: &Stamped) -> CommandReply {
    // What counts as done by one entry must not depend on which others are applied together with it here.
    view.begin_entry();
    let entry = retention::not_before_pins(view, stamped.now);
    let context = Context { now: stamped.now, entry, session: SessionId::default(), root: Ino::ROOT, copy_to: None };
    match &stamped.command {
        Command::Init { cluster, replicas, min_sync } => {
            settings::init(view, stamped.now, cluster, *replicas, *min_sync)
        }
        Command::Batches(batches) => {
            let outcomes = batches.iter().map(|(session, batch)| {
                if view.is_entry_full() {
                    return Err(Refused::EntryFull);
                }
                session::apply_batch(view, &context, *session, batch)
            });
            CommandReply::Batches(outcomes.collect())
        }
        Command::OpenSession(opening) => lifetime::open(view, &context, opening),
        Command::CloseSessions(sessions) => {
            for session in sessions {
                lifetime::close(view, &context, *session);
            }
            CommandReply::Done
        }
        Command::SetLayout(layout) => settings::set_layout(view, layout),
        Command::BlocksDropped(hashes) => {
            if let Some(before) = retention::deletable_before(view, stamped.now) {
                blockref::dropped(view, hashes, before);
            }
            CommandReply::Done
        }
        Command::Reap => {
            remains::remove_some(view, &context);
            orphan::reap_some(view, &context);
            clearing::remove_some(view, &context);
            CommandReply::Done
        }
        Command::PinBlocks { name, keep_ms } => retention::pin(view, (stamped.now, entry), name, *keep_ms),
        Command::ReleasePin { name } => retention::release(view, name),
        Command::ResumeDeletion => retention::resume_deletion(view),
        Command::Repair(repairing) => repair::apply(view, &context, repairing),
        Command::Mark(_) => CommandReply::Done,
        Command::CreateToken(new) => token::create(view, stamped.now, new),
        Command::RevokeToken(id) => token::revoke(view, *id),
        Command::UseToken(newcomer) => CommandReply::Enrolled(token::enroll(view, stamped.now, newcomer)),
        Command::ExpireTokens => {
            token::expire(view, stamped.now);
            CommandReply::Done
        }
        Command::Enroll(enrolling) => CommandReply::Issued(cert::enroll(view, stamped.now, enrolling)),
        Command::Renew(renewal) => CommandReply::Renewed(cert::renew(view, stamped.now, renewal)),
        Command::Revoke(revoking) => CommandReply::Revoked(cert::revoke(view, stamped.now, revoking)),
        Command::Allow { list, asker } => CommandReply::Revoked(cert::allow(view, stamped.now, list, asker)),
        Command::SetCertLife { ms, asker } => CommandReply::Revoked(cert::set_life(view, stamped.now, *ms, asker)),
        Command::Note(record) => {
            audit::add(view, record);
            CommandReply::Done
        }
        Command::SetTrust(step) if trust::add(view, step) => {
            cert::changed(view);
            CommandReply::Done
        }
        Command::SetTrust(_) => CommandReply::Stale,
        Command::ByOperator { asker, change } => operator::apply(view, stamped, asker, change),
        Command::AddTicketKey(key) => tickets::add(view, key),
        Command::SettleCuts(inos) => {
            clearing::settle(view, inos);
            CommandReply::Done
        }
    }
}

/// An operation that reads all attributes of an inode, up to 1 MiB, costs as much as this many writes.
const ATTRIBUTES_AS_WRITES: usize = 16;

/// Returns how many places of files an operation writes to, or an equivalent for other work. Returns `None` when it
/// cuts, copies or fills a range of any length: that may be as many as a file has.
pub(crate) fn writes_of(op: &Op) -> Option<usize> {
    match op.plain() {
        Op::Range { .. } | Op::CloneRange { .. } => None,
        Op::SetAttr { change, .. } => change.size.is_none().then_some(0),
        // All attributes of an inode are read.
        Op::SetXattr { .. } => Some(ATTRIBUTES_AS_WRITES),
        Op::ReleaseOrphans { inos } => Some(inos.len() * ATTRIBUTES_AS_WRITES),
        // A hole may be as long as a file.
        Op::Commit { writes, .. } => writes.iter().all(|write| write.len <= CHUNK_BYTES).then_some(writes.len()),
        _ => Some(0),
    }
}

/// Content that the batch has committed before an operation, to files that no other session had changed: each file with
/// the version that the commit made.
type Committed = BTreeSet<(Ino, Version)>;

/// Applies the operations of a batch, all or none.
fn apply_ops(view: &mut View, context: &Context, batch: &Batch, confined: Option<&session::Opening>) -> BatchReply {
    view.savepoint();
    let ops = &batch.ops;
    let mut replies = Vec::with_capacity(ops.len());
    let mut committed = Committed::new();
    let walks_of = |opening| judge::walks((context.session, opening), batch.caller.as_ref(), ops.len());
    let mut walks = confined.map(walks_of);
    for (index, op) in ops.iter().enumerate() {
        // Positions of journals come after the operations that they are about. They are small, and must not fail for
        // size.
        let is_remark = matches!(op, Op::Journaled { .. } | Op::JournaledContent { .. });
        let full = index > 0 && !is_remark && view.is_exhausted();
        let applied = match confined.zip(walks.as_mut()) {
            _ if full => Err(FsError::ArgumentTooLarge),
            None => apply_op(view, context, op, &committed),
            Some((opening, walks)) => judge::op(view, (context, opening, &mut *walks), batch.caller.as_ref(), op)
                .and_then(|(op, copy_to)| {
                    let context = Context { root: opening.root(), copy_to, ..context.clone() };
                    let reply = apply_op(view, &context, &op, &committed)?;
                    judge::applied(walks, &op, &reply);
                    Ok(reply)
                }),
        };
        match applied.and_then(|reply| if view.is_oversized() { Err(FsError::ArgumentTooLarge) } else { Ok(reply) }) {
            Ok(reply) => {
                if let OpReply::Committed { attr, conflict: None, .. } = &reply {
                    committed.insert((attr.ino, attr.version));
                }
                replies.push(reply);
            }
            Err(error) => {
                // I3: what the batch did before its failed operation is undone.
                view.rollback();
                return Err(OpFailed { index: index as u32, error });
            }
        }
    }
    Ok(replies)
}

/// Applies an operation. `before` is what the previous operations of its batch have committed.
fn apply_op(view: &mut View, context: &Context, op: &Op, before: &Committed) -> Result<OpReply, FsError> {
    match op {
        Op::Create { parent, name, ino, node, mode, umask, uid, gid } => {
            let new = dentry::New { ino: *ino, node, mode: *mode, umask: *umask, uid: *uid, gid: *gid };
            dentry::create(view, context, *parent, name, &new)
        }
        Op::Link { ino, parent, name } => dentry::link(view, context, *ino, *parent, name),
        Op::Unlink { parent, name, released } => dentry::unlink(view, context, *parent, name, *released),
        Op::Rmdir { parent, name, seen } => dentry::rmdir(view, context, (*parent, name), *seen),
        Op::Rename { parent, name, new_parent, new_name, mode, released, seen } => {
            dentry::rename(view, context, (*parent, name), (*new_parent, new_name), *mode, (*released, *seen))
        }
        Op::SetAttr { ino, change } => attr::set_attr(view, context, *ino, change),
        Op::Commit { ino, base, own, writes, append_from, mtime, clear_privileges, policy } => {
            let commit = commit::Commit {
                base: *base,
                own,
                writes,
                append_from: *append_from,
                mtime: *mtime,
                clear_privileges: *clear_privileges,
                policy,
            };
            commit::commit(view, context, *ino, &commit)
        }
        Op::Range { ino, off, len, action } => {
            extent::range_op(view, context, *ino, *off..off.saturating_add(*len), *action)
        }
        Op::CloneRange { src, src_off, dst, dst_off, len } => {
            extent::clone_range(view, context, (*src, *src_off), (*dst, *dst_off), *len)
        }
        Op::SetXattr { ino, name, value, mode, clear_sgid } => {
            xattr::set(view, context, *ino, name, value, *mode, *clear_sgid)
        }
        Op::RemoveXattr { ino, name } => xattr::remove(view, context, *ino, name),
        Op::ReleaseOrphans { inos } => {
            for ino in inos {
                orphan::release(view, context, *ino);
            }
            Ok(OpReply::Done)
        }
        Op::LeaseInos { count } => session::lease_inos(view, context, *count),
        Op::SetLock { ino, lock } => lock::set(view, context, *ino, lock),
        Op::Unlock { ino, family, owner, start, end } => {
            lock::unlock(view, context, *ino, *family, *owner, *start..*end)
        }
        Op::Accessed { ino, at } => {
            attr::accessed(view, context, *ino, *at);
            Ok(OpReply::Done)
        }
        Op::Deferred { at, expect, op } => deferred::apply(view, context, *at, expect, op),
        Op::Journaled { journal, position } => {
            deferred::journaled(view, context, *journal, position.clone(), before);
            Ok(OpReply::Done)
        }
        Op::JournaledContent { journal, file } => {
            deferred::journaled_content(view, context, *journal, file.clone(), before);
            Ok(OpReply::Done)
        }
    }
}
