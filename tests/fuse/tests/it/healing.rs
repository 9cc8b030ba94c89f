//! Block daemons that die for good, come back wiped, come back late, join, are drained, are full or paused, under a
//! mount that writes and reads all the time.

use crate::fsck::until_clean;
use fuse::{LIMIT, Stop, random};
use kit::chance::seed;
use kit::fault::{Paused, is_alive, limit_file_size, outlive_file_size_limits};
use kit::{Chance, Surf, scale, sh, until};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Healing a few dozen MiB takes seconds; silence is noticed after three.
pub(crate) const HEAL_LIMIT: Duration = Duration::from_secs(120);
/// Silence after which a daemon is taken out.
const DOWN_AFTER_S: &str = "3";
/// Time between two heartbeats of a block daemon, as configured by default.
const HEARTBEAT_MS: u64 = 1000;
/// The longest time of a synced write while a daemon is paused: that of the mount before it skips the daemon, on a busy
/// machine.
const WRITE_LIMIT: Duration = Duration::from_secs(3);

/// Starts a cluster with this many block daemons, of which the last `idle` are not started.
fn cluster(blockds: u32, idle: u32) -> Surf {
    cluster_with(blockds, idle, DOWN_AFTER_S, |_| {})
}

/// Prepares the files of such a cluster and starts it. Daemons are taken out after a silence of `down_after_s`.
pub(crate) fn cluster_with(blockds: u32, idle: u32, down_after_s: &str, prepare: impl FnOnce(&Surf)) -> Surf {
    Surf::start_by(|surf| {
        let count = blockds.to_string();
        surf.dev(&["up", "--metad", "3", "--blockd", &count, "--replicas", "3", "--no-start"]);
        prepare(surf);
        start(surf, blockds - idle, down_after_s);
    })
}

/// Starts a cluster for a test that measures.
fn cluster_alone(blockds: u32, down_after_s: &str) -> Surf {
    Surf::start_alone_by(|surf| {
        surf.dev(&["up", "--metad", "3", "--blockd", &blockds.to_string(), "--replicas", "3", "--no-start"]);
        start(surf, blockds, down_after_s);
    })
}

fn start(surf: &Surf, blockds: u32, down_after_s: &str) {
    (1..=3).for_each(|number| surf.dev(&["start", &format!("metad-{number}")]));
    (1..=blockds).for_each(|number| surf.dev(&["start", &format!("blockd-{number}")]));
    until("the daemons have joined", HEAL_LIMIT, || {
        let up = states(surf).values().filter(|state| *state == "up").count();
        (up == blockds as usize).then_some(())
    });
    let (text, code) = surf.operate(&["cluster", "set", "--down-after-s", down_after_s]);
    assert_eq!(code, 0, "{text}");
}

/// Returns what is known of a block daemon.
fn blockd(surf: &Surf, name: &str) -> serde_json::Value {
    let status = surf.status();
    let blockds = status["blockds"].as_array().expect("status lists block daemons");
    blockds.iter().find(|blockd| blockd["name"] == name).expect("it is listed").clone()
}

/// Returns the state of each block daemon by its name.
pub(crate) fn states(surf: &Surf) -> BTreeMap<String, String> {
    let status = surf.status();
    let blockds = status["blockds"].as_array().expect("status lists block daemons");
    let word = |blockd: &serde_json::Value, key: &str| blockd[key].as_str().expect("it is text").to_owned();
    blockds.iter().map(|blockd| (word(blockd, "name"), word(blockd, "state"))).collect()
}

pub(crate) fn until_state(surf: &Surf, name: &str, state: &str) {
    until(&format!("{name} is {state}"), HEAL_LIMIT, || {
        (states(surf).get(name).map(String::as_str) == Some(state)).then_some(())
    });
}

/// Waits until every block is where the layout wants it.
pub(crate) fn until_whole(surf: &Surf) {
    until("every block lies where it belongs", HEAL_LIMIT, || {
        let status = surf.status();
        let is_whole =
            status["layout_final"] == true && status["lacking_blocks"] == 0 && status["misplaced_blocks"] == 0;
        is_whole.then_some(())
    });
}

