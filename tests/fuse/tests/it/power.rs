//! Whole nodes lose their power while mounts write: whatever had been synced is there afterwards.
//!
//! The data directory of each daemon, and the directory of the mount's journal and cache, lie on disks that forget,
//! tear and reorder what was not synced (`kit::powerloss`). In each round writers make, append to, overwrite, replace
//! and remove files, each with its syncs. At a random moment all processes of some nodes are killed, and their disks
//! lose the power. Then the nodes start again, and everything that was acknowledged is checked. The next round goes on
//! with what is there.
//!
//! `FAULT_SEED` decides who is struck, what writers do and what disks lose. The same seed does not always lead to the
//! same failure, because the timing of processes varies.

mod writer;

use crate::fsck::until_clean;
use fuse::Stop;
use kit::chance::seed;
use kit::fault::{is_alive, kill_9};
use kit::powerloss::{NameModel, Stake};
use kit::{Chance, Setup, Surf, VolatileDisk, own_descriptors, scale, until};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use writer::Writer;

/// For how long rounds are begun, unless `POWER_SECONDS` says otherwise.
const SECONDS: u64 = 20;
/// Writers, each in a directory of its own.
const WRITERS: u64 = 4;
/// The longest time from the start of the writers to the power loss, in milliseconds.
const MOMENT_MAX_MS: u64 = 1200;
/// Writers go on within this time once all nodes are back.
const RESUME_LIMIT: Duration = Duration::from_secs(120);
/// The disk of the mount's own directory, or of all of an embedded cluster.
const MOUNT: &str = "mnt";
/// The file in which a metad notes in which boot of the machine it has written (`metad/src/store.rs`).
const BOOT_FILE: &str = "STATE";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Who loses the power.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outage {
    /// Everybody.
    All,
    /// All daemons; the mount waits for them.
    Daemons,
    /// A metad and a block daemon.
    Few,
    /// The machine of the mount.
    Mount,
}

/// A cluster on disks that lose what was not synced.
struct Site {
    surf: Surf,
    setup: Setup,
    /// By the names of daemons, and [`MOUNT`]. They are dropped after the processes that use them.
    disks: BTreeMap<String, VolatileDisk>,
    writers: Vec<Writer>,
}

/// The writers at work.
struct Load {
    stop: Stop,
    threads: Vec<JoinHandle<(Writer, io::Result<()>)>>,
}

impl Load {
    fn start(writers: Vec<Writer>, root: &Path) -> Self {
        let stop = Stop::default();
        let run = |mut writer: Writer| {
            let (stopped, root) = (stop.flag(), root.to_owned());
            thread::spawn(move || {
                // Daemons are started while the mount waits for them.
                own_descriptors();
                while !stopped.load(Ordering::Relaxed) {
                    if let Err(error) = writer.step(&root) {
                        return (writer, Err(error));
                    }
                }
                (writer, Ok(()))
            })
        };
        let threads = writers.into_iter().map(run).collect();
        Self { stop, threads }
    }

    /// Waits until all have ended, by themselves or because they are stopped. Returns what ended them.
    fn end(self) -> (Vec<Writer>, io::Result<()>) {
        drop(self.stop);
        until("the writers go on", RESUME_LIMIT, || self.threads.iter().all(JoinHandle::is_finished).then_some(()));
        let (mut writers, mut outcome) = (Vec::new(), Ok(()));
        for thread in self.threads {
            let (writer, ended) = thread.join().expect("a writer does not panic");
            writers.push(writer);
            outcome = outcome.and(ended);
        }
        (writers, outcome)
    }
}

/// How disks treat names: as POSIX has it, unless `POWER_NAMES=journaled` says as ext4 and XFS do it.
fn name_model() -> NameModel {
    match std::env::var("POWER_NAMES").as_deref() {
        Ok("journaled") => NameModel::Journaled,
        Ok("strict") | Err(_) => NameModel::Strict,
        Ok(other) => panic!("POWER_NAMES is strict or journaled, not {other}"),
    }
}

