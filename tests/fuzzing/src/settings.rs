//! The configuration files of the daemons.

use crate::identities::of;
use crate::memory;
use blockd::config::Settings;
use metad::config::ConfigFile;
use std::fs;
use wire::tls::Role;

/// A metad's configuration, but for the path of its identity.
pub fn metad_config(data: &[u8]) -> bool {
    let (path, identity) = (memory::dir().join("metad.toml"), memory::dir().join("metad.pem"));
    fs::write(&path, data).expect("a file can be written");
    let mut file = match ConfigFile::load(&path) {
        Ok(file) => file,
        Err(error) => return one_line(&error),
    };
    if !identity.exists() {
        of(Role::Metad).save(&identity).expect("a file can be written");
    }
    file.identity = identity;
    let (mib, log_mib, reserve_mib) = (file.cache_mib, file.log_file_mib, file.reserve_mib);
    match file.check() {
        Ok(config) => {
            assert!(mib.is_none_or(|mib| config.tuning.cache_bytes >> 20 == mib), "{mib:?} MiB");
            assert!(log_mib.is_none_or(|mib| config.tuning.log_file_bytes >> 20 == mib), "{log_mib:?} MiB");
            assert!(reserve_mib.is_none_or(|mib| config.tuning.reserve_bytes >> 20 == mib), "{reserve_mib:?} MiB");
            assert!((1..=config.replicas).contains(&config.min_sync));
            true
        }
        Err(error) => one_line(&error),
    }
}

/// A blockd's configuration.
pub fn blockd_config(data: &[u8]) -> bool {
    let path = memory::dir().join("blockd.toml");
    fs::write(&path, data).expect("a file can be written");
    match Settings::load(&path).and_then(|settings| settings.validate("blockd-1")) {
        Ok(config) => {
            assert!(!config.metads.is_empty() && config.segment_bytes >= 16 << 20);
            true
        }
        Err(error) => one_line(&error),
    }
}

fn one_line(error: &dyn std::fmt::Display) -> bool {
    let said = error.to_string();
    assert!(!said.is_empty() && !said.contains('\n'), "{said:?} is not one line");
    false
}

/// Good inputs.
pub mod samples {
    use crate::Samples;

    /// A metad's configurations.
    #[must_use]
    pub fn metad() -> Samples {
        let least = "id = 1\ncluster = \"c\"\nlisten = \"10.0.0.1:7101\"\ndata_dir = \"/d\"\nidentity = \"/i.pem\"\n";
        let more = "replicas = 3\nmin_sync = 2\ngc_grace_s = 900\nsnapshot_entries = 1000\ncache_mib = 64\nlog_file_mib = 4\n[initial]\n1 = \
                    \"10.0.0.1:7101\"\n2 = \"[::1]:7101\"\n";
        vec![("least", least.into()), ("all", format!("{least}{more}").into_bytes())]
    }

    /// A blockd's configurations.
    #[must_use]
    pub fn blockd() -> Samples {
        let least =
            "listen = \"10.0.0.5:7201\"\ndata_dir = \"/d\"\nidentity = \"/i.pem\"\nmetads = [\"10.0.0.1:7101\"]\n";
        let more = "name = \"b\"\nadvertise = \"10.0.0.9:1\"\nzone = \"rack\"\nweight = 9\nsegment_mib = 64\n\
                    compaction_mib_s = 0\nscrub_mib_s = 1\nrepair_mib_s = 2\nrepair_busy_mib_s = 3\ncompare_s = 4\n\
                    heartbeat_ms = 100\nreport_s = 5\ngrace_s = 600\nlog = \"debug\"\n";
        vec![("least", least.into()), ("all", format!("{least}{more}").into_bytes())]
    }
}
