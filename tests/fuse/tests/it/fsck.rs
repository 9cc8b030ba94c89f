//! `surf fsck` on real daemons: planted damage is found and repaired, and a busy cluster shows no findings.

use fuse::LIMIT;
use kit::fault::{corrupt, is_alive};
use kit::{Chance, Surf, scale, sh, until};
use metad::fs::blockref::BlockRef;
use metad::fs::inode::Inode;
use metad::fs::view::{Changes, Kv, KvExt};
use metad::fs::{keys, numbered};
use metad::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use wire::attr::FileKind;
use wire::codec::{decode, encode};
use wire::ids::{Ino, SessionId, SnapshotNumber};

/// Daemons of a test take a moment to find each other.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// For how long checks of the busy cluster are begun, unless `FSCK_SECONDS` says otherwise.
const BUSY_SECONDS: u64 = 15;
/// And there are so many at least.
const CHECKS_MIN: usize = 5;

/// One line of `surf fsck --json`.
type Line = BTreeMap<String, serde_json::Value>;

/// Runs a check, and returns its lines and its exit code.
fn fsck(surf: &Surf, args: &[&str]) -> (Vec<Line>, i32) {
    let (text, code) = surf.operate(&[&["fsck", "--json"], args].concat());
    let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    (lines, code)
}

fn word<'a>(line: &'a Line, key: &str) -> &'a str {
    line.get(key).and_then(|value| value.as_str()).unwrap_or_default()
}

/// Returns the kinds of the findings.
fn kinds(lines: &[Line]) -> BTreeSet<String> {
    lines.iter().map(|line| word(line, "kind").to_owned()).filter(|kind| !kind.is_empty()).collect()
}

pub(crate) fn until_clean(surf: &Surf, args: &[&str]) {
    let mut last = String::new();
    let began = Instant::now();
    until("a check finds nothing", READY_LIMIT, || {
        let (text, code) = surf.operate(&[&["fsck"], args].concat());
        if began.elapsed() > READY_LIMIT / 2 {
            eprintln!("{text}");
        }
        last = text;
        (code == 0).then_some(())
    });
}

/// Changes the stored state of the only metad, which must not run.
fn plant(surf: &Surf, damage: impl FnOnce(&Store) -> Changes) {
    surf.dev(&["stop", "metad-1"]);
    let store = Store::open(&surf.daemon("metad-1").data_dir.join("state"), 8 << 20).expect("the state opens");
    let position = store.position().expect("something was applied");
    let changes = damage(&store);
    store.apply(changes, &position);
    store.close().expect("the state can be closed");
    drop(store);
    surf.dev(&["start", "metad-1"]);
    until("the metad leads again", READY_LIMIT, || (surf.operate(&["status", "--json"]).1 != 1).then_some(()));
}

fn find(kv: &dyn Kv, parent: Ino, name: &str) -> Ino {
    numbered::load::<(Ino, FileKind)>(kv, &keys::dentry(parent, name.as_bytes())).expect("the entry is there").0
}

fn change_inode(kv: &dyn Kv, changes: &mut Changes, ino: Ino, change: impl FnOnce(&mut Inode)) {
    let key = keys::inode(ino);
    let stored = changes.get(&key).cloned().flatten().or_else(|| kv.get(&key)).expect("the inode is there");
    let mut inode: Inode = decode(&stored).expect("it can be decoded");
    change(&mut inode);
    changes.insert(key, Some(encode(&inode)));
}

/// Runs a check once all daemons can be asked: metad may not have heard yet of one that was just started.
fn fsck_of_all(surf: &Surf, args: &[&str]) -> (Vec<Line>, i32) {
    let (mut lines, mut codes) = (Vec::new(), 0);
    until("all daemons can be asked", READY_LIMIT, || {
        let (found, code) = fsck(surf, args);
        if !args.contains(&"--repair") {
            (lines, codes) = (Vec::new(), 0);
        }
        // What one check repairs, the next one does not find.
        lines.extend(found);
        codes |= code & !8;
        (code & 8 == 0).then_some(())
    });
    (lines, codes)
}

