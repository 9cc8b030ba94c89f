//! A log on a disk that fills.

use super::log::Log;
use super::types::{Entry, TypeConfig};
use crate::fs::{Command, Stamped};
use futures::TryStreamExt;
use openraft::storage::RaftLogStorageExt;
use openraft::{EntryPayload, RaftLogReader};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use wire::attr::Timestamp;

const FILE_BYTES: u64 = 1 << 20;
/// Far more than a log of such files writes ahead.
const ENTRIES: u64 = 40;
/// Long enough for all of them, if there is room.
const WAITED: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(60);

/// A small filesystem of its own, unmounted at the end of the test.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(dir: &Path) -> Self {
        let mut command = std::process::Command::new("mount");
        let mounted = command.args(["-t", "tmpfs", "-o", "size=80m", "surf-test"]).arg(dir).status().unwrap();
        assert!(mounted.success(), "a tmpfs can be mounted");
        Self(dir.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Nothing can compress it.
fn entry_of(index: u64) -> Entry {
    let mut bytes = vec![0_u8; 900 << 10];
    rand::fill(&mut bytes[..]);
    let cluster = bytes.iter().map(|byte| char::from(b'!' + byte % 64)).collect();
    let command = Command::Init { cluster, replicas: 1, min_sync: 1 };
    let payload = EntryPayload::Normal(Stamped { now: Timestamp::default(), command });
    Entry { log_id: openraft::testing::log_id::<TypeConfig>(1, 1, index), payload }
}

fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    let error = loop {
        if let Err(error) = file.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
}

/// Guards I7.
#[tokio::test(flavor = "multi_thread")]
async fn entries_that_find_no_room_are_not_acknowledged_and_are_written_when_there_is_room() {
    if wire::sys::effective_uid() != 0 {
        eprintln!("needs root, to mount a small disk");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _disk = Tmpfs::mount(dir.path());
    let (path, ballast) = (dir.path().join("log"), dir.path().join("ballast"));
    let mut log = Log::open(&path, FILE_BYTES).unwrap();
    fill(&ballast);
    let mut appending = tokio::spawn(async move {
        for index in 0..ENTRIES {
            log.blocking_append([entry_of(index)]).await.unwrap();
        }
        log
    });
    assert!(timeout(WAITED, &mut appending).await.is_err(), "there is no room for all of them");
    fs::remove_file(ballast).unwrap();
    let log = timeout(LIMIT, appending).await.unwrap().unwrap();
    drop(log);
    // Its files are free once its thread has ended.
    let begun = Instant::now();
    let mut log = loop {
        match Log::open(&path, FILE_BYTES) {
            Ok(log) => break log,
            Err(error) => assert!(begun.elapsed() < LIMIT, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    let found: Vec<Entry> = log.entries_stream(0..ENTRIES).await.try_collect().await.unwrap();
    let indexes: Vec<u64> = found.iter().map(|entry| entry.log_id.index).collect();
    assert_eq!(indexes, (0..ENTRIES).collect::<Vec<_>>());
}
