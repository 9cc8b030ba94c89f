//! What sessions did under delegations and tell later.

use super::view::View;
use super::{Context, apply_op, dentry};
use wire::FsError;
use wire::attr::Timestamp;
use wire::op::{Expect, Op, OpReply};

/// How far the time of a deferred operation may be ahead of the leader's: what sessions estimate wrongly.
const AHEAD_SECS: i64 = 2;

/// `Op::Deferred`.
pub(super) fn apply(
    view: &mut View,
    context: &Context,
    at: Timestamp,
    expect: &[Expect],
    op: &Op,
) -> Result<OpReply, FsError> {
    if matches!(op, Op::Deferred { .. }) {
        return Err(FsError::Invalid);
    }
    let as_expected =
        |expect: &Expect| dentry::find(view, expect.parent, &expect.name).map(|(ino, _)| ino) == expect.ino;
    if !expect.iter().all(as_expected) {
        return Err(FsError::Stale);
    }
    let latest = Timestamp { secs: context.now.secs + AHEAD_SECS, ..context.now };
    apply_op(view, &Context { now: at.min(latest), session: context.session }, op)
}
