//! Reused memory for blocks being written.
//!
//! On virtual machines the first touch of a page costs far more than copying into it, so a buffer comes back here when
//! the last `Bytes` made of it is dropped, and serves the next block.

use bytes::Bytes;
use std::sync::Arc;
use wire::buffers::Pool;
use wire::limits::BLOCK_BYTES_MAX;

/// Buffers that wait for the next block, 64 MiB; more are given back to the system.
const FREE_COUNT_MAX: usize = 16;

/// Buffers of one block each that nobody uses at present.
pub struct Buffers(Arc<Pool>);

impl Default for Buffers {
    fn default() -> Self {
        Self(Pool::new(BLOCK_BYTES_MAX, FREE_COUNT_MAX * BLOCK_BYTES_MAX))
    }
}

impl Buffers {
    /// Takes an empty buffer with room for a block. It stays outside of the pool until it is given back or frozen.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        self.0.take(BLOCK_BYTES_MAX, || Vec::with_capacity(BLOCK_BYTES_MAX)).into_memory()
    }

    /// Takes a buffer back. Smaller ones than those that [`Buffers::take`] gives are left to the allocator.
    pub fn give_back(&self, content: Vec<u8>) {
        drop(self.0.enclose(content));
    }

    /// Turns the content into `Bytes`. The buffer comes back when the last of them is dropped; if it is mostly empty, at
    /// once, and the content is copied: whoever holds it counts its length, not what memory it keeps.
    #[must_use]
    pub fn freeze(&self, content: Vec<u8>) -> Bytes {
        if content.capacity() < BLOCK_BYTES_MAX {
            return Bytes::from(content);
        }
        if content.len() > BLOCK_BYTES_MAX / 2 {
            return self.0.enclose(content).freeze();
        }
        let bytes = Bytes::copy_from_slice(&content);
        self.give_back(content);
        bytes
    }

    /// Gives everything back to the system: nothing is being written.
    pub fn clear(&self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_reader_of_its_content_is_gone_and_a_small_one_never() {
        let buffers = Buffers::default();
        let mut content = buffers.take();
        content.extend_from_slice(b"content");
        content.resize(BLOCK_BYTES_MAX, 0);
        let at = content.as_ptr();
        let bytes = buffers.freeze(content);
        let part = bytes.slice(..3);
        drop(bytes);
        assert_eq!((&part[..], buffers.0.free_count()), (&b"con"[..], 0));
        drop(part);
        let again = buffers.take();
        assert!(again.is_empty() && again.as_ptr() == at);
        drop(buffers.freeze(vec![1; 100]));
        buffers.give_back(Vec::with_capacity(100));
        assert_eq!(buffers.0.free_count(), 0);
        buffers.give_back(again);
        assert_eq!(buffers.0.free_count(), 1);
    }

    #[test]
    fn a_little_content_does_not_hold_the_memory_of_a_block() {
        let buffers = Buffers::default();
        let mut content = buffers.take();
        content.extend_from_slice(b"content");
        let bytes = buffers.freeze(content);
        assert_eq!((&bytes[..], buffers.0.free_count()), (&b"content"[..], 1));
    }
}
