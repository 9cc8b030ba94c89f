//! Backups of the metadata, a new cluster from one, and a cluster that goes on with its only survivor.

use fuse::LIMIT;
use kit::bins::bin;
use kit::command::run;
use kit::fault::Paused;
use kit::{Setup, Surf, sh, until};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Time for each step of a recovery. A backup of a small cluster takes a second or two.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(60);

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("paths are UTF-8")
}

/// Waits until `surf status` asks for attention because of this metad, and checks that it has taken seconds.
fn is_named(surf: &Surf, name: &str) {
    let since = Instant::now();
    until("the status names it", LIMIT, || {
        let (text, code) = surf.operate(&["status"]);
        (code == 2 && text.contains(name) && text.contains("has not answered for")).then_some(())
    });
    assert!(since.elapsed() < Duration::from_secs(10), "after {:?}", since.elapsed());
}

#[test]
fn the_status_names_a_metad_that_is_paused_or_killed_while_the_others_go_on() {
    let surf = Surf::start(Setup::Cluster);
    let well = || until("all is well", STEP_LIMIT, || (surf.operate(&["status"]).1 == 0).then_some(()));
    well();
    let leader = surf.leader();
    let followers: Vec<&str> = ["metad-1", "metad-2", "metad-3"].into_iter().filter(|name| *name != leader).collect();
    let paused = Paused::stop(surf.daemon(followers[0]).pid);
    is_named(&surf, followers[0]);
    drop(paused);
    well();
    surf.kill_9(followers[1]);
    is_named(&surf, followers[1]);
    surf.dev(&["start", followers[1]]);
    well();
}

/// Makes a tree of files of many sizes, names and kinds.
fn plant(dir: &Path) {
    for number in 0..40 {
        let below = dir.join(format!("dir-{}", number % 7));
        fs::create_dir_all(&below).expect("a directory can be made");
        let len = [0, 1, 4_000, 70_000, 300_000][number % 5] + number;
        fs::write(below.join(format!("file-{number}")), fuse::random(number as u64, len)).expect("a file can be made");
    }
    sh(
        dir,
        LIMIT,
        "ln -s dir-1/file-1 link; ln dir-2/file-2 hard; setfattr -n user.a -v b dir-3 || true; mkfifo pipe; sync .",
    );
}

/// Describes a tree: modes, sizes, times and content.
fn describe(dir: &Path) -> String {
    sh(
        dir,
        LIMIT,
        "find . -printf '%P %y %m %n %s %T@ %l\\n' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum",
    )
}

/// Writes files one after the other, and syncs each, until it is stopped.
pub(super) struct Load {
    stop: Stop,
    thread: JoinHandle<()>,
    /// Number of files that were synced.
    written: Arc<std::sync::atomic::AtomicUsize>,
}

/// Ends the load, even when the test fails.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Load {
    pub(super) fn start(dir: &Path) -> Self {
        fs::create_dir(dir).expect("a directory can be made");
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (stopped, count, dir) = (stop.clone(), Arc::clone(&written), dir.to_owned());
        let thread = thread::spawn(move || {
            let count: &std::sync::atomic::AtomicUsize = &count;
            while !stopped.load(Ordering::Relaxed) {
                let number = count.load(Ordering::Relaxed);
                let mut file = File::create(dir.join(number.to_string())).expect("a file can be made");
                file.write_all(&Self::content(number)).expect("it can be written");
                file.sync_all().expect("it can be synced");
                count.store(number + 1, Ordering::Relaxed);
            }
        });
        Self { stop: Stop(stop), thread, written }
    }

    fn content(number: usize) -> Vec<u8> {
        fuse::random(number as u64, 1_000 + number * 37 % 50_000)
    }

    fn written(&self) -> usize {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits until more files are synced than now.
    pub(super) fn goes_on(&self) {
        let now = self.written();
        until("the load goes on", STEP_LIMIT, || (self.written() > now + 1).then_some(()));
    }

    pub(super) fn end(self) {
        drop(self.stop);
        self.thread.join().expect("the load goes on");
    }
}

/// Returns the numbers of the load's files that are there, and checks that each is whole.
pub(super) fn loaded(dir: &Path) -> Vec<usize> {
    let mut numbers: Vec<usize> =
        fuse::names(dir).iter().map(|name| name.parse().expect("the load's names are numbers")).collect();
    numbers.sort_unstable();
    for number in &numbers {
        let found = fs::read(dir.join(number.to_string())).expect("a file can be read");
        // The one that was being written may be empty.
        assert!(found.is_empty() && Some(number) == numbers.last() || found == Load::content(*number), "file {number}");
    }
    numbers
}

