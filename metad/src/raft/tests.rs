//! openraft's own test suite for storages, run on ours, and tests of what it leaves out.

use super::log::Log;
use super::machine::{Machine, Position};
use super::pieces;
use super::types::{Entry, TypeConfig, Vote};
use crate::error::Error;
use crate::fs::view::{Changes, Kv};
use crate::fs::{Command, Stamped, keys, rules};
use crate::store::Store;
use futures::{TryStreamExt, stream};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, RaftLogReader, StorageError};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wire::attr::Timestamp;

/// Files are free again long before.
const LIMIT: Duration = Duration::from_secs(10);
/// Size of a file of a log.
const FILE_BYTES: u64 = 1 << 20;

struct Builder;

impl StoreBuilder<TypeConfig, Log, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("state"), 8 << 20).unwrap());
        let log = Log::open(&dir.path().join("log"), FILE_BYTES).unwrap();
        let machine = Machine::open(dir.path(), store).unwrap();
        Ok((dir, log, machine))
    }
}

#[test]
fn log_and_state_machine_pass_openrafts_storage_suite() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}

#[test]
fn a_state_of_newer_rules_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("state"), 8 << 20).unwrap());
    let newer = wire::codec::encode(&rules::KNOWN.next());
    store.apply(Changes::from([(keys::RULES.to_vec(), Some(newer.clone()))]), b"position");
    let error = Machine::open(dir.path(), store.clone()).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Rules(_)), "{error}");
    assert_eq!(store.get(keys::RULES), Some(newer));
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
async fn the_entries_sent_at_a_time_are_bounded_in_bytes_and_all_entries_are_applied() {
    const LAST: u64 = 49;
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), FILE_BYTES).unwrap();
    // Each has 900 KiB, so that the first ones have been pushed out of memory when the last are written; one is larger
    // than what is sent at a time.
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

#[tokio::test(flavor = "multi_thread")]
async fn missing_entries_are_an_error_when_they_are_to_be_applied() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), FILE_BYTES).unwrap();
    log.blocking_append((0..10).map(|index| entry_of(index, 10))).await.unwrap();
    log.purge(entry_of(4, 0).log_id).await.unwrap();
    assert!(log.entries_stream(3..8).await.try_collect::<Vec<Entry>>().await.is_err());
    assert!(log.entries_stream(2..4).await.try_collect::<Vec<Entry>>().await.is_err());
    let applied: Vec<Entry> = log.entries_stream(5..8).await.try_collect().await.unwrap();
    assert_eq!(indexes(&applied), [5, 6, 7]);
}

fn machine(dir: &TempDir) -> Machine {
    let store = Arc::new(Store::open(&dir.path().join("state"), 8 << 20).unwrap());
    Machine::open(dir.path(), store).unwrap()
}

