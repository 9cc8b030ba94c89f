//! Flags and `-o` options of surfmount.

use crate::error::Error;
use crate::sys;
use clap::Parser;
use client::{DISK_CACHE_BYTES_MIN, OnConflict};
use fuser::{MountOption, SessionACL};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A soft mount's patience when none is given.
const SOFT_TIMEOUT: Duration = Duration::from_secs(30);
/// Where bundles of named clusters are.
const BUNDLE_DIR: &str = "/etc/surf";
/// The name by which an fstab line asks for a cluster within the mount's process.
const EMBEDDED: &str = "embedded";
/// Directory of the mount's own data, below an embedded cluster's data directory.
const CLIENT_DIR: &str = "client";

/// Mounts a Surf filesystem.
///
/// Without a cluster, one of a single node runs within surfmount itself, its data under the user's state directory:
/// `surfmount /mnt/surf` is all it takes.
#[derive(Parser, Debug)]
#[command(version, name = "surfmount", override_usage = "surfmount [OPTIONS] [CLUSTER] MOUNTPOINT")]
pub(crate) struct Flags {
    /// Where to mount (made if it does not exist), after the cluster: path of its bundle, name of a bundle in
    /// /etc/surf, or `embedded`, the default.
    #[arg(required = true, num_args = 1..=2, value_name = "MOUNTPOINT")]
    places: Vec<PathBuf>,
    /// Bundle of the cluster to mount, as `surf` writes it.
    #[arg(long, env = "SURF_CLUSTER", value_name = "BUNDLE")]
    cluster: Option<PathBuf>,
    /// Where the embedded cluster keeps its data [default: /var/lib/surf/embedded as root, else ~/.local/state/surf].
    #[arg(long, env = "SURF_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where this machine keeps the journal of what the cluster does not know yet, and blocks that were read, in a
    /// directory for each mount [default: /var/cache/surf as root, else ~/.cache/surf].
    #[arg(long, env = "SURF_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Room there for blocks: 0 for none, or 16M at least; bytes, or with K, M, G or T behind [default: 0].
    #[arg(long, env = "SURF_CACHE_SIZE", value_name = "SIZE")]
    cache_size: Option<String>,
    /// Options, separated by commas: ro, rw, conflict=copy|fail|last-writer, soft[=SECONDS], hard, flush=close,
    /// allow_other, data_dir=DIR, cache-dir=DIR, cache-size=SIZE, block_kib=4..4096, honour=suid+dev, and the kernel's
    /// dev, nodev, suid, nosuid, exec, noexec, sync, dirsync, noatime.
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
    /// Return once mounted, and go on in the background.
    #[arg(long)]
    pub daemon: bool,
    /// What to log: a level, or directives as of RUST_LOG.
    #[arg(long, env = "SURF_LOG", default_value = "warn,fuser=error,fuser::reply=off,openraft::raft::responder=error")]
    pub log: String,
    /// Append the log to this file instead of writing it to standard error, which a background process does not have.
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

/// Where the filesystem is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// In a cluster that this bundle leads to.
    Bundle(PathBuf),
    /// In this process, with data in this directory.
    Embedded(PathBuf),
}

impl Source {
    /// The file in which a renewed certificate is kept. An embedded cluster has identities that last.
    pub(crate) fn bundle_file(&self) -> Option<PathBuf> {
        match self {
            Self::Bundle(path) => Some(path.clone()),
            Self::Embedded(_) => None,
        }
    }
}

/// All options, checked.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub source: Source,
    pub mount_point: PathBuf,
    pub on_conflict: OnConflict,
    /// Every `close` waits until what was written is durable.
    pub flush_on_close: bool,
    /// Size of the blocks that content is cut into; `None` for the client's default.
    pub block_bytes: Option<u64>,
    /// Directory in which the mount may have one of its own; `None` when there is no such place, and nothing is stored.
    pub cache_dir: Option<PathBuf>,
    /// The directory is the default, not an option.
    pub cache_dir_is_default: bool,
    /// Room for blocks there, in bytes; 0 for none.
    pub disk_cache_bytes: u64,
    /// Neither `noatime` nor `ro`.
    pub access_times: bool,
    /// `ro`.
    pub read_only: bool,
    /// `sync` or `dirsync`: every change is sent to metad at once.
    pub synchronous: bool,
    /// Patience with absent servers. `None` waits as long as it takes.
    pub soft_timeout: Option<Duration>,
    /// Who may use the mount.
    pub acl: SessionACL,
    /// Options for the kernel.
    pub kernel: Vec<MountOption>,
}