/// Runs `surf ARGS`, which must succeed, and returns its output.
pub(super) fn operate(surf: &Surf, args: &[&str]) -> String {
    let (text, code) = surf.operate(args);
    assert_eq!(code, 0, "surf {args:?}: {text}");
    text
}

/// Runs `metad --config … ARGS`, and returns its output and whether it succeeded.
fn metad(surf: &Surf, name: &str, args: &[&str]) -> (String, bool) {
    let config = surf.cluster_dir().join(name).join("metad.toml");
    let output = run(Command::new(bin("metad")).arg("--config").arg(config).args(args), STEP_LIMIT);
    (output.text, output.status.success())
}

/// Empties a metad, and gives it a number that was never used, so that it can be added to a cluster.
pub(super) fn renumber(surf: &Surf, name: &str, id: u32) {
    let daemon = surf.daemon(name);
    fs::remove_dir_all(&daemon.data_dir).expect("it has data");
    let config = surf.cluster_dir().join(name).join("metad.toml");
    let written = fs::read_to_string(&config).expect("it has a configuration");
    let mut is_initial = false;
    let kept = written.lines().filter(|line| {
        is_initial = line.starts_with("[initial]") || is_initial && !line.starts_with('[');
        !is_initial && !line.starts_with("id = ")
    });
    let lines: Vec<&str> = kept.collect();
    fs::write(&config, format!("id = {id}\n{}\n", lines.join("\n"))).expect("it can be changed");
}

fn add(surf: &Surf, name: &str, id: u32) {
    let address = surf.daemon(name).address;
    renumber(surf, name, id);
    surf.dev(&["start", name]);
    until("it is added", STEP_LIMIT, || {
        let (_, code) = surf.operate(&["cluster", "add", "--id", &id.to_string(), "--address", &address]);
        (code == 0).then_some(())
    });
}

fn until_blockds_are_heard(surf: &Surf) {
    until("the block daemons are heard of", STEP_LIMIT, || {
        let status = surf.status();
        let blockds = status["blockds"].as_array()?;
        (!blockds.is_empty() && blockds.iter().all(|blockd| blockd["state"] == "up")).then_some(())
    });
}

fn is_stopped(surf: &Surf) -> bool {
    !surf.status()["deletion_stopped"].is_null()
}

#[test]
fn a_new_cluster_from_a_backup_has_every_byte_of_it() {
    let mut surf = Surf::start(Setup::Cluster);
    let (tree, load_dir) = (surf.path().join("tree"), surf.path().join("load"));
    fs::create_dir(&tree).expect("a directory can be made");
    plant(&tree);
    let planted = describe(&tree);
    let load = Load::start(&load_dir);
    load.goes_on();
    let before = load.written();
    let backup = surf.scratch().join("meta.backup");
    let said = operate(&surf, &["metad", "backup", text(&backup), "--name", "first", "--keep-blocks", "1h"]);
    assert!(said.contains("log index"), "{said}");
    let during = load.written();
    load.goes_on();
    assert_eq!(fs::metadata(&backup).expect("it is there").permissions().mode() & 0o777, 0o600);
    let leftovers = fuse::names(&surf.scratch());
    assert_eq!(leftovers, ["meta.backup"], "nothing is left beside it");

    // Files that come later are not in the backup, and files that go later are.
    sh(&tree, LIMIT, "rm -r dir-1 hard; for f in dir-*/*; do echo later > $f; done; mv dir-2 moved; sync .");
    load.end();
    surf.unmount();
    check_backups(&surf, &backup);

    // The whole cluster is lost, except the block daemons.
    for name in ["metad-1", "metad-2", "metad-3"] {
        surf.kill_9(name);
    }
    fs::remove_dir_all(surf.daemon("metad-1").data_dir).expect("it has data");
    let (said, done) = metad(&surf, "metad-1", &["--restore", text(&backup)]);
    assert!(done && said.contains("log index"), "{said}");
    let (said, done) = metad(&surf, "metad-1", &["--restore", text(&backup)]);
    assert!(!done && said.contains("empty"), "{said}");
    surf.dev(&["start", "metad-1"]);
    add(&surf, "metad-2", 12);
    add(&surf, "metad-3", 13);
    until_blockds_are_heard(&surf);

    surf.mount(&[]);
    assert_eq!(describe(&tree), planted);
    let there = loaded(&load_dir);
    assert!(there.len() >= before && there.len() <= during + 2, "{before}, {}, {during}", there.len());
    assert_eq!(there, (0..there.len()).collect::<Vec<_>>());
    let after = Load::start(&surf.path().join("after"));
    after.goes_on();
    after.end();
    operate(&surf, &["fsck"]);

    // Every leader knows that nothing may be deleted.
    let leader = surf.leader();
    surf.kill_9(&leader);
    until("another one leads", STEP_LIMIT, || (surf.leader() != leader).then_some(()));
    assert!(is_stopped(&surf));
    let (status, code) = surf.operate(&["status"]);
    assert!(code != 0 && status.contains("no block is deleted") && status.contains("resume-deletion"), "{status}");
    assert!(operate(&surf, &["metad", "backups"]).contains("first"), "its pin is part of it");
    operate(&surf, &["metad", "resume-deletion"]);
    assert!(!is_stopped(&surf));
    operate(&surf, &["metad", "release", "first"]);
    assert!(!operate(&surf, &["metad", "backups"]).contains("first"));
    assert_eq!(describe(&tree), planted);
}

