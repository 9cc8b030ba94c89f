//! What programs have done and were told, and what must be so because of it.
//!
//! Times are those of the calls. A write may be missing at the end, or from what is read, only where a program asked for
//! that: it wrote over it later, cut the file, or took its last name away, and was not done with that before the write, or
//! the opening of the file for it, began.

use crate::content::Piece;
use crate::leases::Leases;
use crate::names::Names;
use crate::truth::{Conflict, Truth};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;
use wire::ids::Ino;
use wire::op::Name;

/// A write and what became of it.
#[derive(Clone, Debug)]
pub struct Write {
    /// By which client.
    pub client: usize,
    /// Into which file.
    pub ino: Ino,
    /// Where; `None` at the end.
    pub at: Option<u64>,
    /// Pieces of it.
    pub pieces: u32,
    /// When the opening of the file began.
    pub opened: Instant,
    /// When it began.
    pub begun: Instant,
    /// When the call returned, if it has.
    pub returned: Option<Instant>,
    /// When `fsync` said that it is durable.
    pub durable: Option<Instant>,
    /// When `close` said that others see it.
    pub closed: Option<Instant>,
    /// It was in the file itself when its writer was told that it is durable: not in a conflict copy.
    pub in_place: bool,
    /// Nothing is promised of it any more: its client died before it had been stored.
    pub lost: bool,
}

/// A call that takes a name away, or cuts a file.
#[derive(Clone, Debug)]
pub struct Destroyer {
    /// By which client.
    pub client: usize,
    /// The file, where it is known which.
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
    /// Clients that died, or were cut off: what they had closed may come later, or beside.
    pub troubled: BTreeSet<usize>,
    /// Clients that died.
    pub crashed: BTreeSet<usize>,
    /// Who believes to hold a lock.
    pub holders: BTreeMap<Ino, Vec<(usize, u64)>>,
    /// What must not be.
    pub problems: Vec<String>,
    /// Acts that were done, in order, for the trace.
    pub acts: u64,
}