/// Writes files one after the other, syncs each, and reads earlier ones, until it is stopped.
pub(crate) struct Load {
    stop: Stop,
    thread: JoinHandle<Vec<(PathBuf, Vec<u8>)>>,
}

impl Load {
    pub(crate) fn start(dir: &Path, seed: u64) -> Self {
        let stop = Stop::default();
        let (stopped, dir) = (stop.flag(), dir.to_owned());
        let thread = thread::spawn(move || {
            let mut chance = Chance::of(seed, "load");
            let mut files = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let path = dir.join(format!("file-{}", files.len()));
                let content = content(&mut chance, 200_000);
                let mut file = File::create(&path).expect("a file can be made");
                file.write_all(&content).expect("it can be written");
                file.sync_all().expect("it can be synced");
                files.push((path, content));
                let (path, content) = chance.pick(&files);
                assert!(fs::read(path).expect("a file can be read") == *content, "{} reads wrongly", path.display());
                thread::sleep(Duration::from_millis(30));
            }
            files
        });
        Self { stop, thread }
    }

    pub(crate) fn end(self) -> Vec<(PathBuf, Vec<u8>)> {
        drop(self.stop);
        self.thread.join().expect("the load goes on whatever happens to the daemons")
    }
}

fn content(chance: &mut Chance, below: u64) -> Vec<u8> {
    let len = 1 + chance.below(below);
    let start = chance.below(u64::MAX);
    (0..len).map(|at| (start.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 24) as u8).collect()
}

/// Reads all files through a mount that has cached nothing.
pub(crate) fn check_all(surf: &Surf, files: &[(PathBuf, Vec<u8>)]) {
    let other = surf.mount_again(&[]);
    for (path, content) in files {
        let name = path.file_name().expect("it has a name");
        let read = fs::read(other.path().join(name)).expect("a file can be read");
        assert!(read == *content, "{} reads wrongly", path.display());
    }
}

/// Waits until a killed daemon shows. By the leader's clock that is before it has missed three heartbeats, however long the
/// question takes.
fn until_it_shows(surf: &Surf, name: &str) {
    until("it shows", HEAL_LIMIT, || {
        let it = blockd(surf, name);
        let (is_up, heard_ms) = (it["state"] == "up", it["heard_ms_ago"].as_u64());
        assert!(!is_up || heard_ms < Some(3 * HEARTBEAT_MS), "it is up, and was heard {heard_ms:?} ms ago");
        (!is_up).then_some(())
    });
}

#[test]
fn all_content_stays_whole_while_block_daemons_die_return_join_are_weighed_and_drained() {
    let seed = seed();
    eprintln!("FAULT_SEED={seed}");
    let surf = cluster(5, 1);
    let load = Load::start(&surf.path(), seed);

    // One dies for good.
    surf.kill_9("blockd-1");
    until_it_shows(&surf, "blockd-1");
    assert_ne!(surf.operate(&["status"]).1, 0, "a dead daemon is no health");
    until_state(&surf, "blockd-1", "out");
    until_whole(&surf);

    // One joins.
    surf.dev(&["start", "blockd-5"]);
    until_state(&surf, "blockd-5", "up");
    until_whole(&surf);

    // One comes back without its disk.
    surf.kill_9("blockd-2");
    let home = surf.daemon("blockd-2").data_dir;
    fs::remove_dir_all(&home).expect("its data can be removed");
    surf.dev(&["start", "blockd-2"]);
    until_state(&surf, "blockd-2", "up");
    until_whole(&surf);

    // The first comes back late, with its blocks.
    surf.dev(&["start", "blockd-1"]);
    until_state(&surf, "blockd-1", "up");
    until_whole(&surf);

    // One is to hold twice as much.
    let weight = || blockd(&surf, "blockd-4")["weight"].as_u64().expect("it is a number");
    let twice = weight() * 2;
    let (text, code) = surf.operate(&["blockd", "weight", "blockd-4", &twice.to_string()]);
    assert_eq!((code, weight()), (0, twice), "{text}");
    assert!(surf.operate(&["status"]).0.contains(&format!("(weight {twice})")));
    assert_eq!(surf.operate(&["blockd", "weight", "blockd-9", "1"]).1, 1, "there is no such daemon");
    until_whole(&surf);

    // One is emptied, switched off, and forgotten.
    assert_eq!(surf.operate(&["blockd", "remove", "blockd-3"]).1, 1, "it runs");
    let (text, code) = surf.operate(&["blockd", "drain", "blockd-3"]);
    assert_eq!(code, 0, "{text}");
    until_state(&surf, "blockd-3", "drained");
    surf.kill_9("blockd-3");
    until("it is forgotten", HEAL_LIMIT, || (surf.operate(&["blockd", "remove", "blockd-3"]).1 == 0).then_some(()));
    assert!(!states(&surf).contains_key("blockd-3"));
    until_whole(&surf);

    let files = load.end();
    assert!(files.len() > 20, "{} files", files.len());
    until_whole(&surf);
    assert_eq!(surf.operate(&["status"]).1, 0, "{}", surf.operate(&["status"]).0);
    // Three copies of everything: any two of the four may die.
    surf.kill_9("blockd-2");
    surf.kill_9("blockd-5");
    check_all(&surf, &files);
}