#[test]
fn a_backup_in_a_mount_of_its_own_cluster_makes_a_new_cluster_from_there() {
    let mut surf = Surf::start(Setup::Cluster);
    let (tree, backups) = (surf.path().join("tree"), surf.path().join("backups"));
    for dir in [&tree, &backups] {
        fs::create_dir(dir).expect("a directory can be made");
    }
    plant(&tree);
    sh(&surf.path(), LIMIT, "sync . backups");
    let planted = describe(&tree);
    // The metadata changes while it is read, by what is written of it.
    let backup = backups.join("meta");
    operate(&surf, &["metad", "backup", text(&backup), "--name", "own"]);
    assert_eq!(fuse::names(&backups), ["meta"]);
    operate(&surf, &["metad", "verify", text(&backup)]);
    sh(&tree, LIMIT, "rm -r dir-1 hard; for f in dir-*/*; do echo later > $f; done; mv dir-2 moved; sync .");

    let made = surf.scratch().join("restored");
    let (said, done) = metad(&surf, "metad-1", &["--data-dir", text(&made), "--restore", text(&backup)]);
    assert!(done && said.contains("log index"), "{said}");
    surf.unmount();
    for name in ["metad-1", "metad-2", "metad-3"] {
        surf.kill_9(name);
    }
    let data_dir = surf.daemon("metad-1").data_dir;
    fs::remove_dir_all(&data_dir).expect("it has data");
    fs::rename(&made, &data_dir).expect("it can be moved");
    surf.dev(&["start", "metad-1"]);
    until_blockds_are_heard(&surf);

    surf.mount(&[]);
    assert_eq!(describe(&tree), planted);
    // The backup has itself as it was then, being written.
    assert!(!backup.exists());
    operate(&surf, &["metad", "backup", text(&backup), "--name", "next"]);
    assert_eq!(fuse::names(&backups), ["meta"], "nothing is left of the attempt");
    operate(&surf, &["metad", "verify", text(&backup)]);
    operate(&surf, &["fsck"]);
}

/// Checks a whole backup, one that is cut off, one that was changed, and one to standard output.
fn check_backups(surf: &Surf, backup: &Path) {
    let said: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&operate(surf, &["metad", "verify", "--json", text(backup)])).expect("it is JSON");
    assert_eq!(said["cluster"], "cluster");
    assert!(said["inodes"].as_u64() > Some(40) && said["blocks"].as_u64() > Some(3), "{said:?}");
    let bytes = fs::read(backup).expect("it can be read");
    assert_eq!(said["bytes"].as_u64(), Some(bytes.len() as u64));
    let damaged = surf.scratch().join("damaged");
    let refused = |content: &[u8]| {
        fs::write(&damaged, content).expect("a file can be made");
        let (said, code) = surf.operate(&["metad", "verify", text(&damaged)]);
        assert!(code == 1 && said.lines().count() == 1 && said.contains("damaged"), "{said}");
        let (said, done) =
            metad(surf, "metad-1", &["--data-dir", text(&surf.scratch().join("d")), "--restore", text(&damaged)]);
        assert!(!done && said.contains("damaged"), "{said}");
    };
    refused(&bytes[..bytes.len() - 1]);
    let mut flipped = bytes;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    refused(&flipped);
    let absent = surf.scratch().join("absent");
    let (said, code) = surf.operate(&["metad", "verify", text(&absent)]);
    assert!(code == 1 && said.contains("absent"), "{said}");

    let piped = surf.scratch().join("piped");
    let surf_program = bin("surf");
    let script = format!(
        "SURF_ADMIN_BUNDLE={} {} metad backup - --keep-blocks 0 > {}",
        text(&surf.cluster_dir().join("admin.bundle")),
        text(&surf_program),
        text(&piped)
    );
    sh(&surf.scratch(), LIMIT, &script);
    operate(surf, &["metad", "verify", text(&piped)]);
    let (said, code) = surf.operate(&["metad", "backup", text(&piped), "--bundle", text(&surf.bundle())]);
    assert!(code == 1 && said.contains("role client"), "{said}");
}

