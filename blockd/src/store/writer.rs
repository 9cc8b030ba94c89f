//! The one thread that writes.
//!
//! It takes queued work, by turns of those whose work it is, lays it out as one group in aligned memory, writes it past
//! the page cache, syncs once, then points the index at the new records and answers. While a sync runs, the next group
//! gathers.

use super::open::Open;
use super::record::{GROUP_ALIGN, Header, Kind, PADDING, RECORD_ALIGN};
use super::segment::Found;
use super::segment_name::{self, SegmentId};
use super::work::{ClosedAtTheEnd, GROUP_BYTES, Guard, Party, Queue, Reply, Work};
use super::{Error, Location, Shared, Usage, hint};
use crate::sys::Aligned;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::oneshot;
use wire::ids::BlockHash;
use wire::sections::Sections;

/// Smallest segment. One that is smaller than usual is made where less space is free.
pub(super) const SEGMENT_BYTES_MIN: u64 = 16 << 20;

/// Sends work to the thread.
pub(super) struct Writer {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(shared: Arc<Shared>, first: SegmentId) -> Result<Self, Error> {
        let (queue, dir) = (Arc::<Queue>::default(), shared.dir.clone());
        let work = ClosedAtTheEnd(queue.clone());
        let thread = std::thread::Builder::new()
            .name("block-writer".to_owned())
            .spawn(move || State::new(shared, first).run(&work))
            .map_err(|error| Error::io(&dir, error))?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    /// Passes work to the thread, and waits until it is done. Returns whether a record was written. Cancel-safe: it is
    /// done even if the caller goes away.
    pub(super) async fn write(&self, party: Party, work: impl FnOnce(Reply) -> Work) -> Result<bool, Error> {
        let (reply, done) = oneshot::channel();
        self.queue.push(party, [work(reply)])?;
        done.await.map_err(|_| Error::Failed)?
    }

    /// Like [`Writer::write`], for work that can share a group. Returns the outcome of each.
    pub(super) async fn write_all<W: FnOnce(Reply) -> Work>(
        &self,
        party: Party,
        work: impl IntoIterator<Item = W>,
    ) -> Result<Vec<Result<bool, Error>>, Error> {
        let (work, waits): (Vec<Work>, Vec<_>) = work
            .into_iter()
            .map(|work| {
                let (reply, done) = oneshot::channel();
                (work(reply), done)
            })
            .unzip();
        self.queue.push(party, work)?;
        let mut outcomes = Vec::with_capacity(waits.len());
        for done in waits {
            outcomes.push(done.await.unwrap_or(Err(Error::Failed)));
        }
        Ok(outcomes)
    }

    /// How much work waits for the thread.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Waits until everything queued is written.
    pub(super) fn close(&self) {
        self.queue.close();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the block writer ended abnormally");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

/// A record of the group being laid out.
struct Laid {
    header: Header,
    offset: u64,
    guard: Option<Guard>,
    reply: Reply,
}

/// What is to be done for a piece of work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Its record is written.
    Write,
    /// Nothing: what is on stable storage has settled it.
    Nothing,
    /// Nothing, if the group that is being laid out gets to stable storage.
    Group,
}

struct State {
    shared: Arc<Shared>,
    next: SegmentId,
    open: Option<Open>,
    buffer: Aligned,
    filled: usize,
    /// Bytes of the smallest new record that was refused for want of space, unless there was room since.
    refused_bytes: Option<u64>,
}

impl State {
    fn new(shared: Arc<Shared>, next: SegmentId) -> Self {
        let buffer = Aligned::new(GROUP_BYTES + (5 << 20));
        Self { shared, next, open: None, buffer, filled: 0, refused_bytes: None }
    }

    fn run(mut self, work: &ClosedAtTheEnd) {
        while let Some(group) = work.0.next_group(|first| self.group_bytes_max(first)) {
            self.write(group);
            // The group may have been refused, and its segment closed.
            self.note_room();
        }
        if let Err(error) = self.seal() {
            tracing::warn!(%error, "the last segment will be read at the next start");
        }
    }

    /// Largest size of a group whose first work has this size. A group that needs more room than the open segment, or
    /// the smallest new one, would be refused as a whole though a part of it fits.
    fn group_bytes_max(&self, first: usize) -> usize {
        let left = self.open.as_ref().map_or(0, Open::left);
        let smallest = SEGMENT_BYTES_MIN.min(self.shared.options.segment_bytes);
        let room = if first as u64 <= left { left } else { smallest };
        usize::try_from(room).unwrap_or(GROUP_BYTES).min(GROUP_BYTES).max(first)
    }