impl Flags {
    /// Checks everything, and makes paths absolute: a background process has another working directory.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub(crate) fn check(&self) -> Result<Options, Error> {
        let (mount_point, place) = match self.places.as_slice() {
            [mount_point] => (absolute(mount_point)?, None),
            [place, mount_point] => (absolute(mount_point)?, Some(place)),
            _ => return Err(Error::Usage("mount what, and where?".to_owned())),
        };
        // The environment names a cluster for command lines without one.
        let named = match (place, &self.cluster) {
            (Some(_), Some(_)) if std::env::var_os("SURF_CLUSTER").is_none() => {
                return Err(Error::Usage("the cluster is named twice".to_owned()));
            }
            (Some(place), _) | (None, Some(place)) => Some(place.as_path()),
            (None, None) => None,
        };
        let named = named.filter(|place| *place != Path::new(EMBEDDED));
        let mut options = Options {
            source: Source::Embedded(PathBuf::new()),
            mount_point,
            on_conflict: OnConflict::Copy,
            flush_on_close: false,
            block_bytes: None,
            cache_dir: self.cache_dir.clone(),
            cache_dir_is_default: false,
            disk_cache_bytes: 0,
            access_times: true,
            read_only: false,
            synchronous: false,
            soft_timeout: None,
            acl: if sys::is_root() { SessionACL::All } else { SessionACL::Owner },
            kernel: Vec::new(),
        };
        if let Some(size) = &self.cache_size {
            options.disk_cache_bytes = cache_bytes(size).ok_or_else(|| wrong_cache_size("--cache-size", size))?;
        }
        let mut data_dir = self.data_dir.clone();
        for option in self.options.iter().filter(|option| !option.is_empty()) {
            options.apply(option, &mut data_dir)?;
        }
        options.source = match (named, data_dir) {
            (Some(_), Some(_)) => {
                return Err(Error::Usage("a data directory is for the embedded cluster only".to_owned()));
            }
            (Some(place), None) => Source::Bundle(bundle(place)?),
            (None, Some(dir)) => Source::Embedded(absolute(&dir)?),
            (None, None) => Source::Embedded(default_data_dir()?),
        };
        options.honour_setuid_and_devices(sys::is_root());
        // A directory that was asked for must be usable.
        options.cache_dir_is_default = options.cache_dir.is_none() && options.disk_cache_bytes == 0;
        options.cache_dir = match (options.cache_dir, &options.source) {
            (Some(dir), _) => Some(absolute(&dir)?),
            // The mount of an embedded cluster stores its data with the cluster's, wherever that is mounted next.
            (None, Source::Embedded(dir)) => Some(dir.join(CLIENT_DIR)),
            (None, Source::Bundle(_)) => {
                // A mount cannot store there what it needs before it is mounted.
                let above = |dir: &PathBuf| !options.cache_dir_is_default || !dir.starts_with(&options.mount_point);
                default_cache_dir().filter(above)
            }
        };
        if options.cache_dir.is_none() && options.disk_cache_bytes > 0 {
            let reason = "neither HOME nor XDG_CACHE_HOME is set: say where with --cache-dir";
            return Err(Error::Usage(reason.to_owned()));
        }
        let has = |option| options.kernel.contains(&option);
        (options.read_only, options.synchronous) =
            (has(MountOption::RO), has(MountOption::Sync) || has(MountOption::DirSync));
        options.access_times = !options.read_only && !has(MountOption::NoAtime);
        options.refuse_data_below_the_mount()?;
        Ok(options)
    }
}

