//! What waits to be written, and in whose turn.
//!
//! Parties take turns by the bytes that they have written. While a client has hundreds of puts under way, a put of another
//! one waits for the group that is being written, and is in the next one. All connections of one certificate are one party.
//! So are repair, compaction and removals: neither they nor clients hold the others up.
//!
//! The queue has no bound of its own. Each put is part of a request, which counts in the budgets of its connection and of
//! its certificate until the put is written, though it may have been answered before. What the daemon has written on its
//! own account comes in bounded portions.

use super::record;
use super::{Error, Location};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use tokio::sync::oneshot;
use wire::fair_queue::FairQueue;
use wire::ids::{BlockHash, PartyId};
use wire::sections::Sections;

/// Largest group in bytes. In a larger one the first record would wait for the last.
pub(super) const GROUP_BYTES: usize = 16 << 20;
/// Most records in one group: all are laid out, and then shown to readers, at once.
const GROUP_RECORDS_MAX: usize = 4096;
/// What a record costs its party at least: its place in a group, of which there are few.
const COST_MIN: usize = GROUP_BYTES / GROUP_RECORDS_MAX;

/// Whose work it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Party {
    /// That of the holder of a certificate, whatever connections bring it: what it sends itself, or what this block daemon
    /// passes on for it.
    Peer {
        /// For whom it is.
        origin: PartyId,
        /// The block daemon that says so, which uses up no turns but those of what it passes on.
        via: Option<PartyId>,
    },
    /// Copies that this daemon fetches.
    Repair,
    /// Blocks that this daemon drops, whoever asks for that.
    Removal,
    /// What stays of segments that are given back.
    Compaction,
}

/// Gets whether a record was written, once it is on stable storage.
pub(super) type Reply = oneshot::Sender<Result<bool, Error>>;

/// What is held until a removal has ended, whoever waits for that.
pub(super) type Guard = Arc<dyn Send + Sync>;

/// Work for the writer.
pub(super) enum Work {
    /// Store a block.
    Put { hash: BlockHash, block: Bytes, sections: Sections, reply: Reply },
    /// Store a block if there is a damaged copy of it here.
    Replace { hash: BlockHash, block: Bytes, sections: Sections, reply: Reply },
    /// Drop a block.
    Drop { hash: BlockHash, guard: Option<Guard>, reply: Reply },
    /// Write a live record of an old segment again, if it is still live.
    Move { hash: BlockHash, from: Location, block: Bytes, sections: Sections, reply: Reply },
    /// Write a tombstone of an old segment again, if the block is still gone.
    MoveTombstone { hash: BlockHash, reply: Reply },
}

impl Work {
    /// Reports whether it brings new content, which must leave the reserve alone.
    pub fn is_new(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Replace { .. })
    }

    /// Bytes of its record.
    pub fn size(&self) -> usize {
        let block_len = match self {
            Self::Put { block, .. } | Self::Replace { block, .. } | Self::Move { block, .. } => block.len(),
            Self::Drop { .. } | Self::MoveTombstone { .. } => 0,
        };
        record::stored_len(block_len as u32) as usize
    }

    /// Answers it.
    pub fn answer(self, outcome: Result<bool, Error>) {
        let (Self::Put { reply, .. }
        | Self::Replace { reply, .. }
        | Self::Drop { reply, .. }
        | Self::Move { reply, .. }
        | Self::MoveTombstone { reply, .. }) = self;
        // A caller that is gone does not need to know.
        let _ = reply.send(outcome);
    }
}

/// Work that waits for the writer.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    work: FairQueue<Party, Work>,
    /// No more is taken.
    closed: bool,
}

impl Queue {
    /// Queues work, all at once, so that it can share a group.
    ///
    /// # Errors
    /// [`Error::Failed`] when the queue is closed.
    pub fn push(&self, party: Party, work: impl IntoIterator<Item = Work>) -> Result<(), Error> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(Error::Failed);
        }
        for one in work {
            let cost = one.size().max(COST_MIN) as u64;
            waiting.work.push(party, cost, one);
        }
        drop(waiting);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for the next group; `None` once the queue is closed and empty. `bytes_max` says how large a group may be
    /// that begins with a record of this size.
    pub fn next_group(&self, bytes_max: impl Fn(usize) -> usize) -> Option<Vec<Work>> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(first) = waiting.work.pop() {
                let mut bytes = first.size();
                let bytes_max = bytes_max(bytes);
                let mut group = vec![first];
                while group.len() < GROUP_RECORDS_MAX
                    && let Some(next) = waiting.work.peek()
                {
                    bytes += next.size();
                    if bytes > bytes_max {
                        break;
                    }
                    group.extend(waiting.work.pop());
                }
                return Some(group);
            }
            if waiting.closed {
                return None;
            }
            self.changed.wait(&mut waiting);
        }
    }

    /// How much work waits.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.waiting.lock().work.len()
    }

    /// Takes no more work. What is queued is still written.
    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.changed.notify_all();
    }
}

/// Lets nobody wait for work that will not be done any more: the end of the writer, even by a panic, drops it all.
pub(super) struct ClosedAtTheEnd(pub Arc<Queue>);

