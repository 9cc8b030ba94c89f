//! openraft's own suite for storages, on ours, and what it does not look at.

use super::log::Log;
use super::machine::Machine;
use super::types::{Entry, TypeConfig};
use crate::fs::{Command, Stamped};
use crate::store::Store;
use futures::TryStreamExt;
use openraft::storage::RaftLogStorageExt;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, RaftLogReader, StorageError};
use std::sync::Arc;
use tempfile::TempDir;
use wire::attr::Timestamp;

struct Builder;

impl StoreBuilder<TypeConfig, Log, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("state"), 8 << 20).unwrap());
        let log = Log::open(&dir.path().join("log")).unwrap();
        let machine = Machine::open(dir.path(), store).unwrap();
        Ok((dir, log, machine))
    }
}

#[test]
fn log_and_state_machine_pass_openrafts_storage_suite() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}

fn entry_of(index: u64, bytes: usize) -> Entry {
    let cluster = "x".repeat(bytes);
    let command = Command::Init { cluster, replicas: 1, min_sync: 1 };
    let payload = EntryPayload::Normal(Stamped { now: Timestamp::default(), command });
    Entry { log_id: openraft::testing::log_id::<TypeConfig>(1, 1, index), payload }
}

fn indexes(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.log_id.index).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_at_a_time_is_bounded_in_bytes_and_what_is_applied_is_everything() {
    const LAST: u64 = 49;
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path()).unwrap();
    // Of 900 KiB each, so that the first have been pushed out of memory when the last are there; one is larger than what
    // is sent at a time.
    for index in 0..=LAST {
        let bytes = if index == 45 { 3 << 20 } else { 900 << 10 };
        log.blocking_append([entry_of(index, bytes)]).await.unwrap();
    }
    for (start, expected) in [(0, vec![0, 1]), (40, vec![40, 41]), (44, vec![44]), (45, vec![45]), (49, vec![49])] {
        let sent = log.limited_get_log_entries(start, LAST + 1).await.unwrap();
        assert_eq!(indexes(&sent), expected);
    }
    assert_eq!(indexes(&log.limited_get_log_entries(3, 4).await.unwrap()), [3]);
    let applied: Vec<Entry> = log.entries_stream(2..=LAST).await.try_collect().await.unwrap();
    assert_eq!(indexes(&applied), (2..=LAST).collect::<Vec<_>>());
}
