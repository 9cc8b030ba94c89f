//! Scrub: reading every copy from time to time, and comparing it with its name, so that damage shows while others
//! still have good copies. What is found corrupt goes to repair.
//!
//! How far it is, and when the last pass ended, stands in a file: a disk that takes a week to read would never be
//! read to its end by a daemon that is restarted now and then.

use crate::metrics::Metrics;
use crate::repair::progress::Progress;
use crate::repair::read_repair::RepairQueue;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::attr::Timestamp;
use wire::ids::BlockHash;

/// Pause between two passes: a small store need not be read all the time.
const IDLE: Duration = Duration::from_secs(600);
/// Pauses are at least this long: those of several small blocks are added up and made at once, because each would
/// cost more in timers than in reading.
const SLICE: Duration = Duration::from_millis(100);
/// How often it is noted how far it is.
const NOTED_EVERY: Duration = Duration::from_secs(60);

/// What scrub needs.
pub(crate) struct Scrubber {
    /// What is read.
    pub store: Arc<Store>,
    /// Replaces what is corrupt.
    pub repairs: RepairQueue,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What heartbeats report.
    pub progress: Arc<Progress>,
    /// The file that says how far it is.
    pub record: PathBuf,
    /// The rate; 0 is no scrub.
    pub bytes_per_s: u64,
}

/// How far scrub is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Record {
    /// When the last whole pass ended.
    passed: Option<Timestamp>,
    /// Where the pass under way goes on; `None` between two passes.
    next: Option<BlockHash>,
}

impl Record {
    /// Reads the record. Without a readable file, everything is read anew.
    fn load(path: &Path) -> Self {
        let anew = Self { passed: None, next: Some(BlockHash([0; 32])) };
        std::fs::read(path).ok().and_then(|bytes| wire::codec::decode(&bytes).ok()).unwrap_or(anew)
    }
}

/// How long so many bytes take at a rate.
pub(crate) fn time_at_rate(bytes: u64, bytes_per_s: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64)
}

impl Scrubber {
    /// Reads everything, over and over.
    pub(crate) async fn run(self) {
        let path = self.record.clone();
        let Ok(mut record) = tokio::task::spawn_blocking(move || Record::load(&path)).await else { return };
        loop {
            if let Some(passed) = record.passed {
                self.progress.set_scrubbed(passed);
            }
            if record.next.is_none() {
                let since =
                    record.passed.map_or(0, |passed| Timestamp::now().as_millis().saturating_sub(passed.as_millis()));
                tokio::time::sleep(IDLE.saturating_sub(Duration::from_millis(since))).await;
                record.next = Some(BlockHash([0; 32]));
            }
            self.pass(&mut record).await;
            record = Record { passed: Some(Timestamp::now()), next: None };
            self.note(record).await;
        }
    }

    /// Reads from where the record says to the end.
    async fn pass(&self, record: &mut Record) {
        let (mut owed, mut noted) = (Duration::ZERO, Instant::now());
        while let Some((hash, len, good)) = match record.next {
            Some(from) => self.store.scrub_step(from).await,
            None => None,
        } {
            if !good {
                self.metrics.corrupt.add(1);
                tracing::warn!(%hash, "scrub found a corrupt copy; it is repaired from another daemon");
                self.repairs.push(hash);
            }
            record.next = hash.next();
            owed += time_at_rate(u64::from(len), self.bytes_per_s);
            if owed >= SLICE {
                tokio::time::sleep(owed).await;
                owed = Duration::ZERO;
            }
            if noted.elapsed() >= NOTED_EVERY {
                noted = Instant::now();
                self.note(*record).await;
            }
        }
    }

    async fn note(&self, record: Record) {
        let path = self.record.clone();
        let noted = tokio::task::spawn_blocking(move || wire::durable::replace(&path, &wire::codec::encode(&record)));
        if let Ok(Err(error)) = noted.await {
            tracing::debug!(%error, "it could not be noted how far scrub is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_not_there_or_damaged_lets_everything_be_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scrub");
        let anew = Record { passed: None, next: Some(BlockHash([0; 32])) };
        assert_eq!(Record::load(&path), anew);
        let record = Record { passed: Some(Timestamp::now()), next: Some(BlockHash([7; 32])) };
        let bytes = wire::codec::encode(&record);
        wire::durable::replace(&path, &bytes).unwrap();
        assert_eq!(Record::load(&path), record);
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(Record::load(&path), anew);
    }
}