    /// Lets others know how much room for new blocks the open segment has.
    fn note_room(&self) {
        let room = self.left_for_puts();
        // Relaxed, because it is a figure for people.
        self.shared.open_room.store(room, Ordering::Relaxed);
    }

    fn write(&mut self, group: Vec<Work>) {
        let Some(group) = self.take_what_fits(group) else { return };
        let (laid, settled) = self.lay_out(group);
        if laid.is_empty() {
            return;
        }
        match self.write_out() {
            Ok(()) => {
                self.note_room();
                self.publish(laid);
                answer_all(settled, || Ok(false));
            }
            Err(error) => {
                self.fail(&error);
                for record in laid {
                    let _ = record.reply.send(Err(Error::Failed));
                }
                answer_all(settled, || Err(Error::Failed));
            }
        }
    }

    /// Makes room, and answers the work for which there is none. Returns the rest, if there is any.
    fn take_what_fits(&mut self, group: Vec<Work>) -> Option<Vec<Work>> {
        match self.make_room(&group) {
            Ok(()) => {
                self.note_room_for(&group);
                return Some(group);
            }
            Err(error) if error.is_no_space() => {
                let group = self.refuse_puts(group, &error);
                if group.is_empty() {
                    return None;
                }
                match self.make_room(&group) {
                    Ok(()) => return Some(group),
                    Err(error) if error.is_no_space() => refuse(group, || Error::NoSpace),
                    Err(error) => {
                        self.fail(&error);
                        refuse(group, || Error::Failed);
                    }
                }
            }
            Err(error) => {
                self.fail(&error);
                refuse(group, || Error::Failed);
            }
        }
        None
    }

    /// Refuses new blocks for which the open segment has no room. Work that takes space back may use the reserve.
    fn refuse_puts(&mut self, group: Vec<Work>, error: &Error) -> Vec<Work> {
        let rest: usize = group.iter().filter(|work| !work.is_new()).map(Work::size).sum();
        let mut left = self.left_for_puts().saturating_sub(rest as u64);
        let (mut accepted, mut refused, mut smallest) = (Vec::new(), Vec::new(), u64::MAX);
        for work in group {
            let len = work.size() as u64;
            if !work.is_new() {
                accepted.push(work);
            } else if len <= left {
                left -= len;
                accepted.push(work);
            } else {
                smallest = smallest.min(len);
                refused.push(work);
            }
        }
        if !refused.is_empty() {
            if self.refused_bytes.is_none() {
                tracing::warn!(%error, "no new block can be stored until some are dropped, but for small ones");
            }
            self.refused_bytes = Some(self.refused_bytes.map_or(smallest, |before| before.min(smallest)));
        }
        refuse(refused, || Error::NoSpace);
        accepted
    }

    /// Ends all writing after a failed write or sync, see the head of `store`. Logs the error once.
    fn fail(&self, error: &dyn Display) {
        if !self.shared.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(
                %error,
                "the disk failed; nothing is stored any more. What is here is served until others have it: see `surf status`, \
                 then replace the disk"
            );
        }
    }

    /// Notes that there is room for new blocks, unless it is only what was too little for one that was refused.
    fn note_room_for(&mut self, group: &[Work]) {
        let left = self.left_for_puts();
        if group.iter().any(Work::is_new) && self.refused_bytes.is_some_and(|refused| left >= refused) {
            self.refused_bytes = None;
        }
    }

    /// Bytes that new blocks may still take in the open segment.
    fn left_for_puts(&self) -> u64 {
        self.open.as_ref().filter(|open| !open.spare).map_or(0, Open::left)
    }

