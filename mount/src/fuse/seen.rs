//! Which directories the kernel has found for calls that remove one.
//!
//! FUSE_RMDIR and FUSE_RENAME carry names alone. When one has succeeded, the kernel takes the directory that it had
//! looked up for removed: it marks that inode as dead (`S_DEAD`), for as long as anybody here uses it, and makes nothing in
//! it any more. If another mount has moved that directory away in between, and something else was removed, a living
//! directory would be dead here. So the call goes on only if the name still leads to what the kernel has found.
//!
//! The kernel looks the name up last, and for the target of a rename always, in the thread that makes the call. With
//! `ESTALE`, it looks all names up anew and tries once more (`LOOKUP_REVAL`, path-lookup.rst of Linux' documentation).

use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use wire::ids::Ino;

/// Threads whose last look-up is remembered.
const THREADS_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// The last look-up of a thread.
struct LookedUp {
    parent: Ino,
    name: Vec<u8>,
    /// What the name led to, if that was a directory.
    dir: Option<Ino>,
}

/// The last look-ups, by thread.
pub(super) struct Seen {
    by_thread: Mutex<LruCache<u32, LookedUp>>,
}

impl Default for Seen {
    fn default() -> Self {
        let mut by_thread = LruCache::unbounded();
        by_thread.resize(THREADS_MAX);
        Self { by_thread: Mutex::new(by_thread) }
    }
}

impl Seen {
    /// Notes the answer to a look-up of a thread, before the kernel has it: a name leads to this directory, or to none.
    pub(super) fn note(&self, tid: u32, (parent, name): (Ino, &[u8]), dir: Option<Ino>) {
        // Threads of another PID namespace have no number here.
        if tid == 0 {
            return;
        }
        self.by_thread.lock().put(tid, LookedUp { parent, name: name.to_vec(), dir });
    }

    /// Returns the directory that a thread has found at this name, if that was its last look-up.
    pub(super) fn dir(&self, tid: u32, (parent, name): (Ino, &[u8])) -> Option<Ino> {
        let by_thread = self.by_thread.lock();
        let last = by_thread.peek(&tid)?;
        if last.parent == parent && last.name == name { last.dir } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_has_found_is_its_last_look_up_and_no_other_threads() {
        let (seen, here) = (Seen::default(), (Ino(1), b"a".as_slice()));
        seen.note(7, here, Some(Ino(20)));
        seen.note(8, here, Some(Ino(30)));
        assert_eq!((seen.dir(7, here), seen.dir(8, here), seen.dir(9, here)), (Some(Ino(20)), Some(Ino(30)), None));
        seen.note(7, (Ino(1), b"b"), Some(Ino(40)));
        assert_eq!((seen.dir(7, here), seen.dir(7, (Ino(2), b"b"))), (None, None));
        seen.note(8, here, None);
        assert_eq!(seen.dir(8, here), None, "a file");
    }
}
