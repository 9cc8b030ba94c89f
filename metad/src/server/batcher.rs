//! Group commit: batches that arrive while others are under way share an entry of the log. Sessions take turns.

use crate::consensus::Consensus;
use crate::error::ProposeError;
use crate::fs::{Command, CommandReply, Refused, Stamped, writes_of};
use crate::server::clock::Clock;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use wire::attr::Timestamp;
use wire::codec;
use wire::fair_queue::FairQueue;
use wire::ids::SessionId;
use wire::op::{Batch, BatchReply};

/// Batches in one entry.
const ENTRY_BATCHES: usize = 256;
/// Bytes of batches in one entry, unless a single batch has more. An entry is applied and answered as a whole, and must
/// reach a peer in one message.
const ENTRY_BYTES: usize = 1 << 20;
/// Batches in one entry that may change very many keys. All that an entry changes is in memory until it is applied.
const ENTRY_HEAVY_BATCHES: usize = 4;
/// Batches of confined clients in one entry: each may take walks through thousands of directories.
const ENTRY_CONFINED_BATCHES: usize = 32;
/// A batch with more writes may change very many keys.
const HEAVY_BATCH_WRITES: usize = 1024;
/// Entries under way at once. The first goes at once; later ones gather what arrives meanwhile.
const ENTRIES_IN_FLIGHT: usize = 4;
/// A group of fewer bytes never does as much as an entry may do.
const LIGHT_GROUP_BYTES: usize = 16 << 10;
/// What a batch costs its session: a turn, whatever its size.
const TURN: u64 = 1;
type Outcome = Result<Result<BatchReply, Refused>, ProposeError>;

/// A batch that waits to be proposed.
struct Waiting {
    session: SessionId,
    batch: Batch,
    /// The only term in which it may be proposed, if there is one.
    term: Option<u64>,
    /// Its encoded size.
    bytes: usize,
    /// It may change very many keys.
    is_heavy: bool,
    /// It is one of a confined client.
    is_confined: bool,
    reply: oneshot::Sender<Outcome>,
}

/// Returns whether a batch may change far more keys than it has operations: it cuts or copies ranges of files, or
/// writes to many.
fn is_heavy(batch: &Batch) -> bool {
    let writes: Option<usize> = batch.ops.iter().map(writes_of).sum();
    writes.is_none_or(|writes| writes > HEAVY_BATCH_WRITES)
}

/// Takes batches and proposes them together.
pub struct Batcher {
    queue: Arc<Queue>,
}

/// Batches that wait. Each is part of a request under way, and connections bound those.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Queued>,
    changed: Notify,
}

#[derive(Default)]
struct Queued {
    /// Batches that met a full entry of the log: they come first in the next one.
    put_off: VecDeque<Waiting>,
    batches: FairQueue<SessionId, Waiting>,
    /// No more are taken.
    closed: bool,
}

impl Queue {
    /// Takes batches back that met a full entry of the log. The first of an entry is always applied, so each comes to its
    /// turn.
    fn put_off(&self, batches: VecDeque<Waiting>) {
        self.waiting.lock().put_off.extend(batches);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.waiting.lock().closed = true;
        self.changed.notify_one();
    }

