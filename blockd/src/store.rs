//! The block store: append-only segments, an index in memory, one writer.
//!
//! - `record` is the bytes of a record, `segment` reads a file of them, `hint` shortens that at the next start.
//! - `read` reads and verifies, parts of a block by its sections.
//! - `work` is what waits to be written, by turns of those whose work it is; `writer` is the one thread that writes: work
//!   that has queued up goes out together and shares one sync. `open` is the segment that it writes.
//! - `index` says what is here; `recover` rebuilds it; `compact` takes back the space of dropped blocks; `room` says how much
//!   there is, and `sync_times` how long the disk takes.
//! - `disk` has every file call behind one trait, so that tests can cut the power; `buffer` is aligned memory.
//!
//! A put is answered when its record is on stable storage (I9); a block is checked against its name whenever it is
//! read. A write or sync that fails ends all writing: after a failed sync the kernel may have dropped the data, and a
//! second try would report success.

mod buffer;
mod compact;
mod digest;
pub mod disk;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod hint;
mod index;
mod open;
mod read;
mod record;
mod recover;
mod room;
mod segment;
mod segment_name;
mod sync_times;
mod work;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub use compact::Compacted;
pub use error::Error;
pub use segment_name::SegmentId;
pub use work::Party;

use buffer::Pool;
use bytes::Bytes;
use disk::{Disk, RealDisk};
use index::{Index, Location, Usage};
use parking_lot::RwLock;
use read::{Part, Record};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use sync_times::SyncTimes;
use tokio::task::spawn_blocking;
use wire::ids::BlockHash;
use wire::layout::ring::Span;
use wire::message::block::Digest;
use wire::sections::{SECTION_BYTES, Sections};
use work::Work;
use writer::Writer;

/// Blocks of the index that are looked at before others may change it.
const PAGE_BLOCKS: usize = 65_536;

/// Parameters of the store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Segments are closed when they reach this size, in bytes.
    pub segment_bytes: u64,
    /// Bytes of the disk that puts leave free: compaction needs room to make room.
    pub reserve_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { segment_bytes: 256 << 20, reserve_bytes: 512 << 20 }
    }
}

/// State that readers and the writer share.
struct Shared {
    dir: PathBuf,
    options: StoreOptions,
    disk: Arc<dyn Disk>,
    index: RwLock<Index>,
    pool: Arc<Pool>,
    failed: AtomicBool,
    /// For tests: there is no room, whatever the disk says.
    #[cfg(test)]
    pretends_full: AtomicBool,
    /// Bytes that new blocks may still take in the segment that is being written.
    open_room: AtomicU64,
    sync_times: SyncTimes,
}

impl Shared {
    fn check_alive(&self) -> Result<(), Error> {
        if self.failed.load(Ordering::Acquire) { Err(Error::Failed) } else { Ok(()) }
    }

    /// Blocks from `from` on whose places are chosen, in order, at most `limit`. Takes long where there are many blocks;
    /// others may change the index meanwhile.
    fn places(
        &self,
        from: BlockHash,
        limit: usize,
        is_chosen: impl Fn(&Location) -> bool,
    ) -> Vec<(BlockHash, Location)> {
        let (mut chosen, mut next) = (Vec::new(), Some(from));
        while let Some(from) = next.take() {
            let index = self.index.read();
            for (count, (hash, location)) in index.blocks.range(from..).enumerate() {
                if chosen.len() >= limit {
                    break;
                }
                if count == PAGE_BLOCKS {
                    next = Some(*hash);
                    break;
                }
                if is_chosen(location) {
                    chosen.push((*hash, *location));
                }
            }
        }
        chosen
    }
}

/// Capacity and use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Bytes that the disk can hold.
    pub capacity_bytes: u64,
    /// Bytes that puts may still use.
    pub free_bytes: u64,
    /// Intact blocks.
    pub block_count: u64,
}

/// Outcome of scrubbing one block.
#[derive(Debug)]
pub enum Scrubbed {
    /// It matches its name.
    Good,
    /// It does not, or cannot be read from the disk.
    Damaged,
    /// It was not read, for a reason that says nothing about it.
    Unread(Error),
}

/// A directory of blocks. The caller owns the directory: see `ownership`.
pub struct Store {
    shared: Arc<Shared>,
    writer: Writer,
}