impl Drop for ClosedAtTheEnd {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        waiting.closed = true;
        waiting.work.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn put(len: usize) -> Work {
        let (hash, block) = (BlockHash([len as u8; 32]), Bytes::from(vec![0; len]));
        Work::Put { hash, block, sections: Sections::default(), reply: oneshot::channel().0 }
    }

    fn peer(number: u8) -> Party {
        Party::Peer { origin: PartyId([number; 16]), via: None }
    }

    /// Sizes of the records of each group, until the queue is empty.
    fn groups(queue: &Queue) -> Vec<Vec<usize>> {
        queue.close();
        let sizes = |group: Vec<Work>| group.iter().map(Work::size).collect();
        std::iter::from_fn(|| queue.next_group(|first| GROUP_BYTES.max(first)).map(sizes)).collect()
    }

    #[test]
    fn a_put_goes_into_the_next_group_however_many_puts_another_party_has_queued() {
        for honest in [100, 64 << 10, 4 * MIB] {
            let queue = Queue::default();
            queue.push(peer(1), (0..600).map(|_| put(4 * MIB - 4096))).unwrap();
            queue.push(peer(2), [put(honest)]).unwrap();
            let size = put(honest).size();
            assert!(groups(&queue)[0].contains(&size), "a put of {honest} bytes waits");
        }
    }

    #[test]
    fn small_puts_of_a_party_get_as_many_bytes_of_a_group_as_the_large_ones_of_another() {
        let queue = Queue::default();
        queue.push(peer(1), (0..100).map(|_| put(4 * MIB - 4096))).unwrap();
        queue.push(peer(2), (0..200).map(|_| put(32 << 10))).unwrap();
        let small = put(32 << 10).size();
        let of_small = |group: &[usize]| group.iter().filter(|size| **size == small).count();
        assert!(of_small(&groups(&queue)[0]) >= 120, "they are small, and all of them take less than half a group");
    }

    #[test]
    fn puts_of_one_byte_fill_no_group_beside_large_ones_of_another_party() {
        let queue = Queue::default();
        queue.push(peer(1), (0..20_000).map(|_| put(1))).unwrap();
        queue.push(peer(2), (0..40).map(|_| put(4 * MIB - 4096))).unwrap();
        let large = put(4 * MIB - 4096).size();
        for group in groups(&queue).iter().take(4) {
            let count = group.iter().filter(|size| **size == large).count();
            assert!(count >= 1, "a group of {} records has no large one", group.len());
        }
    }

    #[test]
    fn what_a_block_daemon_says_it_passes_on_for_somebody_uses_up_none_of_the_turns_of_that_ones_own_puts() {
        let [origin, other, liar] = [1, 2, 3].map(|number| PartyId([number; 16]));
        let queue = Queue::default();
        let passed_on = Party::Peer { origin, via: Some(liar) };
        queue.push(passed_on, (0..600).map(|_| put(4 * MIB - 4096))).unwrap();
        queue.push(Party::Peer { origin, via: None }, [put(MIB)]).unwrap();
        queue.push(Party::Peer { origin, via: Some(other) }, [put(2 * MIB)]).unwrap();
        let first = &groups(&queue)[0];
        assert!(first.contains(&put(MIB).size()) && first.contains(&put(2 * MIB).size()), "{first:?}");
    }

    #[test]
    fn repair_compaction_and_removals_have_turns_beside_clients_and_leave_them_theirs() {
        let queue = Queue::default();
        queue.push(peer(1), (0..100).map(|_| put(3 * MIB))).unwrap();
        queue.push(Party::Repair, (0..100).map(|_| put(2 * MIB))).unwrap();
        queue.push(Party::Compaction, (0..100).map(|_| put(MIB))).unwrap();
        let removal = Work::Drop { hash: BlockHash([1; 32]), guard: None, reply: oneshot::channel().0 };
        let size = removal.size();
        queue.push(Party::Removal, [removal]).unwrap();
        let first = &groups(&queue)[0];
        for wanted in [put(3 * MIB).size(), put(2 * MIB).size(), put(MIB).size(), size] {
            assert!(first.contains(&wanted), "{first:?} without {wanted}");
        }
    }

    #[test]
    fn work_that_was_queued_is_taken_though_the_queue_is_closed_and_more_is_refused() {
        let queue = Queue::default();
        queue.push(peer(1), (0..3).map(|_| put(10))).unwrap();
        queue.close();
        assert!(matches!(queue.push(peer(1), [put(10)]), Err(Error::Failed)));
        assert_eq!(groups(&queue).concat().len(), 3);
    }

    #[test]
    fn whoever_waits_is_told_when_the_writer_ends() {
        let queue = Arc::<Queue>::default();
        let (reply, mut answer) = oneshot::channel();
        queue.push(Party::Removal, [Work::Drop { hash: BlockHash([1; 32]), guard: None, reply }]).unwrap();
        drop(ClosedAtTheEnd(queue.clone()));
        assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        assert!(queue.push(Party::Removal, []).is_err());
    }
}