impl Options {
    fn apply(&mut self, option: &str, data_dir: &mut Option<PathBuf>) -> Result<(), Error> {
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("ro", None) => self.set(MountOption::RO),
            ("rw", None) => self.set(MountOption::RW),
            ("dev", None) => self.set(MountOption::Dev),
            ("nodev", None) => self.set(MountOption::NoDev),
            ("suid", None) => self.set(MountOption::Suid),
            ("nosuid", None) => self.set(MountOption::NoSuid),
            // mount(8) does not pass `suid` and `dev` on.
            ("honour", Some(what)) => {
                for what in what.split('+') {
                    match what {
                        "suid" => self.set(MountOption::Suid),
                        "dev" => self.set(MountOption::Dev),
                        _ => return Err(Error::Usage(format!("-o {option}: suid, dev, or suid+dev"))),
                    }
                }
            }
            ("exec", None) => self.set(MountOption::Exec),
            ("noexec", None) => self.set(MountOption::NoExec),
            ("atime", None) => self.set(MountOption::Atime),
            ("noatime", None) => self.set(MountOption::NoAtime),
            ("sync", None) => self.set(MountOption::Sync),
            ("async", None) => self.set(MountOption::Async),
            ("dirsync", None) => self.set(MountOption::DirSync),
            ("allow_other", None) => self.acl = SessionACL::All,
            ("allow_root", None) => self.acl = SessionACL::RootAndOwner,
            ("conflict", Some("copy")) => self.on_conflict = OnConflict::Copy,
            ("conflict", Some("fail")) => self.on_conflict = OnConflict::Fail,
            ("conflict", Some("last-writer")) => self.on_conflict = OnConflict::LastWriter,
            ("hard", None) => self.soft_timeout = None,
            ("soft", None) => self.soft_timeout = Some(SOFT_TIMEOUT),
            ("soft", Some(seconds)) => {
                let seconds = seconds.parse().ok().filter(|seconds| *seconds > 0);
                let seconds = seconds.ok_or_else(|| Error::Usage(format!("-o {option}: how many seconds?")))?;
                self.soft_timeout = Some(Duration::from_secs(seconds));
            }
            ("flush", Some("close")) => self.flush_on_close = true,
            ("block_kib", Some(kib)) => {
                let kib: Option<u64> = kib.parse().ok().filter(|kib| (4..=4096).contains(kib));
                let kib = kib.filter(|kib: &u64| kib.is_power_of_two());
                let kib = kib.ok_or_else(|| Error::Usage(format!("-o {option}: a power of two from 4 to 4096")))?;
                self.block_bytes = Some(kib << 10);
            }
            ("data_dir", Some(dir)) => *data_dir = Some(dir.into()),
            ("cache-dir" | "cache_dir", Some(dir)) if !dir.is_empty() => self.cache_dir = Some(dir.into()),
            ("cache-size" | "cache_size", Some(size)) => {
                self.disk_cache_bytes = cache_bytes(size).ok_or_else(|| wrong_cache_size("-o cache-size", size))?;
            }
            (name, value) if is_for_others(name, value) => {}
            _ => return Err(Error::Usage(format!("-o {option}: unknown option"))),
        }
        Ok(())
    }

    /// Adds an option in place of its opposite. The last one counts, as with mount(8), and fuser refuses both together.
    fn set(&mut self, option: MountOption) {
        let opposite = match option {
            MountOption::RO => MountOption::RW,
            MountOption::RW => MountOption::RO,
            MountOption::Dev => MountOption::NoDev,
            MountOption::NoDev => MountOption::Dev,
            MountOption::Suid => MountOption::NoSuid,
            MountOption::NoSuid => MountOption::Suid,
            MountOption::Exec => MountOption::NoExec,
            MountOption::NoExec => MountOption::Exec,
            MountOption::Atime => MountOption::NoAtime,
            MountOption::NoAtime => MountOption::Atime,
            MountOption::Sync => MountOption::Async,
            MountOption::Async => MountOption::Sync,
            ref other => other.clone(),
        };
        self.kernel.retain(|set| *set != opposite && *set != option);
        self.kernel.push(option);
    }

    /// Sets the defaults for setuid programs and devices. The holder of a bundle of the cluster can make both, and would
    /// be root on each machine that honours them, so only root may ask for that. An embedded cluster is this machine's
    /// own, and is treated as a local filesystem, unless a user made it who could make himself root with it: fusermount3
    /// insists on that, too.
    fn honour_setuid_and_devices(&mut self, is_root: bool) {
        let trusted = is_root && matches!(self.source, Source::Embedded(_));
        for (on, off) in [(MountOption::Suid, MountOption::NoSuid), (MountOption::Dev, MountOption::NoDev)] {
            if !self.kernel.contains(&on) && !self.kernel.contains(&off) {
                self.set(if trusted { on } else { off });
            }
        }
    }

    /// Refuses a mount that would hide its own data, and wait for itself to reach it.
    fn refuse_data_below_the_mount(&self) -> Result<(), Error> {
        match &self.source {
            Source::Embedded(dir) if dir.starts_with(&self.mount_point) => Err(Error::Usage(format!(
                "the data directory {} is below the mount point: choose another with --data-dir",
                dir.display()
            ))),
            _ => match &self.cache_dir {
                Some(dir) if dir.starts_with(&self.mount_point) => Err(Error::Usage(format!(
                    "the cache directory {} is below the mount point: choose another",
                    dir.display()
                ))),
                _ => Ok(()),
            },
        }
    }
}