    /// Makes sure that a group fits into the open segment and onto the disk. New blocks leave the reserve alone. A segment
    /// that is too full for the group is closed only if there is room for another one: others may still fit into it.
    fn make_room(&mut self, group: &[Work]) -> Result<(), Error> {
        self.shared.check_alive()?;
        let needed = (group.iter().map(Work::size).sum::<usize>() as u64).next_multiple_of(GROUP_ALIGN as u64);
        let reserve = if group.iter().any(Work::is_new) { self.shared.options.reserve_bytes } else { 0 };
        match &mut self.open {
            Some(open) if open.at == 0 || open.at + needed <= open.reserved => {
                if open.spare && reserve > 0 {
                    if free(&self.shared)? < reserve {
                        return Err(Error::NoSpace);
                    }
                    open.spare = false;
                }
                Ok(())
            }
            Some(open) => {
                // Closing it gives back what it did not use, where the filesystem had reserved that.
                let unused = open.left();
                self.next_segment(needed, reserve, unused)?;
                self.seal()?;
                let (len, spare) = self.next_segment(needed, reserve, 0)?;
                self.open_segment(len, spare)
            }
            None => {
                let (len, spare) = self.next_segment(needed, reserve, 0)?;
                self.open_segment(len, spare)
            }
        }
    }

    /// Length of another segment that has room for a group, and whether it is made from the reserve. `unused` bytes more
    /// will be free then.
    fn next_segment(&self, needed: u64, reserve: u64, unused: u64) -> Result<(u64, bool), Error> {
        let (free, options) = (free(&self.shared)?.saturating_add(unused), &self.shared.options);
        // The last segments are smaller, so that the whole disk is used.
        let least = needed.max(SEGMENT_BYTES_MIN.min(options.segment_bytes));
        let room = free.saturating_sub(reserve);
        if room < least {
            return Err(Error::NoSpace);
        }
        let len = options.segment_bytes.min(room - room % GROUP_ALIGN as u64).max(needed);
        Ok((len, reserve == 0 && free < options.reserve_bytes + len))
    }

    fn open_segment(&mut self, len: u64, spare: bool) -> Result<(), Error> {
        let dir = &self.shared.dir;
        let path = segment_name::path(dir, self.next);
        let file = self.shared.disk.create(&path, len).map_err(|error| Error::io(&path, error))?;
        self.shared.disk.sync_dir(dir).map_err(|error| Error::io(dir, error))?;
        self.shared.index.write().segments.insert(self.next, (file.clone(), Usage::default()));
        self.open = Some(Open { id: self.next, file, at: 0, written: 0, reserved: len, spare, records: Vec::new() });
        self.next = SegmentId(self.next.0 + 1);
        Ok(())
    }

    /// Lays the records out in memory, one behind the other. Work that is no longer needed is answered at once, but for
    /// that which this group itself settles. That is returned, to be answered with the group: until then a crash undoes
    /// what settles it.
    fn lay_out(&mut self, group: Vec<Work>) -> (Vec<Laid>, Vec<Work>) {
        let open = self.open.as_ref().expect("make_room opened one");
        let (id, start) = (open.id, open.at);
        self.filled = 0;
        let (mut laid, mut settled) = (Vec::with_capacity(group.len()), Vec::new());
        // The index does not show yet what this group does to a block.
        let mut changed = HashSet::with_capacity(group.len());
        for work in group {
            match self.need(&work, &changed) {
                Need::Write => {}
                Need::Nothing => {
                    work.answer(Ok(false));
                    continue;
                }
                Need::Group => {
                    settled.push(work);
                    continue;
                }
            }
            let (mut block, mut sections, mut guard) = (Bytes::new(), Sections::default(), None);
            let (kind, hash, reply) = match work {
                Work::Put { hash, block: content, sections: trailer, reply }
                | Work::Replace { hash, block: content, sections: trailer, reply }
                | Work::Move { hash, block: content, sections: trailer, reply, .. } => {
                    (block, sections) = (content, trailer);
                    (Kind::Put, hash, reply)
                }
                Work::Drop { hash, guard: held, reply } => {
                    guard = held;
                    (Kind::Tombstone, hash, reply)
                }
                Work::MoveTombstone { hash, reply } => (Kind::Tombstone, hash, reply),
            };
            changed.insert(hash);
            let header = Header { kind, hash, len: block.len() as u32 };
            let offset = start + self.filled as u64;
            self.lay_record(&header.encode(id), &block, &sections);
            assert_eq!(start + self.filled as u64, offset + header.stored_len(), "readers count on the layout");
            laid.push(Laid { header, offset, guard, reply });
        }
        (laid, settled)
    }

