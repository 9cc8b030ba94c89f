//! Listings: pages from metad are larger than what the kernel asks for at a time, so a handle keeps the rest of one.

use super::reply::errno;
use super::{Shared, attr};
use fuser::{FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};
use wire::FsError;
use wire::attr::InodeAttr;
use wire::ids::Ino;
use wire::op::DirEntry;

/// Entries in a page.
const PAGE: u32 = 1024;
/// A page is listed from for this long; what is asked for later is fetched anew.
const FRESH: Duration = Duration::from_secs(1);
/// Offsets behind `.` and `..`; entries' cookies are above.
const BEHIND_DOT: u64 = 1;
const BEHIND_DOTS: u64 = 2;

/// The rest of a page.
#[derive(Default)]
pub(crate) struct Listing {
    page: Option<Page>,
}

#[derive(Clone)]
struct Page {
    /// The page begins behind this cookie.
    after: u64,
    entries: Vec<DirEntry>,
    end: bool,
    plus: bool,
    fetched: Instant,
}

impl Page {
    /// Entries behind `after`, when this page holds them.
    fn rest(&self, after: u64, plus: bool) -> Option<(Vec<DirEntry>, bool)> {
        let known = after == self.after || self.entries.iter().any(|entry| entry.cookie == after);
        if !known || (plus && !self.plus) || self.fetched.elapsed() > FRESH {
            return None;
        }
        let rest: Vec<DirEntry> = self.entries.iter().filter(|entry| entry.cookie > after).cloned().collect();
        (!rest.is_empty() || self.end).then_some((rest, self.end))
    }
}

/// Entries behind a cookie, from the handle's page or a new one.
async fn entries(shared: &Shared, dir: Ino, fh: u64, after: u64, plus: bool) -> Result<Vec<DirEntry>, FsError> {
    let listing = shared.dirs.get(fh).ok_or(FsError::Invalid)?;
    if let Some((rest, _)) = listing.lock().page.as_ref().and_then(|page| page.rest(after, plus)) {
        return Ok(rest);
    }
    let (entries, end) = shared.client.readdir(dir, after, PAGE, plus).await?;
    listing.lock().page = Some(Page { after, entries: entries.clone(), end, plus, fetched: Instant::now() });
    Ok(entries)
}

/// Where listing goes on behind an entry. Entries of one cookie are listed again rather than left out.
fn offset_behind(entries: &[DirEntry], index: usize) -> u64 {
    let cookie = entries[index].cookie;
    let shared_cookie = entries.get(index + 1).is_some_and(|next| next.cookie == cookie);
    if shared_cookie { cookie - 1 } else { cookie }
}

/// Cookie to ask metad for.
fn after(offset: u64) -> u64 {
    if offset <= BEHIND_DOTS { 0 } else { offset }
}

pub(super) async fn list(shared: &Shared, dir: Ino, fh: u64, offset: u64, mut reply: ReplyDirectory) {
    if offset < BEHIND_DOT && reply.add(INodeNo(dir.0), BEHIND_DOT, FileType::Directory, ".") {
        return reply.ok();
    }
    if offset < BEHIND_DOTS {
        let parent = match shared.client.parent(dir).await {
            Ok(parent) => parent,
            Err(error) => return reply.error(errno(error)),
        };
        if reply.add(INodeNo(parent.ino.0), BEHIND_DOTS, FileType::Directory, "..") {
            return reply.ok();
        }
    }
    match entries(shared, dir, fh, after(offset), false).await {
        Ok(entries) => {
            for (index, entry) in entries.iter().enumerate() {
                let name = OsStr::from_bytes(&entry.name);
                let kind = attr::file_type(entry.kind);
                if reply.add(INodeNo(entry.ino.0), offset_behind(&entries, index), kind, name) {
                    break;
                }
            }
            reply.ok();
        }
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) async fn list_plus(shared: &Shared, dir: Ino, fh: u64, offset: u64, mut reply: ReplyDirectoryPlus) {
    let mut add = |offset: u64, name: &[u8], found: &InodeAttr| {
        let number = INodeNo(found.ino.0);
        let attr = attr::file_attr(found);
        reply.add(number, offset, OsStr::from_bytes(name), &shared.ttl, &attr, Generation(0))
    };
    if offset < BEHIND_DOTS {
        let (own, parent) = match (shared.client.getattr(dir).await, shared.client.parent(dir).await) {
            (Ok(own), Ok(parent)) => (own, parent),
            (Err(error), _) | (_, Err(error)) => return reply.error(errno(error)),
        };
        if offset < BEHIND_DOT && add(BEHIND_DOT, b".", &own) || add(BEHIND_DOTS, b"..", &parent) {
            return reply.ok();
        }
    }
    match entries(shared, dir, fh, after(offset), true).await {
        Ok(entries) => {
            for (index, entry) in entries.iter().enumerate() {
                let Some(found) = &entry.attr else { continue };
                if add(offset_behind(&entries, index), &entry.name, found) {
                    break;
                }
            }
            reply.ok();
        }
        Err(error) => reply.error(errno(error)),
    }
}
