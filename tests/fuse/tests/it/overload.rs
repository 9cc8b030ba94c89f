//! Many clients at once, greedy ones, and a slow metad: memory stays bounded, and others go on.
//!
//! `SESSIONS` sets the number of sessions. [docs/reliability.md](../../../../docs/reliability.md) has figures.

use client::{Client, ClientConfig, Handle, NewNode, OpenFlags};
use fuse::{LIMIT, Stop, sync_file};
use kit::fault::{Paused, peak_memory};
use kit::{Setup, Surf, scale, sh, until};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use wire::bundle::Bundle;
use wire::ids::Ino;
use wire::op::NewInode;

/// Number of sessions, if the variable of that name is not set.
const SESSIONS: usize = 200;
const FILES_EACH: usize = 20;
/// Clients that connect, work or end at the same time: the machine has few cores.
const AT_ONCE: usize = 8;
/// Memory that a metad may have for all of them.
const METAD_BYTES_MAX: u64 = 512 << 20;
/// Clients that ask for as much as they can, and what each asks for at once.
const GREEDY: usize = 2;
const ASKED_AT_ONCE: usize = 256;
/// Synced files that a mount makes beside them, and the longest time that one may take.
const SYNCED: usize = 20;
const SYNC_LIMIT: Duration = Duration::from_secs(5);
/// Synced files beside a slow metad: enough for several of its pauses.
const SYNCED_BESIDE_SLOW: usize = 60;
/// How long the slow metad is paused, and how long it runs in between. A longer pause would begin an election.
const PAUSED_FOR: Duration = Duration::from_millis(250);
const RUNS_FOR: Duration = Duration::from_millis(50);
/// How much longer a synced file may take while a follower is slow: far less than one of its pauses.
const SLOW_COSTS_MAX: Duration = Duration::from_millis(100);

/// Threads that write at once while nothing can be stored, and what each writes, a megabyte at a time.
const BLOCKED_WRITERS: usize = 200;
const MIB: usize = 1 << 20;
const WRITTEN_BY_EACH: usize = 2 * MIB;
/// Memory that a mount may take for them: the window, writes that wait, as much again for what is on its way from one to the
/// other, and what connections to paused daemons hold. Without a bound it would be 300 MiB for the writes alone.
const MOUNT_BYTES_MAX: u64 = (2 * (96 + 32) + 32) * MIB as u64;
/// Buffers that are retained for the next blocks once some are stored.
const RETAINED_BYTES_MAX: u64 = 32 * MIB as u64;
/// More than a mount's cache of blocks in memory has room for.
const CACHED_MIB: usize = 112;
/// A writer that has made no progress for this long waits for room.
const STANDSTILL: Duration = Duration::from_secs(2);

/// Something with files in it that stay open.
struct Session {
    client: Arc<Client>,
    handles: Vec<Handle>,
}

fn new(node: NewInode) -> NewNode {
    NewNode { node, mode: 0o755, umask: 0, uid: 0, gid: 0 }
}

async fn connect(bundle: Bundle, number: usize) -> Arc<Client> {
    let mut config = ClientConfig::new(bundle, &format!("session {number}"));
    // Every change is a request of its own.
    config.write_back = false;
    Client::connect(config).await.expect("a session is opened")
}

async fn open_files(bundle: Bundle, number: usize) -> Session {
    let client = connect(bundle, number).await;
    let name = format!("session-{number}");
    let dir =
        client.make_node(Ino::ROOT, name.as_bytes(), new(NewInode::Directory)).await.expect("a directory is made");
    let mut handles = Vec::new();
    for file in 0..FILES_EACH {
        let made =
            client.create(dir.ino, format!("{file}").as_bytes(), new(NewInode::Regular), OpenFlags::default()).await;
        handles.push(made.expect("a file is made").handle);
    }
    Session { client, handles }
}

/// Runs this for each number, a few at the same time.
async fn for_each<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    inputs: impl IntoIterator<Item = F>,
) -> Vec<T> {
    let (mut tasks, mut done) = (JoinSet::new(), Vec::new());
    for input in inputs {
        if tasks.len() >= AT_ONCE {
            done.extend(tasks.join_next().await.map(|one| one.expect("no task panics")));
        }
        tasks.spawn(input);
    }
    done.extend(tasks.join_all().await);
    done
}

/// Makes and removes directories as fast as it can.
async fn be_greedy(client: Arc<Client>, dir: Ino, stop: Arc<AtomicBool>) -> usize {
    let mut asking = JoinSet::new();
    for number in 0..ASKED_AT_ONCE {
        let (client, stop) = (client.clone(), stop.clone());
        asking.spawn(async move {
            let (name, mut count) = (format!("greedy-{number}"), 0);
            while !stop.load(Ordering::Relaxed) {
                client.make_node(dir, name.as_bytes(), new(NewInode::Directory)).await.expect("a directory is made");
                client.rmdir(dir, name.as_bytes(), None).await.expect("a directory is removed");
                count += 2;
            }
            count
        });
    }
    asking.join_all().await.into_iter().sum()
}

