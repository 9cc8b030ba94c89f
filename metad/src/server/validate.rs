//! What may be proposed: the one place that checks what a peer has sent before any of it enters the log.
//!
//! Every metad applies what is in the log, and again after each restart: what could harm one would harm all of them,
//! for good. Checked here are counts and bytes, which follow from the message alone. Preconditions that depend on the
//! state are checked when it is applied (I3), and so is how much work it turns out to be (`fs::view`). Every bound is
//! in `wire::limits`, and far above what honest clients need.

use wire::FsError;
use wire::codec;
use wire::extent::Source;
use wire::layout::Layout;
use wire::limits::{
    BATCH_BYTES_MAX, BATCH_OPS_MAX, BLOCKD_TEXT_BYTES_MAX, BLOCKD_WEIGHT_MAX, COMMIT_EXTENTS_MAX, COMMIT_OWN_MAX,
    EXPECT_MAX, HEARTBEAT_MAX_MS, INLINE_BYTES_MAX, JOURNALED_FILES_MAX, NAME_BYTES_MAX, RELEASED_ORPHANS_MAX,
    SYMLINK_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX,
};
use wire::message::meta::BlockdHeartbeat;
use wire::op::{Batch, ConflictPolicy, NewInode, Op, OpFailed, RangeAction};

/// Bytes that the encoded length of a list takes at most.
const LENGTH_BYTES_MAX: usize = 10;
/// Batches are numbered from 1: no session comes near this.
const SEQ_MAX: u64 = u64::MAX / 2;

/// Checks whether a batch may be proposed. A client that may only read needs little: see `changes_nothing`.
///
/// # Errors
/// The first operation that may not be proposed, and why.
pub(super) fn batch(batch: &Batch, may_change: bool) -> Result<(), OpFailed> {
    let failed = |index: usize, error| OpFailed { index: index as u32, error };
    if batch.seq.0 > SEQ_MAX || batch.acked.0 > SEQ_MAX || batch.ops.len() > BATCH_OPS_MAX {
        return Err(failed(0, FsError::Invalid));
    }
    if !may_change && !batch.ops.iter().all(changes_nothing) {
        return Err(failed(0, FsError::ReadOnly));
    }
    let mut released = 0;
    for (index, op) in batch.ops.iter().enumerate() {
        operation(op).map_err(|error| failed(index, error))?;
        if let Op::ReleaseOrphans { inos } = op.plain() {
            // Each is a look-up when the batch is applied, and takes a byte or two here.
            released += inos.len();
            if released > RELEASED_ORPHANS_MAX {
                return Err(failed(index, FsError::ArgumentTooLarge));
            }
        }
    }
    match beyond_size(batch) {
        Some(index) => Err(failed(index, FsError::ArgumentTooLarge)),
        None => Ok(()),
    }
}

/// Returns the first operation that makes the state larger. Operations that were done under delegations are let through:
/// programs were told that they have succeeded, and what follows them in the client's queue may make room.
pub(super) fn taking_space(batch: &Batch) -> Option<OpFailed> {
    let index = batch.ops.iter().position(takes_space)?;
    Some(OpFailed { index: index as u32, error: FsError::NoSpace })
}

fn takes_space(op: &Op) -> bool {
    match op {
        Op::Create { .. } | Op::Link { .. } | Op::SetXattr { .. } | Op::CloneRange { .. } => true,
        Op::Commit { writes, .. } => !writes.is_empty(),
        Op::Range { action, .. } => !matches!(action, RangeAction::Punch | RangeAction::Collapse),
        _ => false,
    }
}

/// Returns whether a client that may only read needs this operation. It needs no inode numbers, and no lock that
/// excludes others.
fn changes_nothing(op: &Op) -> bool {
    match op {
        Op::ReleaseOrphans { .. } | Op::Unlock { .. } => true,
        Op::SetLock { lock, .. } => !lock.exclusive,
        _ => false,
    }
}

