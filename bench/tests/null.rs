//! The null file system on a real mount, and a check that a run of the bench leaves nothing behind.
#![allow(missing_docs)]

use kit::command::{need, run};
use kit::mounts::{abort, is_mounted};
use kit::watchdog::Watchdog;
use kit::{sh, until};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

/// `bench null`, mounted below a directory that goes with it.
struct Null {
    dir: TempDir,
    server: Child,
    _watchdog: Watchdog,
}

impl Null {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("surf-null-").tempdir().unwrap();
        let mount_point = dir.path().join("mnt");
        fs::create_dir(&mount_point).unwrap();
        let watchdog = Watchdog::new(&format!("umount -l '{}'; rm -rf --one-file-system '{0}'", mount_point.display()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        let server = command.args(["null", "--again"]).arg(&mount_point).stdin(Stdio::piped()).spawn().unwrap();
        let mut null = Self { dir, server, _watchdog: watchdog };
        null.mount();
        null
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(&mut self) {
        self.server.stdin.as_mut().unwrap().write_all(b"mount\n").unwrap();
        until("the mount", LIMIT, || is_mounted(&self.path()).then_some(()));
    }

    fn unmount(&self) {
        let path = self.path();
        let mut umount = Command::new("sh");
        umount.args(["-c", "umount \"$0\" 2>/dev/null || fusermount3 -u \"$0\""]).arg(&path);
        until("unmounting", LIMIT, || run(&mut umount, LIMIT).status.success().then_some(()));
        assert!(!is_mounted(&path));
    }
}

impl Drop for Null {
    fn drop(&mut self) {
        abort(&self.path());
        drop(self.server.stdin.take());
        until("the end of the server", LIMIT, || self.server.try_wait().unwrap());
    }
}

fn repository(dir: &Path) {
    let script = "git init -q origin && cd origin && git config user.email a@b && git config user.name n && \
        for i in $(seq 200); do mkdir -p d$((i % 7)); seq $((i * 10)) > d$((i % 7))/f$i; done && \
        seq 400000 > large && ln -s d1/f1 link && chmod 755 d2/f2 && git add . && git commit -qm one";
    sh(dir, LIMIT, script);
}

#[test]
fn git_clones_and_finds_everything_also_after_a_remount() {
    need(&["git"]);
    let mut null = Null::start();
    let scratch = tempfile::tempdir().unwrap();
    repository(scratch.path());
    let origin = scratch.path().join("origin");
    let script = format!(
        "git clone -q --no-hardlinks {} clone && cd clone && git fsck --strict && \
        test -z \"$(git status --porcelain)\" && git config user.email a@b && git config user.name n && \
        git mv d3 moved && git commit -qm moved && git gc -q && git fsck",
        origin.display()
    );
    sh(&null.path(), LIMIT, &script);
    null.unmount();
    null.mount();
    let script = format!(
        "cd clone && test -z \"$(git status --porcelain)\" && git checkout -q HEAD~1 && \
        diff -r --exclude=.git . {} && cd .. && rm -r clone && test -z \"$(ls -A)\"",
        origin.display()
    );
    sh(&null.path(), LIMIT, &script);
}

#[test]
fn attributes_and_names_are_those_of_a_local_file_system() {
    let null = Null::start();
    let script = "umask 027; mkdir dir; seq 100000 > dir/file; test $(stat -c %a dir/file) = 640; \
        chmod 604 dir/file; touch -d '2001-02-03 04:05:06.789' dir/file; ln dir/file hard; ln -s dir/file link; \
        test \"$(stat -c '%a %h %s %.3Y' hard)\" = '604 2 588895 981173106.789'; cmp hard link; \
        mkfifo pipe; test -p pipe; ! mkdir dir 2>/dev/null; ! rmdir dir 2>/dev/null; \
        mv dir/file renamed; rmdir dir; test -z \"$(find . -name file)\"; truncate -s 10 hard; test $(wc -c < renamed) = 10; \
        exec 3< hard; rm hard renamed; test $(wc -c <&3) = 10; \
        for i in $(seq 3000); do : > f$i; done; test $(ls | wc -l) = 3002; rm f*; du -s . > /dev/null; ls -A";
    assert_eq!(sh(&null.path(), LIMIT, &format!("TZ=UTC; export TZ; {script}")), "link\npipe\n");
}

/// Starts a run that does not end by itself, interrupts it once it measures, and returns how it ended.
fn interrupted(place: &Path) -> (ExitStatus, String) {
    let log = place.with_extension("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command
        .args(["--quick", "--runs", "1000000", "--columns", "ext4,null", "--only", "stat cold, 8", "--at"])
        .arg(place);
    let mut bench = command.stdin(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
    let said = || fs::read_to_string(&log).unwrap();
    let measures = || said().contains("run 2 stat cold, 8 processes: null").then_some(None);
    let ended = until("the second run", LIMIT, || measures().or_else(|| bench.try_wait().unwrap().map(Some)));
    assert_eq!(ended, None, "{}", said());
    // SAFETY: kill takes no pointers; the child has not been waited for, so the number is its own.
    assert_eq!(unsafe { libc::kill(i32::try_from(bench.id()).unwrap(), libc::SIGINT) }, 0);
    (until("the end", LIMIT, || bench.try_wait().unwrap()), said())
}

#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("left out: only root may set columns up");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("place");
    fs::create_dir(&place).unwrap();
    let (status, said) = interrupted(&place);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.ends_with("bench: interrupted\n"), "{said}");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "{said}");
}
