//! What programs have done and the answers they got, and what must be true because of these.
//!
//! Times are those of the calls. A write may be missing at the end, or from what is read, only if a program asked for
//! that: it overwrote the write later, cut the file, or removed its last name. That call must not have returned before
//! the write, or the opening of the file for it, began.

use crate::content::Piece;
use crate::leases::Leases;
use crate::names::Names;
use crate::truth::{Conflict, Truth};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;
use wire::ids::Ino;
use wire::op::Name;

/// A write and its result.
#[derive(Clone, Debug)]
pub struct Write {
    /// The client that wrote.
    pub client: usize,
    /// The file.
    pub ino: Ino,
    /// The offset; `None` for the end of the file.
    pub at: Option<u64>,
    /// The number of its pieces.
    pub pieces: u32,
    /// When the opening of the file began.
    pub opened: Instant,
    /// When the call began.
    pub begun: Instant,
    /// When the call returned, if it has.
    pub returned: Option<Instant>,
    /// When `fsync` confirmed that the write is durable.
    pub durable: Option<Instant>,
    /// When `close` confirmed that others see the write.
    pub closed: Option<Instant>,
    /// Whether the write was in the file itself, not in a conflict copy, when its writer got the answer that it is
    /// durable.
    pub in_place: bool,
    /// Nothing is promised about it any more: its client died before it was stored.
    pub lost: bool,
}

/// A call that removes a name, or cuts a file.
#[derive(Clone, Debug)]
pub struct Destroyer {
    /// The client that called.
    pub client: usize,
    /// The file, if it is known.
    pub of: Option<Ino>,
    /// When it returned, if it has.
    pub returned: Option<Instant>,
}

/// Everything that programs did.
#[derive(Default)]
pub struct History {
    /// Writes by their numbers.
    pub writes: BTreeMap<u32, Write>,
    /// What was done to names.
    pub names: Names,
    removers: BTreeMap<(Ino, Name), Vec<Destroyer>>,
    cutters: BTreeMap<Ino, Vec<Destroyer>>,
    /// Clients that died, or were cut off: what they had closed may appear later, or beside the file.
    pub troubled: BTreeSet<usize>,
    /// Clients that died.
    pub crashed: BTreeSet<usize>,
    /// The owners that believe to hold a lock.
    pub holders: BTreeMap<Ino, Vec<(usize, u64)>>,
    /// Violations that were found.
    pub problems: Vec<String>,
    /// Number of acts that were done, for the trace.
    pub acts: u64,
}

/// Returns the name that a program gave, if this one was derived from it because others were first.
fn original(name: &[u8]) -> Name {
    let text = String::from_utf8_lossy(name);
    text.split(".conflict-").next().unwrap_or_default().as_bytes().to_vec()
}

/// A call under way that destroys something.
pub struct Begun(Place, usize);

enum Place {
    Name((Ino, Name)),
    File(Ino),
}

impl History {
    /// Notes the beginning of a call that removes a name.
    pub fn removes(&mut self, client: usize, (parent, name): (Ino, &[u8]), of: Option<Ino>) -> Begun {
        let place = (parent, name.to_vec());
        let calls = self.removers.entry(place.clone()).or_default();
        calls.push(Destroyer { client, of, returned: None });
        Begun(Place::Name(place), calls.len() - 1)
    }

    /// Notes the beginning of a call that cuts a file.
    pub fn cuts(&mut self, client: usize, ino: Ino) -> Begun {
        let calls = self.cutters.entry(ino).or_default();
        calls.push(Destroyer { client, of: Some(ino), returned: None });
        Begun(Place::File(ino), calls.len() - 1)
    }

    /// Notes that the call has returned.
    pub fn returned(&mut self, Begun(place, index): Begun) {
        let calls = match place {
            Place::Name(name) => self.removers.get_mut(&name),
            Place::File(ino) => self.cutters.get_mut(&ino),
        };
        if let Some(call) = calls.and_then(|calls| calls.get_mut(index)) {
            call.returned = Some(Instant::now());
        }
    }

    /// Notes a violation.
    pub fn problem(&mut self, text: String) {
        if self.problems.len() < 20 {
            self.problems.push(text);
        }
    }

    fn was_cut(&self, write: &Write) -> bool {
        let calls = self.cutters.get(&write.ino).into_iter().flatten();
        calls.clone().any(|call| call.returned.is_none_or(|returned| returned >= write.begun))
    }

