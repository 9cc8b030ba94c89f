//! Aligned memory that is used again and again: a page's first touch costs more than what is done with it.

use crate::sys::{ALIGN, Aligned};
use bytes::Bytes;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use wire::limits::BLOCK_BYTES_MAX;
use wire::sections::Sections;

/// Buffers kept for reuse. Each is for a whole block; smaller ones are not worth keeping.
const KEPT: usize = 16;
/// Size of a kept buffer: the largest block with its trailer, wherever it begins.
const LARGE: usize = BLOCK_BYTES_MAX + 2 * ALIGN;
const _: () = assert!(Sections::stored_len(BLOCK_BYTES_MAX as u32) <= ALIGN);
/// Blocks below this are not read into a large buffer.
const SMALL: usize = 256 << 10;

/// Buffers for reuse.
pub(super) struct Pool {
    free: Mutex<Vec<Aligned>>,
}

impl Pool {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(Vec::new()) })
    }

    /// A buffer of at least `len` bytes, with any content.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Pooled {
        let memory = if len > SMALL && len <= LARGE {
            self.free.lock().pop().unwrap_or_else(|| Aligned::new(LARGE))
        } else {
            Aligned::new(len)
        };
        Pooled { memory: Some(memory), pool: self.clone() }
    }
}

/// A buffer that goes back to its pool.
pub(super) struct Pooled {
    memory: Option<Aligned>,
    pool: Arc<Pool>,
}

impl Pooled {
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.as_deref_mut().expect("taken only on drop")
    }

    /// A part of the buffer, without a copy; the buffer goes back when the last reader is done.
    pub(super) fn into_bytes(self, range: Range<usize>) -> Bytes {
        Bytes::from_owner(self).slice(range)
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_deref().expect("taken only on drop")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take().filter(|memory| memory.len() >= LARGE) {
            let mut free = self.pool.free.lock();
            if free.len() < KEPT {
                free.push(memory);
            }
        }
    }
}
