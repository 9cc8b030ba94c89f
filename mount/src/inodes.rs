//! What the kernel may cache of an inode, and for how long.
//!
//! There is no count of lookups. Inode numbers are never used twice (I4), and neither client nor metad holds anything
//! for an inode that the kernel merely knows, so `forget` has nothing to undo.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use wire::ids::Ino;

/// How long names and attributes may be cached on a cluster that nobody else changes.
pub(crate) const ALONE_CACHE_TIME: Duration = Duration::from_secs(3600);

/// The ground on which the kernel may cache answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Read leases: there are other clients.
    Leases,
    /// This is the only client, of an embedded cluster: nobody else changes what the client knows.
    Alone,
}

/// What this mount knows of inodes, beyond what the client knows.
pub(crate) struct Inodes {
    pub trust: Trust,
    /// Open handles that may write, by inode. While there are any, times and allocation change without the kernel.
    writers: Mutex<HashMap<Ino, u32>>,
}

impl Inodes {
    /// Starts without any open handles.
    pub(crate) fn new(trust: Trust) -> Self {
        Self { trust, writers: Mutex::default() }
    }

    /// Counts a handle that may write.
    pub(crate) fn add_writer(&self, ino: Ino) {
        *self.writers.lock().entry(ino).or_default() += 1;
    }

    /// Uncounts such a handle, after its content was committed.
    pub(crate) fn remove_writer(&self, ino: Ino) {
        let mut writers = self.writers.lock();
        if let Some(count) = writers.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                writers.remove(&ino);
            }
        }
    }

    /// Reports whether the inode is open for writing here. metad sets its times anew at each commit, and the kernel
    /// does not notice.
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
