//! Machines that come with a token and nothing else.

use kit::bins::bin;
use kit::command::run;
use kit::{Setup, Surf, sh};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs `surf`, which must succeed.
pub(crate) fn surf_says(arguments: &[&str]) -> String {
    let output = run(Command::new(bin("surf")).args(arguments), LIMIT);
    assert!(output.status.success(), "surf {arguments:?} said: {}", output.text);
    output.text
}

/// Has an operator make a token.
pub(crate) fn token(surf: &Surf, more: &[&str]) -> String {
    let bundle = surf.cluster_dir().join("admin.bundle");
    let fixed = ["token", "create", "--bundle", bundle.to_str().unwrap()];
    let said = surf_says(&[&fixed[..], more].concat());
    let token = said.split_whitespace().find(|word| word.starts_with("surf1-"));
    token.unwrap_or_else(|| panic!("no token: {said}")).to_owned()
}

/// Makes mounts from now on take the bundle that a token gives.
pub(crate) fn enroll_as_client(surf: &Surf, name: &str, more: &[&str]) -> PathBuf {
    let out = surf.scratch().join(name);
    let token = token(surf, &[&["--role", "client"], more].concat());
    surf_says(&["client", "enroll", &token, "--out", out.to_str().unwrap()]);
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    let beside = |end: &str| Path::new(&format!("{}{end}", out.display())).exists();
    assert!(!beside(".key") && !beside(".partial"), "nothing is left beside it");
    fs::copy(&out, surf.bundle()).unwrap();
    out
}

#[test]
fn a_client_that_has_come_by_token_mounts_and_is_held_to_what_the_token_allows() {
    let surf = Surf::start(Setup::Cluster);
    sh(&surf.path(), LIMIT, "echo first > file && sync file");
    let whole = enroll_as_client(&surf, "whole.bundle", &[]);
    let second = surf.mount_again(&[]);
    sh(&second.path(), LIMIT, "test \"$(cat file)\" = first && echo second > file && sync file");
    sh(&surf.path(), LIMIT, "test \"$(cat file)\" = second");
    let reader = enroll_as_client(&surf, "reader.bundle", &["--read-only"]);
    assert_ne!(fs::read(whole).unwrap(), fs::read(reader).unwrap());
    let third = surf.mount_again(&[]);
    let denied = "! (echo third > file) 2> err && ! touch new 2> err && ! rm file 2> err";
    let denied = denied.replace("err", surf.scratch().join("err").to_str().unwrap());
    sh(&third.path(), LIMIT, &format!("test \"$(cat file)\" = second && {denied}"));
    sh(&surf.path(), LIMIT, "test \"$(cat file)\" = second && test ! -e new");
}
