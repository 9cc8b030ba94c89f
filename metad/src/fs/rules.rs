//! The version of the rules by which entries are applied. It is part of the state, so that binaries of two versions
//! apply one log to equal bytes: bounds and outcomes of [`apply`](super::apply) change only with it.
//!
//! A metad knows all rules up to [`KNOWN`]. It uses no state that was made under newer ones, wherever it comes from: its
//! own directory, a snapshot of another node, a backup.
//!
//! - 1: the first ones.
//! - 2: what ended sessions leave is removed in steps, and `Command::Reap` has a bound in keys and bytes
//!   ([`STEPS`](super::view::STEPS)). An entry takes no batches beyond its budget, keys that it has removed count as work,
//!   and what one write replaces has a bound. A cut of very many extents hides them.

use super::keys;
use super::view::{Kv, KvExt, View};
use thiserror::Error;
use wire::ids::RulesVersion;

/// The newest rules that this program knows.
pub const KNOWN: RulesVersion = super::view::STEPS;
/// The rules under which every cluster is founded, whichever program applies the entry that does it. They are the newest
/// ones as long as nothing is released: no other program has founded a cluster that must be served.
const FIRST: RulesVersion = RulesVersion(2);

/// The state was made under rules that this program does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the metadata is kept under rules of version {0}, and this program knows them up to version {KNOWN}: a newer release \
     of Surf has written it, so use that one"
)]
pub struct TooNew(pub RulesVersion);

/// Sets the first rules of a cluster.
pub(super) fn set_first(view: &mut View) {
    view.store(keys::RULES.to_vec(), &FIRST);
}

/// Returns the rules of a state; 0 before a cluster is founded.
#[must_use]
pub fn of(kv: &dyn Kv) -> RulesVersion {
    kv.load(keys::RULES).unwrap_or_default()
}

/// Checks that this program knows the rules.
///
/// # Errors
/// [`TooNew`].
pub fn check(rules: RulesVersion) -> Result<(), TooNew> {
    if rules <= KNOWN { Ok(()) } else { Err(TooNew(rules)) }
}
