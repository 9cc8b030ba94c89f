//! Journals of mounts: up to where each was sent, which client it belongs to, and how many each client has.

use super::Check;
use crate::fs::journal_keys;
use crate::fs::keys::{self, Key};
use std::collections::{BTreeMap, BTreeSet};
use wire::ids::JournalId;
use wire::message::check::{FindingKind, Repair};
use wire::op::JournalPosition;

pub(super) fn check(check: &mut Check) {
    let (mut owned, mut counts): (BTreeSet<u64>, BTreeMap<Key, u64>) = (BTreeSet::new(), BTreeMap::new());
    check.scan(journal_keys::journals_of_all(), 16, |check, key, _| {
        let journal = keys::second(key);
        if check.kv.get(&journal_keys::journal(JournalId(journal))).is_none() {
            let what = "is one of a client, and it is not known up to where it was sent".to_owned();
            let repair = Some(Repair::Index(key.to_vec()));
            check.found(FindingKind::WrongIndex, place(journal), what, repair);
        }
        owned.insert(journal);
        *counts.entry(journal_keys::journals_count_of(keys::first(key))).or_default() += 1;
    });
    check.scan(journal_keys::all_journals(), 8, |check, key, value| {
        let journal = keys::first(key);
        let _: Option<JournalPosition> = check.decode(key, value);
        if !owned.contains(&journal) {
            let what = "belongs to no client: what its mount has not sent is refused".to_owned();
            check.found(FindingKind::WrongIndex, place(journal), what, None);
        }
    });
    check.scan(journal_keys::journals_counts(), 1, |check, key, value| {
        if let Some(counted) = check.decode(key, value) {
            let found = counts.remove(key).unwrap_or(0);
            wrong_count(check, key, counted, found);
        }
    });
    for (key, found) in counts {
        wrong_count(check, &key, 0, found);
    }
}

fn wrong_count(check: &mut Check, key: &[u8], counted: u64, found: u64) {
    if counted != found {
        let what = format!("{counted} are counted, and there are {found}");
        let repair = Some(Repair::Index(key.to_vec()));
        check.found(FindingKind::WrongCounter, "journals of a client".to_owned(), what, repair);
    }
}

fn place(journal: u64) -> String {
    format!("journal {journal:016x}")
}
