//! Directories: listing them, and asking ahead for a walk through a tree.

use crate::Client;
use crate::error::unexpected_reply;
use crate::known::leased::LeasedAnswer;
use crate::known::walks::Next;
use crate::known::{Listed, PageKey};
use std::sync::Arc;
use wire::FsError;
use wire::ids::Ino;
use wire::op::{DirEntry, ExtentPage, ListedDir, Read, ReadReply, With};

/// When names of a directory are looked up one after the other: how many entries are asked for at once.
const AHEAD_PAGE_ENTRIES: u32 = 1024;
/// The same when files are opened one after the other: so many small ones fit into an answer that has their content.
const CONTENTS_PAGE_ENTRIES: u32 = 512;
/// Larger directories are not asked for as a whole.
const NAMES_AHEAD_MAX: u64 = 4096;

impl Client {
    /// Returns entries of a directory behind a cookie (0 for the start).
    ///
    /// # Errors
    /// As `getdents(2)`.
    pub async fn readdir(&self, ino: Ino, after: u64, limit: u32, plus: bool) -> Result<Listed, FsError> {
        let Listed { parent, mut entries, end } = self.list(PageKey { dir: ino, after, limit, plus }).await?;
        for entry in &mut entries {
            entry.attr = entry.attr.take().map(|attr| self.view.with_uncommitted(attr));
        }
        if plus {
            self.known.note_places(entries.iter().map(|entry| ((ino, entry.name.clone()), entry.ino)));
        }
        Ok(Listed { parent, entries, end })
    }

    async fn list(&self, asked: PageKey) -> Result<Listed, FsError> {
        let may_walk = asked.after == 0 && asked.plus;
        let mut known = self.known.page(asked);
        if known.is_none() && may_walk && self.known.wait_asked_ahead(asked.dir).await {
            known = self.known.page(asked);
        }
        match known {
            Some(known) => {
                if may_walk {
                    self.known.walk_listed(&known);
                    self.walk_on(asked.dir, asked.limit);
                }
                Ok(known)
            }
            None => match may_walk.then(|| self.known.walk_from(asked.dir)).flatten() {
                Some(next) => self.ask_tree(next, asked.limit).await,
                None => self.ask_page(asked).await,
            },
        }
    }

    /// Sends what was done in a directory, because metad must know it before it is asked for a listing.
    async fn send_names_of(&self, dir: Ino) -> Result<(), FsError> {
        if self.known.is_ahead_in(dir) { self.order.wait_of(dir).await } else { Ok(()) }
    }

    async fn ask_page(&self, asked: PageKey) -> Result<Listed, FsError> {
        let with = if asked.plus { self.what_with_entries(asked) } else { With::Names };
        self.ask_page_with(asked, with).await
    }

    async fn ask_page_with(&self, asked: PageKey, with: With) -> Result<Listed, FsError> {
        self.send_names_of(asked.dir).await?;
        let PageKey { dir: ino, after, limit, plus } = asked;
        let read = Read::ReadDir { ino, after, limit, with };
        let LeasedAnswer { answer, leased } = self.session.read_leased(read).await?;
        let ReadReply::Page { parent, mut entries, end } = answer? else { return Err(unexpected_reply()) };
        let contents = take_contents(&mut entries);
        let listed = Listed { parent, entries, end };
        if let Some(mark) = leased {
            self.known.learn_page(asked, &Arc::new(listed.clone()), contents, mark);
        }
        if after == 0 && plus {
            self.known.walk_listed(&listed);
        }
        Ok(listed)
    }

    /// Returns what is asked for along with entries that come with attributes.
    fn what_with_entries(&self, asked: PageKey) -> With {
        if self.known.may_ask_for_contents(asked) { With::Contents } else { With::Attributes }
    }

