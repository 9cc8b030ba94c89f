//! Work on the store that nobody waits for: compaction, and [scrub](crate::scrub), each at a rate of its own.
//!
//! Both pause after each step for as long as the step's bytes take at the configured rate, so that requests find the
//! disk free.

use crate::metrics::Metrics;
use crate::repair::read_repair::RepairQueue;
use crate::scrub::{Scrubber, time_at_rate};
use crate::store::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Pause of compaction when no segment is worth it.
const COMPACTION_IDLE: Duration = Duration::from_secs(10);
/// Least pause between two steps: many of them may have little to copy, and each syncs the disk.
const COMPACTION_PAUSE: Duration = Duration::from_secs(1);

/// Starts both, unless their rate is zero.
pub(crate) fn spawn(
    tasks: &mut JoinSet<()>,
    compaction_bytes_per_s: u64,
    store: &Arc<Store>,
    scrubber: Scrubber,
    stop: &CancellationToken,
) {
    if compaction_bytes_per_s > 0 {
        let (repairs, metrics) = (scrubber.repairs.clone(), scrubber.metrics.clone());
        tasks.spawn(until(stop.clone(), compact(store.clone(), compaction_bytes_per_s, repairs, metrics)));
    }
    if scrubber.bytes_per_s > 0 {
        tasks.spawn(until(stop.clone(), scrubber.run()));
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    let _ = stop.run_until_cancelled(work).await;
}

async fn compact(store: Arc<Store>, bytes_per_s: u64, repairs: RepairQueue, metrics: Arc<Metrics>) {
    loop {
        let mut damaged = Vec::new();
        let outcome = store.compact_step(&mut damaged).await;
        for hash in damaged {
            metrics.corrupt.add(1);
            tracing::warn!(%hash, "compaction found a corrupt copy; it is repaired from another daemon");
            repairs.push(hash);
        }
        let pause = match outcome {
            Ok(Some(compacted)) => time_at_rate(compacted.copied, bytes_per_s).max(COMPACTION_PAUSE),
            Ok(None) => COMPACTION_IDLE,
            Err(error) => {
                tracing::warn!(%error, "compaction failed: dropped blocks keep their space");
                COMPACTION_IDLE
            }
        };
        tokio::time::sleep(pause).await;
    }
}