/// Bytes of a size such as `512M`, if a cache can have that size.
fn cache_bytes(text: &str) -> Option<u64> {
    let text = text.strip_suffix("iB").unwrap_or(text);
    let (number, shift) = match text.char_indices().last()? {
        (end, 'K' | 'k') => (&text[..end], 10),
        (end, 'M' | 'm') => (&text[..end], 20),
        (end, 'G' | 'g') => (&text[..end], 30),
        (end, 'T' | 't') => (&text[..end], 40),
        _ => (text, 0),
    };
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let bytes = number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(1 << shift)?;
    (bytes == 0 || bytes >= DISK_CACHE_BYTES_MIN).then_some(bytes)
}

fn wrong_cache_size(option: &str, text: &str) -> Error {
    Error::Usage(format!("{option}={text}: 0, or at least 16M, as in 512M or 20G"))
}

/// Options that mount(8), fstab and systemd write for themselves, and those that always hold.
fn is_for_others(name: &str, value: Option<&str>) -> bool {
    let words = [
        "defaults",
        "auto",
        "noauto",
        "_netdev",
        "nofail",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "relatime",
        // Access times follow relatime, and directories have none of their own.
        "strictatime",
        "diratime",
        "nodiratime",
        "default_permissions",
    ];
    name.starts_with("x-") || (name == "comment" && value.is_some()) || (value.is_none() && words.contains(&name))
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|error| Error::Usage(format!("{}: {error}", path.display())))
}

/// The bundle of a cluster: a path, or a name of one in /etc/surf. `NAME:/` is the form of fstab.
fn bundle(place: &Path) -> Result<PathBuf, Error> {
    let text = place.to_string_lossy();
    let (name, directory) = text.split_once(':').map_or((text.as_ref(), "/"), |(name, directory)| (name, directory));
    if place.exists() || name.contains('/') {
        return absolute(place);
    }
    if !matches!(directory, "" | "/") {
        return Err(Error::Usage(format!(
            "{text}: a mount begins at the root; a bundle for a part of the cluster has that part as its root"
        )));
    }
    Ok(Path::new(BUNDLE_DIR).join(format!("{name}.bundle")))
}