async fn apply(machine: &mut Machine, index: u64) {
    machine.apply(stream::iter([Ok((entry_of(index, 10), None))])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_overtaken_by_one_that_is_installed_does_not_take_its_place() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut leader = machine(&there);
    let mut follower = machine(&here);
    apply(&mut leader, 0).await;
    apply(&mut leader, 1).await;
    apply(&mut follower, 0).await;
    let newer = leader.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let mut overtaken = follower.get_snapshot_builder().await;
    follower.install_snapshot(&newer.meta, newer.snapshot).await.unwrap();
    assert_eq!(overtaken.build_snapshot().await.unwrap().meta, newer.meta);
    assert_eq!(follower.get_current_snapshot().await.unwrap().unwrap().meta, newer.meta);
    assert_eq!(follower.applied_state().await.unwrap().0, newer.meta.last_log_id);
    assert!(follower.apply(stream::iter([Ok((entry_of(1, 10), None))])).await.is_err(), "it was applied already");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_being_sent_does_not_change_when_a_newer_one_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = machine(&dir);
    apply(&mut machine, 0).await;
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let sent = machine.get_current_snapshot().await.unwrap().unwrap();
    apply(&mut machine, 1).await;
    let newer = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert!(newer.meta.last_log_id > sent.meta.last_log_id);
    assert_eq!(super::snapshot::meta(&sent.snapshot).unwrap(), sent.meta);
}

/// A leader sends it to a peer that needs it, and would end with an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_beginning_is_damaged_is_replaced_when_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = machine(&dir);
    apply(&mut machine, 0).await;
    let path = super::snapshot::path_in(dir.path());
    // Its magic, in two ways, the length of its head, its head.
    for (index, at) in [(1, 0), (2, 7), (3, 11), (4, 12)] {
        machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 0xff;
        fs::write(&path, bytes).unwrap();
        assert!(super::snapshot::open(&path).is_err(), "byte {at}");
        apply(&mut machine, index).await;
        let replaced = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(replaced.meta.last_log_id, machine.applied());
        super::snapshot::verify(&replaced.snapshot).unwrap();
        assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, replaced.meta, "it is the node's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_not_replaced_while_another_one_is_being_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = machine(&dir);
    apply(&mut machine, 0).await;
    fs::write(super::snapshot::path_in(dir.path()), b"?").unwrap();
    let mut builder = machine.get_snapshot_builder().await;
    // Without waiting, it would end the builder's scan.
    let built = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        builder.build_snapshot().await.unwrap()
    };
    let (built, asked) = tokio::join!(built, machine.get_current_snapshot());
    let asked = asked.unwrap().unwrap();
    assert_eq!(asked.meta, built.meta);
    super::snapshot::verify(&asked.snapshot).unwrap();
}

/// A node that has applied entries 0 to 9, and has purged its log up to `purged`.
async fn node(dir: &TempDir, purged: Option<u64>) {
    let mut log = Log::open(&dir.path().join("log"), FILE_BYTES).unwrap();
    log.save_vote(&Vote::new(1, 1)).await.unwrap();
    log.blocking_append((0..10).map(|index| entry_of(index, 10))).await.unwrap();
    let mut machine = machine(dir);
    for index in 0..10 {
        apply(&mut machine, index).await;
        if index == 5 {
            machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        }
    }
    if let Some(purged) = purged {
        log.purge(entry_of(purged, 0).log_id).await.unwrap();
    }
}

/// Opens a node as a start does. Returns the last index applied, or the error.
fn started(dir: &TempDir) -> Result<Option<u64>, String> {
    let store = Arc::new(Store::open(&dir.path().join("state"), 8 << 20).unwrap());
    let begun = Instant::now();
    let log = loop {
        match Log::open(&dir.path().join("log"), FILE_BYTES) {
            Ok(log) => break log,
            // The thread of the log that was dropped a moment ago still holds the files.
            Err(error) => assert!(begun.elapsed() < LIMIT, "{error}"),
        }
        std::thread::yield_now();
    };
    let machine = pieces::open(dir.path(), &store, &log).map_err(|error| error.to_string())?;
    Ok(machine.applied().map(|applied| applied.index))
}

