//! Work on the store that nobody waits for: compaction, and scrub, each at a rate of its own.
//!
//! Both pause after each step for as long as the step's bytes take at the configured rate, so that requests find the
//! disk free. Blocks that scrub finds corrupt go to repair.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::repair::pass::after;
use crate::repair::read_repair::RepairQueue;
use crate::store::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::ids::BlockHash;

/// Pause of compaction when no segment is worth it.
const COMPACTION_IDLE: Duration = Duration::from_secs(10);
/// Least pause between two steps: many of them may have little to copy, and each syncs the disk.
const COMPACTION_PAUSE: Duration = Duration::from_secs(1);
/// Pause of scrub between two passes: a small store need not be read all the time.
const SCRUB_IDLE: Duration = Duration::from_secs(600);
/// Scrub reads blocks worth this much time at its rate, then pauses: a pause after each small block would cost more in
/// timers than in reading.
const SCRUB_SLICE: Duration = Duration::from_millis(100);

/// Starts both, unless their rate is zero.
pub(crate) fn spawn(
    tasks: &mut JoinSet<()>,
    config: &Config,
    store: &Arc<Store>,
    repairs: &RepairQueue,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) {
    if config.compaction_bytes_per_s > 0 {
        tasks.spawn(until(stop.clone(), compact(store.clone(), config.compaction_bytes_per_s)));
    }
    if config.scrub_bytes_per_s > 0 {
        let scrub = scrub(store.clone(), repairs.clone(), metrics.clone(), config.scrub_bytes_per_s);
        tasks.spawn(until(stop.clone(), scrub));
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    let _ = stop.run_until_cancelled(work).await;
}

fn due(bytes: u64, bytes_per_s: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64)
}

async fn compact(store: Arc<Store>, bytes_per_s: u64) {
    loop {
        let pause = match store.compact_step().await {
            Ok(Some(copied)) => due(copied, bytes_per_s).max(COMPACTION_PAUSE),
            Ok(None) => COMPACTION_IDLE,
            Err(error) => {
                tracing::warn!(%error, "compaction failed: dropped blocks keep their space");
                COMPACTION_IDLE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn scrub(store: Arc<Store>, repairs: RepairQueue, metrics: Arc<Metrics>, bytes_per_s: u64) {
    loop {
        let mut from = Some(BlockHash([0; 32]));
        let mut owed = Duration::ZERO;
        while let Some((hash, len, good)) = match from {
            Some(from) => store.scrub_step(from).await,
            None => None,
        } {
            if !good {
                metrics.corrupt.add(1);
                tracing::warn!(%hash, "scrub found a corrupt copy; it is repaired from another daemon");
                repairs.push(hash);
            }
            from = after(&hash);
            owed += due(u64::from(len), bytes_per_s);
            if owed >= SCRUB_SLICE {
                tokio::time::sleep(owed).await;
                owed = Duration::ZERO;
            }
        }
        tokio::time::sleep(SCRUB_IDLE).await;
    }
}
