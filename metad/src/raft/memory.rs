//! How much memory an entry of the log takes once it is decoded: what a client sends as two bytes may be an operation of more
//! than a hundred.

use super::types::Entry;
use crate::fs::{Command, Stamped};
use openraft::EntryPayload;
use wire::extent::{ExtentWrite, Source};
use wire::ids::{BlockHash, Ino, SessionId, Version};
use wire::op::{Batch, ConflictPolicy, Expect, JournaledFile, NewInode, Op};

/// What the allocator adds to a piece of memory, about.
const ALLOCATION_BYTES: usize = 16;
/// Commands that metads make themselves, without batches: their lists have no smaller elements than this part of what
/// they take in memory.
const OWN_FACTOR: usize = 8;

/// Returns about how many bytes of memory an entry takes that takes so many as stored.
pub(super) fn bytes_of(entry: &Entry, stored: usize) -> usize {
    let held = match &entry.payload {
        EntryPayload::Normal(Stamped { command: Command::Batches(batches), .. }) => {
            let inner = batches.iter().map(|(_, batch)| of_batch(batch)).sum::<usize>();
            list::<(SessionId, Batch)>(batches.capacity()) + inner
        }
        EntryPayload::Normal(Stamped { command: Command::BlocksDropped(blocks), .. }) => {
            list::<BlockHash>(blocks.capacity())
        }
        EntryPayload::Blank | EntryPayload::Normal(_) | EntryPayload::Membership(_) => stored * OWN_FACTOR,
    };
    size_of::<Entry>() + held
}

fn of_batch(batch: &Batch) -> usize {
    let groups = batch.caller.as_ref().map_or(0, |caller| list::<u32>(caller.groups.capacity()));
    groups + list::<Op>(batch.ops.capacity()) + batch.ops.iter().map(of_op).sum::<usize>()
}

/// Returns what an operation holds beyond itself.
fn of_op(op: &Op) -> usize {
    match op {
        Op::Create { name, node, .. } => text(name) + of_node(node),
        Op::Link { name, .. } | Op::Unlink { name, .. } | Op::Rmdir { name, .. } | Op::RemoveXattr { name, .. } => {
            text(name)
        }
        Op::Rename { name, new_name, .. } => text(name) + text(new_name),
        Op::Commit { own, writes, policy, .. } => {
            let inner = writes.iter().map(|write| of_source(&write.source)).sum::<usize>();
            list::<Version>(own.capacity()) + list::<ExtentWrite>(writes.capacity()) + inner + of_policy(policy)
        }
        Op::SetXattr { name, value, .. } => text(name) + text(value),
        Op::ReleaseOrphans { inos } => list::<Ino>(inos.capacity()),
        Op::Deferred { expect, op, .. } => {
            let names = expect.iter().map(|expect| text(&expect.name)).sum::<usize>();
            list::<Expect>(expect.capacity()) + names + list::<Op>(1) + of_op(op)
        }
        Op::Journaled { position, .. } => {
            position.as_ref().map_or(0, |position| list::<JournaledFile>(position.files.capacity()))
        }
        Op::SetAttr { .. }
        | Op::Range { .. }
        | Op::CloneRange { .. }
        | Op::LeaseInos { .. }
        | Op::SetLock { .. }
        | Op::Unlock { .. }
        | Op::Accessed { .. }
        | Op::JournaledContent { .. } => 0,
    }
}

fn of_node(node: &NewInode) -> usize {
    match node {
        NewInode::Symlink(target) => text(target),
        NewInode::Regular | NewInode::Directory | NewInode::Special { .. } => 0,
    }
}

fn of_source(source: &Source) -> usize {
    match source {
        Source::Inline(bytes) => text(bytes),
        Source::Block { .. } | Source::Zero => 0,
    }
}

fn of_policy(policy: &ConflictPolicy) -> usize {
    match policy {
        ConflictPolicy::Copy { suffix, .. } => text(suffix),
        ConflictPolicy::Fail | ConflictPolicy::LastWriter => 0,
    }
}

fn text(bytes: &Vec<u8>) -> usize {
    list::<u8>(bytes.capacity())
}

/// Returns the memory of a list with so many places.
fn list<T>(places: usize) -> usize {
    if places == 0 { 0 } else { places * size_of::<T>() + ALLOCATION_BYTES }
}

#[cfg(test)]
mod tests {
    use super::super::log::to_stored;
    use super::super::types::TypeConfig;
    use super::*;
    use wire::attr::Timestamp;
    use wire::ids::BatchSeq;

    /// Returns an entry with these operations, its size as stored, and about that in memory.
    fn sizes(ops: Vec<Op>) -> (usize, usize) {
        let batch = Batch { seq: BatchSeq(1), acked: BatchSeq(0), caller: None, ops };
        let command = Command::Batches(vec![(SessionId(1), batch)]);
        let payload = EntryPayload::Normal(Stamped { now: Timestamp::default(), command });
        let entry = Entry { log_id: openraft::testing::log_id::<TypeConfig>(1, 1, 7), payload };
        let stored = to_stored(&entry).value.len();
        (stored, bytes_of(&entry, stored))
    }

    #[test]
    fn small_operations_and_lists_in_them_count_as_what_they_take_in_memory() {
        let count = 1_000;
        let (stored, held) = sizes(vec![Op::LeaseInos { count: 1 }; count]);
        assert!(stored < 4 * count && held >= count * size_of::<Op>(), "{stored} and {held}");
        let deferred = Op::Deferred {
            at: Timestamp::default(),
            expect: Vec::new(),
            op: Box::new(Op::ReleaseOrphans { inos: vec![Ino(1); 100] }),
        };
        let (stored, held) = sizes(vec![deferred; count]);
        assert!(held >= count * (2 * size_of::<Op>() + 800), "{stored} and {held}");
        let zeros = ExtentWrite { file_off: 0, len: 1, source: Source::Zero };
        let inline = ExtentWrite { source: Source::Inline(vec![7; 4_000]), ..zeros.clone() };
        let block = ExtentWrite { source: Source::block(BlockHash([7; 32]), 1, 0), ..zeros.clone() };
        let commit = |writes: Vec<ExtentWrite>| Op::Commit {
            ino: Ino(1),
            base: Version(0),
            own: vec![Version(1); 10],
            writes,
            append_from: None,
            mtime: None,
            clear_privileges: false,
            policy: ConflictPolicy::Fail,
        };
        let [none, zero, full, named] =
            [vec![], vec![zeros], vec![inline], vec![block]].map(|w| sizes(vec![commit(w)]).1);
        assert!(zero >= none + size_of::<ExtentWrite>() && named == zero && full >= zero + 4_000);
    }

    #[test]
    fn what_metads_propose_themselves_counts_by_its_stored_size() {
        let payload = EntryPayload::Normal(Stamped {
            now: Timestamp::default(),
            command: Command::CloseSessions(vec![SessionId(1); 1_000]),
        });
        let entry = Entry { log_id: openraft::testing::log_id::<TypeConfig>(1, 1, 7), payload };
        let stored = to_stored(&entry).value.len();
        assert!(bytes_of(&entry, stored) >= 1_000 * size_of::<SessionId>());
    }
}