/// Makes so many files and syncs them, and returns how long each took, the longest last.
fn sync_files(dir: &Path, prefix: &str, count: usize) -> Vec<Duration> {
    let sync = |number| sync_file(&dir.join(format!("{prefix}-{number}")), &[7; 4096]);
    let mut times: Vec<Duration> = (0..count).map(sync).collect();
    times.sort();
    times
}

fn middle(times: &[Duration]) -> Duration {
    times[times.len() / 2]
}

#[test]
fn many_sessions_with_open_files_fit_into_metads_and_greedy_ones_starve_nobody() {
    let count = scale("SESSIONS", SESSIONS);
    let surf = Surf::start_alone(Setup::Cluster);
    let bundle = Bundle::load(&surf.bundle()).unwrap();
    let runtime = Runtime::new().unwrap();
    let started = Instant::now();
    let sessions = runtime.block_on(for_each((0..count).map(|number| open_files(bundle.clone(), number))));
    println!("{count} sessions with {FILES_EACH} open files each after {:?}", started.elapsed());
    assert_eq!(fs::read_dir(surf.path().join(format!("session-{}", count - 1))).unwrap().count(), FILES_EACH);
    let alone = sync_files(&surf.path(), "alone", SYNCED);

    let stop = Stop::default();
    let greedy: Vec<_> = (0..GREEDY)
        .map(|number| {
            let Session { client, .. } = &sessions[number];
            let dir = runtime.block_on(client.lookup(Ino::ROOT, format!("session-{number}").as_bytes())).unwrap().ino;
            runtime.spawn(be_greedy(client.clone(), dir, stop.flag()))
        })
        .collect();
    let beside = sync_files(&surf.path(), "beside", SYNCED);
    drop(stop);
    let asked: usize = greedy.into_iter().map(|one| runtime.block_on(one).expect("no task panics")).sum();
    println!(
        "a synced file takes {:?} alone, {:?} beside {asked} greedy requests, {:?} at most",
        middle(&alone),
        middle(&beside),
        beside[SYNCED - 1]
    );
    assert!(asked > ASKED_AT_ONCE, "they hardly asked for anything");
    assert!(beside[SYNCED - 1] < SYNC_LIMIT, "{beside:?}");

    for metad in surf.daemons().iter().filter(|daemon| daemon.name.starts_with("metad")) {
        let bytes = peak_memory(metad.pid);
        println!("{} used {} MiB at most", metad.name, bytes >> 20);
        assert!(bytes < METAD_BYTES_MAX);
    }
    let ended = runtime.block_on(for_each(sessions.into_iter().map(|Session { client, handles }| async move {
        for handle in handles {
            client.release(handle).await;
        }
        client.shutdown().await
    })));
    assert!(ended.into_iter().all(|ended| ended.is_ok()));
}

#[test]
fn a_follower_that_is_paused_most_of_the_time_slows_nobody_down() {
    let surf = Surf::start_alone(Setup::Cluster);
    let well = sync_files(&surf.path(), "well", SYNCED_BESIDE_SLOW);
    let leader = surf.leader();
    let is_follower = |name: &str| name.starts_with("metad") && name != leader;
    let slow = surf.daemons().into_iter().find(|daemon| is_follower(&daemon.name)).expect("there are followers");
    let beside = thread::scope(|scope| {
        let stop = Stop::default();
        let stopped = stop.flag();
        scope.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let paused = Paused::stop(slow.pid);
                thread::sleep(PAUSED_FOR);
                drop(paused);
                thread::sleep(RUNS_FOR);
            }
        });
        sync_files(&surf.path(), "beside", SYNCED_BESIDE_SLOW)
    });
    surf.kill_9(&slow.name);
    let without = sync_files(&surf.path(), "without", SYNCED_BESIDE_SLOW);
    println!(
        "a synced file takes {:?} in a cluster that is well, {:?} without one metad, and {:?} while that one is slow \
         ({:?}, {:?} and {:?} at most)",
        middle(&well),
        middle(&without),
        middle(&beside),
        well[SYNCED_BESIDE_SLOW - 1],
        without[SYNCED_BESIDE_SLOW - 1],
        beside[SYNCED_BESIDE_SLOW - 1]
    );
    assert_eq!(surf.leader(), leader, "the slow one has deposed it");
    let usual = middle(&well).max(middle(&without));
    assert!(middle(&beside) < usual + SLOW_COSTS_MAX, "{beside:?}");
    assert!(beside[SYNCED_BESIDE_SLOW - 1] < SYNC_LIMIT, "{beside:?}");
}

/// What the writer of this number writes.
fn written_by(number: usize) -> Vec<u8> {
    let mut content = vec![number as u8; WRITTEN_BY_EACH];
    content[..8].copy_from_slice(&(number as u64).to_le_bytes());
    content
}

/// Waits until writers have begun more writes than have ended, and nothing ends any more.
fn wait_for_standstill(ended: &AtomicUsize) {
    let mut seen = (0, Instant::now());
    until("writers wait", Duration::from_secs(60), || {
        let now = ended.load(Ordering::Relaxed);
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        (now > 0 && seen.1.elapsed() > STANDSTILL).then_some(())
    });
}

