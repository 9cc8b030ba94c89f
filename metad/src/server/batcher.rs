//! Group commit: batches that arrive while others are under way share an entry of the log.

use crate::consensus::Consensus;
use crate::error::ProposeError;
use crate::fs::{Command, CommandReply, Refused, Stamped, writes_of};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use wire::attr::Timestamp;
use wire::codec;
use wire::ids::SessionId;
use wire::op::{Batch, BatchReply};

/// Batches in one entry.
const ENTRY_BATCHES: usize = 256;
/// Bytes of batches in one entry, unless a single batch has more. An entry is applied and answered as a whole, and must
/// reach a peer in one message.
const ENTRY_BYTES: usize = 1 << 20;
/// Batches in one entry that may change very many keys. All that an entry changes is in memory until it is applied.
const ENTRY_HEAVY_BATCHES: usize = 4;
/// A batch with more writes may change very many keys.
const HEAVY_BATCH_WRITES: usize = 1024;
/// Entries under way at once. The first goes at once; later ones gather what arrives meanwhile.
const ENTRIES_IN_FLIGHT: usize = 4;
/// Batches that wait. More callers than this wait to queue.
const QUEUE: usize = 4096;

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
    /// Taken out when the node stops.
    queue: Mutex<Option<mpsc::Sender<Waiting>>>,
}

/// The leader's clock as commands see it. It never goes backwards.
#[derive(Default)]
pub struct Clock {
    last: Mutex<Timestamp>,
}

impl Clock {
    /// Returns the current time, or the last time returned if the system's clock went back.
    pub fn now(&self) -> Timestamp {
        let mut last = self.last.lock();
        *last = Timestamp::now().max(*last);
        *last
    }
}

impl Batcher {
    /// Starts the task that proposes batches, as one of `tasks`.
    #[must_use]
    pub fn start(consensus: Arc<dyn Consensus>, clock: Arc<Clock>, tasks: &TaskTracker) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tasks.spawn(run(consensus, clock, waiting));
        Self { queue: Mutex::new(Some(queue)) }
    }

    /// Takes no further batches. The task ends with those that are queued.
    pub fn close(&self) {
        self.queue.lock().take();
    }

    /// Applies a batch; if a term is given, only in that term. A queued batch runs to its end even if the caller is
    /// dropped.
    ///
    /// # Errors
    /// [`ProposeError`], as `Consensus::propose_in`.
    pub async fn submit(&self, session: SessionId, batch: Batch, term: Option<u64>) -> Outcome {
        let (reply, wait) = oneshot::channel();
        let ended = |_| ProposeError::Refused("metad is stopping".to_owned());
        let (bytes, is_heavy) = (codec::encoded_len(&batch), is_heavy(&batch));
        let queue = self.queue.lock().clone().ok_or_else(|| ended(()))?;
        queue.send(Waiting { session, batch, term, bytes, is_heavy, reply }).await.map_err(|_| ended(()))?;
        drop(queue);
        wait.await.map_err(|_| ended(()))?
    }
}

async fn run(consensus: Arc<dyn Consensus>, clock: Arc<Clock>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut in_flight = JoinSet::new();
    let mut left_over = None;
    loop {
        while in_flight.len() >= ENTRIES_IN_FLIGHT {
            let _ = in_flight.join_next().await;
        }
        let Some(group) = next_group(&mut waiting, &mut left_over).await else { break };
        let (consensus, now) = (consensus.clone(), clock.now());
        in_flight.spawn(async move { propose(&*consensus, now, group).await });
        // Finished entries make room.
        while in_flight.try_join_next().is_some() {}
    }
    while in_flight.join_next().await.is_some() {}
}

/// Returns batches for one entry: it waits for the first, and takes the queued ones behind it that fit in size and in
/// term. The first that does not fit is left over for the next entry. Returns `None` when no more will come.
async fn next_group(waiting: &mut mpsc::Receiver<Waiting>, left_over: &mut Option<Waiting>) -> Option<Vec<Waiting>> {
    let first = match left_over.take() {
        Some(first) => first,
        None => waiting.recv().await?,
    };
    let (mut bytes, mut term, mut heavy) = (first.bytes, first.term, usize::from(first.is_heavy));
    let mut group = vec![first];
    while group.len() < ENTRY_BATCHES
        && let Ok(next) = waiting.try_recv()
    {
        bytes += next.bytes;
        heavy += usize::from(next.is_heavy);
        let other_term = term.is_some() && next.term.is_some() && term != next.term;
        if bytes > ENTRY_BYTES || heavy > ENTRY_HEAVY_BATCHES || other_term {
            *left_over = Some(next);
            break;
        }
        term = term.or(next.term);
        group.push(next);
    }
    Some(group)
}

async fn propose(consensus: &dyn Consensus, now: Timestamp, group: Vec<Waiting>) {
    let term = group.iter().find_map(|one| one.term);
    let (batches, callers): (Vec<_>, Vec<_>) =
        group.into_iter().map(|one| ((one.session, one.batch), one.reply)).unzip();
    let outcomes = match consensus.propose_in(term, Stamped { now, command: Command::Batches(batches) }).await {
        Ok(CommandReply::Batches(outcomes)) => outcomes.into_iter().map(Ok).collect(),
        Ok(_) => vec![Err(ProposeError::Unknown); callers.len()],
        Err(error) => vec![Err(error); callers.len()],
    };
    for (reply, outcome) in callers.into_iter().zip(outcomes) {
        // A caller that is gone asks again, and gets the stored reply (I1).
        let _ = reply.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::BatchSeq;

    #[tokio::test]
    async fn batches_share_an_entry_when_they_fit_in_size_and_term_and_none_is_left_out() {
        let (queue, mut waiting) = mpsc::channel(QUEUE);
        let sizes = [3 << 20, 10, ENTRY_BYTES - 10, 1, 400 << 10, 700 << 10, 5, 5, 5];
        let terms = [None, None, Some(1), Some(1), None, None, Some(1), None, Some(2)];
        let all = sizes.into_iter().zip(terms).map(|(bytes, term)| (bytes, term, false));
        let heavy = [(1, None, true); ENTRY_HEAVY_BATCHES + 1];
        for (number, (bytes, term, is_heavy)) in all.chain(heavy).enumerate() {
            let batch = Batch { seq: BatchSeq(number as u64), acked: BatchSeq(0), ops: Vec::new() };
            let reply = oneshot::channel().0;
            queue.try_send(Waiting { session: SessionId(1), batch, term, bytes, is_heavy, reply }).ok().unwrap();
        }
        drop(queue);
        let (mut groups, mut left_over) = (Vec::new(), None);
        while let Some(group) = next_group(&mut waiting, &mut left_over).await {
            groups.push(group.iter().map(|one| one.batch.seq.0).collect::<Vec<_>>());
        }
        assert_eq!(groups, [vec![0], vec![1, 2], vec![3, 4], vec![5, 6, 7], vec![8, 9, 10, 11, 12], vec![13]]);
    }
}
