//! Programs of others that a column needs, and their Debian packages.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Packages' scripts ask this file whether they may start services.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Administrators' programs are not in every user's PATH.
const MORE_PLACES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
const INSTALL_LIMIT_S: &str = "900";

/// Path of a program.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = MORE_PLACES.iter().map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn missing(programs: &[(&str, &str)], is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let mut packages: Vec<String> =
        programs.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| (*package).to_owned()).collect();
    packages.sort();
    packages.dedup();
    packages
}

/// Makes sure that programs exist. With `install` their packages are installed, without starting their services.
pub(crate) fn need(programs: &[(&str, &str)], install: bool) -> Result<()> {
    let packages = missing(programs, |program| find(program).is_some());
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    ensure!(install, "missing: `apt-get install --no-install-recommends {list}`, or --install has it done");
    eprintln!("installing {list}");
    let _nothing_starts = Policy::refuse()?;
    // The list of packages of a fresh machine is old or empty.
    let script = format!(
        "apt-get install -y --no-install-recommends {list} || \
         (apt-get update && apt-get install -y --no-install-recommends {list})"
    );
    let mut command = Command::new("timeout");
    command.args(["-k", "10", INSTALL_LIMIT_S, "sh", "-c", &script]).env("DEBIAN_FRONTEND", "noninteractive");
    let output = command.stdin(Stdio::null()).output().context("timeout")?;
    if !output.status.success() {
        bail!("{list} cannot be installed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Keeps packages from starting their services while they are installed, unless the machine has its own rule for that.
struct Policy {
    is_ours: bool,
}

impl Policy {
    fn refuse() -> Result<Self> {
        match fs::File::create_new(POLICY) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(Self { is_ours: false }),
            Err(error) => return Err(error).context(POLICY),
        }
        // From here on the file is removed, even if it cannot be written.
        let ours = Self { is_ours: true };
        let written = fs::write(POLICY, "#!/bin/sh\nexit 101\n")
            .and_then(|()| fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)));
        written.context(POLICY).map(|()| ours)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.is_ours && fs::remove_file(Path::new(POLICY)).is_err() {
            eprintln!("{POLICY} is left behind: remove it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_package_is_named_once() {
        let programs = [("a", "p"), ("b", "q"), ("c", "p"), ("d", "r")];
        assert_eq!(missing(&programs, |program| program == "d"), ["p", "q"]);
        assert!(missing(&programs, |_| true).is_empty());
    }
}