    /// Returns what work still has to do, beside what its group has `changed` so far.
    fn need(&self, work: &Work, changed: &HashSet<BlockHash>) -> Need {
        let here = |hash: &BlockHash| self.shared.index.read().blocks.get(hash).copied();
        // I10: a block that was dropped meanwhile does not come back.
        let (hash, is_wanted) = match work {
            Work::Put { .. } | Work::Drop { .. } => return Need::Write,
            Work::Replace { hash, .. } => (hash, here(hash).is_some_and(|at| at.bad)),
            Work::Move { hash, from, .. } => (hash, here(hash).is_some_and(|at| at.is_at(from))),
            Work::MoveTombstone { hash, .. } => (hash, here(hash).is_none()),
        };
        match (is_wanted, changed.contains(hash)) {
            (false, _) => Need::Nothing,
            (true, true) => Need::Group,
            (true, false) => Need::Write,
        }
    }

    fn lay_record(&mut self, header: &[u8], block: &[u8], sections: &Sections) {
        for part in [header, block, sections.as_bytes()] {
            self.buffer[self.filled..self.filled + part.len()].copy_from_slice(part);
            self.filled += part.len();
        }
        let end = self.filled.next_multiple_of(RECORD_ALIGN);
        self.buffer[self.filled..end].fill(0);
        self.filled = end;
    }

    fn write_out(&mut self) -> io::Result<()> {
        let group = self.filled.next_multiple_of(GROUP_ALIGN);
        let open = self.open.as_mut().expect("make_room opened one");
        let len = open.write_len(group);
        for chunk in self.buffer[self.filled..group].chunks_mut(RECORD_ALIGN) {
            chunk.copy_from_slice(&PADDING[..chunk.len()]);
        }
        self.buffer[group..len].fill(0);
        let begun = Instant::now();
        open.file.write_at(&self.buffer[..len], open.at)?;
        open.file.sync()?;
        let ended = Instant::now();
        self.shared.sync_times.took(ended, ended - begun);
        open.written = open.written.max(open.at + len as u64);
        open.at += group as u64;
        Ok(())
    }

    /// Lets readers see the records that are now on stable storage, then answers (I9).
    fn publish(&mut self, laid: Vec<Laid>) {
        let open = self.open.as_mut().expect("make_room opened one");
        let mut replies = Vec::with_capacity(laid.len());
        {
            let mut index = self.shared.index.write();
            for Laid { header, offset, guard, reply } in laid {
                if let Some((_, usage)) = index.segments.get_mut(&open.id) {
                    usage.add(&header);
                    usage.written = open.at;
                }
                match header.kind {
                    Kind::Put => {
                        let location = Location { segment: open.id, offset, len: header.len, bad: false };
                        index.set(header.hash, location);
                    }
                    Kind::Tombstone => {
                        index.remove(&header.hash);
                    }
                }
                open.records.push(Found { offset, header });
                replies.push((guard, reply));
            }
        }
        for (guard, reply) in replies {
            drop(guard);
            // A caller that is gone does not need to know.
            let _ = reply.send(Ok(true));
        }
    }

    /// Closes the open segment: cuts it to its length, and writes its hint.
    fn seal(&mut self) -> Result<(), Error> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let dir = &self.shared.dir;
        let path = segment_name::path(dir, open.id);
        if open.records.is_empty() {
            self.shared.index.write().segments.remove(&open.id);
            return self.shared.disk.remove(&path).map_err(|error| Error::io(&path, error));
        }
        open.file.truncate(open.at).map_err(|error| Error::io(&path, error))?;
        let hint_path = segment_name::hint_path(dir, open.id);
        let hint = hint::encode(open.id, &open.records);
        self.shared.disk.replace(&hint_path, &hint).map_err(|error| Error::io(&hint_path, error))?;
        self.shared.disk.sync_dir(dir).map_err(|error| Error::io(dir, error))
    }
}

/// Free bytes of the disk.
fn free(shared: &Shared) -> Result<u64, Error> {
    let space = shared.disk.space(&shared.dir).map_err(|error| Error::io(&shared.dir, error))?;
    Ok(space.1)
}

fn refuse(group: Vec<Work>, error: impl Fn() -> Error) {
    answer_all(group, || Err(error()));
}

