//! Reused memory for large payloads.
//!
//! The allocator gives a large buffer back to the system when it is dropped, and touching its pages anew for the next
//! one costs as much as copying into them. So the last few are kept, and go back here when their `Bytes` are dropped,
//! wherever that is.

use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// Smaller payloads are left to the allocator, which reuses such memory by itself.
const REUSED_BYTES_MIN: usize = 64 << 10;
/// What an endpoint keeps for later; more is given back to the system.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// Capacities are multiples of this, so that payloads of similar lengths share buffers.
const CAPACITY_STEP: usize = 1 << 20;

/// Buffers that nobody uses at present.
#[derive(Default)]
pub(super) struct Buffers {
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    buffers: Vec<Vec<u8>>,
    /// Sum of their capacities.
    bytes: usize,
}

impl Buffers {
    /// An empty buffer for `len` bytes.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        if len < REUSED_BYTES_MIN {
            return Buffer { content: Vec::with_capacity(len), home: Weak::new() };
        }
        let reused = {
            let mut free = self.free.lock();
            let at = free.buffers.iter().rposition(|buffer| buffer.capacity() >= len);
            at.map(|at| {
                let buffer = free.buffers.swap_remove(at);
                free.bytes -= buffer.capacity();
                buffer
            })
        };
        let content = reused.unwrap_or_else(|| Vec::with_capacity(len.next_multiple_of(CAPACITY_STEP)));
        Buffer { content, home: Arc::downgrade(self) }
    }

    fn put(&self, mut content: Vec<u8>) {
        content.clear();
        let mut free = self.free.lock();
        if free.bytes + content.capacity() <= KEPT_BYTES_MAX {
            free.bytes += content.capacity();
            free.buffers.push(content);
        }
    }
}

/// A payload being received.
pub(super) struct Buffer {
    pub(super) content: Vec<u8>,
    home: Weak<Buffers>,
}

impl Buffer {
    /// Its content, without a copy.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.put(std::mem::take(&mut self.content));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_payload_gives_its_memory_to_the_next() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.take(CAPACITY_STEP);
        buffer.content.extend_from_slice(b"content");
        let at = buffer.content.as_ptr();
        let bytes = buffer.freeze();
        let part = bytes.slice(..3);
        drop(bytes);
        assert_ne!(buffers.take(CAPACITY_STEP).content.as_ptr(), at, "a part is still in use");
        assert_eq!(&part[..], b"con");
        drop(part);
        let again = buffers.take(CAPACITY_STEP / 2);
        assert!(again.content.is_empty());
        assert!(again.content.capacity() >= CAPACITY_STEP);
    }

    #[test]
    fn no_more_memory_is_kept_than_allowed() {
        let buffers = Arc::new(Buffers::default());
        let taken: Vec<Buffer> = (0..64).map(|_| buffers.take(CAPACITY_STEP)).collect();
        drop(taken);
        assert_eq!(buffers.free.lock().bytes, KEPT_BYTES_MAX);
        let sum: usize = buffers.free.lock().buffers.iter().map(Vec::capacity).sum();
        assert_eq!(sum, KEPT_BYTES_MAX);
    }
}
