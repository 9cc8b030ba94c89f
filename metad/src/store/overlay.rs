//! Changes that are part of the state and not on disk yet: those that gather, and those that are being written.

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
    /// What gathers.
    fresh: Changes,
    /// What is being written: on disk some of it may be visible already.
    leaving: Arc<Changes>,
}

impl Overlay {
    /// Lays changes over the others.
    pub(super) fn add(&self, changes: Changes) {
        let fresh = &mut self.layers.write().fresh;
        if fresh.is_empty() {
            *fresh = changes;
        } else {
            fresh.extend(changes);
        }
    }

    /// Keys that gather.
    pub(super) fn gathered(&self) -> usize {
        self.layers.read_recursive().fresh.len()
    }

    /// What has gathered, to be written; it stays visible until [`Overlay::written`]. One thread does this.
    pub(super) fn take(&self) -> Arc<Changes> {
        let mut layers = self.layers.write();
        layers.leaving = Arc::new(std::mem::take(&mut layers.fresh));
        layers.leaving.clone()
    }

    /// What was taken is on disk.
    pub(super) fn written(&self) {
        let leaving = std::mem::take(&mut self.layers.write().leaving);
        // Freed without the lock.
        drop(leaving);
    }

    /// The change to a key, if there is one.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Vec<u8>>> {
        // Recursively: a scan's visitor may ask, and a writer that waits must not stand between the two.
        let layers = self.layers.read_recursive();
        layers.fresh.get(key).or_else(|| layers.leaving.get(key)).cloned()
    }

    /// The whole state, held as it is while `look` looks at it.
    pub(super) fn over<R>(&self, disk: &dyn Kv, look: impl FnOnce(&dyn Kv) -> R) -> R {
        let layers = self.layers.read_recursive();
        let leaving = Over { base: disk, changes: &layers.leaving };
        look(&Over { base: &leaving, changes: &layers.fresh })
    }
}