fn answer_all(group: Vec<Work>, outcome: impl Fn() -> Result<bool, Error>) {
    for work in group {
        work.answer(outcome());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::TestDisk;
    use crate::store::{Store, StoreOptions};

    fn block() -> (BlockHash, Bytes) {
        let block = Bytes::from_static(b"content");
        (BlockHash::of(&block), block)
    }

    fn open(dir: &std::path::Path) -> Store {
        Store::open(dir, StoreOptions { segment_bytes: 1 << 20, reserve_bytes: 0 }).unwrap()
    }

    /// Writes these as one group, behind what the store has written.
    fn write(store: &Store, group: impl Fn(fn() -> Reply) -> Vec<Work>) {
        let mut state = State::new(store.shared.clone(), SegmentId(1000));
        state.write(group(|| oneshot::channel().0));
        state.seal().unwrap();
    }

    /// Compaction found the tombstone before the block was stored again.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_block_that_is_stored_while_its_tombstone_moves_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (hash, block) = block();
        let store = open(dir.path());
        write(&store, |reply| {
            let put = Work::Put { hash, block: block.clone(), sections: Sections::default(), reply: reply() };
            vec![put, Work::MoveTombstone { hash, reply: reply() }]
        });
        assert!(store.contains(&hash));
        drop(store);
        assert!(open(dir.path()).contains(&hash));
    }

    /// Compaction found the block before it was removed. Guards I10.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_block_that_is_removed_while_it_moves_stays_away() {
        let dir = tempfile::tempdir().unwrap();
        let (hash, block) = block();
        let store = open(dir.path());
        store.put(hash, block.clone()).await.unwrap();
        let from = store.shared.index.read().blocks[&hash];
        write(&store, |reply| {
            let (block, sections) = (block.clone(), Sections::default());
            vec![
                Work::Drop { hash, guard: None, reply: reply() },
                Work::Move { hash, from, block, sections, reply: reply() },
            ]
        });
        assert!(!store.contains(&hash));
        drop(store);
        assert!(!open(dir.path()).contains(&hash));
    }

    /// A fetched copy waited in the queue while the damaged one was dropped, or was replaced by another one. Guards I10.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_block_that_is_dropped_while_its_replacement_waits_stays_away() {
        let dir = tempfile::tempdir().unwrap();
        let (hash, block) = block();
        let store = open(dir.path());
        store.put(hash, block.clone()).await.unwrap();
        let at = store.shared.index.read().blocks[&hash];
        store.shared.index.write().mark_bad(&hash, &at);
        assert!(store.is_damaged(&hash));
        write(&store, |reply| {
            let (block, sections) = (block.clone(), Sections::default());
            vec![
                Work::Drop { hash, guard: None, reply: reply() },
                Work::Replace { hash, block, sections, reply: reply() },
            ]
        });
        assert!(!store.contains(&hash) && !store.is_damaged(&hash));
        drop(store);
        assert!(!open(dir.path()).contains(&hash));
    }

    /// What would settle them is in the group that does not get to the disk: a segment must not be given back for it.
    /// Guards I10.
    #[tokio::test(flavor = "multi_thread")]
    async fn work_that_its_own_group_settles_is_answered_with_the_outcome_of_the_group() {
        for is_written in [true, false] {
            let disk = TestDisk::new();
            let options = StoreOptions { segment_bytes: 1 << 20, reserve_bytes: 0 };
            let store = Store::open_on(std::path::Path::new("/blocks"), options, Arc::new(disk.clone())).unwrap();
            let (dropped, block) = block();
            store.put(dropped, block.clone()).await.unwrap();
            let from = store.shared.index.read().blocks[&dropped];
            let content = Bytes::from_static(b"other");
            let (stored, sections) = (BlockHash::of(&content), Sections::default());
            let mut waits = Vec::new();
            let mut reply = || {
                let (reply, wait) = oneshot::channel();
                waits.push(wait);
                reply
            };
            let group = vec![
                Work::Put { hash: stored, block: content, sections: sections.clone(), reply: reply() },
                Work::MoveTombstone { hash: stored, reply: reply() },
                Work::Drop { hash: dropped, guard: None, reply: reply() },
                Work::Move { hash: dropped, from, block, sections, reply: reply() },
                Work::MoveTombstone { hash: dropped, reply: reply() },
            ];
            if !is_written {
                // The segment is made, and then the power is gone.
                disk.cut_after(2);
            }
            State::new(store.shared.clone(), SegmentId(1000)).write(group);
            let answers: Vec<_> = waits.iter_mut().map(|wait| wait.try_recv().unwrap().ok()).collect();
            // The last one is settled by what was there before.
            let expected = |outcome: bool| Some(outcome).filter(|_| is_written);
            assert_eq!(answers, [expected(true), expected(false), expected(true), expected(false), Some(false)]);
            disk.cut_after(u64::MAX / 2);
        }
    }
}
