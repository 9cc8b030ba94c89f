//! Removal of hidden content ([`hidden`]), in steps, and at its end the deduction of what it took.

use super::Context;
use super::extent::{cut, from_pair};
use super::hidden::{self, HiddenRange};
use super::inode::Inode;
use super::keys;
use super::view::{Kv, View};
use wire::extent::Extent;
use wire::ids::Ino;

/// Files of which one step removes something.
const STEP_FILES: usize = 16;
/// Extents looked at before the size of the step is looked at again.
const EXTENTS_AT_ONCE: usize = 256;

/// Removes some of what is hidden, as much as fits in a step.
pub(super) fn remove_some(view: &mut View, context: &Context) {
    for ino in hidden::unfinished(view, STEP_FILES) {
        if view.is_step_full() {
            return;
        }
        remove(view, context, ino);
    }
}

fn remove(view: &mut View, context: &Context, ino: Ino) {
    let Ok(mut inode) = Inode::load(view, ino) else {
        view.delete(keys::hidden(ino));
        return;
    };
    let (before, mut content) = (inode.attr.allocated, hidden::of(view, ino));
    while let Some(range) = content.ranges.first_mut()
        && !view.is_step_full()
    {
        let (found, next) = first_of(view, ino, range);
        cut(view, context, &mut inode, &(0..u64::MAX), found);
        range.from = next;
        if range.from >= range.to {
            content.ranges.remove(0);
        }
    }
    // The stored inode counts it until the end.
    content.freed += before - inode.attr.allocated;
    view.store(keys::hidden(ino), &content);
}

/// Returns the first hidden extents of a range, and where to go on.
fn first_of(view: &View, ino: Ino, range: &HiddenRange) -> (Vec<Extent>, u64) {
    let (mut found, mut looked_at, mut next) = (Vec::new(), 0, range.to);
    view.scan(keys::extent(ino, range.from)..keys::extent(ino, range.to), &mut |key, value| {
        let extent = from_pair(key, value);
        if looked_at == EXTENTS_AT_ONCE {
            next = extent.file_off;
            return false;
        }
        looked_at += 1;
        if extent.version < range.version {
            found.push(extent);
        }
        true
    });
    (found, next)
}

/// `Command::SettleCuts`: deducts from files what is removed of them, if nothing is left to remove.
pub(super) fn settle(view: &mut View, inos: &[Ino]) {
    for ino in inos {
        let (key, content) = (keys::hidden(*ino), hidden::of(view, *ino));
        if view.get(&key).is_none() || !content.ranges.is_empty() {
            continue;
        }
        if let Ok(mut inode) = Inode::load(view, *ino) {
            inode.attr.allocated = inode.attr.allocated.saturating_sub(content.freed);
            inode.save_accessed(view);
        }
        view.delete(key);
    }
}
