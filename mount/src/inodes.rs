//! What the kernel may believe of an inode, and for how long.
//!
//! No lookup counts: inode numbers are never used twice (I4), and neither client nor metad keeps anything for an inode
//! that the kernel merely knows, so `forget` has nothing to undo.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use wire::ids::Ino;

/// How long names and attributes are believed on a cluster that nobody else changes.
pub(crate) const ALONE: Duration = Duration::from_secs(3600);

/// On what the kernel may believe what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// On read leases: there are other clients.
    Leases,
    /// On this being the only client, of an embedded cluster: nobody else changes what the client knows.
    Alone,
}

/// What is known of inodes here, beyond what the client knows.
pub(crate) struct Inodes {
    pub trust: Trust,
    /// Open handles that may write, by inode. While there are any, times and allocation change without the kernel.
    writers: Mutex<HashMap<Ino, u32>>,
}

impl Inodes {
    /// Nothing is known yet.
    pub(crate) fn new(trust: Trust) -> Self {
        Self { trust, writers: Mutex::default() }
    }

    /// A handle that may write was opened.
    pub(crate) fn add_writer(&self, ino: Ino) {
        *self.writers.lock().entry(ino).or_default() += 1;
    }

    /// Such a handle was released, its content committed.
    pub(crate) fn remove_writer(&self, ino: Ino) {
        let mut writers = self.writers.lock();
        if let Some(count) = writers.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                writers.remove(&ino);
            }
        }
    }

    /// Whether the inode is open for writing here. Its attributes are stamped anew by metad at each commit, of which the
    /// kernel hears nothing.
    pub(crate) fn is_written(&self, ino: Ino) -> bool {
        self.writers.lock().contains_key(&ino)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_a_file_that_is_written_are_not_believed() {
        let inodes = Inodes::new(Trust::Alone);
        inodes.add_writer(Ino(2000));
        inodes.add_writer(Ino(2000));
        inodes.remove_writer(Ino(2000));
        assert!(inodes.is_written(Ino(2000)));
        inodes.remove_writer(Ino(2000));
        assert!(!inodes.is_written(Ino(2000)));
    }
}
