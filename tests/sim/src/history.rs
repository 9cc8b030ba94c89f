//! What programs have done and were told, and what must be so because of it.
//!
//! Times are those of the calls. A write may be missing at the end, or from what is read, only where a program asked for
//! that: it wrote over it later, cut the file, or took its last name away, and was not done with that before the write, or
//! the opening of the file for it, began.

use crate::content::Piece;
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
    /// When it returned, if it has.
    pub returned: Option<Instant>,
}

/// Everything that programs did.
#[derive(Default)]
pub struct History {
    /// Writes by their numbers.
    pub writes: BTreeMap<u32, Write>,
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

/// A call under way that destroys something.
pub struct Begun(Place, usize);

enum Place {
    Name((Ino, Name)),
    File(Ino),
}

impl History {
    /// A call begins that takes a name away.
    pub fn removes(&mut self, client: usize, parent: Ino, name: &[u8]) -> Begun {
        let place = (parent, name.to_vec());
        let calls = self.removers.entry(place.clone()).or_default();
        calls.push(Destroyer { client, returned: None });
        Begun(Place::Name(place), calls.len() - 1)
    }

    /// A call begins that cuts a file.
    pub fn cuts(&mut self, client: usize, ino: Ino) -> Begun {
        let calls = self.cutters.entry(ino).or_default();
        calls.push(Destroyer { client, returned: None });
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
            *other != number && by.ino == write.ino && by.at.is_some() && overlaps && by.begun >= write.begun
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
        truth.removals.iter().filter(|removal| removal.ino == write.ino).any(|removal| {
            let told = write.durable.or(write.closed);
            // Its program had the file open without a name.
            let before = told.is_some_and(|told| removal.at <= told);
            let calls = self.removers.get(&removal.name).into_iter().flatten();
            let wanted = |call: &&Destroyer| {
                call.client == removal.client && call.returned.is_none_or(|returned| returned >= write.opened)
            };
            before || calls.clone().any(|call| wanted(&call))
        })
    }

    /// I5: what a program reads of a file that it has opened at `opened` has what others were told before is there.
    pub fn check_read(&mut self, client: usize, ino: Ino, opened: Instant, pieces: &[Option<Piece>]) {
        let mut stale = Vec::new();
        for (number, write) in self.writes.iter().filter(|(_, write)| write.ino == ino && write.in_place) {
            let told = write.durable.is_some_and(|at| at < opened);
            if !told || self.was_cut(write) || self.was_overwritten(*number, write) {
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

    fn has_own_over(&self, client: usize, ino: Ino) -> bool {
        self.writes.values().any(|write| write.client == client && write.ino == ino && write.at.is_some())
    }

    /// I6, I7, I8: at the end, everything that a program was told is safe is somewhere.
    pub fn check_kept(&mut self, truth: &Truth, everywhere: &BTreeMap<Piece, u32>) {
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
            if *count > 1 && !expired {
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