fn disk(surf: &Surf, name: &str, path: &Path) -> (String, VolatileDisk) {
    let backing = surf.scratch().join(format!("disk-{name}"));
    let disk = VolatileDisk::mount(path, &backing, name_model()).expect("a disk can be mounted");
    (name.to_owned(), disk)
}

impl Site {
    fn start(setup: Setup, seed: u64) -> Self {
        let mut disks = BTreeMap::new();
        let surf = match setup {
            Setup::Embedded => Surf::start_embedded_by(|surf| disks.extend([disk(surf, MOUNT, &surf.data_dir())])),
            Setup::Cluster => Surf::start_by(|surf| {
                surf.dev(&["up", "--metad", "3", "--blockd", "3", "--no-start"]);
                disks.extend(surf.daemons().iter().map(|daemon| disk(surf, &daemon.name, &daemon.data_dir)));
                disks.extend([disk(surf, MOUNT, &surf.cache_dir())]);
                surf.dev(&["up"]);
            }),
        };
        let writers = (0..WRITERS).map(|number| Writer::new(&surf.path(), number, seed)).collect();
        Self { surf, setup, disks, writers }
    }

    fn draw(&self, chance: &mut Chance) -> (Outage, Vec<String>) {
        let outage = match (self.setup, chance.below(10)) {
            (Setup::Embedded, _) => Outage::Mount,
            (Setup::Cluster, 0..5) => Outage::All,
            (Setup::Cluster, 5..7) => Outage::Daemons,
            (Setup::Cluster, 7..9) => Outage::Few,
            (Setup::Cluster, _) => Outage::Mount,
        };
        let few = [format!("metad-{}", 1 + chance.below(3)), format!("blockd-{}", 1 + chance.below(3))];
        let is_struck = |name: &String| match outage {
            Outage::All => true,
            Outage::Daemons => name != MOUNT,
            Outage::Few => few.contains(name),
            Outage::Mount => name == MOUNT,
        };
        (outage, self.disks.keys().filter(|name| is_struck(name)).cloned().collect())
    }

    /// Kills the processes of these nodes.
    fn kill(&mut self, nodes: &[String]) {
        let daemons = nodes.iter().filter(|name| *name != MOUNT);
        let daemons: Vec<u32> = daemons.map(|name| self.surf.daemon(name).pid).collect();
        daemons.iter().for_each(|pid| kill_9(*pid));
        if nodes.iter().any(|name| name == MOUNT) {
            self.surf.kill_mount();
        }
        until("the killed processes are gone", RESUME_LIMIT, || {
            daemons.iter().all(|pid| !is_alive(*pid)).then_some(())
        });
    }

    /// Kills the processes of these nodes, and lets their disks lose the power.
    fn strike(&mut self, nodes: &[String], seed: u64) -> Stake {
        self.kill(nodes);
        let boot = fs::read_to_string(BOOT_ID).expect("the kernel tells its boot");
        let mut stake = Stake::default();
        for name in nodes {
            let disk = self.disks.get_mut(name).expect("each node has a disk");
            let lost = disk.power_loss(Chance::of(seed, name).number()).expect("a disk comes back");
            stake.files += lost.files;
            stake.names += lost.names;
            // The machine starts again, and the daemon must not believe that its kernel has lived on.
            disk.edit(BOOT_FILE, |text| text.replace(boot.trim(), "another-boot")).expect("a file can be edited");
        }
        stake
    }

    fn restart(&mut self, nodes: &[String]) {
        let daemons: Vec<&String> = nodes.iter().filter(|name| *name != MOUNT).collect();
        if daemons.len() == self.disks.len() - 1 {
            if !daemons.is_empty() {
                self.surf.dev(&["up"]);
            }
        } else {
            daemons.iter().for_each(|name| self.surf.dev(&["start", name]));
        }
        if daemons.len() < nodes.len() {
            self.surf.mount(&[]);
        }
    }

