//! Programs on two mounts that change one file through shared mappings.

use fuse::LIMIT;
use kit::{Setup, Surf, sh, until};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

/// Commits of the mount that does not map the file.
const ROUNDS: u64 = 30;
const PAGE: u64 = 4096;

/// Returns the names in a directory that are conflict copies.
fn conflicts(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".conflict-")).collect()
}

fn python(surf: &Surf, name: &str, script: &str, arguments: &str) -> String {
    let path = surf.scratch().join(name);
    fs::write(&path, script).unwrap();
    format!("timeout 120 python3 -B {} {arguments}", path.display())
}

/// Guards I6. A page is written back whole, and may have been read before another mount's commit.
#[test]
fn pages_that_two_mounts_change_in_different_places_lose_nothing_and_are_in_no_conflict() {
    let surf = Surf::start_alone(Setup::Cluster);
    let other = surf.mount_again(&[]);
    fs::write(surf.path().join("file"), vec![0; 4 * PAGE as usize]).unwrap();
    let script = "import mmap, os\nf = os.open('file', os.O_RDWR)\nm = mmap.mmap(f, 1 << 14)\nn = 0\n\
                  open('ready', 'w').close()\n\
                  while not os.path.exists('stop'):\n    n = n % 255 + 1\n    for page in range(0, 1 << 14, 4096):\n\
                  \x20       m[page + 8] = n\n        assert m[page + 8] == n\n    m.flush()\nprint(n)";
    let command = python(&surf, "map.py", script, "");
    thread::scope(|scope| {
        let maps = scope.spawn(|| sh(&other.path(), LIMIT, &command));
        until("the file is mapped", LIMIT, || other.path().join("ready").exists().then_some(()));
        let file = File::options().read(true).write(true).open(surf.path().join("file")).unwrap();
        for round in 1..=ROUNDS {
            for page in 0..4 {
                // Beside the byte that the program changes all the time.
                let at = page * PAGE + if round.is_multiple_of(2) { 7 } else { 9 };
                file.write_all_at(&[round as u8], at).unwrap();
            }
            file.sync_all().unwrap();
        }
        fs::write(surf.path().join("stop"), "").unwrap();
        let last: u8 = maps.join().unwrap().trim().parse().unwrap();
        for dir in [surf.path(), other.path()] {
            let content = fs::read(dir.join("file")).unwrap();
            for page in content.chunks(PAGE as usize) {
                assert_eq!(page[7..10], [ROUNDS as u8, last, ROUNDS as u8 - 1]);
            }
            assert!(conflicts(&dir).is_empty(), "{:?}", conflicts(&dir));
        }
    });
}

/// Guards I6. The page is read, and changed, before the other mount's commit, and written back after it.
#[test]
fn a_page_that_was_changed_before_anothers_commit_and_synced_after_it_overwrites_nothing() {
    let surf = Surf::start_alone(Setup::Cluster);
    let other = surf.mount_again(&[]);
    fs::write(surf.path().join("file"), vec![b'.'; PAGE as usize]).unwrap();
    let script = "import mmap, os, time\nf = os.open('file', os.O_RDWR)\nm = mmap.mmap(f, 4096)\n\
                  for n in range(10):\n    m[n] = ord('1')\n    open(f'ready{n}', 'w').close()\n\
                  \x20   while not os.path.exists(f'go{n}'): time.sleep(0.01)\n    m.flush()\n    os.fsync(f)";
    let command = python(&surf, "one.py", script, "");
    thread::scope(|scope| {
        let maps = scope.spawn(|| sh(&other.path(), LIMIT, &command));
        let file = File::options().read(true).write(true).open(surf.path().join("file")).unwrap();
        for round in 0..10_u64 {
            let is_ready = || other.path().join(format!("ready{round}")).exists() || maps.is_finished();
            until("it is changed", LIMIT, || is_ready().then_some(()));
            if maps.is_finished() {
                // It says why.
                break;
            }
            file.write_all_at(b"2", 100 + round).unwrap();
            file.sync_all().unwrap();
            fs::write(surf.path().join(format!("go{round}")), "").unwrap();
        }
        maps.join().unwrap();
    });
    for dir in [surf.path(), other.path()] {
        let content = fs::read(dir.join("file")).unwrap();
        assert_eq!((&content[..11], &content[99..111]), (&b"1111111111."[..], &b".2222222222."[..]));
        assert!(conflicts(&dir).is_empty(), "{:?}", conflicts(&dir));
    }
}

