//! Checks of the whole state for contradictions: for operators (`surf fsck`), and for tests.
//!
//! The state must not change meanwhile: it is frozen, or in memory. A check uses bounded memory: it takes inodes and
//! blocks in windows, and reads the tables that refer to them from anywhere (entries, extents) once for each window.
//!
//! - [`windows`] checks one window of inodes with all that belongs to each; it uses `entries` and `rows`.
//! - `circles` finds directories that cannot be reached from the root.
//! - `blocks` compares the references of blocks, `indexes` the tables that index others, `journals` the journals of mounts.
//! - [`places`] names the place of an inode.

mod blocks;
mod circles;
mod entries;
mod indexes;
mod journals;
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

/// Receives what a check finds.
pub trait Listener {
    /// Receives a contradiction.
    fn found(&mut self, finding: Finding);

    /// Counts one more pair that was read. The check is given up when this returns false.
    fn looked(&mut self) -> bool;
}

/// A check under way.
pub(super) struct Check<'a> {
    kv: &'a dyn Kv,
    listener: &'a mut dyn Listener,
    window: usize,
    ended: bool,
}

/// Checks the state.
pub fn check_all(kv: &dyn Kv, listener: &mut dyn Listener) {
    check_in_windows(kv, listener, WINDOW);
}

/// Checks the state with windows of this many inodes and blocks.
pub fn check_in_windows(kv: &dyn Kv, listener: &mut dyn Listener, window: usize) {
    let mut check = Check { kv, listener, window, ended: false };
    let steps = [blocks::check, windows::check, circles::check, indexes::check, journals::check];
    for step in steps {
        if !check.ended {
            step(&mut check);
        }
    }
}

/// Looks only for directories that lie below themselves. For tests.
pub fn check_circles(kv: &dyn Kv, listener: &mut dyn Listener, window: usize) {
    circles::check(&mut Check { kv, listener, window, ended: false });
}

/// Returns the contradictions found, one line each. For tests.
#[must_use]
pub fn check(kv: &dyn Kv) -> Vec<String> {
    check_up_to(kv, usize::MAX)
}

/// Returns the first contradictions found, one line each. The check is given up after `most` of them.
#[must_use]
pub fn check_up_to(kv: &dyn Kv, most: usize) -> Vec<String> {
    let mut first = FirstFindings { findings: Vec::new(), most };
    check_all(kv, &mut first);
    let line = |Finding { kind, place, what, .. }: &Finding| format!("{}: {place}: {what}", kind.word());
    first.findings.iter().map(line).collect()
}

/// Collects the first findings, and then gives the check up.
pub struct FirstFindings {
    /// The findings so far.
    pub findings: Vec<Finding>,
    /// The number of findings after which the check is given up.
    pub most: usize,
}

impl Listener for FirstFindings {
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
    /// Calls `visit` with the pairs of a range whose keys have at least `bytes` bytes after their prefix; other keys
    /// are findings.
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

    /// Decodes a value, or reports it.
    fn decode<T: DeserializeOwned>(&mut self, key: &[u8], value: &[u8]) -> Option<T> {
        let decoded = wire::codec::decode(value).ok();
        if decoded.is_none() {
            self.undecodable(key);
        }
        decoded
    }

    /// Returns the decoded value of a key, if there is one.
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
