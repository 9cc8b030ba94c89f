//! Reused memory for blocks being written.
//!
//! On virtual machines the first touch of a page costs far more than copying into it, so a buffer comes back here when
//! the last `Bytes` made of it is dropped, and serves the next block.

use crate::ordered::{Ordered, Rank};
use bytes::Bytes;
use std::sync::{Arc, Weak};
use wire::limits::BLOCK_BYTES_MAX;

/// Free buffers that are retained, 64 MiB; more are given back to the system.
const FREE_COUNT_MAX: usize = 16;

/// Buffers of one block each that are free at present.
pub struct Buffers {
    free: Ordered<Vec<Vec<u8>>>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { free: Ordered::new(Rank::Memory, Vec::new()) }
    }
}

impl Buffers {
    /// Returns an empty buffer with room for a block.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        let free = self.free.lock().pop();
        free.unwrap_or_else(|| Vec::with_capacity(BLOCK_BYTES_MAX))
    }

    /// Takes a buffer back. Buffers that did not come from [`Buffers::take`] go to the allocator.
    pub fn give_back(&self, mut content: Vec<u8>) {
        if content.capacity() < BLOCK_BYTES_MAX {
            return;
        }
        content.clear();
        let mut free = self.free.lock();
        if free.len() < FREE_COUNT_MAX {
            free.push(content);
        }
    }

    /// Returns the content as `Bytes`, without a copy. The buffer comes back when the last of them is dropped.
    #[must_use]
    pub fn freeze(self: &Arc<Self>, content: Vec<u8>) -> Bytes {
        if content.capacity() < BLOCK_BYTES_MAX {
            return Bytes::from(content);
        }
        Bytes::from_owner(Lent { content, home: Arc::downgrade(self) })
    }

    /// Gives all free buffers back to the system. Called when nothing is being written.
    pub fn clear(&self) {
        self.free.lock().clear();
    }
}

/// A buffer that readers share.
struct Lent {
    content: Vec<u8>,
    home: Weak<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.give_back(std::mem::take(&mut self.content));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_reader_of_its_content_is_gone() {
        let buffers = Arc::new(Buffers::default());
        let mut content = buffers.take();
        content.extend_from_slice(b"content");
        let at = content.as_ptr();
        let bytes = buffers.freeze(content);
        let part = bytes.slice(..3);
        drop(bytes);
        assert!(buffers.free.lock().is_empty());
        assert_eq!(&part[..], b"con");
        drop(part);
        let again = buffers.take();
        assert!(again.is_empty() && again.as_ptr() == at);
    }
}