/// Guards I6. Both write back while the other one's commit waits for the pages.
#[test]
fn two_mounts_that_map_one_page_and_sync_all_the_time_do_not_wait_for_each_other_for_long() {
    let surf = Surf::start_alone(Setup::Cluster);
    let other = surf.mount_again(&[]);
    fs::write(surf.path().join("file"), vec![0; PAGE as usize]).unwrap();
    let script = "import mmap, os, sys, time\nat = int(sys.argv[1])\nf = os.open('file', os.O_RDWR)\n\
                  m = mmap.mmap(f, 4096)\nopen(f'ready{at}', 'w').close()\n\
                  while not (os.path.exists('ready0') and os.path.exists('ready1')): time.sleep(0.01)\ntook = []\n\
                  for n in range(1, 101):\n    begun = time.monotonic()\n    for i in range(64 * at, 4096, 128): m[i] = n\n\
                  \x20   m.flush()\n    took.append(time.monotonic() - begun)\n\
                  took.sort()\nprint(took[50], took[-1])";
    let commands = [0, 1].map(|at| python(&surf, "both.py", script, &at.to_string()));
    thread::scope(|scope| {
        let dirs = [surf.path(), other.path()];
        let both: Vec<_> = dirs
            .into_iter()
            .zip(&commands)
            .map(|(dir, command)| scope.spawn(move || sh(&dir, LIMIT, command)))
            .collect();
        for program in both {
            let took: Vec<f64> = program.join().unwrap().split_whitespace().map(|took| took.parse().unwrap()).collect();
            // The limit to the wait for another mount's pages is a second.
            assert!(took[0] < 0.5, "half of the rounds took {} s or more, the slowest {} s", took[0], took[1]);
        }
    });
    for dir in [surf.path(), other.path()] {
        let expected: Vec<u8> = (0..PAGE).map(|at| if at.is_multiple_of(64) { 100 } else { 0 }).collect();
        assert_eq!(fs::read(dir.join("file")).unwrap(), expected);
        assert!(conflicts(&dir).is_empty(), "{:?}", conflicts(&dir));
    }
}