/// Returns damage; each line makes one kind.
fn twelve_kinds(kv: &Store) -> Changes {
    let mut changes = Changes::new();
    let dir = find(kv, Ino::ROOT, "dir");
    let [linked, kind, nameless, counted, orphan] =
        ["linked", "kind", "nameless", "counted", "orphan"].map(|name| find(kv, dir, name));
    let below = find(kv, dir, "below");
    let nowhere = Ino(1 << 40);
    change_inode(kv, &mut changes, linked, |inode| inode.attr.nlink = 7);
    change_inode(kv, &mut changes, dir, |inode| inode.attr.size = 99);
    changes
        .insert(keys::dentry(dir, b"ghost"), Some(numbered::encode(SnapshotNumber(0), &(nowhere, FileKind::Regular))));
    changes.insert(keys::dentry(dir, b"kind"), Some(numbered::encode(SnapshotNumber(0), &(kind, FileKind::Fifo))));
    changes.insert(keys::dentry(dir, b"nameless"), None);
    assert_ne!(nameless, kind);
    change_inode(kv, &mut changes, counted, |inode| inode.attr.allocated += 4096);
    changes.insert(keys::xattr(nowhere, b"user.stray"), Some(numbered::encode_bytes(SnapshotNumber(0), b"value")));
    changes.insert(keys::orphan(orphan), Some(encode(&BTreeSet::from([SessionId(7)]))));
    change_inode(kv, &mut changes, below, |inode| inode.name = b"elsewhere".to_vec());
    changes.insert(keys::setting("inodes"), Some(encode(&9_999_u64)));
    let (key, value) = kv.pairs(keys::blocks(), 1).pop().expect("there are blocks");
    let mut block: BlockRef = decode(&value).expect("it can be decoded");
    block.count += 2;
    changes.insert(key.clone(), Some(encode(&block)));
    let hash = keys::block_hash(&key).expect("the key names a block");
    changes.insert(keys::unreferenced(5, &hash), Some(Vec::new()));
    changes
}

#[test]
fn twelve_kinds_of_damaged_metadata_are_found_and_repaired() {
    let mut surf = Surf::start_by(|surf| surf.up(1, 3));
    let script = "mkdir -p dir/below && cd dir && for name in linked kind nameless counted orphan; do \
        head -c 100000 /dev/urandom > $name; done; ln linked other && echo kept > below/kept && sync . && \
        sha256sum nameless | cut -c 1-64 > ../sum && sync ../sum";
    sh(&surf.path(), LIMIT, script);
    let sum = fs::read_to_string(surf.path().join("sum")).unwrap();
    surf.unmount();
    until_clean(&surf, &["--verify"]);

    plant(&surf, twelve_kinds);
    let (lines, code) = fsck(&surf, &[]);
    assert_eq!(code, 4, "{lines:?}");
    let expected = [
        "allocated-count",
        "dangling-entry",
        "directory-count",
        "leftover",
        "link-count",
        "nameless",
        "reference-count",
        "stale-orphan",
        "wrong-counter",
        "wrong-index",
        "wrong-kind",
        "wrong-parent",
    ];
    assert_eq!(kinds(&lines), expected.map(str::to_owned).into(), "{lines:?}");
    let ghost = lines.iter().find(|line| word(line, "kind") == "dangling-entry").unwrap();
    assert_eq!((word(ghost, "place"), word(ghost, "outcome")), ("/dir/ghost", "repairable"));
    assert_eq!(fsck(&surf, &[]).0.len(), lines.len(), "a check alone changes nothing");

    surf.mount(&[]);
    sh(&surf.path(), LIMIT, "test $(stat -c %h dir/linked) = 7");
    let (lines, code) = fsck(&surf, &["--repair"]);
    assert_eq!(code, 1, "{lines:?}");
    until_clean(&surf, &["--verify"]);
    let names = fuse::names(&surf.path().join("dir"));
    assert_eq!(names, ["below", "counted", "kind", "linked", "orphan", "other"]);
    let found = fuse::names(&surf.path().join("lost+found"));
    assert_eq!(found.len(), 1, "{found:?}");
    let script = format!("test \"$(sha256sum < 'lost+found/{}' | cut -c 1-64)\" = {}", found[0], sum.trim());
    sh(&surf.path(), LIMIT, &script);
    let script = "test $(stat -c %h dir/linked) = 2 && test $(stat -c %a lost+found) = 700 && \
        test $(cat dir/below/kept) = kept && rm -r dir lost+found && test $(ls | wc -l) = 1";
    sh(&surf.path(), LIMIT, script);
    until_clean(&surf, &[]);
}

/// As slow as healing can be.
const SLOW_HEALING: &str = "repair_mib_s = 1\nrepair_busy_mib_s = 1\nscrub_mib_s = 0\n";

