//! What POSIX asks of a filesystem: pjdfstest and fsx on a real mount.
#![allow(missing_docs)]

use kit::bins::workspace;
use kit::{Setup, Surf, run, sh};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

const INSTALL_LIMIT: Duration = Duration::from_secs(600);
const RUN_LIMIT: Duration = Duration::from_secs(600);

/// A program from crates.io, installed into the target folder once.
fn tool(name: &str, version: &str) -> PathBuf {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE_AT_A_TIME.lock();
    let root = workspace().join("target/tools");
    let script = format!("cargo install --locked --quiet --root {} --version {version} {name}", root.display());
    let path = root.join("bin").join(name);
    if !path.exists() {
        sh(&workspace(), INSTALL_LIMIT, &script);
    }
    path
}

/// Cases that are known to fail; the list only shrinks.
fn known_failures() -> &'static BTreeSet<String> {
    static LIST: OnceLock<BTreeSet<String>> = OnceLock::new();
    LIST.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pjdfstest-known-failures.txt");
        let text = fs::read_to_string(path).expect("the list is checked in");
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
    })
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
    let new: Vec<_> = failed.difference(known_failures()).collect();
    assert!(new.is_empty(), "newly failing: {new:#?}\n{}", output.text);
    let mended: Vec<_> = known_failures().difference(&failed).collect();
    assert!(mended.is_empty(), "these pass now, remove them from the list: {mended:#?}");
}

#[test]
fn pjdfstest_passes_on_an_embedded_mount() {
    pjdfstest(Setup::Embedded);
}

#[test]
fn pjdfstest_passes_on_a_cluster() {
    pjdfstest(Setup::Cluster);
}

fn fsx(setup: Setup) {
    let program = tool("fsx", "0.3.2");
    let surf = Surf::start(setup);
    for seed in ["1", "77"] {
        let file = surf.path().join(format!("fsx-{seed}"));
        let output = run(Command::new(&program).args(["-N", "5000", "-S", seed]).arg(file), RUN_LIMIT);
        assert!(output.status.success(), "seed {seed}: {}", output.text);
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