/// The name that a program gave, if this one was made of it because others were first.
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
    /// A call begins that takes a name away.
    pub fn removes(&mut self, client: usize, (parent, name): (Ino, &[u8]), of: Option<Ino>) -> Begun {
        let place = (parent, name.to_vec());
        let calls = self.removers.entry(place.clone()).or_default();
        calls.push(Destroyer { client, of, returned: None });
        Begun(Place::Name(place), calls.len() - 1)
    }

    /// A call begins that cuts a file.
    pub fn cuts(&mut self, client: usize, ino: Ino) -> Begun {
        let calls = self.cutters.entry(ino).or_default();
        calls.push(Destroyer { client, of: Some(ino), returned: None });
        Begun(Place::File(ino), calls.len() - 1)
    }

    /// It has returned: what it was to do is done.
    pub fn returned(&mut self, Begun(place, index): Begun) {
        let calls = match place {
            Place::Name(name) => self.removers.get_mut(&name),
            Place::File(ino) => self.cutters.get_mut(&ino),
        };
        if let Some(call) = calls.and_then(|calls| calls.get_mut(index)) {
            call.returned = Some(Instant::now());
        }
    }

    /// Something is wrong.
    pub fn problem(&mut self, text: String) {
        if self.problems.len() < 20 {
            self.problems.push(text);
        }
    }

    fn was_cut(&self, write: &Write) -> bool {
        let calls = self.cutters.get(&write.ino).into_iter().flatten();
        calls.clone().any(|call| call.returned.is_none_or(|returned| returned >= write.begun))
    }

    /// Whether another write may have gone over this one.
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

    /// Whether its file was removed as its programs wanted, in whatever order with the write.
    fn was_removed(&self, write: &Write, truth: &Truth) -> bool {
        if !truth.was_made(write.ino) {
            // It got another number when the journal was replayed, by which it was removed or not.
            let calls = self.removers.values().flatten();
            return calls.clone().any(|call| call.returned.is_none_or(|returned| returned >= write.opened));
        }
        // Its own program has removed it, though others have kept the file by writing to it.
        let unwanted = |call: &Destroyer| {
            let later = call.returned.is_none_or(|returned| returned >= write.opened);
            (call.client, call.of) == (write.client, Some(write.ino)) && later
        };
        if self.removers.values().flatten().any(unwanted) {
            return true;
        }
        truth.removals.iter().filter(|removal| removal.ino == write.ino).any(|removal| {
            let told = write.durable.or(write.closed);
            // Its program had the file open without a name.
            let before = told.is_some_and(|told| removal.at <= told);
            let place = (removal.name.0, original(&removal.name.1));
            let calls = self.removers.get(&place).into_iter().flatten();
            let wanted = |call: &&Destroyer| {
                call.client == removal.client && call.returned.is_none_or(|returned| returned >= write.opened)
            };
            before || calls.clone().any(|call| wanted(&call))
        })
    }

    /// Whether everybody who looks from `since` on finds a write in its file: its writer was told before that it is durable,
    /// or that others see it and they have waited for it.
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

    /// Whether a client may see only what it has done to a file itself: it was cut off since, and has not sent it all.
    fn works_alone(&self, client: usize, ino: Ino, since: Instant, leases: &Leases) -> bool {
        let alone = |at: Option<Instant>| at.is_none_or(|at| at < since && !leases.are_held(client, at));
        let cut = || {
            let mut cutters = self.cutters.get(&ino).into_iter().flatten();
            cutters.any(|call| call.client == client && alone(call.returned))
        };
        self.troubled.contains(&client) && (cut() || self.names.were_given_by(client, ino, alone))
    }

    /// I5: the size that a program is told of a file when it looks at it at `since` covers what others were told before is
    /// there.
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
            let problem = format!("client {client} is told {size} bytes of inode {ino} with {}", end.max(appended));
            self.problem(problem);
        }
    }

    /// I5: what a program reads of a file that it has opened at `opened` has what others were told before is there.
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
        // What the reader has written itself lies over it until it is committed.
        found == Some(wanted) || found.is_some_and(|found| self.writes[&found.write].client == client)
    }

    /// Whether the client has written to the file itself, at a place or behind an older end, and was not told yet that others
    /// see it: that may lie over what others have appended.
    fn has_own_over(&self, client: usize, ino: Ino) -> bool {
        let over = |write: &Write| write.at.is_some() || (write.durable.is_none() && write.closed.is_none());
        self.writes.values().any(|write| write.client == client && write.ino == ino && over(write))
    }

    /// I6, I7, I8: at the end, everything that a program was told is safe is somewhere.
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

    /// I1, I8: nothing is twice in one file.
    pub fn check_once(&mut self, truth: &Truth, path: &str, counts: &BTreeMap<Piece, u32>) {
        for (piece, count) in counts {
            let Some(write) = self.writes.get(&piece.write) else {
                self.problem(format!("{path} has piece {piece:?}, which nobody wrote"));
                continue;
            };
            // A batch whose session ended while its answer was lost is sent again by the next session.
            let expired = truth.sessions_ended(write.client) > 0 && !self.crashed.contains(&write.client);
            // What a journal's picture shows may have arrived before the client died: then it comes again, beside it.
            let beside = write.at.is_none() && path.contains(".conflict-") && self.crashed.contains(&write.client);
            if *count > 1 && !expired && !beside {
                let problem = format!("{path} has {piece:?} {count} times: {write:?}");
                self.problem(problem);
            }
        }
    }

    /// Nobody is in conflict with itself, nor with those who wrote elsewhere.
    pub fn check_conflicts(&mut self, truth: &Truth) {
        for conflict in &truth.conflicts {
            if !self.crashed.contains(&conflict.client) && !self.may_conflict(truth, conflict) {
                let problem =
                    format!("client {} is in conflict with itself over inode {}", conflict.client, conflict.ino);
                self.problem(problem);
            }
        }
    }

    /// Whether another client may have written to the same bytes, or moved them.
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
