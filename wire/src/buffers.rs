//! Reused memory for large content.
//!
//! The allocator gives a large buffer back to the system when it is dropped, and the first touch of each page of the
//! next one costs as much as copying into it, or more. So a [`Pool`] keeps the last few, which come back to it when
//! the last
//! `Bytes` made of them is dropped, wherever that is.

use bytes::Bytes;
use parking_lot::Mutex;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

/// Panic message: a buffer gives up its memory only when it is dropped.
const HELD: &str = "a buffer holds its memory until it ends";

/// Memory that a pool can hold.
pub trait Memory: AsRef<[u8]> + Send + Sync + 'static {
    /// Bytes that it has room for.
    fn capacity(&self) -> usize;

    /// Drops the content, for the next user.
    fn clear(&mut self);
}

impl Memory for Vec<u8> {
    fn capacity(&self) -> usize {
        self.capacity()
    }

    fn clear(&mut self) {
        self.clear();
    }
}

/// Buffers that are not in use.
pub struct Pool<M: Memory = Vec<u8>> {
    free: Mutex<Free<M>>,
    capacity_min: usize,
    pooled_bytes_max: usize,
}

struct Free<M> {
    buffers: Vec<M>,
    /// Sum of their capacities.
    bytes: usize,
}

impl<M: Memory> Pool<M> {
    /// Makes a pool for buffers of at least `capacity_min` bytes, up to `pooled_bytes_max` bytes in total. Smaller
    /// and surplus buffers go back to the allocator.
    #[must_use]
    pub fn new(capacity_min: usize, pooled_bytes_max: usize) -> Arc<Self> {
        let free = Mutex::new(Free { buffers: Vec::new(), bytes: 0 });
        Arc::new(Self { free, capacity_min, pooled_bytes_max })
    }

    /// Returns a buffer with room for `len` bytes: a free one, or one that `make` makes.
    pub fn take(self: &Arc<Self>, len: usize, make: impl FnOnce() -> M) -> Buffer<M> {
        let reused = {
            let mut free = self.free.lock();
            let at = free.buffers.iter().rposition(|buffer| buffer.capacity() >= len);
            at.map(|at| {
                let buffer = free.buffers.swap_remove(at);
                free.bytes -= buffer.capacity();
                buffer
            })
        };
        self.enclose(reused.unwrap_or_else(make))
    }

    /// Wraps memory so that it goes to this pool when it is dropped.
    pub fn enclose(self: &Arc<Self>, memory: M) -> Buffer<M> {
        Buffer { memory: Some(memory), home: Arc::downgrade(self) }
    }

    /// Gives everything back to the system.
    pub fn clear(&self) {
        *self.free.lock() = Free { buffers: Vec::new(), bytes: 0 };
    }

    /// Number of buffers that are not in use.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.free.lock().buffers.len()
    }

    fn put(&self, mut memory: M) {
        if memory.capacity() < self.capacity_min {
            return;
        }
        memory.clear();
        let mut free = self.free.lock();
        if free.bytes + memory.capacity() <= self.pooled_bytes_max {
            free.bytes += memory.capacity();
            free.buffers.push(memory);
        }
    }
}

/// Memory that goes to its pool when it is dropped.
pub struct Buffer<M: Memory = Vec<u8>> {
    /// Taken when the buffer ends.
    memory: Option<M>,
    home: Weak<Pool<M>>,
}

impl<M: Memory> Buffer<M> {
    /// Its content, without a copy. The memory goes to its pool when the last of these `Bytes` is dropped.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Takes the memory out. It goes to no pool any more unless one [encloses](Pool::enclose) it.
    #[must_use]
    pub fn into_memory(mut self) -> M {
        self.memory.take().expect(HELD)
    }
}

impl<M: Memory> Deref for Buffer<M> {
    type Target = M;

    fn deref(&self) -> &M {
        self.memory.as_ref().expect(HELD)
    }
}

impl<M: Memory> DerefMut for Buffer<M> {
    fn deref_mut(&mut self) -> &mut M {
        self.memory.as_mut().expect(HELD)
    }
}

impl<M: Memory> AsRef<[u8]> for Buffer<M> {
    fn as_ref(&self) -> &[u8] {
        (**self).as_ref()
    }
}

impl<M: Memory> Drop for Buffer<M> {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take()
            && let Some(home) = self.home.upgrade()
        {
            home.put(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn memory_comes_back_when_the_last_reader_of_its_content_is_gone() {
        let pool = Pool::<Vec<u8>>::new(MIB, 16 * MIB);
        let mut buffer = pool.take(MIB, || Vec::with_capacity(MIB));
        buffer.extend_from_slice(b"content");
        let at = buffer.as_ptr();
        let bytes = buffer.freeze();
        let part = bytes.slice(..3);
        drop(bytes);
        assert_eq!(pool.free_count(), 0, "a part is still in use");
        assert_eq!(&part[..], b"con");
        drop(part);
        let again = pool.take(MIB / 2, Vec::new);
        assert!(again.is_empty() && again.as_ptr() == at);
    }

    #[test]
    fn a_pool_holds_no_more_memory_than_allowed_and_no_small_buffers() {
        let pool = Pool::<Vec<u8>>::new(MIB, 16 * MIB);
        let taken: Vec<Buffer> = (0..64).map(|_| pool.take(MIB, || Vec::with_capacity(MIB))).collect();
        drop(taken);
        assert_eq!(pool.free.lock().bytes, 16 * MIB);
        assert_eq!(pool.free.lock().buffers.iter().map(Vec::capacity).sum::<usize>(), 16 * MIB);
        pool.clear();
        drop(pool.take(10, || Vec::with_capacity(10)));
        assert_eq!(pool.free_count(), 0);
    }

    #[test]
    fn memory_that_was_taken_out_goes_to_a_pool_only_when_one_encloses_it() {
        let pool = Pool::<Vec<u8>>::new(MIB, 16 * MIB);
        let memory = pool.take(MIB, || Vec::with_capacity(MIB)).into_memory();
        assert_eq!(pool.free_count(), 0);
        drop(pool.enclose(memory));
        assert_eq!(pool.free_count(), 1);
    }
}
