//! Configuration: one TOML file, overridden by the environment, overridden by flags. Unknown keys are refused.
//!
//! [`Settings`] is what people write, everything optional; [`Settings::validate`] makes it a [`Config`], which cannot
//! be wrong in itself. All units are in the names.

use clap::Args;
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use wire::limits::{BLOCK_BYTES_MAX, BLOCKD_WEIGHT_MAX, GC_GRACE_MIN_MS, HEARTBEAT_MAX_MS, SESSION_TTL_MS};
use wire::settings;

/// An error in a configuration: one line that names file and key.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read ({source}): name the file with --config", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key that does not exist, or a value of the wrong type.
    #[error("{}: {reason}", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// Where, and what is wrong there.
        reason: String,
    },
    /// An option that has no default is missing.
    #[error("`{key}` is missing: set it in the file, as --{flag}, or as {env} in the environment")]
    Missing {
        /// Its key in the file.
        key: &'static str,
        /// Its flag.
        flag: &'static str,
        /// Its variable.
        env: &'static str,
    },
    /// A value is out of its range.
    #[error("`{key}` {reason}")]
    Range {
        /// The option.
        key: &'static str,
        /// What it must be.
        reason: String,
    },
}

/// Options as people write them. Each is documented in the order: meaning, unit, default, cost.
#[derive(Clone, Debug, Default, Serialize, Deserialize, Args)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of the daemon, for people; the name in its certificate by default.
    #[arg(long, env = "BLOCKD_NAME")]
    pub name: Option<String>,
    /// Address and UDP port to serve on. Required; port 0 picks a free one.
    #[arg(long, env = "BLOCKD_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Address by which others reach it; `listen` by default, which must then name one address and not all.
    #[arg(long, env = "BLOCKD_ADVERTISE")]
    pub advertise: Option<SocketAddr>,
    /// Directory of the blocks, on a disk of its own if possible. Required.
    #[arg(long, env = "BLOCKD_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// PEM file with CA certificate, own certificate (role blockd) and key. Required.
    #[arg(long, env = "BLOCKD_IDENTITY")]
    pub identity: Option<PathBuf>,
    /// Addresses of metads, separated by commas as a flag; one that answers leads to the others. Required.
    #[arg(long, env = "BLOCKD_METADS", value_delimiter = ',')]
    pub metads: Option<Vec<SocketAddr>>,
    /// Failure domain (host, rack, room): replicas lie in distinct ones while there are enough. By default the name,
    /// that is, a zone of its own.
    #[arg(long, env = "BLOCKD_ZONE")]
    pub zone: Option<String>,
    /// Share of the data, relative to other daemons; the disk's capacity in GiB by default.
    #[arg(long, env = "BLOCKD_WEIGHT")]
    pub weight: Option<u32>,
    /// Size of a segment file, MiB; 256 by default. Smaller ones are compacted sooner, larger ones cost fewer files.
    #[arg(long, env = "BLOCKD_SEGMENT_MIB")]
    pub segment_mib: Option<u64>,
    /// Rate of compaction, MiB/s; 64 by default, 0 switches it off. Space of dropped blocks comes back no faster.
    #[arg(long, env = "BLOCKD_COMPACTION_MIB_S")]
    pub compaction_mib_s: Option<u64>,
    /// Rate of scrub, MiB/s; 16 by default, 0 switches it off: then damage shows only when a block is read.
    #[arg(long, env = "BLOCKD_SCRUB_MIB_S")]
    pub scrub_mib_s: Option<u64>,
    /// Rate at which blocks are copied that the layout wants here, MiB/s; 64 by default, 0 for no limit.
    #[arg(long, env = "BLOCKD_REPAIR_MIB_S")]
    pub repair_mib_s: Option<u64>,
    /// The same while clients are at work; 16 by default, 0 for no limit.
    #[arg(long, env = "BLOCKD_REPAIR_BUSY_MIB_S")]
    pub repair_busy_mib_s: Option<u64>,
    /// Time between two comparisons with the daemons that hold the same blocks, s; 600 by default. Each change of the
    /// layout brings one, too.
    #[arg(long, env = "BLOCKD_COMPARE_S")]
    pub compare_s: Option<u64>,
    /// Time between two heartbeats to metad, ms; 1000 by default.
    #[arg(long, env = "BLOCKD_HEARTBEAT_MS")]
    pub heartbeat_ms: Option<u64>,
    /// Time between two block reports, s; 600 by default.
    #[arg(long, env = "BLOCKD_REPORT_S")]
    pub report_s: Option<u64>,
    /// Unreferenced blocks that were renewed less than this long ago are kept, s; 3600 by default. Must exceed the life
    /// of a client session, or an upload could vanish before its file is committed.
    #[arg(long, env = "BLOCKD_GRACE_S")]
    pub grace_s: Option<u64>,
    /// What is logged: a filter in the form of `RUST_LOG`; `info` by default.
    #[arg(long, env = "BLOCKD_LOG")]
    pub log: Option<String>,
}

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name, for people.
    pub name: String,
    /// Address to serve on.
    pub listen: SocketAddr,
    /// Address by which others reach it; `None` for the one that is bound.
    pub advertise: Option<SocketAddr>,
    /// Directory of the blocks.
    pub data_dir: PathBuf,
    /// Addresses of metads.
    pub metads: Vec<SocketAddr>,
    /// Failure domain.
    pub zone: String,
    /// Share of the data; `None` for the capacity in GiB.
    pub weight: Option<u32>,
    /// Size of a segment file.
    pub segment_bytes: u64,
    /// Rate of compaction; 0 for none.
    pub compaction_bytes_per_s: u64,
    /// Rate of scrub; 0 for none.
    pub scrub_bytes_per_s: u64,
    /// Rates of copying what the layout wants here.
    pub repair_rates: Rates,
    /// Time between two comparisons with others.
    pub compare_every: Duration,
    /// Time between two heartbeats.
    pub heartbeat_every: Duration,
    /// Time between two block reports.
    pub report_every: Duration,
    /// Unreferenced blocks renewed less than this long ago are not dropped.
    pub grace: Duration,
    /// Shortest such time for the drops that metad asks for. A metad that was removed, or lies, so destroys nothing
    /// that is being written.
    pub drop_grace_min: Duration,
    /// Parameters of the ring.
    pub ring: crate::chord::Options,
}

