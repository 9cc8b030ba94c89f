//! Opening and creating files.

use super::files::{Handle, OpenFlags};
use crate::Client;
use crate::error::unexpected_reply;
use crate::file::state::FileState;
use crate::known::leased::LeasedAnswer;
use crate::queue::NewNode;
use wire::FsError;
use wire::attr::{AttrChange, InodeAttr, TimeChange};
use wire::ids::Ino;
use wire::limits::LISTED_CONTENT_MAX;
use wire::op::{ExtentPage, Read, ReadReply};

/// The result of opening.
pub struct Opened {
    /// The handle.
    pub handle: Handle,
    /// Attributes as of now.
    pub attr: InodeAttr,
    /// Whether the kernel's pages of the file are still valid.
    pub keep_cache: bool,
}

impl Client {
    /// Opens a file, with everything that other clients wrote before they closed it (I5).
    ///
    /// # Errors
    /// As `open(2)`.
    pub async fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Opened, FsError> {
        let mut opening = self.open_files.begin(ino).await;
        let (handle, mut attr, page, leased) = loop {
            // Held before it is looked at: its state then includes everything that was committed and released before.
            let held = self.open_files.hold(ino).map(|file| self.handle(file, flags));
            let (attr, page, leased) = self.look_at(ino, flags).await?;
            // I5: the kernel still believed in the name, which was removed. On `ESTALE` it looks it up again.
            let has_others = |held: &Handle| held.file().is_shared();
            if attr.nlink == 0 && !held.as_ref().is_some_and(has_others) {
                return Err(FsError::Stale);
            }
            if let Some(held) = held {
                break (held, attr, page, leased);
            }
            let file = FileState::new(attr.clone(), page.as_ref(), self.buffers.clone(), self.config.block_bytes);
            // I6: another handle may have come and gone meanwhile, with a commit that is newer than the answer.
            if let Some(file) = opening.unless_overtaken(|| self.open_files.insert(file)) {
                break (self.handle(file, flags), attr, page, leased);
            }
            opening.renew();
        };
        drop(opening);
        handle.file().refresh(&attr, page.as_ref());
        // A recall that came before the file was in the list of open ones has reached only what is known, and not the file.
        if !leased || self.known.attr(ino).is_none() {
            self.view.refresh_open(ino);
        }
        if flags.truncate {
            let empty = attr.size == 0 && !handle.file().is_dirty();
            // The times change in any case.
            let mtime = empty.then_some(TimeChange::Now);
            let change = AttrChange { size: (!empty).then_some(0), mtime, ..AttrChange::default() };
            attr = self.setattr(ino, change).await?;
        }
        // I5: the kernel must drop pages of another version.
        let keep_cache = self.kernel.has_pages(ino, attr.version);
        if !keep_cache {
            let drop = handle.file().begin_drop();
            handle.note_drop(attr.version, drop);
        }
        if !keep_cache && !flags.truncate {
            self.reader.prefetch_small(handle.file());
        }
        Ok(Opened { attr: handle.file().overlaid(attr), handle, keep_cache })
    }

    /// Returns attributes, the first extents if they are known, and whether they are leased: from memory, or from metad.
    async fn look_at(&self, ino: Ino, flags: OpenFlags) -> Result<(InodeAttr, Option<ExtentPage>, bool), FsError> {
        let known = self.known.attr(ino).and_then(|attr| {
            let page = self.known.content(ino, attr.version);
            (attr.nlink > 0 && (page.is_some() || self.has_content(ino, &attr))).then_some((attr, page))
        });
        if let Some((attr, page)) = known {
            if !self.has_content(ino, &attr) {
                self.known.note_opened(ino);
            }
            return Ok((attr, page, true));
        }
        // metad must know what was done to the file here before it can answer.
        self.order.wait_of(ino).await?;
        let opened = self.ask_open(ino).await?;
        if !flags.truncate && opened.0.size <= LISTED_CONTENT_MAX {
            self.note_unread(ino);
        }
        Ok(opened)
    }

    /// Returns whether the file's content need not be asked for: its pages are in the kernel, or it is open.
    fn has_content(&self, ino: Ino, attr: &InodeAttr) -> bool {
        self.kernel.has_pages(ino, attr.version) || self.open_files.has(ino)
    }

    /// Asks metad to open a file. Returns attributes, the first extents, and whether they are leased.
    async fn ask_open(&self, ino: Ino) -> Result<(InodeAttr, Option<ExtentPage>, bool), FsError> {
        let LeasedAnswer { answer, leased } = self.session.read_leased(Read::Open { ino }).await?;
        let ReadReply::Opened { attr, page } = answer? else { return Err(unexpected_reply()) };
        if let Some(mark) = leased {
            self.known.learn_attr(&attr, mark);
        }
        Ok((attr, Some(page), leased.is_some()))
    }

    /// Makes a file and opens it.
    ///
    /// # Errors
    /// As `open(2)` with `O_CREAT | O_EXCL`.
    pub async fn create(&self, parent: Ino, name: &[u8], new: NewNode, flags: OpenFlags) -> Result<Opened, FsError> {
        let (attr, opening) = self.make_to_open(parent, name, new).await?;
        let page = ExtentPage { version: attr.version, size: 0, extents: Vec::new(), more_from: None };
        let file = FileState::new(attr.clone(), Some(&page), self.buffers.clone(), self.config.block_bytes);
        let Some(file) = opening.unless_overtaken(|| self.open_files.insert(file)) else {
            // Another program has found, opened and closed it before the answer came.
            return Box::pin(self.open(attr.ino, OpenFlags { truncate: false, ..flags })).await;
        };
        drop(opening);
        self.kernel.gets_pages(attr.ino, attr.version);
        if self.known.attr(attr.ino).is_none() {
            // If others are at work in the same directory, metad would not report changes.
            self.view.refresh_open(attr.ino);
        }
        Ok(Opened { handle: self.handle(file, flags), attr, keep_cache: true })
    }
}
