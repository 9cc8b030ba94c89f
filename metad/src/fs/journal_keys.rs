//! The keys of mounts' journals, in the tables `P` and `G` ([`keys`](super::keys)).

use super::keys::{Key, below, hash_of, key, setting};
use std::ops::Range;
use wire::ids::JournalId;

/// How the names of the numbers of journals begin.
const JOURNALS_COUNT: &str = "journals of ";

/// Position of a client's journal.
#[must_use]
pub fn journal(journal: JournalId) -> Key {
    key(b'P', &[journal.0], &[])
}

/// Positions of all journals; the journal is the first number.
#[must_use]
pub fn all_journals() -> Range<Key> {
    below(vec![b'P'])
}

/// A journal whose position a certificate has reported.
#[must_use]
pub fn journal_of(client: &str, journal: JournalId) -> Key {
    key(b'G', &[hash_of(client), journal.0], &[])
}

/// Journals whose position a certificate has reported; the journal is the second number.
#[must_use]
pub fn journals_of(client: &str) -> Range<Key> {
    below(key(b'G', &[hash_of(client)], &[]))
}

/// Journals whose position any certificate has reported; the hash of its name is the first number.
#[must_use]
pub fn journals_of_all() -> Range<Key> {
    below(vec![b'G'])
}

/// The number of journals whose position a certificate has reported.
#[must_use]
pub fn journals_count(client: &str) -> Key {
    journals_count_of(hash_of(client))
}

/// The same, by the hash of the name in the certificate.
#[must_use]
pub fn journals_count_of(hash: u64) -> Key {
    setting(&format!("{JOURNALS_COUNT}{hash:016x}"))
}

/// All such numbers.
#[must_use]
pub fn journals_counts() -> Range<Key> {
    below(setting(JOURNALS_COUNT))
}

/// Journals that are counted in such a number; `None` when the key is none of one.
#[must_use]
pub fn journals_counted_in(count: &[u8]) -> Option<Range<Key>> {
    let hash = count.strip_prefix(&*setting(JOURNALS_COUNT))?;
    let hash = u64::from_str_radix(std::str::from_utf8(hash).ok()?, 16).ok()?;
    (journals_count_of(hash) == count).then(|| below(key(b'G', &[hash], &[])))
}
