//! Backups: the state as a stream to an operator, the pins that keep its blocks, and the end of a recovery.

use super::Server;
use super::cert::asker;
use crate::checks::Reader;
use crate::consensus::Frozen;
use crate::error::ProposeError;
use crate::fs::operator::Change;
use crate::fs::{CommandReply, check, keys, recovery, retention, rules, settings};
use bytes::Bytes;
use std::io::{self, Write};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use wire::attr::Timestamp;
use wire::backup::{Head, Writer};
use wire::limits::{PIN_MAX_MS, PIN_NAME_BYTES_MAX, PINS_MAX};
use wire::message::admin::{AdminReply, BackupPiece};
use wire::quic::{EventSender, Incoming};
use wire::tls::PeerIdentity;

/// A snapshot of a large state takes a while.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(1800);
/// Contradictions listed in an answer.
const PROBLEMS_MAX: usize = 100;
/// A backup breaks off when the operator's disk or pipe takes nothing for this long.
const PIECE_LIMIT: Duration = Duration::from_secs(600);
/// Bytes of a piece.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait to be sent.
const PIECES_WAITING: usize = 4;

impl Server {
    /// Sends a backup. Only the leader does so: it alone knows that its state is the newest.
    pub(super) async fn backup(&self, peer: &PeerIdentity, incoming: Incoming) {
        if self.shared.consensus.read_barrier().await.is_err() {
            return incoming.refuse("another node leads").await;
        }
        let admission = self.shared.checks.admit(Reader::Backup, peer);
        let mut pieces = incoming.into_events();
        let sent = match &admission {
            Ok(_) => self.send_backup(&mut pieces).await,
            Err(busy) => Err(busy.clone()),
        };
        let last = match sent {
            Ok(bytes) => BackupPiece::End { bytes },
            Err(reason) => {
                tracing::warn!(reason, "a backup was not completed");
                BackupPiece::Failed(reason)
            }
        };
        // An operator who does not get this knows that the backup is incomplete.
        let _ = pieces.send_within(&last, PIECE_LIMIT).await;
    }

    async fn send_backup(&self, pieces: &mut EventSender) -> Result<u64, String> {
        let state = self.shared.consensus.freeze(SNAPSHOT_LIMIT).await.map_err(|error| error.to_string())?;
        let cluster = settings::cluster(&**self.shared.consensus.state()).unwrap_or_default();
        let cluster_id = self.shared.config.identity.cluster_id();
        let frozen = state.clone();
        let rules = spawn_blocking(move || rules::of(&*frozen)).await.map_err(|error| error.to_string())?;
        let (term, index) = (state.term(), state.applied());
        let head = Head { cluster, cluster_id, term, index, at: Timestamp::now(), rules };
        let (to_send, mut next) = mpsc::channel(PIECES_WAITING);
        // It ends when its pieces are not taken any more.
        let writing = spawn_blocking(move || write_backup(&*state, &head, Pieces { to_send, gathered: Vec::new() }));
        let mut bytes = 0;
        while let Some(piece) = next.recv().await {
            bytes += piece.len() as u64;
            pieces.send_within(&BackupPiece::Bytes(piece), PIECE_LIMIT).await.map_err(|error| error.to_string())?;
        }
        let written = writing.await.map_err(|error| error.to_string())?;
        written.map(|()| bytes).map_err(|error| error.to_string())
    }

    pub(super) async fn pin_blocks(
        &self,
        peer: &PeerIdentity,
        name: String,
        keep_ms: u64,
    ) -> Result<AdminReply, ProposeError> {
        if name.is_empty() || name.len() > PIN_NAME_BYTES_MAX || keep_ms > PIN_MAX_MS {
            let reason =
                format!("names have 1 to {PIN_NAME_BYTES_MAX} bytes, and blocks are kept for 100 years at most");
            return Ok(AdminReply::Failed(reason));
        }
        let refused = format!("there is a backup {name:?} already, or there are {PINS_MAX}: release some");
        Ok(match self.shared.propose_by(None, &asker(peer), Change::PinBlocks { name, keep_ms }).await? {
            CommandReply::Done => AdminReply::Done,
            _ => AdminReply::Failed(refused),
        })
    }

    pub(super) async fn release_pin(&self, peer: &PeerIdentity, name: String) -> Result<AdminReply, ProposeError> {
        let pins = retention::pins(&**self.shared.consensus.state(), self.shared.clock.now());
        let names: Vec<&str> = pins.iter().map(|pin| pin.name.as_str()).collect();
        let refused = format!("no backup {name:?} keeps blocks; there are {names:?}");
        Ok(match self.shared.propose_by(None, &asker(peer), Change::ReleasePin { name }).await? {
            CommandReply::Done => AdminReply::Done,
            _ => AdminReply::Failed(refused),
        })
    }

    /// Deletes blocks again, unless the metadata contradict themselves: deletion would go by them, and lose data.
    pub(super) async fn resume_deletion(&self, peer: &PeerIdentity, force: bool) -> Result<AdminReply, ProposeError> {
        if retention::deletion_stopped(&**self.shared.consensus.state()).is_none() {
            return Ok(AdminReply::Done);
        }
        if !force {
            match self.problems(peer).await {
                Ok(problems) if problems.is_empty() => {}
                Ok(problems) => return Ok(AdminReply::Problems(problems)),
                Err(reason) => return Ok(AdminReply::Failed(reason)),
            }
        }
        self.shared.propose_by(None, &asker(peer), Change::ResumeDeletion).await?;
        tracing::warn!("blocks that nothing refers to are deleted again");
        Ok(AdminReply::Done)
    }

    /// Returns contradictions in the metadata, one line each, up to a bound. What is applied meanwhile does not count.
    async fn problems(&self, peer: &PeerIdentity) -> Result<Vec<String>, String> {
        let _admission = self.shared.checks.admit(Reader::Check, peer)?;
        let state = self.shared.consensus.freeze(SNAPSHOT_LIMIT).await.map_err(|error| error.to_string())?;
        let checked = spawn_blocking(move || (check::check_up_to(&*state, PROBLEMS_MAX), state.failure()));
        match checked.await.map_err(|error| error.to_string())? {
            (_, Some(failure)) => Err(failure),
            (problems, None) => Ok(problems),
        }
    }
}

fn write_backup(state: &dyn Frozen, head: &Head, pieces: Pieces) -> io::Result<()> {
    let mut writer = Writer::begin(pieces, head)?;
    let mut written = Ok(());
    state.scan(keys::below(Vec::new()), &mut |key, value| {
        if let Some(value) = recovery::exported(key, value.to_vec()) {
            written = writer.record(key, &value);
        }
        written.is_ok()
    });
    written?;
    // What could not be read is missing: such a backup gets no end.
    if let Some(failure) = state.failure() {
        return Err(io::Error::other(failure));
    }
    writer.finish()?.flush()
}

/// Cuts what is written into pieces, and waits while too many pieces are unsent.
struct Pieces {
    to_send: mpsc::Sender<Bytes>,
    gathered: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.gathered));
        self.to_send.blocking_send(piece).map_err(|_| io::Error::other("nobody takes the backup any more"))
    }
}