/// Writes synced files and reads them by another mount. Returns the longest time of a write, and the times of all
/// writes and of all reads.
fn write_and_read(surf: &Surf, kind: &str, count: usize) -> (Duration, Duration, Duration) {
    let mut slowest = Duration::ZERO;
    let mut chance = Chance::of(7, kind);
    let mut files = Vec::new();
    let begun = Instant::now();
    for number in 0..count {
        let path = surf.path().join(format!("{kind}-{number}"));
        let content = content(&mut chance, 300_000);
        let started = Instant::now();
        let mut file = File::create(&path).expect("a file can be made");
        file.write_all(&content).expect("it can be written");
        file.sync_all().expect("it can be synced");
        slowest = slowest.max(started.elapsed());
        files.push((path, content));
    }
    let written = begun.elapsed();
    let begun = Instant::now();
    check_all(surf, &files);
    let times = (slowest, written, begun.elapsed());
    eprintln!("{kind}: the longest write, all writes and all reads took {times:?}");
    times
}

/// This is long before the daemon is taken out: only clients that wait for it know that it does not answer.
#[test]
fn writers_and_readers_hardly_wait_for_a_paused_block_daemon() {
    let surf = cluster_with(3, 0, "600", |_| {});
    let (_, usual_writes, usual_reads) = write_and_read(&surf, "usual", 100);
    let pid = surf.daemon("blockd-2").pid;
    let paused = Paused::stop(pid);
    let (slowest, writes, reads) = write_and_read(&surf, "paused", 100);
    assert!(slowest < WRITE_LIMIT, "a write took {slowest:?}");
    // Finding that out takes a second, and from then on everything is as before.
    let limit = |usual: Duration| usual * 3 + Duration::from_secs(5);
    assert!(writes < limit(usual_writes), "writing took {writes:?}, and {usual_writes:?} before");
    assert!(reads < limit(usual_reads), "reading took {reads:?}, and {usual_reads:?} before");
    // Its connections have been given up by then, and have to be made anew.
    until_state(&surf, "blockd-2", "down");
    let (slowest, writes, reads) = write_and_read(&surf, "still", 100);
    assert!(slowest < WRITE_LIMIT, "a write took {slowest:?}");
    assert!(writes < limit(usual_writes), "writing took {writes:?}, and {usual_writes:?} before");
    assert!(reads < limit(usual_reads), "reading took {reads:?}, and {usual_reads:?} before");
    drop(paused);
    until_state(&surf, "blockd-2", "up");
    until_whole(&surf);
    assert!(is_alive(pid));
    // It gets what it missed long before it compares with the others, which it does every ten minutes.
    until_clean(&surf, &[]);
}

