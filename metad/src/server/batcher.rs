//! Group commit: batches that arrive while others are on their way share an entry of the log.

use crate::error::ProposeError;
use crate::fs::{Command, CommandReply, Refused, Stamped};
use crate::raft::Consensus;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, oneshot};
use wire::attr::Timestamp;
use wire::ids::SessionId;
use wire::op::{Batch, BatchReply};

/// Batches in one entry.
const ENTRY_BATCHES: usize = 256;
/// Entries on their way at once. The first goes at once; later ones gather what arrives meanwhile.
const ENTRIES_IN_FLIGHT: usize = 4;
/// Batches that wait; more callers than this wait to queue.
const QUEUE: usize = 4096;

type Outcome = Result<Result<BatchReply, Refused>, ProposeError>;
type Waiting = (SessionId, Batch, oneshot::Sender<Outcome>);

/// Takes batches and proposes them together.
pub struct Batcher {
    queue: mpsc::Sender<Waiting>,
}

/// The leader's clock as commands see it: never backwards.
#[derive(Default)]
pub struct Clock {
    last: Mutex<Timestamp>,
}

impl Clock {
    /// Now, or the last time given out if the system's clock went back.
    pub fn now(&self) -> Timestamp {
        let mut last = self.last.lock();
        *last = Timestamp::now().max(*last);
        *last
    }
}

impl Batcher {
    /// Starts the task that proposes; it ends with the last sender.
    #[must_use]
    pub fn start(consensus: Arc<Consensus>, clock: Arc<Clock>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(run(consensus, clock, waiting));
        Self { queue }
    }

    /// Applies a batch. Once queued it runs to its end, though the caller is dropped.
    ///
    /// # Errors
    /// [`ProposeError`], as `Consensus::propose`.
    pub async fn submit(&self, session: SessionId, batch: Batch) -> Outcome {
        let (reply, wait) = oneshot::channel();
        let ended = |_| ProposeError::Refused("metad is stopping".to_owned());
        self.queue.send((session, batch, reply)).await.map_err(|_| ended(()))?;
        wait.await.map_err(|_| ended(()))?
    }
}

async fn run(consensus: Arc<Consensus>, clock: Arc<Clock>, mut waiting: mpsc::Receiver<Waiting>) {
    let in_flight = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT));
    loop {
        let Ok(permit) = in_flight.clone().acquire_owned().await else { return };
        let mut group = Vec::new();
        if waiting.recv_many(&mut group, ENTRY_BATCHES).await == 0 {
            return;
        }
        let (consensus, now) = (consensus.clone(), clock.now());
        tokio::spawn(async move {
            propose(&consensus, now, group).await;
            drop(permit);
        });
    }
}

async fn propose(consensus: &Consensus, now: Timestamp, group: Vec<Waiting>) {
    let (batches, callers): (Vec<_>, Vec<_>) =
        group.into_iter().map(|(session, batch, reply)| ((session, batch), reply)).unzip();
    let outcomes = match consensus.propose(Stamped { now, command: Command::Batches(batches) }).await {
        Ok(CommandReply::Batches(outcomes)) => outcomes.into_iter().map(Ok).collect(),
        Ok(_) => vec![Err(ProposeError::Unknown); callers.len()],
        Err(error) => vec![Err(error); callers.len()],
    };
    for (reply, outcome) in callers.into_iter().zip(outcomes) {
        // A caller that is gone asks again, and gets the kept reply (I1).
        let _ = reply.send(outcome);
    }
}