    /// One round. Returns the number of files checked.
    fn round(&mut self, seed: u64) -> usize {
        let mut chance = Chance::of(seed, "power");
        let (outage, nodes) = self.draw(&mut chance);
        let begun = Instant::now();
        let acknowledged = |writers: &[Writer]| writers.iter().map(|writer| writer.acknowledged).sum::<u64>();
        let before = acknowledged(&self.writers);
        let load = Load::start(std::mem::take(&mut self.writers), &self.surf.path());
        // The moment of the power loss is what is random here; nothing is waited for.
        thread::sleep(Duration::from_millis(chance.below(MOMENT_MAX_MS)));
        let daemons: Vec<String> = nodes.iter().filter(|name| *name != MOUNT).cloned().collect();
        let is_killed_before = !daemons.is_empty() && chance.happens(0.3);
        if is_killed_before {
            // What a process finds in the page cache after a kill is not durable for that.
            self.kill(&daemons);
            self.restart(&daemons);
            thread::sleep(Duration::from_millis(chance.below(MOMENT_MAX_MS)));
        }
        let stake = self.strike(&nodes, seed);
        let mount_survives = !nodes.iter().any(|name| name == MOUNT);
        self.restart(&nodes);
        if mount_survives {
            thread::sleep(Duration::from_millis(chance.below(MOMENT_MAX_MS)));
        }
        let (mut writers, outcome) = load.end();
        if mount_survives {
            outcome.expect("the mount waits for its servers, and goes on");
        }
        let checked: usize = {
            let other = mount_survives.then(|| self.surf.mount_again(&[]));
            let root: PathBuf = other.as_ref().map_or_else(|| self.surf.path(), |other| other.path());
            check_all(&mut writers, &root)
        };
        let done = acknowledged(&writers) - before;
        let took = begun.elapsed();
        let kill = if is_killed_before { " after a kill" } else { "" };
        eprintln!("{outage:?}{kill} (seed {seed}): {done} acknowledged, {stake:?}, {checked} checked, {took:?}");
        self.writers = writers;
        checked
    }
}

/// Checks what all writers have acknowledged. Returns the number of files read.
fn check_all(writers: &mut Vec<Writer>, root: &Path) -> usize {
    let (mut checked, root) = (std::mem::take(writers), root.to_owned());
    let check = thread::spawn(move || {
        let count = checked.iter_mut().map(|writer| writer.check(&root)).sum();
        (checked, count)
    });
    until("all files are read", RESUME_LIMIT, || check.is_finished().then_some(()));
    let (checked, count) = check.join().expect("everything acknowledged is there");
    *writers = checked;
    count
}

fn rounds(setup: Setup) {
    let first = seed();
    eprintln!("FAULT_SEED={first}");
    let mut site = Site::start(setup, first);
    let (begun, limit, most) = (Instant::now(), scale("POWER_SECONDS", SECONDS), scale("POWER_ROUNDS", u64::MAX));
    let (mut count, mut checked) = (0, 0);
    while begun.elapsed() < Duration::from_secs(limit) && count < most {
        checked += site.round(first + count);
        count += 1;
    }
    if setup == Setup::Cluster {
        until_clean(&site.surf, &["--verify"]);
    }
    let acknowledged: u64 = site.writers.iter().map(|writer| writer.acknowledged).sum();
    assert!(
        acknowledged > 0 && checked > 0,
        "nothing was acknowledged before any of {count} power losses, or checked after"
    );
    println!(
        "{setup:?}: {count} power losses, {acknowledged} operations acknowledged, {checked} files checked in {:?}",
        begun.elapsed()
    );
}

/// Guards I7, I9.
#[test]
fn what_was_synced_is_there_after_nodes_of_a_cluster_lost_their_power() {
    rounds(Setup::Cluster);
}

/// Guards I7.
#[test]
fn what_was_synced_is_there_after_the_machine_of_an_embedded_cluster_lost_its_power() {
    rounds(Setup::Embedded);
}