    /// Returns whether another write may have overwritten this one.
    fn was_overwritten(&self, number: u32, write: &Write) -> bool {
        let over = |(other, by): (&u32, &Write)| {
            let overlaps = write.at.is_none() || by.at == write.at;
            *other != number
                && by.ino == write.ino
                && by.at.is_some()
                && overlaps
                && by.returned.is_none_or(|returned| returned >= write.begun)
        };
        self.writes.iter().any(over)
    }

    /// Returns whether the file was removed as its programs wanted, in whatever order with the write.
    fn was_removed(&self, write: &Write, truth: &Truth) -> bool {
        if !truth.was_made(write.ino) {
            // The inode got another number when the journal was replayed, and may have been removed by that.
            let calls = self.removers.values().flatten();
            return calls.clone().any(|call| call.returned.is_none_or(|returned| returned >= write.opened));
        }
        // Its own program has removed it, although others have preserved the file by writing to it.
        let unwanted = |call: &Destroyer| {
            let later = call.returned.is_none_or(|returned| returned >= write.opened);
            (call.client, call.of) == (write.client, Some(write.ino)) && later
        };
        if self.removers.values().flatten().any(unwanted) {
            return true;
        }
        truth.removals.iter().filter(|removal| removal.ino == write.ino).any(|removal| {
            let confirmed = write.durable.or(write.closed);
            // The file was open without a name.
            let before = confirmed.is_some_and(|confirmed| removal.at <= confirmed);
            let place = (removal.name.0, original(&removal.name.1));
            let calls = self.removers.get(&place).into_iter().flatten();
            let wanted = |call: &&Destroyer| {
                call.client == removal.client && call.returned.is_none_or(|returned| returned >= write.opened)
            };
            before || calls.clone().any(|call| wanted(&call))
        })
    }

    /// Returns whether every reader from `since` on must find a write in its file: before that, its writer got the
    /// answer that it is durable, or that others see it, and others have waited for it.
    fn is_to_be_seen(&self, (number, write): (u32, &Write), since: Instant, known: (&Truth, &Leases)) -> bool {
        let (truth, leases) = known;
        let durable = write.in_place && write.durable.is_some_and(|at| at < since);
        let beside =
            || truth.conflicts.iter().any(|conflict| (conflict.ino, conflict.client) == (write.ino, write.client));
        let closed = || {
            let before = |at: Instant| at < since && leases.are_held(write.client, at);
            write.closed.is_some_and(before) && !write.lost && !beside()
        };
        (durable || closed()) && !self.was_cut(write) && !self.was_overwritten(number, write)
    }

    /// Returns whether a client may see only its own changes to a file: it was cut off since, and has not sent all of
    /// them.
    fn works_alone(&self, client: usize, ino: Ino, since: Instant, leases: &Leases) -> bool {
        let alone = |at: Option<Instant>| at.is_none_or(|at| at < since && !leases.are_held(client, at));
        let cut = || {
            let mut cutters = self.cutters.get(&ino).into_iter().flatten();
            cutters.any(|call| call.client == client && alone(call.returned))
        };
        self.troubled.contains(&client) && (cut() || self.names.were_given_by(client, ino, alone))
    }

    /// I5: checks the size that a program gets for a file when it asks at `since`. It must cover what others were
    /// answered before is there.
    pub fn check_size(&mut self, (client, ino, size): (usize, Ino, u64), since: Instant, known: (&Truth, &Leases)) {
        if self.works_alone(client, ino, since, known.1) {
            return;
        }
        let seen =
            |(number, write): &(&u32, &Write)| write.ino == ino && self.is_to_be_seen((**number, write), since, known);
        let (mut end, mut appended) = (0, 0);
        for (_, write) in self.writes.iter().filter(seen) {
            let bytes = u64::from(write.pieces) * crate::content::PIECE as u64;
            match write.at {
                Some(at) => end = end.max(at + bytes),
                None => appended += bytes,
            }
        }
        if size < end.max(appended) {
            let problem =
                format!("client {client} gets a size of {size} bytes for inode {ino} with {}", end.max(appended));
            self.problem(problem);
        }
    }

