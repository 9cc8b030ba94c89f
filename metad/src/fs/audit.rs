//! The audit: what has happened to identities, the last of it. It is bounded, and the oldest records go first.

use super::cert_keys;
use super::settings::take_numbers;
use super::view::{Kv, KvExt, View, decode_stored};
use wire::attr::Timestamp;
use wire::limits::AUDIT_MAX;
use wire::message::cert::AuditRecord;

/// Counter of records.
const NEXT: &str = "next audit";

/// Adds a record, and forgets the oldest one if there are too many.
pub(super) fn add(view: &mut View, record: &AuditRecord) {
    let number = take_numbers(view, NEXT, 1, 1);
    view.store(cert_keys::audit(number), record);
    if let Some(oldest) = number.checked_sub(AUDIT_MAX as u64) {
        view.delete(cert_keys::audit(oldest));
    }
}

/// Returns the records since a time, the oldest first.
#[must_use]
pub fn since(kv: &dyn Kv, since: Timestamp) -> Vec<AuditRecord> {
    let all = kv.pairs(cert_keys::all_audit(), AUDIT_MAX);
    let records = all.iter().map(|(key, value)| decode_stored::<AuditRecord>(key, value));
    records.filter(|record| record.at >= since).collect()
}
