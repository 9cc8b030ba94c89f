//! The binaries under test, built from the same sources in the same profile as the test that runs them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Further variables in which cargo describes the package to each of its tests (The Cargo Book, "Environment
/// Variables").
const PACKAGE_VARIABLES: [&str; 5] =
    ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_MANIFEST_LINKS", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"];

/// The workspace's folder.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace exists")
}

/// Variable with the folder of the programs, if they have been built for all tests of a run.
const PROGRAMS_VARIABLE: &str = "SURF_TEST_PROGRAMS";

/// Path of a binary of this workspace: `surfmount`, `surf`, `metad`, `blockd` or `bench`.
///
/// The first call in a process builds them all, which takes no time when they are fresh. `cargo test` alone would
/// build binaries only for the packages whose own tests run. nextest, where each test is a process, builds them ahead.
#[must_use]
pub fn bin(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let built = || {
        let dir = own_profile();
        // Programs of another profile are not the ones under test.
        if std::env::var_os(PROGRAMS_VARIABLE).is_none_or(|ahead| Path::new(&ahead) != dir) {
            build(&dir);
        }
        dir
    };
    DIR.get_or_init(built).join(name)
}

/// The folder of a profile below `target`; tests lie in `deps` below it.
fn own_profile() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    test.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps").to_owned()
}

fn build(dir: &Path) {
    let mut cargo = Command::new(env!("CARGO"));
    // The variables in which cargo describes a test's package would look like a changed environment to build scripts,
    // and half of the dependencies would be built anew.
    for (key, _) in std::env::vars_os() {
        if key.to_str().is_some_and(|key| key.starts_with("CARGO_PKG_") || PACKAGE_VARIABLES.contains(&key)) {
            cargo.env_remove(key);
        }
    }
    cargo.current_dir(workspace()).args(["build", "--quiet", "--workspace", "--bins", "--locked"]);
    cargo.arg("--target-dir").arg(dir.parent().expect("a profile lies in the target folder"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the binaries under test do not build");
}
