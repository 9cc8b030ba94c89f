//! Whether the pieces of a node's data fit each other: state, snapshot, log. Looked at before Raft takes them up.
//!
//! The state is a view (decision 0002): whatever is wrong with it alone is healed, because snapshot and log lead there
//! again. A snapshot that cannot be read is set aside if the log does without it. But a node whose log has lost entries
//! or votes has broken its promises: it must not go on, and the error says what to do.

use super::log::{Held, Log};
use super::machine::{Machine, Position};
use super::snapshot;
use super::types::{LogId, SnapshotFile, SnapshotMeta};
use crate::error::{Error, REPLACE};
use crate::fs::{rules, settings};
use crate::store::Store;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use wire::{codec, durable};

/// Opens the state machine of a node, if its pieces fit each other.
///
/// # Errors
/// One line for an operator: what is missing or damaged, and what to do.
pub(super) fn open(dir: &Path, store: &Arc<Store>, log: &Log) -> Result<Machine, Error> {
    let held = log.held();
    // What a newer release has written is good: nothing of it is cleared or renamed.
    rules::check(rules::of(&**store))?;
    discard_unreadable(dir, store, held.purged)?;
    set_aside_damaged(dir, store, held.purged)?;
    let machine = Machine::open(dir, store.clone())?;
    fit(dir, machine.applied(), &held)?;
    Ok(machine)
}

fn position(store: &Store) -> Option<Position> {
    codec::decode(&store.position()?).ok()
}

/// Empties a state that cannot be read as a whole: it was cut off, or its files have changed. It stays as it is where
/// snapshot and log do not lead there again: it may be the last of its kind.
fn discard_unreadable(dir: &Path, store: &Store, purged: Option<LogId>) -> Result<(), Error> {
    let is_whole = match store.position() {
        Some(_) => position(store).is_some() && settings::are_readable(store),
        None => store.is_empty(),
    };
    if is_whole {
        return Ok(());
    }
    if purged.is_some() {
        let path = snapshot::path_in(dir);
        let of = |(meta, file): (SnapshotMeta, SnapshotFile)| snapshot::verify(&file).map(|()| meta.last_log_id);
        let lacks = match snapshot::open(&path).and_then(|opened| opened.map(of).transpose()) {
            Ok(Some(last)) if last >= purged => None,
            Ok(_) => Some("its snapshot is older than its log, or missing".to_owned()),
            Err(error) => Some(format!("so is its snapshot ({error})")),
        };
        if let Some(lacks) = lacks {
            return Err(Error::Recovery(format!("{}: the state is damaged, and {lacks}: {REPLACE}", dir.display())));
        }
    }
    tracing::warn!("the state is damaged, or incomplete; rebuilding it from snapshot and log");
    store.clear();
    Ok(())
}

/// Renames a snapshot that is damaged, unless the node needs it.
pub(super) fn set_aside_damaged(dir: &Path, store: &Store, purged: Option<LogId>) -> Result<(), Error> {
    let (path, applied) = (snapshot::path_in(dir), position(store).and_then(|position| position.applied));
    let checked = snapshot::open(&path).and_then(|opened| match opened {
        // Only such a one is loaded. Another one is sent to a peer perhaps, which verifies it.
        Some((meta, file)) if meta.last_log_id > applied => snapshot::verify(&file),
        _ => Ok(()),
    });
    match checked {
        Err(error) if !is_damage(&error) => Err(Error::disk(&path, error)),
        Err(error) if purged > applied => Err(Error::Recovery(format!(
            "{}: {error}, and what it holds is not in the log any more: {REPLACE}",
            path.display()
        ))),
        Err(error) => {
            let aside = path.with_extension("damaged");
            tracing::warn!(%error, path = %path.display(), "the snapshot is set aside as damaged; the log does without it");
            durable::rename(&path, &aside).map_err(|error| Error::disk(&path, error))
        }
        Ok(()) => Ok(()),
    }
}

/// Distinguishes a damaged content from a disk that cannot be read now: that may be mended.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::Other)
}

/// Checks that the log goes on where the state ends, at `applied`.
fn fit(dir: &Path, applied: Option<LogId>, held: &Held) -> Result<(), Error> {
    let wrong = |what: String| Err(Error::Recovery(format!("{}: {what}: {REPLACE}", dir.display())));
    let Held { voted, purged, last } = held;
    if let Some(applied) = applied
        && !voted
        && purged.max(last).is_none()
    {
        return wrong(format!("the log is empty, and the state is not: it is as of log index {}", applied.index));
    }
    if *purged > applied {
        let (end, begin) = (applied.map_or(0, |applied| applied.index), purged.map_or(0, |purged| purged.index + 1));
        return wrong(format!(
            "pieces are missing between log index {end}, where the state ends, and {begin} of the log"
        ));
    }
    if let (Some(applied), Some(last)) = (applied, purged.max(last))
        && applied > *last
        && applied.index <= last.index
    {
        return wrong(format!("state and log hold different entries up to log index {}", applied.index));
    }
    Ok(())
}
