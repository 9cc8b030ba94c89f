//! Looking through the whole state for contradictions: for operators (`surf fsck`), and for tests.
//!
//! The state must not change meanwhile: it is frozen, or in memory. What is remembered at a time is bounded: inodes and
//! blocks are taken in windows, and the tables that refer to them from anywhere (entries, extents) are looked through once
//! for each window.
//!
//! - [`windows`] is one window of inodes with all that belongs to each, `entries` and `rows` what it compares.
//! - `circles` finds directories that are not within reach of the root.
//! - `blocks` compares the references of blocks, `indexes` the tables that say the same in two orders.
//! - [`places`] tells where an inode is found.

mod blocks;
mod circles;
mod entries;
mod indexes;
pub mod places;
mod rows;
mod windows;

use super::keys::Key;
use super::view::Kv;
use serde::de::DeserializeOwned;
use std::ops::Range;
use wire::message::check::{Finding, FindingKind, Repair};

/// Inodes, and blocks, that are compared at a time: some 100 bytes each.
const WINDOW: usize = 1 << 19;

/// Who listens to a check.
pub trait Listener {
    /// Something contradicts something else.
    fn found(&mut self, finding: Finding);

    /// One more pair was looked at. The check is given up when it answers false.
    fn looked(&mut self) -> bool;
}

/// A check under way.
pub(super) struct Check<'a> {
    kv: &'a dyn Kv,
    listener: &'a mut dyn Listener,
    window: usize,
    ended: bool,
}

/// Looks through the state.
pub fn check_all(kv: &dyn Kv, listener: &mut dyn Listener) {
    check_in_windows(kv, listener, WINDOW);
}

/// The same with so many inodes and blocks at a time.
pub fn check_in_windows(kv: &dyn Kv, listener: &mut dyn Listener, window: usize) {
    let mut check = Check { kv, listener, window, ended: false };
    let steps: [fn(&mut Check); 4] = [blocks::check, windows::check, circles::check, indexes::check];
    for step in steps {
        if !check.ended {
            step(&mut check);
        }
    }
}

/// Contradictions found, one line each: for tests.
#[must_use]
pub fn check(kv: &dyn Kv) -> Vec<String> {
    check_up_to(kv, usize::MAX)
}

/// The first contradictions found, one line each. With so many the check is given up.
#[must_use]
pub fn check_up_to(kv: &dyn Kv, most: usize) -> Vec<String> {
    let mut first = First { findings: Vec::new(), most };
    check_all(kv, &mut first);
    let line = |Finding { kind, place, what, .. }: &Finding| format!("{}: {place}: {what}", kind.word());
    first.findings.iter().map(line).collect()
}

/// Remembers the first findings, and gives the check up with so many.
pub struct First {
    /// Those that there were.
    pub findings: Vec<Finding>,
    /// How many they may be.
    pub most: usize,
}

impl Listener for First {
    fn found(&mut self, finding: Finding) {
        if self.findings.len() < self.most {
            self.findings.push(finding);
        }
    }

    fn looked(&mut self) -> bool {
        self.findings.len() < self.most
    }
}

impl Check<'_> {
    /// Calls `visit` with the pairs of a range whose keys have at least so many bytes behind their prefix; other keys are
    /// findings.
    fn scan(&mut self, range: Range<Key>, bytes: usize, mut visit: impl FnMut(&mut Self, &[u8], &[u8])) {
        let kv = self.kv;
        kv.scan(range, &mut |key, value| {
            if !self.listener.looked() {
                self.ended = true;
                return false;
            }
            if key.len() > bytes {
                visit(self, key, value);
            } else {
                self.undecodable(key);
            }
            true
        });
    }

    /// A decoded value, or a finding.
    fn decode<T: DeserializeOwned>(&mut self, key: &[u8], value: &[u8]) -> Option<T> {
        let decoded = wire::codec::decode(value).ok();
        if decoded.is_none() {
            self.undecodable(key);
        }
        decoded
    }

    /// The decoded value of a key, if there is one.
    fn load<T: DeserializeOwned>(&mut self, key: &[u8]) -> Option<T> {
        let value = self.kv.get(key)?;
        self.decode(key, &value)
    }

    fn undecodable(&mut self, key: &[u8]) {
        let place = format!("key {}", places::printable(key));
        self.found(FindingKind::Undecodable, place, "is not as this program stores it".to_owned(), None);
    }

    fn found(&mut self, kind: FindingKind, place: String, what: String, repair: Option<Repair>) {
        self.listener.found(Finding { kind, place, what, repair });
    }
}