/// Rates of copying in bytes per second; 0 for no limit.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// While clients are idle.
    pub idle: u64,
    /// While they are at work.
    pub busy: u64,
}

impl Config {
    /// Defaults, for a daemon that is started inside a process.
    #[must_use]
    pub fn new(name: &str, listen: SocketAddr, data_dir: &Path, metads: Vec<SocketAddr>) -> Self {
        Self {
            name: name.to_owned(),
            listen,
            advertise: None,
            data_dir: data_dir.to_owned(),
            metads,
            zone: name.to_owned(),
            weight: None,
            segment_bytes: 256 << 20,
            compaction_bytes_per_s: 64 << 20,
            scrub_bytes_per_s: 16 << 20,
            repair_rates: Rates { idle: 64 << 20, busy: 16 << 20 },
            compare_every: Duration::from_secs(600),
            heartbeat_every: Duration::from_secs(1),
            report_every: Duration::from_secs(600),
            grace: Duration::from_secs(3600),
            drop_grace_min: Duration::from_millis(GC_GRACE_MIN_MS),
            ring: crate::chord::Options::default(),
        }
    }
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`] naming file, line and key.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
        settings::from_toml(&text).map_err(|reason| ConfigError::Parse { file: file.to_owned(), reason })
    }

    /// Returns `over`, completed by these settings.
    #[must_use]
    pub fn overridden_by(self, over: Self) -> Self {
        Self {
            name: over.name.or(self.name),
            listen: over.listen.or(self.listen),
            advertise: over.advertise.or(self.advertise),
            data_dir: over.data_dir.or(self.data_dir),
            identity: over.identity.or(self.identity),
            metads: over.metads.or(self.metads),
            zone: over.zone.or(self.zone),
            weight: over.weight.or(self.weight),
            segment_mib: over.segment_mib.or(self.segment_mib),
            compaction_mib_s: over.compaction_mib_s.or(self.compaction_mib_s),
            scrub_mib_s: over.scrub_mib_s.or(self.scrub_mib_s),
            repair_mib_s: over.repair_mib_s.or(self.repair_mib_s),
            repair_busy_mib_s: over.repair_busy_mib_s.or(self.repair_busy_mib_s),
            compare_s: over.compare_s.or(self.compare_s),
            heartbeat_ms: over.heartbeat_ms.or(self.heartbeat_ms),
            report_s: over.report_s.or(self.report_s),
            grace_s: over.grace_s.or(self.grace_s),
            log: over.log.or(self.log),
        }
    }

    /// Path of the identity.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn identity(&self) -> Result<&Path, ConfigError> {
        required(self.identity.as_deref(), "identity", "identity", "BLOCKD_IDENTITY")
    }

    /// Checks all settings, and fills in defaults; `name` is the one in the certificate.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first option that is missing or wrong.
    pub fn validate(&self, name: &str) -> Result<Config, ConfigError> {
        let listen = required(self.listen, "listen", "listen", "BLOCKD_LISTEN")?;
        let data_dir = required(self.data_dir.as_deref(), "data_dir", "data-dir", "BLOCKD_DATA_DIR")?;
        let metads = required(self.metads.clone(), "metads", "metads", "BLOCKD_METADS")?;
        if metads.is_empty() {
            return Err(range("metads", "names no address: give at least one"));
        }
        if self.advertise.is_none() && listen.ip().is_unspecified() {
            return Err(range(
                "advertise",
                "is missing: `listen` names all addresses, say which one others are to use",
            ));
        }
        if self.advertise.is_some_and(|addr| addr.ip().is_unspecified() || addr.port() == 0) {
            return Err(range("advertise", "must name one address and port that others can reach"));
        }
        let name = self.name.as_deref().unwrap_or(name);
        let mut config = Config::new(name, listen, data_dir, metads);
        config.advertise = self.advertise;
        config.weight =
            bounded("weight", self.weight.map(u64::from), 1, u64::from(BLOCKD_WEIGHT_MAX))?.map(|weight| weight as u32);
        if let Some(zone) = &self.zone {
            config.zone.clone_from(zone);
        }
        if let Some(mib) = bounded("segment_mib", self.segment_mib, SEGMENT_MIB_MIN, 4095)? {
            config.segment_bytes = mib << 20;
        }
        if let Some(mib) = bounded("compaction_mib_s", self.compaction_mib_s, 0, 1 << 20)? {
            config.compaction_bytes_per_s = mib << 20;
        }
        if let Some(mib) = bounded("scrub_mib_s", self.scrub_mib_s, 0, 1 << 20)? {
            config.scrub_bytes_per_s = mib << 20;
        }
        if let Some(mib) = bounded("repair_mib_s", self.repair_mib_s, 0, 1 << 20)? {
            config.repair_rates.idle = mib << 20;
        }
        if let Some(mib) = bounded("repair_busy_mib_s", self.repair_busy_mib_s, 0, 1 << 20)? {
            config.repair_rates.busy = mib << 20;
        }
        if let Some(seconds) = bounded("compare_s", self.compare_s, 1, 7 * 86_400)? {
            config.compare_every = Duration::from_secs(seconds);
        }
        if let Some(ms) = bounded("heartbeat_ms", self.heartbeat_ms, 50, HEARTBEAT_MAX_MS)? {
            config.heartbeat_every = Duration::from_millis(ms);
        }
        if let Some(seconds) = bounded("report_s", self.report_s, 1, 7 * 86_400)? {
            config.report_every = Duration::from_secs(seconds);
        }
        if let Some(seconds) = bounded("grace_s", self.grace_s, 2 * SESSION_TTL_MS / 1000, 86_400)? {
            config.grace = Duration::from_secs(seconds);
        }
        Ok(config)
    }
}

/// Smallest segment: some of the largest blocks must fit.
const SEGMENT_MIB_MIN: u64 = 16;
const _: () = assert!((SEGMENT_MIB_MIN << 20) >= 4 * BLOCK_BYTES_MAX as u64);

fn required<T>(value: Option<T>, key: &'static str, flag: &'static str, env: &'static str) -> Result<T, ConfigError> {
    value.ok_or(ConfigError::Missing { key, flag, env })
}

fn range(key: &'static str, reason: &str) -> ConfigError {
    ConfigError::Range { key, reason: reason.to_owned() }
}

fn bounded(key: &'static str, value: Option<u64>, min: u64, max: u64) -> Result<Option<u64>, ConfigError> {
    match value {
        Some(value) if !(min..=max).contains(&value) => {
            Err(ConfigError::Range { key, reason: format!("is {value}; it must lie between {min} and {max}") })
        }
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"
listen = "10.0.0.5:7201"
data_dir = "/var/lib/surf/blockd"
identity = "/etc/surf/blockd-1.pem"
metads = ["10.0.0.1:7101", "10.0.0.2:7101"]
"#;

    fn parse(text: &str) -> Result<Settings, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("blockd.toml");
        fs::write(&file, text).unwrap();
        Settings::load(&file)
    }

    #[test]
    fn four_keys_are_enough() {
        let config = parse(SAMPLE).unwrap().validate("blockd-1").unwrap();
        assert_eq!((config.name.as_str(), config.zone.as_str()), ("blockd-1", "blockd-1"));
        assert_eq!(config.metads.len(), 2);
    }

    #[test]
    fn a_typo_is_named_with_its_line() {
        let error = parse(&format!("{SAMPLE}wieght = 3\n")).unwrap_err().to_string();
        assert!(error.contains("line 6") && error.contains("wieght") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn what_is_missing_or_out_of_range_is_named() {
        let error = |text: &str| parse(text).unwrap().validate("x").unwrap_err().to_string();
        assert!(error("").contains("`listen` is missing"));
        assert!(error(&format!("{SAMPLE}grace_s = 5")).contains("`grace_s` is 5; it must lie between 60"));
        assert!(error(&SAMPLE.replace("10.0.0.5", "0.0.0.0")).contains("`advertise`"));
    }

    #[test]
    fn flags_override_the_file() {
        let flags = Settings { name: Some("other".to_owned()), ..Settings::default() };
        let config = parse(SAMPLE).unwrap().overridden_by(flags).validate("x").unwrap();
        assert_eq!(config.name, "other");
    }
}
