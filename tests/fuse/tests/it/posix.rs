//! What POSIX asks of a filesystem: pjdfstest and fsx on a real mount.

use kit::bins::workspace;
use kit::chance::seed;
use kit::{Setup, Surf, run, scale, sh};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const INSTALL_LIMIT: Duration = Duration::from_secs(600);
const RUN_LIMIT: Duration = Duration::from_secs(600);

/// Returns a program from crates.io, which is installed into the target folder once, whichever tests want it at the same
/// time.
fn tool(name: &str, version: &str) -> PathBuf {
    let root = workspace().join("target/tools");
    fs::create_dir_all(&root).unwrap();
    // Locks the directory itself: a separate file would be left behind.
    let turn = File::open(&root).unwrap();
    turn.lock().unwrap();
    let path = root.join("bin").join(name);
    if !path.exists() {
        // They wait for the mount more than they work: optimising them takes longer than it saves. What both are built
        // from is built once.
        let build = root.join("build");
        let script = format!(
            "cargo install --locked --quiet --debug --root {} --target-dir {} --version {version} {name}",
            root.display(),
            build.display()
        );
        sh(&workspace(), INSTALL_LIMIT, &script);
    }
    path
}

fn pjdfstest(setup: Setup) {
    let program = tool("pjdfstest", "0.2.2");
    let surf = Surf::start(setup);
    fs::set_permissions(surf.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let config = surf.scratch().join("pjdfstest.toml");
    let text = "[features]\nposix_fallocate = {}\nutime_now = {}\nutimensat = {}\nrename_ctime = {}\n\
                [settings]\nnaptime = 0.01\nallow_remount = false\n\
                [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";
    fs::write(&config, text).unwrap();
    let output = run(Command::new(program).arg("-c").arg(&config).arg("-p").arg(surf.path()), RUN_LIMIT);
    let (mut passed, mut failed) = (0, BTreeSet::new());
    for line in output.text.lines() {
        let Some((name, verdict)) = line.trim().rsplit_once(char::is_whitespace) else { continue };
        match verdict.trim_matches(|c: char| !c.is_ascii_alphabetic()) {
            "success" | "ok" | "passed" => passed += 1,
            "FAILED" | "failed" | "error" => {
                failed.insert(name.trim().to_owned());
            }
            _ => {}
        }
    }
    let summary = output.text.lines().rfind(|line| line.starts_with("Summary:")).unwrap_or("no summary");
    println!("pjdfstest on {setup:?}: {passed} pass, {} fail ({summary})", failed.len());
    assert!(summary.contains(&format!(" {passed} passed")), "its report is read wrong: {summary}");
    assert!(passed > 100, "pjdfstest ran hardly anything:\n{}", output.text);
    assert!(failed.is_empty(), "failing: {failed:#?}\n{}", output.text);
}

#[test]
fn pjdfstest_passes_on_an_embedded_mount() {
    pjdfstest(Setup::Embedded);
}

#[test]
fn pjdfstest_passes_on_a_cluster() {
    pjdfstest(Setup::Cluster);
}

/// Every operation that fsx knows and Linux has.
const ALL_OPS: &str = "[weights]\nclose_open = 1\ninvalidate = 1\nmapread = 10\nmapwrite = 10\nread = 10\nwrite = 10\n\
    truncate = 5\nfsync = 1\nfdatasync = 1\nposix_fallocate = 2\npunch_hole = 5\nsendfile = 5\nposix_fadvise = 1\n\
    copy_file_range = 5\n";
/// Operations without mapped memory, so that each reaches the mount by itself.
const UNMAPPED_OPS: &str = "[weights]\nclose_open = 2\nmapread = 0\nmapwrite = 0\nread = 10\nwrite = 10\ntruncate = 5\n\
    fsync = 1\nfdatasync = 1\nposix_fallocate = 2\npunch_hole = 5\nsendfile = 5\ncopy_file_range = 5\n";
/// A file of several chunks, so that operations cross the borders of chunks and blocks.
const LARGE_FILE: &str = "flen = 150000000\n[opsize]\nmax = 7000000\n[weights]\nclose_open = 2\nread = 10\nwrite = 10\n\
    mapread = 2\nmapwrite = 2\ntruncate = 3\nfsync = 2\npunch_hole = 5\ncopy_file_range = 5\n";

/// Returns the operations of a run, which by default has `count`: `FSX_OPERATIONS` replaces [`OPERATIONS`], and other
/// counts change in proportion.
fn operations(count: u32) -> u32 {
    let asked = u64::from(scale("FSX_OPERATIONS", OPERATIONS));
    u32::try_from(u64::from(count) * asked / u64::from(OPERATIONS)).unwrap_or(u32::MAX)
}

fn fsx(setup: Setup) {
    let program = tool("fsx", "0.3.2");
    let mut surf = Surf::start(setup);
    fsx_on(&surf, &program, &RUNS);
    // Every few operations cross the border of a block.
    surf.unmount();
    surf.mount(&["-o", "block_kib=16"]);
    fsx_on(&surf, &program, &RUNS[1..3]);
}

/// Operations of most runs.
const OPERATIONS: u32 = 300;
/// Name, settings, and operations of each run.
const RUNS: [(&str, &str, u32); 4] = [
    ("plain", "", OPERATIONS),
    ("all", ALL_OPS, OPERATIONS),
    ("unmapped", UNMAPPED_OPS, OPERATIONS),
    ("large", LARGE_FILE, 30),
];

fn fsx_on(surf: &Surf, program: &Path, runs: &[(&str, &str, u32)]) {
    for (name, settings, count) in runs {
        let config = surf.scratch().join(format!("{name}.toml"));
        fs::write(&config, settings).unwrap();
        // 0 would let fsx choose.
        let seed = (seed() % u64::from(u32::MAX) + 1).to_string();
        let file = surf.path().join(format!("{name}-{seed}"));
        let count = operations(*count).to_string();
        let mut command = Command::new(program);
        command.args(["-N", &count, "-S", &seed, "-f"]).arg(&config).arg(&file);
        let output = run(&mut command, RUN_LIMIT * 6);
        assert!(output.status.success(), "{name}, seed {seed} of fsx: {}", output.text);
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn fsx_finds_no_difference_on_an_embedded_mount() {
    fsx(Setup::Embedded);
}

#[test]
fn fsx_finds_no_difference_on_a_cluster() {
    fsx(Setup::Cluster);
}