#[test]
fn a_survivor_goes_on_alone_and_others_are_added_again() {
    let mut surf = Surf::start(Setup::Cluster);
    let tree = surf.path().join("tree");
    fs::create_dir(&tree).expect("a directory can be made");
    plant(&tree);
    let planted = describe(&tree);
    surf.unmount();
    let lived = surf.mount_again(&[]);
    assert_eq!(describe(&lived.path().join("tree")), planted);

    let (said, done) = metad(&surf, "metad-1", &["--force-single"]);
    assert!(!done && said.contains("another metad uses"), "{said}");
    // While others answer, `--force-single` refuses.
    surf.dev(&["stop", "metad-1"]);
    let (said, done) = metad(&surf, "metad-1", &["--force-single"]);
    assert!(!done && said.contains("answers"), "{said}");
    let left = surf.daemon("metad-1").data_dir.join("recovered");
    assert!(!left.exists(), "nothing stays behind that would keep it from starting");
    surf.dev(&["start", "metad-1"]);
    until("all follow", STEP_LIMIT, || (surf.operate(&["status"]).1 == 0).then_some(()));

    // A mount that lives on has unsent changes.
    let own = lived.path().join("own");
    fs::write(&own, "synced").expect("a file can be made");
    sh(&lived.path(), LIMIT, "sync own");
    fs::write(&own, "not sent").expect("a file can be written");
    fs::write(lived.path().join("new"), "not sent either").expect("a file can be made");
    for name in ["metad-1", "metad-2", "metad-3"] {
        surf.kill_9(name);
    }
    let (said, done) = metad(&surf, "metad-1", &["--force-single"]);
    assert!(done && said.contains("metad-2, metad-3") && said.contains("wipe"), "{said}");
    surf.dev(&["start", "metad-1"]);
    until_blockds_are_heard(&surf);
    assert!(is_stopped(&surf));
    surf.mount(&[]);
    assert_eq!(describe(&tree), planted);
    until("what a mount had not sent is there, perhaps beside what it had", STEP_LIMIT, || {
        let names: Vec<String> = fuse::names(&surf.path());
        let said = |start: &str| -> Vec<String> {
            let of = names.iter().filter(|name| name.starts_with(start));
            of.filter_map(|name| fs::read_to_string(surf.path().join(name)).ok()).collect()
        };
        let (own, new) = (said("own"), said("new"));
        (own.contains(&"not sent".to_owned()) && new.contains(&"not sent either".to_owned())).then_some(())
    });
    assert_eq!(describe(&lived.path().join("tree")), planted, "a mount that lives on goes on");
    drop(lived);

    add(&surf, "metad-2", 12);
    add(&surf, "metad-3", 13);
    let load = Load::start(&surf.path().join("load"));
    load.goes_on();
    // The former survivor is not needed any more.
    surf.kill_9("metad-1");
    load.goes_on();
    load.end();
    let (said, code) = surf.operate(&["fsck"]);
    let one_is_away = said.contains("no fault found") && said.contains("metad-1") && said.contains("was not compared");
    assert!(code == 8 && one_is_away, "{said}");
    operate(&surf, &["metad", "resume-deletion"]);
    assert!(!is_stopped(&surf));
    assert_eq!(describe(&tree), planted);
    let entries: Vec<PathBuf> = fs::read_dir(surf.daemon("metad-1").data_dir)
        .expect("it can be listed")
        .map(|entry| entry.expect("its entries can be read").path())
        .collect();
    assert!(entries.iter().any(|path| text(path).contains("before-recovery")), "{entries:?}");
}