    /// I5: checks what a program reads of a file that it has opened at `opened`. It must have what others were answered
    /// before is there.
    pub fn check_read(
        &mut self,
        (client, ino): (usize, Ino),
        opened: Instant,
        pieces: &[Option<Piece>],
        known: (&Truth, &Leases),
    ) {
        if self.works_alone(client, ino, opened, known.1) {
            return;
        }
        let mut stale = Vec::new();
        for (number, write) in self.writes.iter().filter(|(_, write)| write.ino == ino) {
            if !self.is_to_be_seen((*number, write), opened, known) {
                continue;
            }
            let shown = |index: u32| self.shows(client, (*number, write), index, pieces);
            if let Some(index) = (0..write.pieces).find(|index| !shown(*index)) {
                stale.push(format!(
                    "client {client} does not read piece {index} of write {number} (client {}) in inode {ino}",
                    write.client
                ));
            }
        }
        stale.into_iter().for_each(|problem| self.problem(problem));
    }

    fn shows(&self, client: usize, (number, write): (u32, &Write), index: u32, pieces: &[Option<Piece>]) -> bool {
        let wanted = Piece { write: number, index };
        let Some(at) = write.at else { return pieces.contains(&Some(wanted)) || self.has_own_over(client, write.ino) };
        let found = pieces.get(at as usize / crate::content::PIECE + index as usize).copied().flatten();
        // The reader's own writes lie over it until they are committed.
        found == Some(wanted) || found.is_some_and(|found| self.writes[&found.write].client == client)
    }

    /// Returns whether the client has written to the file itself, at an offset or behind an older end, without the
    /// answer yet that others see it: such a write may lie over what others have appended.
    fn has_own_over(&self, client: usize, ino: Ino) -> bool {
        let over = |write: &Write| write.at.is_some() || (write.durable.is_none() && write.closed.is_none());
        self.writes.values().any(|write| write.client == client && write.ino == ino && over(write))
    }

    /// I6, I7, I8: checks at the end that every write that was confirmed as safe is somewhere.
    pub fn check_durable(&mut self, truth: &Truth, everywhere: &BTreeMap<Piece, u32>) {
        let mut missing = Vec::new();
        for (number, write) in &self.writes {
            let promised = write.durable.is_some() || write.closed.is_some();
            if !promised || write.lost || self.was_cut(write) || self.was_overwritten(*number, write) {
                continue;
            }
            let gone = (0..write.pieces).find(|index| {
                let piece = Piece { write: *number, index: *index };
                !everywhere.contains_key(&piece)
            });
            if let Some(index) = gone
                && !self.was_removed(write, truth)
            {
                missing.push(format!("piece {index} of write {number} is nowhere: {write:?}"));
            }
        }
        missing.into_iter().for_each(|problem| self.problem(problem));
    }

    /// I1, I8: checks that nothing is twice in one file.
    pub fn check_once(&mut self, truth: &Truth, path: &str, counts: &BTreeMap<Piece, u32>) {
        for (piece, count) in counts {
            let Some(write) = self.writes.get(&piece.write) else {
                self.problem(format!("{path} has piece {piece:?}, which nobody wrote"));
                continue;
            };
            // If a session ended while the answer to a batch was lost, the next session sends the batch again.
            let expired = truth.sessions_ended(write.client) > 0 && !self.crashed.contains(&write.client);
            // The content of a journal's picture may have arrived before the client died: then it arrives again, as a
            // conflict copy.
            let beside = write.at.is_none() && path.contains(".conflict-") && self.crashed.contains(&write.client);
            if *count > 1 && !expired && !beside {
                let problem = format!("{path} has {piece:?} {count} times: {write:?}");
                self.problem(problem);
            }
        }
    }

    /// Checks that no client is in conflict with itself, nor with those that wrote elsewhere.
    pub fn check_conflicts(&mut self, truth: &Truth) {
        for conflict in &truth.conflicts {
            if !self.crashed.contains(&conflict.client) && !self.may_conflict(truth, conflict) {
                let problem =
                    format!("client {} is in conflict with itself over inode {}", conflict.client, conflict.ino);
                self.problem(problem);
            }
        }
    }

    /// Returns whether another client may have written to the same bytes, or moved them.
    fn may_conflict(&self, truth: &Truth, conflict: &Conflict) -> bool {
        let changed = truth.changed_by.get(&conflict.ino);
        let by_others = changed.is_some_and(|by| by.iter().any(|client| *client != conflict.client));
        let of_file = || self.writes.values().filter(|write| write.ino == conflict.ino);
        let appended = of_file().any(|write| write.at.is_none());
        let met = of_file()
            .filter(|write| write.client == conflict.client)
            .any(|own| of_file().any(|other| other.client != conflict.client && other.at == own.at));
        by_others && (appended || met || self.cutters.contains_key(&conflict.ino))
    }
}
