//! Changes that are part of the state but not on disk yet: those that gather, and those that are being written.

use crate::fs::view::{Changes, Kv, Over};
use parking_lot::RwLock;
use std::sync::Arc;

/// Two layers of changes over what is on disk.
#[derive(Default)]
pub(super) struct Overlay {
    layers: RwLock<Layers>,
}

#[derive(Default)]
struct Layers {
    /// Changes that gather.
    fresh: Changes,
    /// Changes that are being written: some of them may be visible on disk already.
    leaving: Arc<Changes>,
}

impl Overlay {
    /// Adds changes over the others.
    pub(super) fn add(&self, changes: Changes) {
        let fresh = &mut self.layers.write().fresh;
        if fresh.is_empty() {
            *fresh = changes;
        } else {
            fresh.extend(changes);
        }
    }

    /// Returns how many keys have changes that gather.
    pub(super) fn gathered(&self) -> usize {
        self.layers.read_recursive().fresh.len()
    }

    /// Takes the gathered changes to write them; they stay visible until [`Overlay::written`]. Only one thread does
    /// this.
    pub(super) fn take(&self) -> Arc<Changes> {
        let mut layers = self.layers.write();
        layers.leaving = Arc::new(std::mem::take(&mut layers.fresh));
        layers.leaving.clone()
    }

    /// Records that the taken changes are on disk.
    pub(super) fn written(&self) {
        let leaving = std::mem::take(&mut self.layers.write().leaving);
        // Freed without the lock.
        drop(leaving);
    }

    /// Returns the change to a key, if there is one.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Vec<u8>>> {
        // A recursive lock: a scan's visitor may read too, and a waiting writer must not block that.
        let layers = self.layers.read_recursive();
        layers.fresh.get(key).or_else(|| layers.leaving.get(key)).cloned()
    }

    /// Calls `look` with the whole state, which does not change meanwhile.
    pub(super) fn over<R>(&self, disk: &dyn Kv, look: impl FnOnce(&dyn Kv) -> R) -> R {
        let layers = self.layers.read_recursive();
        let leaving = Over { base: disk, changes: &layers.leaving };
        look(&Over { base: &leaving, changes: &layers.fresh })
    }
}