/// Changes the configuration of a block daemon that does not run.
fn configure(surf: &Surf, name: &str, change: impl FnOnce(String) -> String) {
    let path = surf.cluster_dir().join(name).join("blockd.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, change(text)).unwrap();
}

/// Removes everything that a stopped block daemon has stored.
fn lose_segments(surf: &Surf, name: &str) {
    let blocks = surf.daemon(name).data_dir.join("blocks");
    fs::remove_dir_all(&blocks).unwrap();
    fs::create_dir(&blocks).unwrap();
}

#[test]
fn damaged_and_missing_copies_are_found_and_made_anew_and_lost_content_is_named() {
    let surf = Surf::start_by(|surf| {
        surf.dev(&["up", "--metad", "1", "--blockd", "3", "--replicas", "3", "--no-start"]);
        for name in ["blockd-1", "blockd-2", "blockd-3"] {
            configure(surf, name, |text| format!("{SLOW_HEALING}{text}"));
        }
        surf.dev(&["up"]);
        until("all have joined", READY_LIMIT, || {
            let status = surf.status();
            (status["blockds"].as_array().is_some_and(|all| all.len() == 3)).then_some(())
        });
    });
    sh(
        &surf.path(),
        LIMIT,
        "mkdir dir small && for n in $(seq 12); do head -c 4194304 /dev/urandom > dir/$n; done; \
        for n in $(seq 300); do head -c 32768 /dev/urandom > small/$n; done; \
        { head -c 50000 /dev/urandom; echo these bytes are going to rot; } > rotting && sync -f rotting",
    );
    until_clean(&surf, &[]);

    // Bytes rot on one daemon's disk.
    assert_eq!(corrupt(&surf.daemon("blockd-1").data_dir, b"these bytes are going to rot"), 1);
    assert_eq!(fsck_of_all(&surf, &[]).1, 0, "nobody has read it");
    let (lines, code) = fsck_of_all(&surf, &["--verify", "--repair"]);
    assert_eq!(code, 1, "{lines:?}");
    assert_eq!(kinds(&lines), BTreeSet::from(["corrupt".to_owned()]));
    assert!(word(&lines[0], "place").ends_with("on blockd-1"), "{lines:?}");
    until_clean(&surf, &["--verify"]);

    // One daemon loses what it had: more blocks than it fetches at once when it begins to look for them, and more bytes
    // than it fetches in the time that a check takes.
    surf.dev(&["stop", "blockd-2"]);
    lose_segments(&surf, "blockd-2");
    surf.dev(&["start", "blockd-2"]);
    let (lines, code) = fsck_of_all(&surf, &[]);
    assert_eq!(code, 4, "{lines:?}");
    assert_eq!(kinds(&lines), BTreeSet::from(["under-replicated".to_owned()]));
    assert!(
        lines
            .iter()
            .filter(|line| line.contains_key("kind"))
            .all(|line| word(line, "what").starts_with("blockd-2 lack"))
    );
    surf.dev(&["stop", "blockd-2"]);
    configure(&surf, "blockd-2", |text| text.replace(SLOW_HEALING, ""));
    surf.dev(&["start", "blockd-2"]);
    let (lines, code) = fsck_of_all(&surf, &["--repair"]);
    assert!(code <= 1, "{lines:?}");
    until_clean(&surf, &["--verify"]);

    // The check reports a daemon that is away, and nothing of the blocks that it may have.
    surf.dev(&["stop", "blockd-3"]);
    let (lines, code) = fsck(&surf, &[]);
    assert_eq!((code, kinds(&lines)), (8, BTreeSet::new()), "{lines:?}");
    surf.dev(&["start", "blockd-3"]);
    until_clean(&surf, &[]);

    // All lose everything.
    for name in ["blockd-1", "blockd-2", "blockd-3"] {
        surf.dev(&["stop", name]);
        lose_segments(&surf, name);
    }
    for name in ["blockd-1", "blockd-2", "blockd-3"] {
        surf.dev(&["start", name]);
    }
    let (lines, code) = fsck_of_all(&surf, &["--repair"]);
    assert_eq!(code, 4, "{lines:?}");
    assert_eq!(kinds(&lines), BTreeSet::from(["missing".to_owned()]));
    let named: BTreeSet<&str> =
        lines.iter().map(|line| word(line, "place")).filter(|place| !place.is_empty()).collect();
    let expected: BTreeSet<String> = (1..=12)
        .map(|n| format!("/dir/{n}"))
        .chain((1..=300).map(|n| format!("/small/{n}")))
        .chain(["/rotting".to_owned()])
        .collect();
    assert_eq!(named, expected.iter().map(String::as_str).collect());
    assert!(lines.iter().any(|line| word(line, "what").starts_with("bytes 0 to 4194304 are in block")), "{lines:?}");
    assert_eq!(fuse::names(&surf.path().join("dir")).len(), 12, "nothing is removed");
}

/// Creates, links, renames, cuts and removes until it is stopped.
fn churn(dir: &Path, seed: u64, stop: &AtomicBool) {
    let mut chance = Chance::of(seed, "churn");
    while !stop.load(Ordering::Relaxed) {
        let (one, two) = (dir.join(format!("f{}", chance.below(40))), dir.join(format!("f{}", chance.below(40))));
        // Each call may fail: the other mount works on the same names.
        let _ = match chance.below(8) {
            0 | 1 => fs::write(&one, vec![chance.below(256) as u8; 1 + chance.below(60_000) as usize]),
            2 => fs::rename(&one, &two),
            3 => fs::remove_file(&one),
            4 => fs::hard_link(&one, &two),
            5 => fs::File::options().write(true).open(&one).and_then(|file| file.set_len(chance.below(30_000))),
            6 => fs::create_dir_all(dir.join("d/e")).and_then(|()| fs::rename(&one, dir.join("d/e/x"))),
            _ => fs::remove_dir_all(dir.join("d")),
        };
    }
}

#[test]
fn a_busy_cluster_whose_block_daemons_come_and_go_shows_no_contradiction() {
    let surf = Surf::start_by(|surf| {
        surf.up(3, 4);
        let (text, code) = surf.operate(&["cluster", "set", "--down-after-s", "3"]);
        assert_eq!(code, 0, "{text}");
    });
    let other = surf.mount_again(&[]);
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for (number, dir) in [surf.path(), other.path().to_owned()].into_iter().enumerate() {
        let stop = stop.clone();
        threads.push(thread::spawn(move || churn(&dir, number as u64, &stop)));
    }
    let (began, mut checks, mut found, mut round) = (Instant::now(), 0, BTreeSet::new(), 0);
    let busy = Duration::from_secs(scale("FSCK_SECONDS", BUSY_SECONDS));
    while began.elapsed() < busy || checks < CHECKS_MIN {
        match round % 6 {
            2 => surf.kill_9("blockd-4"),
            4 => surf.dev(&["start", "blockd-4"]),
            _ => {}
        }
        round += 1;
        let args: &[&str] = if round % 2 == 0 { &["--repair"] } else { &["--verify"] };
        let (lines, code) = fsck(&surf, args);
        assert!(lines.iter().any(|line| line.contains_key("summary")), "{lines:?}");
        checks += usize::from(code < 16);
        found.extend(kinds(&lines));
    }
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("the work goes on"));
    if !is_alive(surf.daemon("blockd-4").pid) {
        surf.dev(&["start", "blockd-4"]);
    }
    // A daemon that has died, or has just come back, really lacks copies; no other finding may come up.
    found.remove("under-replicated");
    assert_eq!(found, BTreeSet::new());
    // If blocks were stored just when a daemon came back, it gets them by itself only when it compares next, ten
    // minutes later.
    until_clean(&surf, &["--repair"]);
    until_clean(&surf, &["--verify"]);
}

#[test]
fn a_wrong_command_line_and_an_absent_cluster_have_exit_codes_of_their_own() {
    let surf = Surf::start_by(|surf| surf.up(1, 1));
    assert_eq!(surf.operate(&["fsck", "--no-such-flag"]).1, 16);
    assert_eq!(surf.operate(&["--log", "error", "fsck", "--metadata-only", "--verify"]).1, 16);
    assert_eq!(surf.operate(&["fsck", "--help"]).1, 0);
    let (text, code) = surf.operate(&["fsck"]);
    assert_eq!((text.as_str(), code), ("no fault found\n", 0));
    surf.dev(&["stop", "metad-1"]);
    let (text, code) = surf.operate(&["fsck", "--wait-s", "1"]);
    assert_eq!(code, 8, "{text}");
    surf.dev(&["start", "metad-1"]);
    let client = surf.bundle();
    let (text, code) = surf.operate(&["fsck", "--bundle", client.to_str().unwrap()]);
    assert!(code == 8 && text.contains("admin"), "{code}: {text}");
}
