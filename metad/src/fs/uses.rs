//! Which files read from given blocks, for those who look for lost content.

use super::extent;
use super::keys;
use super::view::Kv;
use std::collections::BTreeSet;
use std::ops::Range;
use wire::extent::Source;
use wire::ids::{BlockHash, Ino};

/// Bytes of a file that lie in a block.
pub type Use = (BlockHash, Ino, Range<u64>);

/// Returns up to `limit` extents that read from these blocks, in the order of inodes and offsets, after `after`. Also
/// returns where to go on; `None` at the end.
pub fn uses(
    kv: &dyn Kv,
    hashes: &BTreeSet<BlockHash>,
    after: Option<(Ino, u64)>,
    limit: usize,
) -> (Vec<Use>, Option<(Ino, u64)>) {
    let Range { mut start, end } = keys::all_extents();
    if let Some((ino, offset)) = after {
        start = [keys::extent(ino, offset).as_slice(), &[0]].concat();
    }
    let (mut found, mut next) = (Vec::new(), None);
    kv.scan(start..end, &mut |key, value| {
        if key.len() == 17
            && let Some(extent) = extent::decode(key, value)
            && let Source::Block { hash, .. } = extent.source
            && hashes.contains(&hash)
        {
            let (ino, offset) = keys::extent_parts(key);
            found.push((hash, ino, offset..offset.saturating_add(extent.len)));
            next = (found.len() >= limit).then_some((ino, offset));
        }
        next.is_none()
    });
    (found, next)
}