/// Guards I6. What one program does through a mapping and by calls, as fsx does, to every second byte, is at each moment
/// what it reads, while another mount commits the bytes between. Both use the start of each page alone, so that all extents
/// of the file fit into one page of a listing: where others commit all the time, longer listings span versions.
#[test]
fn a_program_that_maps_reads_and_writes_a_file_finds_its_bytes_while_another_mount_commits_those_between() {
    let surf = Surf::start_alone(Setup::Cluster);
    let other = surf.mount_again(&[]);
    let (size, used) = (3 * PAGE, 1200);
    fs::write(surf.path().join("file"), vec![0; size as usize]).unwrap();
    let script = "\
import mmap, os, random, sys
size, used, rng = int(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
f = os.open('file', os.O_RDWR)
m = mmap.mmap(f, size)
open('ready', 'w').close()
mine = bytearray(size)
def check(found, at, what):
    assert found[at % 2::2] == bytes(mine[at + at % 2:at + len(found):2]), (what, at)
for n in range(1500):
    at, act = rng.randrange(3) * 4096 + rng.randrange(used - 64), rng.randrange(9)
    if act < 3:
        for i in range(at - at % 2, at + 64, 2): mine[i] = m[i] = rng.randrange(256)
    elif act == 3:
        at -= at % 2
        mine[at] = rng.randrange(256)
        os.pwrite(f, bytes([mine[at]]), at)
    elif act == 4: check(os.pread(f, 256, at), at, 'read')
    elif act == 5: check(m[at:at + 256], at, 'mapped')
    elif act == 6: m.flush()
    elif act == 7: os.fsync(f)
    elif rng.randrange(8) == 0:
        m.close()
        os.close(f)
        f = os.open('file', os.O_RDWR)
        m = mmap.mmap(f, size)
m.flush()
check(m[:], 0, 'at the end')
open('mine', 'wb').write(mine)
";
    let command = python(&surf, "fsx.py", script, &format!("{size} {used} 7"));
    let mut theirs = vec![0; size as usize];
    thread::scope(|scope| {
        let maps = scope.spawn(|| sh(&other.path(), LIMIT, &command));
        until("the file is mapped", LIMIT, || other.path().join("ready").exists().then_some(()));
        let file = File::options().read(true).write(true).open(surf.path().join("file")).unwrap();
        let mut round = 0_u64;
        while !maps.is_finished() {
            round += 1;
            let at = round % 3 * PAGE + (round * 7919) % (used / 2) * 2 + 1;
            theirs[at as usize] = round as u8;
            file.write_all_at(&[round as u8], at).unwrap();
            file.sync_all().unwrap();
        }
        maps.join().unwrap();
    });
    let mine = fs::read(surf.path().join("mine")).unwrap();
    for dir in [surf.path(), other.path()] {
        let content = fs::read(dir.join("file")).unwrap();
        let expected = |at: usize| if at.is_multiple_of(2) { mine[at] } else { theirs[at] };
        let wrong: Vec<usize> = (0..content.len()).filter(|at| content[*at] != expected(*at)).collect();
        assert!(wrong.is_empty(), "wrong at {wrong:?}");
        assert!(conflicts(&dir).is_empty(), "{:?}", conflicts(&dir));
    }
}

/// Guards I6. The kernel does not know what another mount has appended: what a program appends is over that in its page.
#[test]
fn a_program_that_maps_a_file_and_appends_to_it_replaces_nothing_that_another_mount_has_appended_and_loses_nothing() {
    const ROUNDS: usize = 5;
    let surf = Surf::start_alone(Setup::Cluster);
    let other = surf.mount_again(&[]);
    fs::write(surf.path().join("file"), [b'.'; 100]).unwrap();
    let script = "\
import mmap, os, sys, time
f, a = os.open('file', os.O_RDWR), os.open('file', os.O_WRONLY | os.O_APPEND)
m = mmap.mmap(f, 100)
for n in range(int(sys.argv[1])):
    m[0]
    open(f'ready{n}', 'w').close()
    while not os.path.exists(f'go{n}'): time.sleep(0.01)
    m[1]
    assert os.write(a, f'<mine {n}>'.encode()) == 8
    m[0] = n
    # It may be in conflict.
    for sync in (m.flush, lambda: os.fsync(f)):
        try: sync()
        except OSError: pass
";
    let command = python(&surf, "append.py", script, &ROUNDS.to_string());
    thread::scope(|scope| {
        let maps = scope.spawn(|| sh(&other.path(), LIMIT, &command));
        for round in 0..ROUNDS {
            let is_ready = || other.path().join(format!("ready{round}")).exists() || maps.is_finished();
            until("it has the page", LIMIT, || is_ready().then_some(()));
            if maps.is_finished() {
                // It says why.
                break;
            }
            let mut file = File::options().append(true).open(surf.path().join("file")).unwrap();
            write!(file, "<theirs {round}>").unwrap();
            file.sync_all().unwrap();
            fs::write(surf.path().join(format!("go{round}")), "").unwrap();
        }
        maps.join().unwrap();
    });
    for dir in [surf.path(), other.path()] {
        let content_of = |name: &str| String::from_utf8_lossy(&fs::read(dir.join(name)).unwrap()[100..]).into_owned();
        let (appended, copies) = (content_of("file"), conflicts(&dir));
        let copies: Vec<String> = copies.iter().map(|name| content_of(name)).collect();
        for round in 0..ROUNDS {
            // What was appended may wait for its commit together with the page, which is in conflict.
            let (theirs, mine) = (format!("<theirs {round}>"), format!("<mine {round}>"));
            assert_eq!(appended.matches(&theirs).count(), 1, "{theirs}: {appended}, copies {copies:?}");
            let in_file = appended.matches(&mine).count();
            let is_found = in_file == 1 || (in_file == 0 && copies.iter().any(|copy| copy.contains(&mine)));
            assert!(is_found, "{mine}: {appended}, copies {copies:?}");
        }
    }
}