    /// Asks for the start of a directory with attributes, and for what lies below and behind it on a walk.
    async fn ask_tree(&self, asked: Next, limit: u32) -> Result<Listed, FsError> {
        self.send_names_of(asked.dir).await?;
        let start = PageKey { dir: asked.dir, after: 0, limit, plus: true };
        let with = self.what_with_entries(start);
        let read = Read::ReadTree { ino: asked.dir, with, behind: asked.behind(), limit };
        let LeasedAnswer { answer, leased } = self.session.read_leased(read).await?;
        let dirs = match answer? {
            ReadReply::Tree(dirs) => dirs,
            // Others are at work in the directories ahead.
            ReadReply::Page { parent, entries, end } => vec![ListedDir { ino: asked.dir, parent, entries, end }],
            _ => return Err(unexpected_reply()),
        };
        if leased.is_some() {
            self.known.walk_answered(asked, &dirs);
        }
        let mut first = None;
        for ListedDir { ino: dir, parent, mut entries, end } in dirs {
            let contents = take_contents(&mut entries);
            let listed = Arc::new(Listed { parent, entries, end });
            if let Some(mark) = leased {
                self.known.walk_listed(&listed);
                self.known.learn_page(PageKey { dir, after: 0, limit, plus: true }, &listed, contents, mark);
            }
            first.get_or_insert(listed);
        }
        let Some(first) = first else { return Err(unexpected_reply()) };
        Ok(Arc::unwrap_or_clone(first))
    }

    /// Asks for the next part when a walk has come to a directory that was asked for ahead, while the walk goes through
    /// what is there.
    fn walk_on(&self, dir: Ino, limit: u32) {
        let Some(next) = self.known.walk_on(dir) else { return };
        let client = self.arc();
        self.work.spawn_until_stopped(async move {
            // A walk that changes directories needs delegations, too.
            let enough = !client.known.is_at_work() || client.known.is_delegated(&[next.dir]);
            let start = PageKey { dir: next.dir, after: 0, limit, plus: true };
            let known = enough && client.known.page(start).is_some();
            if !known && let Some(_asking) = client.known.begin_asking_ahead(next.dir) {
                // The walk asks again when it comes there, and gets the error.
                let _ = client.ask_tree(next, limit).await;
            }
        });
    }

    /// Asks for a delegation on an inode; for a walk that changes what it goes through, also on the next ones.
    pub(crate) async fn ask_to_be_alone(&self, ino: Ino) -> Result<(), FsError> {
        if self.known.wait_asked_ahead(ino).await && self.known.is_delegated(&[ino]) {
            return Ok(());
        }
        // Asking ahead ends other sessions' delegations there, so it is only for a walk through one directory after the
        // other.
        match self.known.is_one_of_many().then(|| self.known.walk_from(ino)).flatten() {
            Some(next) => self.ask_tree(next, AHEAD_PAGE_ENTRIES).await.map(|_| ()),
            None => self.view.ask(Read::GetAttr { ino }).await.map(|_| ()),
        }
    }

    /// Notes that a name was asked for. If names of a directory are asked for one after the other, asking for all of
    /// them costs less, unless it is too large.
    pub(crate) fn note_missed(&self, parent: Ino) {
        if self.known.missed(parent, NAMES_AHEAD_MAX) {
            self.ask_for_all_of(parent);
        }
    }

    /// Notes that metad was asked where a file's content is stored. If files of a directory are opened one after the
    /// other, asking for all of them costs less, unless it is too large.
    pub(crate) fn note_unread(&self, ino: Ino) {
        if let Some(parent) = self.known.unread(ino, NAMES_AHEAD_MAX) {
            self.ask_for_all_of(parent);
        }
    }

    /// Asks for everything in a directory, in the background.
    fn ask_for_all_of(&self, dir: Ino) {
        let client = self.arc();
        self.work.spawn_until_stopped(async move {
            let (mut page, mut names) = (PageKey { dir, after: 0, limit: AHEAD_PAGE_ENTRIES, plus: true }, 0);
            while names < NAMES_AHEAD_MAX {
                let with = client.what_with_entries(page);
                page.limit = if with == With::Contents { CONTENTS_PAGE_ENTRIES } else { AHEAD_PAGE_ENTRIES };
                let Ok(listed) = client.ask_page_with(page, with).await else { return };
                names += listed.entries.len() as u64;
                match listed.entries.last() {
                    Some(last) if !listed.end => page.after = last.cookie,
                    _ => return,
                }
            }
        });
    }
}

/// Takes out where the content of files is stored.
fn take_contents(entries: &mut [DirEntry]) -> Vec<(Ino, ExtentPage)> {
    entries.iter_mut().filter_map(|entry| Some((entry.ino, entry.content.take()?))).collect()
}