fn assert_says_what_to_do(started: Result<Option<u64>, String>, what: &str) {
    let error = started.unwrap_err();
    assert!(error.contains(what) && error.contains("surf metad replace"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_cut_off_or_unreadable_is_rebuilt_from_what_the_log_leads_to() {
    for damage in [
        |store: &Store| store.clear(),
        |store: &Store| store.apply(Changes::new(), b"?"),
        |store: &Store| {
            let key = keys::setting("layout");
            store.apply(Changes::from([(key, Some(vec![0xff; 3]))]), &store.position().unwrap());
        },
        // Loading was cut off: there are pairs, and no position.
        |store: &Store| {
            store.clear();
            store.load(vec![(b"I stray".to_vec(), vec![1])]);
        },
    ] {
        let dir = tempfile::tempdir().unwrap();
        node(&dir, Some(4)).await;
        damage(&Store::open(&dir.path().join("state"), 8 << 20).unwrap());
        assert_eq!(started(&dir), Ok(Some(5)), "the snapshot is loaded, and Raft applies the rest");
        let store = Store::open(&dir.path().join("state"), 8 << 20).unwrap();
        assert_eq!(store.get(b"I stray"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_lost_pieces_does_not_start_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    node(&dir, Some(4)).await;
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    assert_says_what_to_do(started(&dir), "the log is empty, and the state is not");

    // The state is gone, and so is the snapshot from which the log goes on.
    let dir = tempfile::tempdir().unwrap();
    node(&dir, Some(4)).await;
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    fs::remove_file(dir.path().join("snapshot")).unwrap();
    assert_says_what_to_do(started(&dir), "pieces are missing between log index 0");

    // The snapshot is needed, and damaged.
    for cut in [3, 60] {
        let dir = tempfile::tempdir().unwrap();
        node(&dir, Some(4)).await;
        fs::remove_dir_all(dir.path().join("state")).unwrap();
        fs::File::options().write(true).open(dir.path().join("snapshot")).unwrap().set_len(cut).unwrap();
        assert_says_what_to_do(started(&dir), "not in the log any more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_set_aside_when_the_log_does_without_it() {
    for (is_state_there, purged) in [(true, Some(4)), (false, None)] {
        let dir = tempfile::tempdir().unwrap();
        node(&dir, purged).await;
        if !is_state_there {
            fs::remove_dir_all(dir.path().join("state")).unwrap();
        }
        fs::File::options().write(true).open(dir.path().join("snapshot")).unwrap().set_len(9).unwrap();
        assert_eq!(started(&dir), Ok(is_state_there.then_some(9)));
        assert!(dir.path().join("snapshot.damaged").exists() && !dir.path().join("snapshot").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_stays_as_it_is_where_nothing_leads_there_again() {
    for (cut, lacks) in [(None, "its snapshot is older than its log, or missing"), (Some(60), "so is its snapshot")] {
        let dir = tempfile::tempdir().unwrap();
        node(&dir, Some(4)).await;
        let path = dir.path().join("snapshot");
        match cut {
            Some(len) => fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let open = || Store::open(&dir.path().join("state"), 8 << 20).unwrap();
        open().apply(Changes::from([(b"I last".to_vec(), Some(vec![1]))]), b"?");
        assert_says_what_to_do(started(&dir), lacks);
        assert_eq!(open().get(b"I last"), Some(vec![1]), "it may be the last of its kind");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_another_release_is_not_set_aside_as_damaged() {
    let dir = tempfile::tempdir().unwrap();
    node(&dir, None).await;
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    let path = dir.path().join("snapshot");
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] += 1;
    fs::write(&path, &bytes).unwrap();
    let error = started(&dir).unwrap_err();
    assert!(error.contains("another version of Surf"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_with_other_entries_than_the_log_has_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    node(&dir, None).await;
    let store = Store::open(&dir.path().join("state"), 8 << 20).unwrap();
    let applied = Some(openraft::testing::log_id::<TypeConfig>(2, 1, 5));
    store.apply(Changes::new(), &wire::codec::encode(&Position { applied, ..Position::default() }));
    drop(store);
    assert_says_what_to_do(started(&dir), "state and log hold different entries up to log index 5");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_the_state_contradicts_is_an_error_and_the_next_start_rebuilds_the_state() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Arc::new(Store::open(&dir.path().join("state"), 8 << 20).unwrap());
        let mut machine = Machine::open(dir.path(), store.clone()).unwrap();
        apply(&mut machine, 0).await;
        let key = keys::setting("cluster");
        store.apply(Changes::from([(key, Some(vec![0xff; 3]))]), &store.position().unwrap());
        let command = Command::SetLayout(wire::layout::Layout::default());
        let payload = EntryPayload::Normal(Stamped { now: Timestamp::default(), command });
        let entry = Entry { payload, ..entry_of(1, 0) };
        let error = machine.apply(stream::iter([Ok((entry, None))])).await.unwrap_err().to_string();
        assert!(error.contains("contradicts the log at entry 1"), "{error}");
        assert!(store.close().is_err(), "it must not be marked as sound");
    }
    assert_eq!(Store::open(&dir.path().join("state"), 8 << 20).unwrap().position(), None);
}
