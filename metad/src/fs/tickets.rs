//! The keys that sign block tickets and receipts.

use super::CommandReply;
use super::keys::{self, Key};
use super::view::{Kv, KvExt, View};
use wire::ticket::{TicketKey, TicketKeys};

const KEYS: &str = "ticket keys";

/// Returns where the keys are stored. They are in no backup.
#[must_use]
pub fn key() -> Key {
    keys::setting(KEYS)
}

/// Returns the keys that are good.
pub fn keys(kv: &dyn Kv) -> TicketKeys {
    kv.load(&key()).unwrap_or_default()
}

/// Forgets all keys: one who knew them is revoked. The leader makes another one within seconds; what they have signed is good for
/// nothing any more.
pub(super) fn forget(view: &mut View) {
    view.delete(key());
}

/// `Command::AddTicketKey`. Answers `Stale` when another leader was first.
pub(super) fn add(view: &mut View, new: &TicketKey) -> CommandReply {
    let mut known = keys(view);
    if !known.add(new.clone()) {
        return CommandReply::Stale;
    }
    view.store(key(), &known);
    CommandReply::Done
}
