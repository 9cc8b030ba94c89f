//! A disk that still works, and takes far longer to sync than those of the others.

use crate::healing::{HEAL_LIMIT, cluster_with};
use kit::powerloss::NameModel;
use kit::{Surf, VolatileDisk, until};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

/// How long the slow disk takes for a sync: ten times as long as the others take, on a busy machine, too.
const SYNC: Duration = Duration::from_millis(1500);
/// The longest time of a synced write: two of three daemons are enough for it.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// Too much to be stored in metadata, so that it becomes a block.
const FILE_BYTES: usize = 64 << 10;

/// Writes and syncs a file, and returns how long that took.
fn write(surf: &Surf, number: u64) -> Duration {
    let begun = Instant::now();
    let mut file = File::create(surf.path().join(number.to_string())).expect("a file can be made");
    file.write_all(&fuse::random(number, FILE_BYTES)).expect("it can be written");
    file.sync_all().expect("it can be synced");
    begun.elapsed()
}

/// Returns how long the disk of each block daemon takes, where that is known, and which of them are slow.
fn sync_times(surf: &Surf) -> (BTreeMap<String, u64>, Vec<String>) {
    let status = surf.status();
    let blockds = status["blockds"].as_array().expect("status lists block daemons");
    let name = |blockd: &serde_json::Value| blockd["name"].as_str().expect("it has a name").to_owned();
    let times = blockds.iter().filter_map(|blockd| Some((name(blockd), blockd["sync_us"].as_u64()?)));
    (times.collect(), blockds.iter().filter(|blockd| blockd["slow"] == true).map(name).collect())
}

#[test]
fn a_block_daemon_with_a_slow_disk_shows_while_writers_go_on() {
    // They are dropped after the processes that use them.
    let mut disks = BTreeMap::new();
    let surf = cluster_with(3, 0, "600", |surf| {
        for daemon in surf.daemons().into_iter().filter(|daemon| daemon.name.starts_with("blockd")) {
            let backing = surf.scratch().join(format!("disk-{}", daemon.name));
            let disk = VolatileDisk::mount(&daemon.data_dir, &backing, NameModel::Strict);
            disks.insert(daemon.name, disk.expect("a disk can be mounted"));
        }
    });
    let mut count = 0;
    let mut slowest = Duration::ZERO;
    let mut write_some = || {
        for _ in 0..4 {
            slowest = slowest.max(write(&surf, count));
            count += 1;
        }
    };
    until("the times of all disks are known", HEAL_LIMIT, || {
        write_some();
        (sync_times(&surf).0.len() == 3).then_some(())
    });
    disks["blockd-2"].slow_down(SYNC);
    until("the slow one shows", HEAL_LIMIT, || {
        write_some();
        let (times, slow) = sync_times(&surf);
        let takes_long = times.get("blockd-2").is_some_and(|us| Duration::from_micros(*us) >= SYNC);
        (takes_long && slow == ["blockd-2"]).then_some(())
    });
    let (text, code) = surf.operate(&["status"]);
    assert!(code == 2 && text.contains("blockd-2 (") && text.contains("is slow"), "{text}");
    assert!(slowest < WRITE_LIMIT, "a write took {slowest:?}");
    disks["blockd-2"].slow_down(Duration::ZERO);
    for number in 0..count {
        let content = fs::read(surf.path().join(number.to_string())).expect("it can be read");
        assert!(content == fuse::random(number, FILE_BYTES), "file {number}");
    }
}