#[test]
fn readers_hardly_wait_for_dead_block_daemons() {
    let surf = cluster(4, 0);
    let mut chance = Chance::of(9, "dead");
    let files: Vec<(PathBuf, Vec<u8>)> = (0..400)
        .map(|number| {
            // This is too large for metadata.
            let mut content = content(&mut chance, 10_000);
            content.resize(content.len() + 5_000, number as u8);
            (surf.path().join(format!("file-{number}")), content)
        })
        .collect();
    files.iter().for_each(|(path, content)| fs::write(path, content).expect("a file can be written"));
    sh(&surf.scratch(), LIMIT, &format!("sync -f {}", surf.path().display()));
    until_whole(&surf);
    surf.kill_9("blockd-1");
    surf.kill_9("blockd-3");
    let begun = Instant::now();
    check_all(&surf, &files);
    let took = begun.elapsed();
    eprintln!("reading took {took:?}");
    assert!(took < Duration::from_secs(20), "reading took {took:?}");
}

#[test]
fn blocks_that_no_daemon_has_show_until_one_brings_them_back() {
    let surf = cluster(4, 0);
    let files = write_synced(&surf, "file", 40, 20_000);
    until_whole(&surf);
    assert_eq!(surf.status()["missing_blocks"], 0);
    let others = ["blockd-2", "blockd-3", "blockd-4"];
    others.iter().for_each(|name| surf.kill_9(name));
    let status = until("what lay on those three alone shows as missing", HEAL_LIMIT, || {
        let status = surf.status();
        (status["missing_blocks"].as_u64() > Some(0)).then_some(status)
    });
    assert!(status["missing_blocks"].as_u64() < Some(40) && status["critical"] == true, "{status}");
    let (text, code) = surf.operate(&["status"]);
    assert!(code == 3 && text.contains("blocks cannot be read"), "{text}");
    others.iter().for_each(|name| surf.dev(&["start", name]));
    until("nothing is missing", HEAL_LIMIT, || (surf.status()["missing_blocks"] == 0).then_some(()));
    until_whole(&surf);
    check_all(&surf, &files);
}

/// Two of four daemons have no room, and two copies must be synced.
#[test]
fn the_next_block_daemons_stand_in_for_full_ones() {
    let surf = cluster_with(4, 0, DOWN_AFTER_S, |surf| {
        for number in 1..=4 {
            let config = surf.cluster_dir().join(format!("blockd-{number}/blockd.toml"));
            let text = fs::read_to_string(&config).expect("a configuration can be read");
            fs::write(&config, format!("weight = 1\n{text}")).expect("it can be written");
        }
        for name in ["blockd-1", "blockd-2"] {
            let data = surf.daemon(name).data_dir;
            let data = data.display();
            // A block daemon leaves 512 MiB of the disk free.
            sh(&surf.scratch(), LIMIT, &format!("mkdir -p {data} && mount -t tmpfs -o size=550m none {data}"));
        }
    });
    let mut chance = Chance::of(8, "full");
    let mut files = Vec::new();
    for number in 0..60 {
        let path = surf.path().join(format!("file-{number}"));
        let mut content = content(&mut chance, 1000);
        content.resize(2 << 20, number);
        let mut file = File::create(&path).expect("a file can be made");
        file.write_all(&content).expect("it can be written");
        file.sync_all().unwrap_or_else(|error| panic!("file {number} cannot be synced: {error}"));
        files.push((path, content));
    }
    let is_full = |name: &str| {
        let (text, _) = surf.operate(&["blockd", "list", "--json"]);
        let blockds: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        let blockds = blockds.as_array().expect("it is a list").clone();
        let found = blockds.into_iter().find(|blockd| blockd["name"] == name).expect("it is listed");
        // A file takes a little more than two MiB.
        found["free_bytes"].as_u64().expect("it is a number") < 3 << 20
    };
    // All of this may take less time than lies between two heartbeats.
    until("the metads know that two have no room for another file", HEAL_LIMIT, || {
        (is_full("blockd-1") && is_full("blockd-2")).then_some(())
    });
    check_all(&surf, &files);
}

fn write_synced(surf: &Surf, kind: &str, count: usize, bytes: usize) -> Vec<(PathBuf, Vec<u8>)> {
    let mut chance = Chance::of(11, kind);
    let write = |number| {
        let path = surf.path().join(format!("{kind}-{number}"));
        let mut content = content(&mut chance, 1000);
        content.resize(bytes, number as u8);
        let mut file = File::create(&path).expect("a file can be made");
        file.write_all(&content).expect("it can be written");
        file.sync_all().expect("it can be synced");
        (path, content)
    };
    (0..count).map(write).collect()
}