fn operation(op: &Op) -> Result<(), FsError> {
    if let Op::Deferred { expect, op, .. } = op {
        if expect.len() > EXPECT_MAX || matches!(**op, Op::Deferred { .. } | Op::Journaled { .. }) {
            return Err(FsError::Invalid);
        }
        expect.iter().try_for_each(|expect| name(&expect.name))?;
    }
    let op = op.plain();
    op.names_changed().try_for_each(|(_, changed)| name(changed))?;
    match op {
        Op::Create { node: NewInode::Symlink(target), .. } if target.len() > SYMLINK_BYTES_MAX => {
            Err(FsError::NameTooLong)
        }
        Op::Commit { own, writes, policy, .. } => {
            let is_inline = |source: &Source| matches!(source, Source::Inline(bytes) if bytes.len() > INLINE_BYTES_MAX);
            if own.len() > COMMIT_OWN_MAX || writes.len() > COMMIT_EXTENTS_MAX {
                return Err(FsError::Invalid);
            }
            if writes.iter().any(|write| is_inline(&write.source)) {
                return Err(FsError::Invalid);
            }
            // No metad stores what it would not understand.
            let form = |source: &Source| if let Source::Block { form, .. } = source { form.check() } else { Ok(()) };
            writes.iter().try_for_each(|write| form(&write.source))?;
            match policy {
                ConflictPolicy::Copy { suffix, .. } => name(suffix),
                ConflictPolicy::Fail | ConflictPolicy::LastWriter => Ok(()),
            }
        }
        Op::SetXattr { name, value, .. } => {
            if value.len() > XATTR_VALUE_BYTES_MAX {
                return Err(FsError::ArgumentTooLarge);
            }
            if name.len() > XATTR_NAME_BYTES_MAX { Err(FsError::Range) } else { Ok(()) }
        }
        Op::RemoveXattr { name, .. } if name.len() > XATTR_NAME_BYTES_MAX => Err(FsError::Range),
        Op::ReleaseOrphans { inos } if inos.len() > RELEASED_ORPHANS_MAX => Err(FsError::Invalid),
        Op::Journaled { position: Some(position), .. } if position.files.len() > JOURNALED_FILES_MAX => {
            Err(FsError::Invalid)
        }
        _ => Ok(()),
    }
}

fn name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX { Err(FsError::NameTooLong) } else { Ok(()) }
}

/// Returns the first operation that does not fit in a batch that is larger than it may be. The operations before it may
/// be sent without it.
fn beyond_size(batch: &Batch) -> Option<usize> {
    if codec::encoded_len(batch) <= BATCH_BYTES_MAX {
        return None;
    }
    let around =
        codec::encoded_len(&Batch { ops: Vec::new(), caller: batch.caller.clone(), ..*batch }) + LENGTH_BYTES_MAX;
    let mut sums = batch.ops.iter().scan(around, |bytes, op| {
        *bytes += codec::encoded_len(op);
        Some(*bytes)
    });
    Some(sums.position(|bytes| bytes > BATCH_BYTES_MAX).unwrap_or(batch.ops.len().saturating_sub(1)))
}