impl Store {
    /// Opens the store in `dir`, which is made if it does not exist. Blocks until the index is rebuilt.
    ///
    /// # Errors
    /// When the directory cannot be read or written. Damaged records are reported to the log and left out.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Self, Error> {
        Self::open_on(dir, options, Arc::new(RealDisk))
    }

    /// Opens a store on another disk than the real one.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(dir: &Path, options: StoreOptions, disk: Arc<dyn Disk>) -> Result<Self, Error> {
        disk.create_dir(dir).map_err(|error| Error::io(dir, error))?;
        let pool = buffer::pool();
        let (index, next) = recover::recover(dir, &*disk, &pool)?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            options,
            disk,
            index: RwLock::new(index),
            pool,
            failed: AtomicBool::new(false),
            #[cfg(test)]
            pretends_full: AtomicBool::new(false),
            open_room: AtomicU64::new(0),
            sync_times: SyncTimes::default(),
        });
        let writer = Writer::start(shared.clone(), next)?;
        Ok(Self { shared, writer })
    }

    /// Stores a block, as a copy that this daemon fetched. Returns true when it was not here yet. The caller has checked
    /// that its name matches. Durable on return. Cancel-safe: once it has been passed to the writer, the block is stored even if the caller goes away.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when the reserve is reached, [`Error::Failed`] after a disk error.
    pub async fn put(&self, hash: BlockHash, block: Bytes) -> Result<bool, Error> {
        if block.len() <= SECTION_BYTES {
            return self.put_with_sections(Party::Repair, hash, block, Sections::default()).await;
        }
        let hashed = block.clone();
        let (name, sections) = spawn_blocking(move || Sections::of(&hashed)).await.map_err(|_| Error::Failed)?;
        assert_eq!(name, hash, "the caller has checked that the name fits");
        self.put_with_sections(Party::Repair, hash, block, sections).await
    }

    /// Like [`Store::put`], in the turn of this party, for a caller that has the block's sections from verifying it.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub async fn put_with_sections(
        &self,
        party: Party,
        hash: BlockHash,
        block: Bytes,
        sections: Sections,
    ) -> Result<bool, Error> {
        // This comes first: once the disk has failed, even a block that is here may be taken out by a half-written
        // tombstone.
        self.shared.check_alive()?;
        if self.contains(&hash) {
            return Ok(false);
        }
        self.writer.write(party, |reply| Work::Put { hash, block, sections, reply }).await
    }

    /// The whole block, verified; `None` when it is not here. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the copy does not match its name: it is quarantined. [`Error::Io`] when it cannot be read.
    pub async fn get(&self, hash: BlockHash) -> Result<Option<Bytes>, Error> {
        let shared = self.shared.clone();
        spawn_blocking(move || read::block(&shared, &hash)).await.map_err(|_| Error::Failed)?
    }

    /// Those of the bytes `offset..offset + len` that the block has, verified, and the length of the whole block;
    /// `None` when it is not here. Reads the sections that hold them, and no more. Cancel-safe.
    ///
    /// # Errors
    /// As [`Store::get`]. Damage elsewhere in the block may go unnoticed.
    pub async fn get_part(&self, hash: BlockHash, offset: u32, len: u32) -> Result<Option<(u32, Bytes)>, Error> {
        let shared = self.shared.clone();
        let read = spawn_blocking(move || read::part(&shared, &hash, offset, len));
        match read.await.map_err(|_| Error::Failed)?? {
            Part::Absent => Ok(None),
            Part::Verified { block_len, bytes } => Ok(Some((block_len, bytes))),
            Part::Doubtful => {
                let block = self.get_and_mend(hash).await?;
                Ok(block.map(|block| (block.len() as u32, read::cut(&block, read::clamp(offset, len, block.len())))))
            }
        }
    }

    /// Reads the whole block, like [`Store::get`]; a damaged trailer is made anew by writing the record again.
    async fn get_and_mend(&self, hash: BlockHash) -> Result<Option<Bytes>, Error> {
        let shared = self.shared.clone();
        let read = spawn_blocking(move || read::record(&shared, &hash));
        let Some(record) = read.await.map_err(|_| Error::Failed)?? else { return Ok(None) };
        if !record.trailer_fits {
            tracing::error!(%hash, segment = %record.location.segment, "a trailer is damaged on disk; it is made anew");
            let Record { location: from, block, sections, .. } = &record;
            let (from, block, sections) = (*from, block.clone(), sections.clone());
            // The block itself is good, whatever the outcome: the next read tries again.
            let _ = self.writer.write(Party::Repair, |reply| Work::Move { hash, from, block, sections, reply }).await;
        }
        Ok(Some(record.block))
    }

    /// Reports whether the block is here, and not known to be damaged.
    #[must_use]
    pub fn contains(&self, hash: &BlockHash) -> bool {
        self.shared.index.read().blocks.get(hash).is_some_and(|location| !location.bad)
    }

    /// Reports whether a copy of the block is here, damaged or not.
    #[must_use]
    pub fn has_copy(&self, hash: &BlockHash) -> bool {
        self.shared.index.read().blocks.contains_key(hash)
    }

    /// Reports whether the copy of this block here is damaged.
    pub fn is_damaged(&self, hash: &BlockHash) -> bool {
        self.shared.index.read().blocks.get(hash).is_some_and(|location| location.bad)
    }

    /// Reports whether the disk has failed: blocks are still served, but no longer stored.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// Says from now on that there is room for no block.
    #[cfg(test)]
    pub(crate) fn pretend_full(&self) {
        self.shared.pretends_full.store(true, Ordering::Relaxed);
    }

    /// Drops a block. Returns true when it was here. Durable on return. Cancel-safe: it is dropped even if the caller
    /// goes away.
    ///
    /// # Errors
    /// [`Error::Failed`] after a disk error.
    pub async fn drop_block(&self, hash: BlockHash) -> Result<bool, Error> {
        // As in `put`: a put that failed half way may come back.
        self.shared.check_alive()?;
        if !self.has_copy(&hash) {
            return Ok(false);
        }
        self.writer.write(Party::Removal, |reply| Work::Drop { hash, guard: None, reply }).await
    }

    /// Drops blocks, which share as few groups as they can. Returns the outcome of each: true when it was here. Durable
    /// on return. Cancel-safe: they are dropped even if the caller goes away, and what stands beside each is held until
    /// then.
    ///
    /// # Errors
    /// As [`Store::drop_block`], when none could be dropped.
    pub async fn drop_all<K: Send + Sync + 'static>(
        &self,
        blocks: &[(BlockHash, Arc<K>)],
    ) -> Result<Vec<Result<bool, Error>>, Error> {
        self.shared.check_alive()?;
        let is_here: Vec<bool> = {
            let index = self.shared.index.read();
            blocks.iter().map(|(hash, _)| index.blocks.contains_key(hash)).collect()
        };
        let here = blocks.iter().zip(&is_here).filter(|(_, is_here)| **is_here);
        let drops = here.map(|((hash, guard), _)| {
            let (hash, guard) = (*hash, guard.clone());
            move |reply| Work::Drop { hash, guard: Some(guard), reply }
        });
        let mut outcomes = self.writer.write_all(Party::Removal, drops).await?.into_iter();
        Ok(is_here
            .iter()
            .map(|is_here| if *is_here { outcomes.next().unwrap_or(Err(Error::Failed)) } else { Ok(false) })
            .collect())
    }

    /// Stores a block in place of a damaged copy. Returns false when there is none any more: the block was dropped, or
    /// stored again. Durable on return. Cancel-safe, as [`Store::put`].
    ///
    /// # Errors
    /// As [`Store::put`].
    pub async fn replace(&self, hash: BlockHash, block: Bytes) -> Result<bool, Error> {
        self.shared.check_alive()?;
        let hashed = block.clone();
        let (name, sections) = spawn_blocking(move || Sections::of(&hashed)).await.map_err(|_| Error::Failed)?;
        assert_eq!(name, hash, "the caller has checked that the name fits");
        self.writer.write(Party::Repair, |reply| Work::Replace { hash, block, sections, reply }).await
    }

    /// Length of a block that is here and not known to be damaged, in bytes.
    #[must_use]
    pub fn len_of(&self, hash: &BlockHash) -> Option<u32> {
        self.shared.index.read().blocks.get(hash).filter(|location| !location.bad).map(|location| location.len)
    }

    /// Length of a block that is here and not known to be damaged, and how many bytes [`Store::get_part`] reads for this
    /// part of it: for an empty one none.
    #[must_use]
    pub fn cost_of_part(&self, hash: &BlockHash, offset: u32, len: u32) -> Option<(u32, u64)> {
        self.len_of(hash).map(|block_len| (block_len, read::cost(offset, len, block_len)))
    }

    /// Names and lengths of good blocks from `from` on, in the order of names, at most `limit`.
    #[must_use]
    pub fn list(&self, from: BlockHash, limit: usize) -> Vec<(BlockHash, u32)> {
        self.list_within(from, BlockHash([0xff; 32]), limit)
    }

    /// Names of all blocks from `from` on, damaged ones included, in order, at most `limit`.
    #[must_use]
    pub fn names(&self, from: BlockHash, limit: usize) -> Vec<BlockHash> {
        self.shared.index.read().blocks.range(from..).take(limit).map(|(hash, _)| *hash).collect()
    }

    /// Like [`Store::list`], up to `last`, which itself counts.
    #[must_use]
    pub fn list_within(&self, from: BlockHash, last: BlockHash, limit: usize) -> Vec<(BlockHash, u32)> {
        if from > last {
            return Vec::new();
        }
        let index = self.shared.index.read();
        let good = index.blocks.range(from..=last).filter(|(_, location)| !location.bad);
        good.take(limit).map(|(hash, location)| (*hash, location.len)).collect()
    }

    /// Digests of the good blocks in spans of the ring. Costs little, however many blocks there are.
    #[must_use]
    pub fn digests(&self, spans: &[Span]) -> Vec<Digest> {
        let index = self.shared.index.read();
        spans.iter().map(|span| index.digest(*span)).collect()
    }

    /// Time within which nearly all writes with their syncs ended lately; `None` when they were too few.
    #[must_use]
    pub fn sync_time(&self) -> Option<Duration> {
        self.shared.sync_times.most_took(Instant::now())
    }

    /// Damaged copies that are not replaced yet.
    #[must_use]
    pub fn bad_count(&self) -> u64 {
        let index = self.shared.index.read();
        index.blocks.len() as u64 - index.digests.count()
    }

    /// Names of damaged copies that are not replaced yet, from `from` on, in order, at most `limit`. Cancel-safe.
    pub async fn damaged(&self, from: BlockHash, limit: usize) -> Vec<BlockHash> {
        let shared = self.shared.clone();
        let listed = spawn_blocking(move || shared.places(from, limit, |at| at.bad)).await;
        listed.map_or_else(|_| Vec::new(), |bad| bad.into_iter().map(|(hash, _)| hash).collect())
    }

    /// Takes back the space of one closed segment that is mostly dropped blocks. Returns `None` when no segment is worth
    /// it. Adds to `damaged` the blocks whose copies turn out to be damaged, whatever the outcome.
    ///
    /// # Errors
    /// When the disk fails, or has no room for what is to be kept. The blocks stay as they were.
    pub async fn compact_step(&self, damaged: &mut Vec<BlockHash>) -> Result<Option<Compacted>, Error> {
        self.shared.check_alive()?;
        compact::step(&self.shared, &self.writer, damaged).await
    }

    /// Reads and verifies one block, the next at or behind `from`. Returns its name, its length and the outcome, or
    /// `None` behind the last one. A bad block is quarantined; a bad trailer of a good one is made anew.
    pub async fn scrub_step(&self, from: BlockHash) -> Option<(BlockHash, u32, Scrubbed)> {
        let (hash, len) = self.list(from, 1).pop()?;
        let outcome = match self.get_and_mend(hash).await {
            // Without a block it was dropped meanwhile.
            Ok(_) => Scrubbed::Good,
            Err(Error::Corrupt { .. } | Error::Io { .. }) => Scrubbed::Damaged,
            Err(error @ (Error::NoSpace | Error::Failed | Error::Earlier { .. } | Error::Newer { .. })) => {
                Scrubbed::Unread(error)
            }
        };
        Some((hash, len, outcome))
    }

    /// Ends the writer once everything queued is on stable storage. Blocks.
    pub fn close(&self) {
        self.writer.close();
    }
}