/// Returns whether a process goes on when it writes beyond its limit on file sizes (`RLIMIT_FSIZE`).
fn outlives_file_size_limit(pid: u32) -> bool {
    // As `libc::SIGXFSZ` on Linux.
    const BEYOND_LIMIT: u32 = 25;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask of ignored signals");
    u64::from_str_radix(ignored.trim(), 16).unwrap() >> (BEYOND_LIMIT - 1) & 1 == 1
}

#[test]
fn a_mount_goes_on_when_it_reaches_its_limit_on_file_sizes() {
    let surf = Surf::start_alone(Setup::Cluster);
    assert!(outlives_file_size_limit(surf.mount_pid()));
}

/// Returns how many bytes of a file the kernel has in its page cache, by `fincore(1)`.
fn in_page_cache(dir: &Path, name: &str) -> usize {
    let said = sh(dir, LIMIT, &format!("fincore --bytes --noheadings --output RES {name}"));
    said.trim().parse().expect("fincore prints a number")
}

#[test]
fn hundreds_of_writers_that_wait_take_little_memory_and_keep_no_other_call_waiting() {
    let surf = Surf::start_alone(Setup::Cluster);
    let other = surf.mount_again(&[]);
    let (dir, read) = (surf.path(), vec![3; 3 * MIB]);
    fs::write(dir.join("read"), &read).unwrap();
    fs::write(dir.join("shared"), "old").unwrap();
    fs::create_dir(dir.join("writers")).unwrap();
    let name = |number| format!("writers/{number}");
    let files: Vec<File> =
        (0..BLOCKED_WRITERS).map(|number| File::create(dir.join(name(number))).expect("a file is made")).collect();
    // What was read and written last stays in memory, in a cache of bounded size: it is full before.
    for number in 0..CACHED_MIB {
        let mut file = File::create(dir.join(format!("cached-{number}"))).unwrap();
        file.write_all(&vec![number as u8; MIB]).and_then(|()| file.sync_all()).unwrap();
    }
    // Nothing that is done before waits for the block daemons.
    for file in ["read", "shared", "writers"] {
        File::open(dir.join(file)).and_then(|file| file.sync_all()).unwrap();
    }
    assert!(fs::read(dir.join("read")).unwrap() == read);
    assert_eq!(fs::read_to_string(dir.join("shared")).unwrap(), "old");
    let before = peak_memory(surf.mount_pid());
    let daemons = surf.daemons();
    let paused: Vec<Paused> =
        daemons.iter().filter(|one| one.name.starts_with("blockd")).map(|one| Paused::stop(one.pid)).collect();
    let ended = AtomicUsize::new(0);
    thread::scope(|scope| {
        let writers: Vec<_> = files
            .into_iter()
            .enumerate()
            .map(|(number, mut file)| {
                let ended = &ended;
                scope.spawn(move || {
                    for part in written_by(number).chunks(MIB) {
                        file.write_all(part)?;
                        ended.fetch_add(1, Ordering::Relaxed);
                    }
                    file.sync_all()
                })
            })
            .collect();
        wait_for_standstill(&ended);
        let ended = ended.load(Ordering::Relaxed);
        let used = peak_memory(surf.mount_pid());
        println!("{ended} MiB were taken, {} MiB before, {} MiB now", before >> 20, used >> 20);
        let started = Instant::now();
        assert_eq!(fs::metadata(dir.join("read")).unwrap().len(), 3 * MIB as u64);
        // What the kernel has dropped meanwhile has to be read from the block daemons.
        if in_page_cache(&dir, "read") >= read.len() {
            assert!(fs::read(dir.join("read")).unwrap() == read, "the kernel has it");
        } else {
            println!("the kernel has dropped what was read before");
        }
        // This mount has a lease on it, which metad recalls.
        fs::write(other.path().join("shared"), "new").unwrap();
        assert_eq!(fs::read_to_string(dir.join("shared")).unwrap(), "new");
        let took = started.elapsed();
        drop(paused);
        for writer in writers {
            writer.join().expect("no writer panics").expect("everything is written and synced");
        }
        // Asserted when nobody waits any more, so that a failure ends the test.
        assert!((64..BLOCKED_WRITERS).contains(&ended), "{ended} writes ended: not each thread waited with a megabyte");
        assert!(used - before < MOUNT_BYTES_MAX, "{} MiB more", (used - before) >> 20);
        assert!(took < SYNC_LIMIT, "other calls took {took:?}");
    });
    let used = peak_memory(surf.mount_pid());
    println!("{} MiB at most until all was written", used >> 20);
    let bound = MOUNT_BYTES_MAX + RETAINED_BYTES_MAX;
    assert!(used - before < bound, "{} MiB more", (used - before) >> 20);
    for number in 0..BLOCKED_WRITERS {
        assert!(fs::read(other.path().join(name(number))).unwrap() == written_by(number));
    }
}