/// Default data directory of the embedded cluster.
fn default_data_dir() -> Result<PathBuf, Error> {
    if sys::is_root() {
        return Ok("/var/lib/surf/embedded".into());
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
    let nowhere = || Error::Usage("neither HOME nor XDG_STATE_HOME is set: say where with --data-dir".to_owned());
    Ok(state.or(home).ok_or_else(nowhere)?.join("surf"))
}

/// Default directory for blocks, if there is one.
fn default_cache_dir() -> Option<PathBuf> {
    if sys::is_root() {
        return Some("/var/cache/surf".into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Some(cache.or(home)?.join("surf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &str) -> Result<Options, Error> {
        Flags::try_parse_from(std::iter::once("surfmount").chain(arguments.split(' '))).unwrap().check()
    }

    #[test]
    fn options_of_fstab_are_understood_and_unknown_ones_refused() {
        let options = check(
            "/mnt -o defaults,_netdev,x-systemd.automount,strictatime,nodiratime,rw,ro,conflict=fail,soft=5,nosuid",
        )
        .unwrap();
        assert!(options.kernel.contains(&MountOption::RO) && !options.kernel.contains(&MountOption::RW));
        assert!(options.kernel.contains(&MountOption::NoSuid) && !options.kernel.contains(&MountOption::Suid));
        assert_eq!(options.on_conflict, OnConflict::Fail);
        assert!(!options.flush_on_close);
        assert_eq!(options.soft_timeout, Some(Duration::from_secs(5)));
        for wrong in ["conflict=maybe", "sofft", "soft=x", "soft=0", "ro=1", "block_kib=5"] {
            let error = check(&format!("/mnt -o {wrong}")).unwrap_err();
            assert!(error.to_string().contains(wrong) && error.exit_code() == 2, "{error}");
        }
    }

    #[test]
    fn setuid_programs_and_devices_of_a_cluster_are_honoured_only_when_root_asks_for_it() {
        let kernel = |source: Source, asked: &[&str], is_root| {
            let mut options = check("/mnt").unwrap();
            (options.source, options.kernel) = (source, Vec::new());
            asked.iter().for_each(|option| options.apply(option, &mut None).unwrap());
            options.honour_setuid_and_devices(is_root);
            options.kernel
        };
        let bundle = || Source::Bundle("/etc/surf/c.bundle".into());
        let embedded = || Source::Embedded("/var/lib/surf".into());
        assert_eq!(kernel(bundle(), &[], true), [MountOption::NoSuid, MountOption::NoDev]);
        assert_eq!(kernel(bundle(), &["dev"], true), [MountOption::Dev, MountOption::NoSuid]);
        assert_eq!(kernel(bundle(), &["suid", "dev"], true), [MountOption::Suid, MountOption::Dev]);
        assert_eq!(kernel(bundle(), &["honour=suid+dev"], true), [MountOption::Suid, MountOption::Dev]);
        let unknown = check("/mnt -o honour=root").unwrap_err();
        assert!(unknown.to_string().contains("honour=root"), "{unknown}");
        assert_eq!(kernel(embedded(), &[], true), [MountOption::Suid, MountOption::Dev]);
        assert_eq!(kernel(embedded(), &["nosuid"], true), [MountOption::NoSuid, MountOption::Dev]);
    }

    #[test]
    fn without_root_nothing_is_mounted_that_honours_setuid_programs_or_devices_unasked() {
        for source in [Source::Embedded("/home/u/surf".into()), Source::Bundle("/etc/surf/c.bundle".into())] {
            let mut options = check("/mnt").unwrap();
            (options.source, options.kernel) = (source, Vec::new());
            options.honour_setuid_and_devices(false);
            assert_eq!(options.kernel, [MountOption::NoSuid, MountOption::NoDev]);
        }
    }

    #[test]
    fn the_cache_on_disk_has_a_place_and_a_size_or_one_clear_error() {
        let asked = |arguments: &str| {
            let options = check(arguments).unwrap();
            (options.cache_dir.unwrap(), options.disk_cache_bytes)
        };
        assert_eq!(asked("--cache-dir /c /mnt").1, 0);
        assert_eq!(asked("--cache-dir /c --cache-size 20G /mnt"), ("/c".into(), 20 << 30));
        assert_eq!(asked("/mnt -o cache-dir=/d,cache-size=16M"), ("/d".into(), 16 << 20));
        for (size, bytes) in [("0", 0), ("16777216", 16 << 20), ("1TiB", 1 << 40), ("65536k", 64 << 20)] {
            assert_eq!(asked(&format!("--cache-dir /c --cache-size {size} /mnt")).1, bytes, "{size}");
        }
        for wrong in ["", "1", "15M", "-1", "+20M", "20X", "M", "1.5G", "99999999999T", "20 G", "20é"] {
            for arguments in [vec!["--cache-size", wrong], vec!["-o", &format!("cache-size={wrong}")]] {
                let flags = ["surfmount", "/mnt"].into_iter().chain(arguments.iter().copied());
                let flags = Flags::try_parse_from(flags.map(str::to_owned).collect::<Vec<_>>());
                // A value that begins with a dash is refused as a flag already.
                let Ok(flags) = flags else { continue };
                let error = flags.check().unwrap_err();
                assert!(error.to_string().contains("at least 16M") && error.exit_code() == 2, "{wrong}: {error}");
            }
        }
        assert!(check("--cache-dir /mnt/c --cache-size 1G /mnt").unwrap_err().to_string().contains("below the mount"));
        assert!(check("/mnt -o cache-dir=").unwrap_err().to_string().contains("unknown option"));
    }

    #[test]
    fn a_cluster_is_a_path_a_name_or_this_process() {
        let source = |arguments: &str| check(arguments).unwrap().source;
        assert_eq!(source("/x/c.bundle /mnt"), Source::Bundle("/x/c.bundle".into()));
        assert_eq!(source("--cluster /x/c.bundle /mnt"), Source::Bundle("/x/c.bundle".into()));
        assert_eq!(source("prod --log info /mnt"), Source::Bundle("/etc/surf/prod.bundle".into()));
        assert_eq!(source("prod:/ /mnt"), Source::Bundle("/etc/surf/prod.bundle".into()));
        assert_eq!(source("embedded /mnt -o data_dir=/d"), Source::Embedded("/d".into()));
        assert_eq!(source("--data-dir /d /mnt"), Source::Embedded("/d".into()));
        assert!(check("prod:/home /mnt").is_err());
        assert!(check("--data-dir /d /x/c.bundle /mnt").is_err());
        assert!(check("--data-dir /mnt/data /mnt").unwrap_err().to_string().contains("below the mount point"));
    }
}