    /// Waits for batches for one entry; `None` when no more will come.
    async fn next_group(&self) -> Option<Vec<Waiting>> {
        loop {
            {
                let mut queued = self.waiting.lock();
                let Queued { put_off, batches, .. } = &mut *queued;
                let group = take_group(put_off, batches);
                if !group.is_empty() {
                    return Some(group);
                }
                if queued.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }
}

/// Lets nobody wait for batches that will not be proposed any more.
struct ClosedAtTheEnd(Arc<Queue>);

impl Drop for ClosedAtTheEnd {
    fn drop(&mut self) {
        let mut queued = self.0.waiting.lock();
        queued.closed = true;
        queued.put_off.clear();
        queued.batches.clear();
    }
}

impl Batcher {
    /// Starts the task that proposes batches, as one of `tasks`.
    #[must_use]
    pub fn start(consensus: Arc<dyn Consensus>, clock: Arc<Clock>, tasks: &TaskTracker) -> Self {
        let queue = Arc::<Queue>::default();
        tasks.spawn(run(consensus, clock, ClosedAtTheEnd(queue.clone())));
        Self { queue }
    }

    /// Takes no further batches. The task ends with those that are queued.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Applies a batch of a session, which may be one of a confined client; if a term is given, only in that term. A queued batch runs to its end even if the caller is
    /// dropped.
    ///
    /// # Errors
    /// [`ProposeError`], as `Consensus::propose_in`.
    pub async fn submit(&self, (session, is_confined): (SessionId, bool), batch: Batch, term: Option<u64>) -> Outcome {
        let (reply, wait) = oneshot::channel();
        let ended = || ProposeError::Refused("metad is stopping".to_owned());
        let (bytes, is_heavy) = (codec::encoded_len(&batch), is_heavy(&batch));
        {
            let mut queued = self.queue.waiting.lock();
            if queued.closed {
                return Err(ended());
            }
            let waiting = Waiting { session, batch, term, bytes, is_heavy, is_confined, reply };
            queued.batches.push(session, TURN, waiting);
        }
        self.queue.changed.notify_one();
        wait.await.map_err(|_| ended())?
    }
}

async fn run(consensus: Arc<dyn Consensus>, clock: Arc<Clock>, queue: ClosedAtTheEnd) {
    let mut in_flight = JoinSet::new();
    loop {
        while in_flight.len() >= ENTRIES_IN_FLIGHT {
            let _ = in_flight.join_next().await;
        }
        let Some(group) = queue.0.next_group().await else { break };
        let (consensus, now) = (consensus.clone(), clock.now());
        let waiting = queue.0.clone();
        in_flight.spawn(async move { propose(&*consensus, now, group, &waiting).await });
        // Finished entries make room.
        while in_flight.try_join_next().is_some() {}
    }
    while in_flight.join_next().await.is_some() {}
}

/// Takes batches for one entry: the first, and those behind it as long as they fit in size and in term. The first that
/// does not fit begins the next entry.
fn take_group(put_off: &mut VecDeque<Waiting>, waiting: &mut FairQueue<SessionId, Waiting>) -> Vec<Waiting> {
    let (mut bytes, mut term, mut heavy, mut confined) = (0, None, 0, 0);
    let mut group: Vec<Waiting> = Vec::new();
    while let Some(next) = put_off.front().or_else(|| waiting.peek()) {
        bytes += next.bytes;
        heavy += usize::from(next.is_heavy);
        confined += usize::from(next.is_confined);
        let other_term = term.is_some() && next.term.is_some() && term != next.term;
        let too_slow = heavy > ENTRY_HEAVY_BATCHES || confined > ENTRY_CONFINED_BATCHES;
        let too_much = bytes > ENTRY_BYTES || too_slow || group.len() == ENTRY_BATCHES;
        if !group.is_empty() && (too_much || other_term) {
            break;
        }
        term = term.or(next.term);
        group.extend(put_off.pop_front().or_else(|| waiting.pop()));
    }
    group
}

async fn propose(consensus: &dyn Consensus, now: Timestamp, mut group: Vec<Waiting>, queue: &Queue) {
    let term = group.iter().find_map(|one| one.term);
    // A light group is not put off, and so need not be kept.
    let is_light = group.len() == 1 || group.iter().map(|one| one.bytes).sum::<usize>() <= LIGHT_GROUP_BYTES;
    let take = |batch: &mut Batch| Batch { caller: batch.caller.take(), ops: std::mem::take(&mut batch.ops), ..*batch };
    let batches: Vec<_> = group
        .iter_mut()
        .map(|one| (one.session, if is_light { take(&mut one.batch) } else { one.batch.clone() }))
        .collect();
    let outcomes = match consensus.propose_in(term, Stamped { now, command: Command::Batches(batches) }).await {
        Ok(CommandReply::Batches(outcomes)) => outcomes.into_iter().map(Ok).collect(),
        Ok(_) => vec![Err(ProposeError::Unknown); group.len()],
        Err(error) => vec![Err(error); group.len()],
    };
    let mut put_off = VecDeque::new();
    for (one, outcome) in group.into_iter().zip(outcomes) {
        if !is_light && matches!(outcome, Ok(Err(Refused::EntryFull))) {
            put_off.push_back(one);
        } else {
            // A caller that is gone asks again, and gets the stored reply (I1).
            let _ = one.reply.send(outcome);
        }
    }
    if !put_off.is_empty() {
        queue.put_off(put_off);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::BatchSeq;

    fn waiting(session: u64, number: u64, (bytes, term, is_heavy): (usize, Option<u64>, bool)) -> Waiting {
        let batch = Batch { seq: BatchSeq(number), acked: BatchSeq(0), caller: None, ops: Vec::new() };
        let (session, reply) = (SessionId(session), oneshot::channel().0);
        Waiting { session, batch, term, bytes, is_heavy, is_confined: false, reply }
    }

    fn groups(mut queue: FairQueue<SessionId, Waiting>) -> Vec<Vec<u64>> {
        let numbers = |group: Vec<Waiting>| group.iter().map(|one| one.batch.seq.0).collect::<Vec<_>>();
        std::iter::from_fn(|| {
            Some(numbers(take_group(&mut VecDeque::new(), &mut queue))).filter(|group| !group.is_empty())
        })
        .collect()
    }

    #[test]
    fn batches_share_an_entry_when_they_fit_in_size_and_term_and_none_is_left_out() {
        let sizes = [3 << 20, 10, ENTRY_BYTES - 10, 1, 400 << 10, 700 << 10, 5, 5, 5];
        let terms = [None, None, Some(1), Some(1), None, None, Some(1), None, Some(2)];
        let all = sizes.into_iter().zip(terms).map(|(bytes, term)| (bytes, term, false));
        let heavy = [(1, None, true); ENTRY_HEAVY_BATCHES + 1];
        let mut queue = FairQueue::default();
        for (number, one) in all.chain(heavy).enumerate() {
            queue.push(SessionId(1), TURN, waiting(1, number as u64, one));
        }
        assert_eq!(groups(queue), [vec![0], vec![1, 2], vec![3, 4], vec![5, 6, 7], vec![8, 9, 10, 11, 12], vec![13]]);
    }

    #[test]
    fn a_batch_of_another_session_goes_into_the_next_entry_however_many_one_session_has_queued() {
        let mut queue = FairQueue::default();
        for number in 0..2_000 {
            queue.push(SessionId(1), TURN, waiting(1, number, (ENTRY_BYTES / 4, None, false)));
        }
        queue.push(SessionId(2), TURN, waiting(2, 9_999, (100, None, false)));
        assert!(groups(queue)[0].contains(&9_999));
    }

    #[test]
    fn batches_that_met_a_full_entry_come_first_in_the_next_one_whoever_has_come_since() {
        let (mut put_off, mut queue) = (VecDeque::new(), FairQueue::default());
        put_off.extend([waiting(2, 20, (100, None, true)), waiting(3, 30, (100, None, true))]);
        (0..3).for_each(|number| queue.push(SessionId(1), TURN, waiting(1, number, (100, None, false))));
        let numbers: Vec<_> = take_group(&mut put_off, &mut queue).iter().map(|one| one.batch.seq.0).collect();
        assert_eq!(numbers, [20, 30, 0, 1, 2]);
        assert!(put_off.is_empty());
    }

    #[test]
    fn few_batches_of_confined_clients_share_an_entry_because_each_may_walk_far() {
        let mut queue = FairQueue::default();
        for number in 0..ENTRY_CONFINED_BATCHES as u64 + 1 {
            queue.push(SessionId(1), TURN, Waiting { is_confined: true, ..waiting(1, number, (1, None, false)) });
        }
        let lengths: Vec<usize> = groups(queue).iter().map(Vec::len).collect();
        assert_eq!(lengths, [ENTRY_CONFINED_BATCHES, 1]);
    }

    /// Each session sends one batch, and another one comes with each batch that is taken.
    #[test]
    fn a_batch_does_not_wait_for_sessions_that_come_after_it_without_end() {
        let large = (ENTRY_BYTES, None, false);
        let mut queue = FairQueue::default();
        let come = |queue: &mut FairQueue<_, _>, session| {
            queue.push(SessionId(session), TURN, waiting(session, session, large))
        };
        (0..10).for_each(|session| come(&mut queue, session));
        // The second batch of a session waits behind its first one, and one batch of each that came before that was taken.
        queue.push(SessionId(0), TURN, waiting(0, 9_999, large));
        let mut fresh = 10..;
        let entries = std::iter::from_fn(|| {
            let group = take_group(&mut VecDeque::new(), &mut queue);
            group.iter().for_each(|_| come(&mut queue, fresh.next().unwrap_or(u64::MAX)));
            (!group.iter().any(|one| one.batch.seq.0 == 9_999)).then_some(())
        });
        assert!(entries.take(1_000).count() <= 20);
    }
}
