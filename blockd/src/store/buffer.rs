//! Aligned memory that is used again and again: the first touch of a page costs more than any work on it.

use crate::sys::{ALIGN, Aligned};
use std::sync::Arc;
use wire::buffers::{Buffer, Memory};
use wire::limits::BLOCK_BYTES_MAX;
use wire::sections::Sections;

/// Most pooled buffers. Each is for a whole block; smaller ones are not worth pooling.
const POOLED_MAX: usize = 16;
/// Size of a pooled buffer: the largest block with its trailer, wherever it begins.
const LARGE_BYTES: usize = BLOCK_BYTES_MAX + 2 * ALIGN;
const _: () = assert!(Sections::stored_len(BLOCK_BYTES_MAX as u32) <= ALIGN);
/// What is shorter is not read into a large buffer: readers whose budget counts the content would hold far more.
const SMALL_BYTES: usize = LARGE_BYTES / 2;

/// Buffers for reuse.
pub(super) type Pool = wire::buffers::Pool<Aligned>;

impl Memory for Aligned {
    fn capacity(&self) -> usize {
        self.len()
    }

    /// The next read overwrites the content.
    fn clear(&mut self) {}
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// An empty pool.
pub(super) fn pool() -> Arc<Pool> {
    Pool::new(LARGE_BYTES, POOLED_MAX * LARGE_BYTES)
}

/// A buffer of at least `len` bytes, with any content.
pub(super) fn take(pool: &Arc<Pool>, len: usize) -> Buffer<Aligned> {
    if len > SMALL_BYTES && len <= LARGE_BYTES {
        pool.take(LARGE_BYTES, || Aligned::new(LARGE_BYTES))
    } else {
        pool.enclose(Aligned::new(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_buffer_is_more_than_twice_as_long_as_what_it_is_for() {
        let pool = pool();
        drop(take(&pool, BLOCK_BYTES_MAX));
        assert_eq!(pool.free_count(), 1);
        for len in [ALIGN, 64 << 10, 300 << 10, 1 << 20, 2 << 20, 3 << 20, BLOCK_BYTES_MAX, LARGE_BYTES, 5 << 20] {
            let buffer = take(&pool, len);
            assert!(buffer.len() >= len && buffer.len() <= 2 * len, "{} bytes for {len}", buffer.len());
        }
    }
}
