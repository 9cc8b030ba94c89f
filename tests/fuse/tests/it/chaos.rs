//! Random trouble over a whole cluster, schedule after schedule, while a mount writes, syncs and reads.
//!
//! A schedule draws a few faults from its seed: block daemons are killed for a moment or until others have taken
//! over, come back without their disk, are paused, drained and joined, have flipped bits, full disks and disks that
//! fail; leading metads are killed and paused. Then all is undone, and everything that was synced must be right,
//! every block must have all its copies, and `surf fsck --verify` must find nothing.
//!
//! A put is acknowledged with two of three copies on disk, so the loss of a second one may lose content: a schedule
//! has at most one fault that takes copies away for good.

use crate::fsck::until_clean;
use crate::healing::{HEAL_LIMIT, Load, check_all, cluster_with, states, until_state};
use fuse::{LIMIT, random};
use kit::chance::seed;
use kit::fault::{Paused, corrupt, is_alive, limit_file_size, outlive_file_size_limits};
use kit::{Chance, Surf, scale, sh, until};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// For how long schedules are begun, unless `CHAOS_SECONDS` says otherwise.
const SECONDS: u64 = 300;
/// Block daemons; the last one joins and leaves.
const DAEMONS: u32 = 6;
/// Those with small disks, which can be filled.
const SMALL: [&str; 2] = ["blockd-1", "blockd-2"];
/// Faults of a schedule.
const FAULTS_MAX: u64 = 4;
/// Daemons that are in trouble at the same time.
const TROUBLED_MAX: usize = 2;
/// Longest pause between two faults, in milliseconds.
const PAUSE_MAX_MS: u64 = 1500;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// Killed, and started again at the end.
    Killed,
    /// Killed, and started again when others have taken over.
    Late,
    /// Killed, and started again without what it had.
    Wiped,
    /// What it has of a file is damaged on its disk.
    Flipped,
    /// It answers nobody.
    Paused,
    /// Its disk has no room.
    Full,
    /// Its disk refuses to write.
    Failing,
    /// Operators empty it, and think better of it.
    Drained,
    /// The last one joins, if it is not there.
    Joins,
    /// The last one dies for good, if it is there.
    Dies,
    /// The leading metad is killed.
    LeaderKilled,
    /// The leading metad answers nobody.
    LeaderPaused,
}

const FAULTS: [Fault; 12] = [
    Fault::Killed,
    Fault::Late,
    Fault::Wiped,
    Fault::Flipped,
    Fault::Paused,
    Fault::Full,
    Fault::Failing,
    Fault::Drained,
    Fault::Joins,
    Fault::Dies,
    Fault::LeaderKilled,
    Fault::LeaderPaused,
];

impl Fault {
    fn loses_copies(self) -> bool {
        matches!(self, Self::Wiped | Self::Flipped | Self::Dies)
    }
}

/// What is wrong now, by the daemon's name, and what undoes it.
struct Troubles<'a> {
    surf: &'a Surf,
    faults: BTreeMap<String, Fault>,
    paused: BTreeMap<String, Paused>,
    /// Copies were taken away for good.
    has_lost: bool,
}

impl<'a> Troubles<'a> {
    fn new(surf: &'a Surf) -> Self {
        Self { surf, faults: BTreeMap::new(), paused: BTreeMap::new(), has_lost: false }
    }

    fn data_of(&self, name: &str) -> String {
        self.surf.daemon(name).data_dir.display().to_string()
    }

    /// Draws a fault and whom it strikes, and lets it happen; `None` when it does not fit what is wrong already.
    fn strike(&mut self, chance: &mut Chance, files: &[(PathBuf, Vec<u8>)]) -> Option<(String, Fault)> {
        let fault = *chance.pick(&FAULTS);
        let name = match fault {
            Fault::LeaderKilled | Fault::LeaderPaused => self.surf.leader(),
            Fault::Joins | Fault::Dies => format!("blockd-{DAEMONS}"),
            Fault::Full => (*chance.pick(&SMALL)).to_owned(),
            _ => format!("blockd-{}", 1 + chance.below(u64::from(DAEMONS) - 1)),
        };
        let a_metad_is_troubled = self.faults.keys().any(|name| name.starts_with("metad"));
        let second_loss = fault.loses_copies() && self.has_lost;
        let blockds = self.faults.keys().filter(|name| name.starts_with("blockd")).count();
        // What was lost may not be healed yet, and metad takes no daemon out while that could lose the last copy.
        let unhealed = self.has_lost && !self.faults.values().any(|fault| fault.loses_copies());
        let blockds = blockds + usize::from(unhealed);
        let too_many = if name.starts_with("metad") { a_metad_is_troubled } else { blockds >= TROUBLED_MAX };
        let is_there = states(self.surf).contains_key(&name);
        let fits = match fault {
            Fault::Joins => !is_there,
            Fault::Dies => is_there,
            _ => true,
        };
        if self.faults.contains_key(&name) || second_loss || too_many || !fits {
            return None;
        }
        self.has_lost |= fault.loses_copies();
        let pid = self.surf.daemon(&name).pid;
        match fault {
            Fault::Killed | Fault::Late | Fault::Dies | Fault::LeaderKilled => self.surf.kill_9(&name),
            Fault::Wiped => {
                self.surf.kill_9(&name);
                sh(&self.surf.scratch(), LIMIT, &format!("rm -rf {}/*", self.data_of(&name)));
                self.surf.dev(&["start", &name]);
            }
            Fault::Flipped => {
                let (_, content) = chance.pick(files);
                corrupt(Path::new(&self.data_of(&name)), &content[..32]);
            }
            Fault::Paused | Fault::LeaderPaused => drop(self.paused.insert(name.clone(), Paused::stop(pid))),
            Fault::Full => {
                let data = self.data_of(&name);
                let more = format!("$(($(df --output=avail -B1 {data} | tail -n 1) - (513 << 20)))");
                let fill = format!("more={more}; test $more -le 0 || fallocate -l $more {data}/filler");
                sh(&self.surf.scratch(), LIMIT, &fill);
            }
            Fault::Failing => limit_file_size(pid, 1 << 10),
            Fault::Drained => {
                let (text, code) = self.surf.operate(&["blockd", "drain", &name]);
                assert_eq!(code, 0, "{text}");
            }
            Fault::Joins => {
                self.surf.dev(&["start", &name]);
                // Nothing is wrong with it.
                return Some((name, fault));
            }
        }
        self.faults.insert(name.clone(), fault);
        Some((name, fault))
    }

