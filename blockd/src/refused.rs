//! What is revoked, as this daemon knows it: it refuses that, and keeps the list on disk, so that it refuses it after a
//! restart before any metad answers. Metads tell it of each change at once, and otherwise with its next heartbeat.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;
use wire::quic::Endpoint;
use wire::revoked::Revocations;
use wire::{codec, durable};

/// File with the list, in the data directory.
const FILE: &str = "revoked";

/// The list of this daemon.
pub struct Refused {
    endpoint: Endpoint,
    file: PathBuf,
    /// Held while the list is written: a newer list is written after an older one.
    writing: Mutex<()>,
}

impl Refused {
    /// Takes the list of this data directory into use. Without one, or with a damaged one, metads are asked with the first
    /// heartbeat, as by a new daemon.
    #[must_use]
    pub fn open(endpoint: Endpoint, data_dir: &Path) -> Self {
        let file = data_dir.join(FILE);
        match fs::read(&file).map(|bytes| codec::decode::<Revocations>(&bytes)) {
            Ok(Ok(revocations)) => {
                endpoint.revoke(&revocations);
            }
            Ok(Err(error)) => {
                tracing::warn!(file = %file.display(), %error, "the list of what is revoked is damaged: a metad gives it anew")
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the list of what is revoked cannot be read: a metad gives it anew")
            }
        }
        Self { endpoint, file, writing: Mutex::new(()) }
    }

    /// Returns the version of the list.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.endpoint.refusals().version()
    }

    /// Refuses what is revoked from now on, unless a newer list is known, and writes the list.
    pub async fn learn(&self, revocations: Revocations) {
        // It takes effect first: writing may take a while.
        if !self.endpoint.revoke(&revocations) {
            return;
        }
        tracing::info!(
            version = revocations.version,
            count = revocations.list.len(),
            "the list of what is revoked has changed"
        );
        let _one_at_a_time = self.writing.lock().await;
        if self.version() != revocations.version {
            // A newer one is about to be written.
            return;
        }
        let file = self.file.clone();
        let written = tokio::task::spawn_blocking(move || durable::replace(&file, &codec::encode(&revocations))).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the list of what is revoked is not on disk: after a restart it is asked for");
        }
    }
}
