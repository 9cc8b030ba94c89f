//! What the metads have agreed on, seen as it is applied: which client removed, cut and committed what, and whether
//! each batch and each inode number occurred once (I1, I3, I4).

use metad::fs::{Command, CommandReply, Refused, Stamped};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;
use wire::ids::{BatchSeq, Ino, SessionId};
use wire::op::{BatchReply, Name, Op, OpReply};

/// The removal of an inode's last name.
#[derive(Clone, Debug)]
pub struct Removal {
    /// The inode.
    pub ino: Ino,
    /// When it was applied.
    pub at: Instant,
    /// The client that removed it.
    pub client: usize,
    /// The name that led there.
    pub name: (Ino, Name),
}

/// A conflict copy that was made.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// The file.
    pub ino: Ino,
    /// The client that wrote the copy.
    pub client: usize,
}

/// Everything that was applied.
#[derive(Default)]
pub struct Truth {
    /// The client of each session.
    clients: BTreeMap<SessionId, usize>,
    ended: BTreeSet<SessionId>,
    replies: BTreeMap<(SessionId, BatchSeq), BatchReply>,
    made: BTreeSet<Ino>,
    /// Inodes that have lost their last name.
    pub removals: Vec<Removal>,
    /// Conflict copies.
    pub conflicts: Vec<Conflict>,
    /// Files, and the clients that have changed their content.
    pub changed_by: BTreeMap<Ino, BTreeSet<usize>>,
    /// The session that took a lock last, by inode and owner.
    pub locked_by: BTreeMap<(Ino, u64), SessionId>,
    /// Violations that were found.
    pub problems: Vec<String>,
}

impl Truth {
    /// Looks at a command that was applied.
    pub fn see(&mut self, stamped: &Stamped, reply: &CommandReply) {
        match (&stamped.command, reply) {
            (Command::OpenSession(opening), CommandReply::Session(id)) => {
                let client = opening.purpose.strip_prefix("client-").and_then(|number| number.parse().ok());
                self.clients.insert(*id, client.unwrap_or(usize::MAX));
                self.ended.extend(opening.resumes);
            }
            (Command::CloseSessions(ids), _) => self.ended.extend(ids.iter().copied()),
            (Command::Batches(batches), CommandReply::Batches(outcomes)) => {
                for ((session, batch), outcome) in batches.iter().zip(outcomes) {
                    self.see_batch(*session, batch.seq, &batch.ops, outcome);
                }
            }
            _ => {}
        }
    }

    /// Returns the client of a session.
    fn client(&self, session: SessionId) -> usize {
        self.clients.get(&session).copied().unwrap_or(usize::MAX)
    }

    /// Returns whether an inode of this number was made.
    #[must_use]
    pub fn was_made(&self, ino: Ino) -> bool {
        self.made.contains(&ino)
    }

    /// Returns whether a session has ended.
    #[must_use]
    pub fn has_ended(&self, session: SessionId) -> bool {
        self.ended.contains(&session)
    }

    /// Returns how many sessions of a client have ended, by its own request or by silence.
    #[must_use]
    pub fn sessions_ended(&self, client: usize) -> usize {
        self.ended.iter().filter(|session| self.client(**session) == client).count()
    }

    fn see_batch(&mut self, session: SessionId, seq: BatchSeq, ops: &[Op], outcome: &Result<BatchReply, Refused>) {
        let Ok(reply) = outcome else { return };
        // I1: a request that is repeated gets the first answer again, and changes nothing.
        if let Some(first) = self.replies.get(&(session, seq)) {
            if first != reply {
                self.problems.push(format!("batch {seq:?} of session {session} was answered in two ways"));
            }
            return;
        }
        self.replies.insert((session, seq), reply.clone());
        let Ok(replies) = reply else { return };
        for (op, reply) in ops.iter().zip(replies) {
            self.see_op(session, op.plain(), reply);
        }
    }

    fn see_op(&mut self, session: SessionId, op: &Op, reply: &OpReply) {
        let client = self.client(session);
        let mut removed = |ino, parent: &Ino, name: &Name| {
            let name = (*parent, name.clone());
            self.removals.push(Removal { ino, at: Instant::now(), client, name });
        };
        match (op, reply) {
            (Op::Create { ino, .. }, _) if !self.made.insert(*ino) => {
                self.problems.push(format!("inode {ino} was made twice"));
            }
            (Op::Unlink { parent, name, .. }, OpReply::Removed { attr, .. }) if attr.nlink == 0 => {
                removed(attr.ino, parent, name);
            }
            (Op::Rename { new_parent, new_name, .. }, OpReply::Renamed { replaced: Some(attr), .. })
                if attr.nlink == 0 =>
            {
                removed(attr.ino, new_parent, new_name);
            }
            (Op::Commit { ino, .. }, OpReply::Committed { conflict, .. }) => {
                self.changed_by.entry(*ino).or_default().insert(client);
                if let Some(copy) = conflict {
                    self.conflicts.push(Conflict { ino: *ino, client });
                    self.changed_by.entry(copy.ino).or_default().insert(client);
                }
            }
            (Op::SetAttr { ino, change }, _) if change.size.is_some() => {
                self.changed_by.entry(*ino).or_default().insert(client);
            }
            (Op::SetLock { ino, lock }, _) => {
                self.locked_by.insert((*ino, lock.owner), session);
            }
            _ => {}
        }
    }
}