#[test]
fn a_new_block_daemon_takes_the_place_of_another_which_may_be_switched_off_then() {
    let surf = cluster(4, 1);
    let files = write_synced(&surf, "file", 30, 100_000);
    assert_eq!(surf.operate(&["blockd", "replace", "blockd-1", "blockd-2"]).1, 1, "it has a place already");
    let (text, code) = surf.operate(&["blockd", "replace", "blockd-1", "blockd-4"]);
    assert_eq!(code, 0, "{text}");
    surf.dev(&["start", "blockd-4"]);
    until_state(&surf, "blockd-4", "up");
    until_state(&surf, "blockd-1", "drained");
    surf.kill_9("blockd-1");
    until("it is silent for longer than others may be", HEAL_LIMIT, || {
        let heard_ms = blockd(&surf, "blockd-1")["heard_ms_ago"].as_u64();
        heard_ms.is_none_or(|ms| ms > 6000).then_some(())
    });
    assert_eq!(states(&surf)["blockd-1"], "drained");
    until_whole(&surf);
    let (text, code) = surf.operate(&["status"]);
    assert_eq!(code, 0, "{text}");
    check_all(&surf, &files);
    assert_eq!(surf.operate(&["blockd", "remove", "blockd-1"]).1, 0);
    until_whole(&surf);
    check_all(&surf, &files);
}

#[test]
fn a_block_daemon_whose_disk_fails_serves_what_it_has_while_others_take_over() {
    outlive_file_size_limits();
    let surf = cluster(4, 0);
    let mut files = write_synced(&surf, "before", 20, 1 << 20);
    until_whole(&surf);
    let pid = surf.daemon("blockd-2").pid;
    limit_file_size(pid, 1 << 20);
    files.extend(write_synced(&surf, "after", 20, 1 << 20));
    until_state(&surf, "blockd-2", "failed");
    let (text, code) = surf.operate(&["status"]);
    assert!(code == 2 && text.contains("a disk that failed"), "{code}: {text}");
    check_all(&surf, &files);
    until("the others have all", HEAL_LIMIT, || {
        let status = surf.status();
        (status["layout_final"] == true && status["lacking_blocks"] == 0).then_some(())
    });
    assert!(is_alive(pid), "what it has is served");
    surf.kill_9("blockd-2");
    surf.kill_9("blockd-3");
    check_all(&surf, &files);
    // On a good disk they are as before.
    surf.dev(&["start", "blockd-2"]);
    surf.dev(&["start", "blockd-3"]);
    until_state(&surf, "blockd-2", "up");
    until_state(&surf, "blockd-3", "up");
    until_whole(&surf);
    check_all(&surf, &files);
}

/// Prints how long it takes until the loss of a daemon shows, and until all blocks have all copies again.
#[test]
#[ignore = "measures: run it by its name, in a release build, on an idle machine"]
fn how_soon_a_dead_daemon_is_noticed_and_its_blocks_are_healed() {
    let mib = scale("HEAL_MIB", 1024_usize);
    let surf = cluster_alone(4, DOWN_AFTER_S);
    let files: Vec<_> = (0..mib / 16)
        .map(|number| {
            let (path, content) = (surf.path().join(format!("file-{number}")), random(number as u64, 16 << 20));
            let mut file = File::create(&path).expect("a file can be made");
            file.write_all(&content).and_then(|()| file.sync_all()).expect("it can be written and synced");
            (path, content)
        })
        .collect();
    until_whole(&surf);
    for name in ["blockd-1", "blockd-2"] {
        surf.kill_9(name);
        let killed = Instant::now();
        until_it_shows(&surf, name);
        let noticed = killed.elapsed();
        until_state(&surf, name, "out");
        let out = Instant::now();
        until("every block has all its copies", HEAL_LIMIT * 10, || {
            let status = surf.status();
            (status["layout_final"] == true && status["lacking_blocks"] == 0).then_some(())
        });
        println!(
            "{mib} MiB, {name} killed: noticed after {noticed:.1?}, healed {:.1?} after it was out",
            out.elapsed()
        );
        surf.dev(&["start", name]);
        until_whole(&surf);
    }
    check_all(&surf, &files);
}
