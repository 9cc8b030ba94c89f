//! Machines whose clocks are set while they work.

use kit::Surf;
use kit::clock::Clocks;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

const HOUR: i64 = 3600;
/// Files that are written and synced after each change of clocks, by two mounts in turn.
const FILES: usize = 8;
/// The longest time that one may take. A session that expires, or an identity that is refused, would take longer.
const LIMIT: Duration = Duration::from_secs(5);

/// Writes files, which the other mount reads. Returns when each was changed last, by mount.
fn work(sides: &[impl AsRef<Path>; 2], what: &str) -> [Vec<SystemTime>; 2] {
    let mut times = [Vec::new(), Vec::new()];
    for number in 0..FILES {
        let (name, begun) = (format!("{what}-{number}"), Instant::now());
        let [own, other] = [number % 2, (number + 1) % 2].map(|side| sides[side].as_ref().join(&name));
        let mut file = File::create(&own).unwrap();
        file.write_all(name.as_bytes()).unwrap();
        file.sync_all().unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), name);
        assert!(begun.elapsed() < LIMIT, "{name} took {:?}", begun.elapsed());
        times[number % 2].push(file.metadata().unwrap().modified().unwrap());
    }
    times
}

#[test]
fn clocks_that_are_set_by_an_hour_in_both_directions_end_no_session_and_no_lock_and_times_of_files_go_on() {
    let mut clocks = None;
    let mut surf = Surf::start_by(|surf| {
        clocks = Some(Clocks::of(surf));
        surf.up(3, 3);
    });
    let clocks = clocks.unwrap();
    let other = surf.mount_again(&[]);
    let sides = [surf.path(), other.path()];
    let locked = File::create(sides[0].join("locked")).unwrap();
    locked.lock().unwrap();
    let same = File::open(sides[1].join("locked")).unwrap();
    let sessions = surf.status()["sessions"].clone();
    let leader = surf.leader();
    let pids = |wanted: &dyn Fn(&str) -> bool| -> Vec<u32> {
        surf.daemons().iter().filter(|daemon| wanted(&daemon.name)).map(|daemon| daemon.pid).collect()
    };
    let everything: Vec<u32> = pids(&|_| true).into_iter().chain([surf.mount_pid()]).collect();
    let groups = [
        ("leader", pids(&|name| name == leader)),
        ("followers", pids(&|name| name.starts_with("metad") && name != leader)),
        ("blockd", pids(&|name| name == "blockd-1")),
        ("blockds", pids(&|name| name.starts_with("blockd"))),
        ("mount", vec![surf.mount_pid()]),
        ("everything", everything),
    ];
    let mut last = [SystemTime::UNIX_EPOCH; 2];
    for (who, pids) in &groups {
        assert!(!pids.is_empty());
        for (ahead, when) in [(HOUR, "later"), (-HOUR, "earlier"), (0, "again")] {
            pids.iter().for_each(|pid| clocks.set(*pid, ahead));
            let what = format!("{who}-{when}");
            for (side, times) in work(&sides, &what).into_iter().enumerate() {
                assert!(last[side] <= times[0] && times.is_sorted(), "{what}: {times:?} after {last:?}");
                last[side] = *times.last().unwrap();
                assert!(times[0] < last[side], "{what}: time stands still");
            }
            assert!(matches!(same.try_lock(), Err(TryLockError::WouldBlock)), "{what}: the lock is lost");
        }
    }
    assert_eq!(surf.status()["sessions"], sessions, "a session has ended");
    assert_eq!(surf.operate(&["fsck"]).1, 0);
    drop((other, locked, same));
    surf.unmount();
    surf.mount(&[]);
    for (who, _) in &groups {
        for when in ["later", "earlier", "again"] {
            for name in (0..FILES).map(|number| format!("{who}-{when}-{number}")) {
                assert_eq!(fs::read_to_string(surf.path().join(&name)).unwrap(), name);
            }
        }
    }
}
