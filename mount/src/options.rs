//! Flags and `-o` options of surfmount.

use anyhow::{Context, bail};
use clap::Parser;
use client::OnConflict;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Mounts a Surf filesystem.
///
/// Without a cluster, one of a single node runs within surfmount itself, its data under the user's state directory:
/// `surfmount /mnt/surf` is all it takes.
#[derive(Parser, Debug)]
#[command(version, name = "surfmount")]
pub(crate) struct Flags {
    /// Where to mount; made if it does not exist.
    pub mountpoint: PathBuf,
    /// Bundle of the cluster to mount, as `surf` writes it.
    #[arg(long, env = "SURF_CLUSTER", value_name = "BUNDLE")]
    pub cluster: Option<PathBuf>,
    /// Where the embedded cluster keeps its data [default: /var/lib/surf as root, else ~/.local/state/surf].
    #[arg(long, env = "SURF_DATA_DIR", conflicts_with = "cluster")]
    pub data_dir: Option<PathBuf>,
    /// Options, separated by commas: ro, rw, conflict=copy|fail|last-writer, soft[=SECONDS], hard, and the kernel's
    /// dev, nodev, suid, nosuid, exec, noexec, noatime.
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Return once mounted, and go on in the background.
    #[arg(long)]
    pub daemon: bool,
    /// What to log: a level, or directives as of RUST_LOG.
    #[arg(long, env = "SURF_LOG", default_value = "warn,fuser=error")]
    pub log: String,
}

/// Options that were understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountOptions {
    pub read_only: bool,
    pub on_conflict: OnConflict,
    pub soft_timeout: Option<Duration>,
    /// For the kernel.
    pub kernel: Vec<fuser::MountOption>,
}

/// A soft mount's patience when none is given.
const SOFT: Duration = Duration::from_secs(30);

impl MountOptions {
    /// Understands `-o`.
    ///
    /// # Errors
    /// Which option is unknown, or has no such value.
    pub(crate) fn parse(options: &[String]) -> anyhow::Result<Self> {
        use fuser::MountOption as Kernel;
        let mut parsed =
            Self { read_only: false, on_conflict: OnConflict::Copy, soft_timeout: None, kernel: Vec::new() };
        for option in options.iter().filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').map_or((option.as_str(), None), |(n, v)| (n, Some(v)));
            match (name, value) {
                ("ro", None) => parsed.read_only = true,
                ("rw", None) => parsed.read_only = false,
                // What mount(8) and fstab add for themselves, and what is so anyway.
                ("defaults" | "auto" | "noauto" | "_netdev" | "nofail" | "user" | "allow_other", None) => {}
                ("conflict", Some("copy")) => parsed.on_conflict = OnConflict::Copy,
                ("conflict", Some("fail")) => parsed.on_conflict = OnConflict::Fail,
                ("conflict", Some("last-writer")) => parsed.on_conflict = OnConflict::LastWriter,
                ("hard", None) => parsed.soft_timeout = None,
                ("soft", None) => parsed.soft_timeout = Some(SOFT),
                ("soft", Some(seconds)) => {
                    let seconds = seconds.parse().with_context(|| format!("-o {option}: not a number of seconds"))?;
                    parsed.soft_timeout = Some(Duration::from_secs(seconds));
                }
                ("dev", None) => parsed.kernel.push(Kernel::Dev),
                ("nodev", None) => parsed.kernel.push(Kernel::NoDev),
                ("suid", None) => parsed.kernel.push(Kernel::Suid),
                ("nosuid", None) => parsed.kernel.push(Kernel::NoSuid),
                ("exec", None) => parsed.kernel.push(Kernel::Exec),
                ("noexec", None) => parsed.kernel.push(Kernel::NoExec),
                ("noatime", None) => parsed.kernel.push(Kernel::NoAtime),
                _ => bail!("-o {option}: unknown option; see `surfmount --help`"),
            }
        }
        Ok(parsed)
    }
}

/// Where the embedded cluster keeps its data when nothing is said.
pub(crate) fn default_data_dir() -> anyhow::Result<PathBuf> {
    if crate::sys::is_root() {
        return Ok("/var/lib/surf/embedded".into());
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
    match state.or(home) {
        Some(dir) => Ok(dir.join("surf")),
        None => bail!("neither HOME nor XDG_STATE_HOME is set: say where to keep data with --data-dir"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<MountOptions> {
        MountOptions::parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_of_fstab_are_understood_and_unknown_ones_refused() {
        let options = parse("defaults,_netdev,ro,conflict=fail,soft=5,nosuid").unwrap();
        assert!(options.read_only);
        assert_eq!(options.on_conflict, OnConflict::Fail);
        assert_eq!(options.soft_timeout, Some(Duration::from_secs(5)));
        assert_eq!(options.kernel, [fuser::MountOption::NoSuid]);
        for wrong in ["conflict=maybe", "sofft", "soft=x", "ro=1"] {
            assert!(parse(wrong).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }
}