    fn undo(&mut self, name: &str) {
        let Some(fault) = self.faults.remove(name) else { return };
        match fault {
            Fault::Killed | Fault::LeaderKilled => self.surf.dev(&["start", name]),
            Fault::Late => {
                until_state(self.surf, name, "out");
                self.surf.dev(&["start", name]);
            }
            Fault::Wiped | Fault::Flipped | Fault::Joins => {}
            Fault::Paused | Fault::LeaderPaused => drop(self.paused.remove(name)),
            Fault::Full => {
                sh(&self.surf.scratch(), LIMIT, &format!("rm -f {}/filler", self.data_of(name)));
            }
            Fault::Failing => {
                if is_alive(self.surf.daemon(name).pid) {
                    self.surf.kill_9(name);
                }
                self.surf.dev(&["start", name]);
            }
            Fault::Drained => {
                let (text, code) = self.surf.operate(&["blockd", "drain", name, "--undo"]);
                assert_eq!(code, 0, "{text}");
            }
            Fault::Dies => {
                until_state(self.surf, name, "out");
                let (text, code) = self.surf.operate(&["blockd", "remove", name, "--keep-identity"]);
                assert_eq!(code, 0, "{text}");
                sh(&self.surf.scratch(), LIMIT, &format!("rm -rf {}/*", self.data_of(name)));
            }
        }
    }

    fn undo_all(&mut self) {
        let names: Vec<String> = self.faults.keys().cloned().collect();
        names.iter().for_each(|name| self.undo(name));
    }
}

/// A file that is synced before anything happens.
fn write_early(surf: &Surf, seed: u64, number: u64) -> (PathBuf, Vec<u8>) {
    let path = surf.path().join(format!("early-{number}"));
    let content = random(seed.wrapping_add(number), 10_000 + 7_000 * number as usize);
    let mut file = File::create(&path).expect("a file can be made");
    file.write_all(&content).and_then(|()| file.sync_all()).expect("it can be written and synced");
    (path, content)
}

/// Waits until every block has all its copies. Copies of removed files may lie anywhere until they are deleted.
fn until_complete(surf: &Surf) {
    let begun = Instant::now();
    let mut is_shown = false;
    until("every block has all its copies", HEAL_LIMIT, || {
        let status = surf.status();
        if begun.elapsed() > HEAL_LIMIT / 2 && !std::mem::replace(&mut is_shown, true) {
            eprintln!("not yet complete: {status:#}");
        }
        let is_complete =
            status["layout_final"] == true && status["lacking_blocks"] == 0 && status["missing_blocks"] == 0;
        is_complete.then_some(())
    });
}

/// One schedule.
fn schedule(surf: &Surf, seed: u64) {
    let mut chance = Chance::of(seed, "chaos");
    let mut files: Vec<(PathBuf, Vec<u8>)> = (0..8).map(|number| write_early(surf, seed, number)).collect();
    let load = Load::start(&surf.path(), seed);
    let mut troubles = Troubles::new(surf);
    let mut done = Vec::new();
    for _ in 0..=chance.below(FAULTS_MAX) {
        done.extend(troubles.strike(&mut chance, &files));
        thread::sleep(Duration::from_millis(chance.below(PAUSE_MAX_MS)));
        if chance.happens(0.3)
            && let Some(name) = troubles.faults.keys().next().cloned()
        {
            troubles.undo(&name);
        }
    }
    eprintln!("schedule {seed}: {done:?}");
    troubles.undo_all();
    until("all are there", HEAL_LIMIT, || states(surf).values().all(|state| state == "up").then_some(()));
    files.extend(load.end());
    until_complete(surf);
    check_all(surf, &files);
    until_clean(surf, &["--verify"]);
    files.iter().for_each(|(path, _)| fs::remove_file(path).expect("a file can be removed"));
}

/// Guards I9, I10 and I11.
#[test]
fn whatever_befalls_the_daemons_of_a_cluster_what_was_synced_is_right_and_whole_afterwards() {
    outlive_file_size_limits();
    let first = seed();
    eprintln!("FAULT_SEED={first}");
    let surf = cluster_with(DAEMONS, 1, "3", |surf| {
        for name in SMALL {
            let data = surf.daemon(name).data_dir;
            let data = data.display();
            sh(&surf.scratch(), LIMIT, &format!("mkdir -p {data} && mount -t tmpfs -o size=900m none {data}"));
        }
    });
    let (begun, limit, most) = (Instant::now(), scale("CHAOS_SECONDS", SECONDS), scale("CHAOS_SCHEDULES", u64::MAX));
    let mut count = 0;
    while begun.elapsed() < Duration::from_secs(limit) && count < most {
        schedule(&surf, first + count);
        count += 1;
    }
    println!("{count} schedules in {:?}", begun.elapsed());
}