/// Checks whether a block daemon may claim this: it must not take another daemon's place, by id or by address.
///
/// # Errors
/// The reason, for people.
pub(super) fn heartbeat(layout: &Layout, heartbeat: &BlockdHeartbeat) -> Result<(), String> {
    let BlockdHeartbeat { id, name, addr, zone, .. } = heartbeat;
    if name.len().max(zone.len()) > BLOCKD_TEXT_BYTES_MAX {
        return Err(format!("a name or a zone is longer than {BLOCKD_TEXT_BYTES_MAX} bytes"));
    }
    if heartbeat.weight > BLOCKD_WEIGHT_MAX || heartbeat.every_ms > HEARTBEAT_MAX_MS {
        return Err(format!(
            "a weight is {BLOCKD_WEIGHT_MAX} at most, and heartbeats are {HEARTBEAT_MAX_MS} ms apart at most: correct the \
             configuration of {name}"
        ));
    }
    // One certificate is one member. A daemon that has lost its disk is known by its address, one that has moved by its
    // id.
    let mut own = layout.members.iter().filter(|member| member.name == *name);
    if let Some(own) = own.find(|own| own.id != *id && own.addr != *addr) {
        return Err(format!(
            "{name} is a member already, as {} at {}: start it at that address, or run `surf blockd remove --keep-identity {name}` first if its \
             content is lost",
            own.id, own.addr
        ));
    }
    let mut others = layout.members.iter().filter(|member| member.name != *name);
    match others.find(|other| other.id == *id || other.addr == *addr) {
        Some(other) => Err(format!("id {id} or address {addr} belongs to {}, not to {name}", other.name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::attr::Timestamp;
    use wire::extent::{BlockCodec, BlockForm, ExtentWrite};
    use wire::ids::{BatchSeq, BlockHash, BlockdId, Ino, JournalId, KeyGeneration, LayoutEpoch, PolicyId, Version};
    use wire::layout::LayoutMember;
    use wire::message::block::RepairReport;
    use wire::op::{Expect, JournalPosition, JournaledFile, Lock, LockFamily, XattrMode};

    fn of(ops: Vec<Op>) -> Batch {
        Batch { seq: BatchSeq(1), acked: BatchSeq(0), caller: None, ops }
    }

    fn mkdir(name: &[u8]) -> Op {
        Op::Rmdir { parent: Ino::ROOT, name: name.to_vec(), seen: None }
    }

    /// Each number takes a byte or two in a batch, and a look-up on every metad.
    #[test]
    fn all_operations_of_a_batch_together_release_no_more_orphans_than_one_may() {
        let release = |count: usize| Op::ReleaseOrphans { inos: vec![Ino(1); count] };
        assert_eq!(batch(&of(vec![release(RELEASED_ORPHANS_MAX)]), false), Ok(()));
        let late = Op::Deferred { at: Timestamp::default(), expect: Vec::new(), op: Box::new(release(1)) };
        for more in [release(1), late] {
            let refused = batch(&of(vec![release(RELEASED_ORPHANS_MAX), more]), true);
            assert_eq!(refused, Err(OpFailed { index: 1, error: FsError::ArgumentTooLarge }));
        }
    }

    #[test]
    fn a_batch_beyond_a_bound_is_refused_with_the_operation_that_exceeds_it() {
        let long = vec![b'x'; NAME_BYTES_MAX + 1];
        let file = JournaledFile { ino: Ino(9), base: Version(1), committed: true };
        let files = vec![file; JOURNALED_FILES_MAX + 1];
        let expect = Expect { parent: Ino::ROOT, name: long.clone(), ino: None, version: None };
        let late = |expect, op| Op::Deferred { at: Timestamp::default(), expect, op: Box::new(op) };
        let xattr = |name: &[u8], len| Op::SetXattr {
            ino: Ino(9),
            name: name.to_vec(),
            value: vec![0; len],
            mode: XattrMode::Set,
            clear_sgid: false,
        };
        let commit = |own, suffix| Op::Commit {
            ino: Ino(9),
            base: Version(1),
            own,
            writes: Vec::new(),
            append_from: None,
            mtime: None,
            clear_privileges: false,
            policy: ConflictPolicy::Copy { ino: Ino(10), suffix },
        };
        for (op, error) in [
            (mkdir(&long), FsError::NameTooLong),
            (late(vec![expect], mkdir(b"d")), FsError::NameTooLong),
            (late(Vec::new(), mkdir(&long)), FsError::NameTooLong),
            (late(Vec::new(), late(Vec::new(), mkdir(b"d"))), FsError::Invalid),
            (xattr(b"user.x", XATTR_VALUE_BYTES_MAX + 1), FsError::ArgumentTooLarge),
            (xattr(&long, 1), FsError::Range),
            (commit(vec![Version(1); COMMIT_OWN_MAX + 1], b".x".to_vec()), FsError::Invalid),
            (commit(Vec::new(), long.clone()), FsError::NameTooLong),
            (Op::ReleaseOrphans { inos: vec![Ino(1); RELEASED_ORPHANS_MAX + 1] }, FsError::Invalid),
            (
                Op::Journaled {
                    journal: JournalId(1),
                    position: Some(JournalPosition { acknowledged: 1, left: 0, files }),
                },
                FsError::Invalid,
            ),
        ] {
            assert_eq!(batch(&of(vec![mkdir(b"d"), op.clone()]), true), Err(OpFailed { index: 1, error }), "{op:?}");
        }
        assert_eq!(batch(&of(vec![mkdir(b"d"); BATCH_OPS_MAX]), true), Ok(()));
        assert!(batch(&of(vec![mkdir(b"d"); BATCH_OPS_MAX + 1]), true).is_err());
        assert!(batch(&Batch { acked: BatchSeq(u64::MAX), ..of(Vec::new()) }, true).is_err());
    }

    #[test]
    fn a_commit_of_a_block_of_an_unknown_form_is_refused() {
        let plain = BlockForm::plain(100);
        let commit = |form| {
            let source = Source::Block { hash: BlockHash([1; 32]), form, offset: 0 };
            Op::Commit {
                ino: Ino(9),
                base: Version(1),
                own: Vec::new(),
                writes: vec![ExtentWrite { file_off: 0, len: 50, source }],
                append_from: None,
                mtime: None,
                clear_privileges: false,
                policy: ConflictPolicy::Fail,
            }
        };
        assert_eq!(batch(&of(vec![commit(plain)]), true), Ok(()));
        for form in [
            BlockForm { policy: PolicyId(1), ..plain },
            BlockForm { codec: BlockCodec(1), ..plain },
            BlockForm { key: KeyGeneration(1), ..plain },
            BlockForm { section_log2: 12, ..plain },
            BlockForm { plain_len: 200, ..plain },
        ] {
            let refused = Err(OpFailed { index: 1, error: FsError::NotSupported });
            assert_eq!(batch(&of(vec![mkdir(b"d"), commit(form)]), true), refused, "{form:?}");
        }
    }

    #[test]
    fn a_client_that_may_only_read_changes_nothing_and_locks_nobody_out() {
        let lock = |exclusive| Op::SetLock {
            ino: Ino(1),
            lock: Lock { family: LockFamily::Flock, owner: 1, pid: 1, start: 0, end: u64::MAX, exclusive },
        };
        assert_eq!(batch(&of(vec![lock(false)]), false), Ok(()));
        let late = Op::Deferred { at: Timestamp::default(), expect: Vec::new(), op: Box::new(lock(false)) };
        for op in [lock(true), Op::LeaseInos { count: 1 }, mkdir(b"d"), late] {
            let refused = Err(OpFailed { index: 0, error: FsError::ReadOnly });
            assert_eq!(batch(&of(vec![op.clone()]), false), refused, "{op:?}");
            assert_eq!(batch(&of(vec![op]), true), Ok(()));
        }
    }

    #[test]
    fn what_makes_the_state_larger_is_told_from_what_makes_room_or_was_promised() {
        let link = || Op::Link { ino: Ino(9), parent: Ino::ROOT, name: b"l".to_vec() };
        let range = |action| Op::Range { ino: Ino(9), off: 0, len: 1, action };
        let late = Op::Deferred { at: Timestamp::default(), expect: Vec::new(), op: Box::new(link()) };
        let removes = Op::Unlink { parent: Ino::ROOT, name: b"l".to_vec(), released: None };
        let passed = [mkdir(b"d"), removes, late, range(RangeAction::Punch), Op::LeaseInos { count: 1 }];
        assert_eq!(taking_space(&of(passed.to_vec())), None);
        for op in [link(), range(RangeAction::Allocate { keep_size: true })] {
            let refused = Some(OpFailed { index: 1, error: FsError::NoSpace });
            assert_eq!(taking_space(&of(vec![mkdir(b"d"), op.clone()])), refused, "{op:?}");
        }
    }

    #[test]
    fn a_block_daemon_that_claims_the_place_of_another_is_refused() {
        let member = |id: u8, port: u16| {
            LayoutMember::new(BlockdId([id; 16]), format!("blockd-{id}"), ([127, 0, 0, 1], port).into(), "")
        };
        let layout = Layout { members: vec![member(1, 7001), member(2, 7002)], ..Layout::default() };
        let says = |name: &str, id: u8, port: u16| BlockdHeartbeat {
            id: BlockdId([id; 16]),
            name: name.to_owned(),
            addr: ([127, 0, 0, 1], port).into(),
            zone: String::new(),
            weight: 1,
            capacity_bytes: 1,
            free_bytes: 1,
            block_count: 0,
            epoch: LayoutEpoch(1),
            every_ms: 1000,
            repair: RepairReport::default(),
            failed: false,
            revoked: wire::revoked::ListMark::default(),
        };
        assert!(heartbeat(&layout, &says("blockd-1", 1, 7009)).is_ok(), "it has moved");
        assert!(heartbeat(&layout, &says("blockd-2", 9, 7002)).is_ok(), "it has lost its disk");
        assert!(heartbeat(&layout, &says("blockd-2", 9, 7009)).is_err(), "a second member of one certificate");
        assert!(heartbeat(&layout, &says("blockd-2", 1, 7002)).is_err(), "the id of another one");
        assert!(heartbeat(&layout, &says("blockd-3", 3, 7001)).is_err(), "the address of another one");
        let heavy = BlockdHeartbeat { weight: u32::MAX, ..says("blockd-3", 3, 7003) };
        assert!(heartbeat(&layout, &heavy).is_err(), "it would own nearly all");
        let rare = BlockdHeartbeat { every_ms: 3_600_000, ..says("blockd-3", 3, 7003) };
        assert!(heartbeat(&layout, &rare).is_err(), "it would be up for hours whatever became of it");
        assert!(heartbeat(&layout, &says(&"x".repeat(BLOCKD_TEXT_BYTES_MAX + 1), 3, 7003)).is_err());
    }
}
