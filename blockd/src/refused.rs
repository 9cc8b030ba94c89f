//! The list of revoked certificates on this daemon. The daemon keeps it on disk, so that it refuses them after a restart before
//! any metad answers. The leader sends the list with its answer to a heartbeat. A message of another metad is only a reason to
//! send a heartbeat: a single metad that was taken over must not decide which clients are served.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Mutex;
use wire::hints::Hints;
use wire::quic::Endpoint;
use wire::revoked::{ListMark, Revocations};
use wire::{codec, durable};

/// File with the list, in the data directory.
const FILE: &str = "revoked";

/// Time between two heartbeats that are sent because somebody says that there is another list. One alone is not delayed.
const HINTS_PAUSE: Duration = Duration::from_millis(500);

/// The list of this daemon.
pub struct Refused {
    endpoint: Endpoint,
    file: PathBuf,
    /// The last list of the leader, until it is on disk. Held while it is written: a newer list is written after an older
    /// one.
    unwritten: Mutex<Option<Revocations>>,
    /// Given when there may be another list.
    hints: Hints,
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
        Self { endpoint, file, unwritten: Mutex::new(None), hints: Hints::new(HINTS_PAUSE) }
    }

    /// Returns what distinguishes the list from others.
    #[must_use]
    pub fn mark(&self) -> ListMark {
        self.endpoint.refusals().mark()
    }

    /// Notes that a metad has announced a list of this version.
    pub fn hint(&self, version: u64) {
        if version != self.mark().version {
            self.hints.hint();
        }
    }

    /// Waits until there may be another list. A caller that cancels it sends a heartbeat for another reason, which serves the same
    /// purpose.
    pub async fn wanted(&self) {
        self.hints.wait().await;
    }

    /// Refuses what is revoked from now on, as the leader says, and writes the list. `None` if the leader has no other list
    /// than this daemon: then what could not be written before is written.
    pub async fn learn(&self, revocations: Option<Revocations>) {
        let Some(revocations) = revocations else {
            let mut unwritten = self.unwritten.lock().await;
            return self.write(&mut unwritten).await;
        };
        // It takes effect first: writing may take a while.
        if !self.endpoint.adopt_revocations(&revocations) {
            return;
        }
        // The same hint announces a change of the CA.
        self.endpoint.hint_trust();
        tracing::info!(
            version = revocations.version,
            count = revocations.list.len(),
            "the list of what is revoked has changed"
        );
        let mut unwritten = self.unwritten.lock().await;
        if self.mark() != revocations.mark() {
            // A newer one is about to be written.
            return;
        }
        *unwritten = Some(revocations);
        self.write(&mut unwritten).await;
    }

    async fn write(&self, unwritten: &mut Option<Revocations>) {
        let Some(bytes) = unwritten.as_ref().map(codec::encode) else { return };
        let file = self.file.clone();
        match tokio::task::spawn_blocking(move || durable::replace(&file, &bytes)).await {
            Ok(Ok(())) => *unwritten = None,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the list of what is revoked is not on disk: tried again after a heartbeat");
            }
            Err(error) => tracing::warn!(%error, "the list of what is revoked may not be on disk"),
        }
    }
}
