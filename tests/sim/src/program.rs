//! Programs on a client: each act makes the requests that the kernel and a program would make, and notes the answers.

use crate::content::{self, SLOT};
use crate::history::{History, Write};
use crate::leases::Leases;
use crate::names::Leads;
use crate::steps::{Act, Path};
use crate::truth::Truth;
use client::NewNode;
use client::{Client, Handle, OpenFlags, Opened, Wait};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};
use wire::FsError;
use wire::attr::{AttrChange, InodeAttr};
use wire::ids::Ino;
use wire::op::{Lock, LockFamily, NewInode, RenameMode};

/// How long a lock is held.
const LOCK_HELD_FOR: Duration = Duration::from_millis(30);
/// How often opening is tried when others remove the file meanwhile.
const OPENS_TRIED: usize = 3;

/// State that all programs share.
pub struct Scene {
    /// When programs began; their waits count from then.
    pub begun: Instant,
    /// Whether they hold directories open that they have used, as a program that works in one does: its name is not
    /// looked up again.
    pub keeps_dirs_open: bool,
    /// What they did.
    pub history: Mutex<History>,
    /// What the metads agreed on.
    pub truth: Arc<Mutex<Truth>>,
    /// Since when each client has held its leases.
    pub leases: Arc<Leases>,
    /// Returns the pieces that are in a file as it is committed.
    pub pieces_in: Box<dyn Fn(Ino) -> HashSet<content::Piece> + Send + Sync>,
}

/// An open file of a program.
struct Open {
    handle: Handle,
    begun: Instant,
    append: bool,
    /// Its writes that are not confirmed yet.
    writes: Vec<u32>,
}

/// A program.
pub struct Program {
    scene: Arc<Scene>,
    client: usize,
    lane: usize,
    open: Option<Open>,
    dirs: BTreeMap<char, Ino>,
}

fn node(node: NewInode) -> NewNode {
    NewNode { node, mode: 0o644, umask: 0, uid: 0, gid: 0 }
}

impl Program {
    /// Creates a program that has done nothing.
    #[must_use]
    pub fn new(scene: Arc<Scene>, client: usize, lane: usize) -> Self {
        Self { scene, client, lane, open: None, dirs: BTreeMap::new() }
    }

    /// Forgets all that was open, because the client has died.
    pub fn forget(&mut self) {
        self.open = None;
        self.dirs.clear();
    }

    fn owner(&self) -> u64 {
        (self.client * 10 + self.lane) as u64 + 1
    }

    /// Carries out an act. Errors that a program would ignore are ignored.
    pub async fn act(&mut self, fs: &Arc<Client>, act: Act) -> Result<(), FsError> {
        match act {
            Act::Open(path) => self.open(fs, path, false).await,
            Act::OpenToAppend(path) => self.open(fs, path, true).await,
            Act::Put { slot, large } => self.put(fs, slot, large).await,
            Act::Fsync => self.fsync(fs).await,
            Act::Close => self.close(fs).await,
            Act::Save(path) => self.save(fs, path).await,
            Act::Read(path) => self.read(fs, path).await,
            Act::Stat(path) => self.find(fs, path).await.map(|_| ()),
            Act::List(dir) => self.list(fs, dir).await,
            Act::Unlink(path) => self.unlink(fs, path).await,
            Act::Rename(from, to) => self.rename(fs, from, to).await,
            Act::Mkdir(name) => {
                let name = bytes(name);
                let made = fs.make_node(Ino::ROOT, &name, node(NewInode::Directory));
                self.change_names(&[(Ino::ROOT, &name, Leads::Nowhere)], made, |attr| Some(attr.ino)).await.map(|_| ())
            }
            Act::Rmdir(name) => {
                let name = bytes(name);
                let begun = self.scene.history.lock().removes(self.client, (Ino::ROOT, &name), None);
                let removed = fs.rmdir(Ino::ROOT, &name, None);
                let removed = self.change_names(&[(Ino::ROOT, &name, Leads::Nowhere)], removed, |()| None).await;
                self.scene.history.lock().returned(begun);
                removed
            }
            Act::Truncate(path) => self.truncate(fs, path).await,
            Act::Lock(path) => self.lock(fs, path).await,
            Act::Sync => fs.send_all().await,
            Act::Until(at_ms) => {
                sleep_until(self.scene.begun + Duration::from_millis(at_ms)).await;
                Ok(())
            }
        }
    }

    async fn dir(&mut self, fs: &Arc<Client>, dir: Option<char>) -> Result<Ino, FsError> {
        let Some(name) = dir else { return Ok(Ino::ROOT) };
        if let Some(known) = self.dirs.get(&name) {
            return Ok(*known);
        }
        let ino = self.look_up(fs, Ino::ROOT, &bytes(name)).await?.ino;
        if self.scene.keeps_dirs_open {
            self.dirs.insert(name, ino);
        }
        Ok(ino)
    }

    async fn find(&mut self, fs: &Arc<Client>, path: Path) -> Result<(Ino, Ino), FsError> {
        let dir = self.dir(fs, path.dir).await?;
        let attr = self.look_up(fs, dir, &path.bytes()).await?;
        Ok((dir, attr.ino))
    }

    /// Looks a name up, and checks the answer against what others were answered before.
    async fn look_up(&self, fs: &Arc<Client>, dir: Ino, name: &[u8]) -> Result<InodeAttr, FsError> {
        let begun = Instant::now();
        let found = fs.lookup(dir, name).await;
        let (mut history, truth) = (self.scene.history.lock(), self.scene.truth.lock());
        if let Ok(attr) = &found {
            let answered = (self.client, attr.ino, attr.size);
            history.check_size(answered, begun, (&truth, &self.scene.leases));
        }
        let shown = match &found {
            Ok(attr) => Some(attr.ino),
            Err(FsError::NotFound) => None,
            Err(_) => return found,
        };
        self.check_name(&mut history, (dir, name), begun, shown);
        found
    }

    /// I5: checks the answer of a lookup that began then.
    fn check_name(&self, history: &mut History, (dir, name): (Ino, &[u8]), begun: Instant, shown: Option<Ino>) {
        if let Some(expected) = history.names.expected((dir, name), begun, &self.scene.leases)
            && !expected.may_show(shown)
        {
            let (client, name) = (self.client, String::from_utf8_lossy(name));
            history.problem(format!(
                "client {client} is answered that {name} in inode {dir} leads to {shown:?} instead of {expected:?}"
            ));
        }
    }

    /// Carries out a change of names. Returns what it has made, if anything.
    async fn change_names<T>(
        &self,
        names: &[(Ino, &[u8], Leads)],
        change: impl Future<Output = Result<T, FsError>>,
        made: impl FnOnce(&T) -> Option<Ino>,
    ) -> Result<T, FsError> {
        let changing = self.scene.history.lock().names.begin(self.client, names);
        let outcome = change.await;
        let known = outcome.as_ref().map(made).map_err(|error| *error);
        self.scene.history.lock().names.returned(changing, known);
        outcome
    }

    async fn create(&self, fs: &Arc<Client>, dir: Ino, name: &[u8], flags: OpenFlags) -> Result<Opened, FsError> {
        let created = fs.create(dir, name, node(NewInode::Regular), flags);
        self.change_names(&[(dir, name, Leads::Nowhere)], created, |opened| Some(opened.handle.ino())).await
    }

    async fn open(&mut self, fs: &Arc<Client>, path: Path, append: bool) -> Result<(), FsError> {
        let closed = self.close(fs).await;
        let flags = OpenFlags { append, ..OpenFlags::default() };
        let dir = self.dir(fs, path.dir).await?;
        for _ in 0..OPENS_TRIED {
            let begun = Instant::now();
            let opened = match self.look_up(fs, dir, &path.bytes()).await {
                Ok(attr) => fs.open(attr.ino, flags).await,
                Err(FsError::NotFound) => self.create(fs, dir, &path.bytes(), flags).await,
                Err(error) => Err(error),
            };
            match opened {
                Ok(opened) => {
                    self.open = Some(Open { handle: opened.handle, begun, append, writes: Vec::new() });
                    return closed;
                }
                // Others were faster.
                Err(FsError::Exists | FsError::NotFound | FsError::Stale) => {}
                Err(error) => return Err(error),
            }
        }
        closed
    }

    async fn put(&mut self, fs: &Arc<Client>, slot: u64, large: bool) -> Result<(), FsError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let at = (!open.append).then_some(slot * SLOT);
        let begun = Instant::now();
        let number = {
            let mut history = self.scene.history.lock();
            let number = history.writes.len() as u32 + 1;
            let write = Write {
                client: self.client,
                ino: open.handle.ino(),
                at,
                pieces: content::pieces(large),
                opened: open.begun,
                begun,
                returned: None,
                durable: None,
                closed: None,
                in_place: false,
                lost: false,
            };
            history.writes.insert(number, write);
            number
        };
        let data = content::bytes(number, large);
        let written = match fs.try_write(&open.handle, at.unwrap_or(0), &data, false) {
            Some(written) => written,
            None => fs.write(&open.handle, at.unwrap_or(0), &data, false).await,
        };
        if let Some(write) = self.scene.history.lock().writes.get_mut(&number) {
            write.returned = Some(Instant::now());
        }
        if written.is_ok() {
            open.writes.push(number);
        }
        written.map(|_| ())
    }

    async fn fsync(&mut self, fs: &Arc<Client>) -> Result<(), FsError> {
        let Some(open) = &self.open else { return Ok(()) };
        fs.fsync(&open.handle).await?;
        let now = Instant::now();
        let mut history = self.scene.history.lock();
        for number in &open.writes {
            let Some(write) = history.writes.get_mut(number) else { continue };
            let in_file = (self.scene.pieces_in)(write.ino);
            let all = (0..write.pieces).all(|index| in_file.contains(&content::Piece { write: *number, index }));
            write.durable.get_or_insert(now);
            write.in_place |= all;
        }
        Ok(())
    }

    async fn close(&mut self, fs: &Arc<Client>) -> Result<(), FsError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let closed = fs.close(&open.handle).await;
        if closed.is_ok() {
            let now = Instant::now();
            let mut history = self.scene.history.lock();
            for number in &open.writes {
                if let Some(write) = history.writes.get_mut(number) {
                    write.closed.get_or_insert(now);
                }
            }
        }
        fs.release(open.handle).await;
        closed
    }

    async fn save(&mut self, fs: &Arc<Client>, path: Path) -> Result<(), FsError> {
        let dir = self.dir(fs, path.dir).await?;
        let name = format!("new{}", self.owner()).into_bytes();
        let _ = self.close(fs).await;
        let begun = Instant::now();
        let flags = OpenFlags::default();
        let opened = match self.create(fs, dir, &name, flags).await {
            Err(FsError::Exists) => fs.open(self.look_up(fs, dir, &name).await?.ino, flags).await?,
            opened => opened?,
        };
        let ino = opened.handle.ino();
        self.open = Some(Open { handle: opened.handle, begun, append: false, writes: Vec::new() });
        self.put(fs, 0, false).await?;
        self.close(fs).await?;
        self.renamed(fs, (dir, name, Leads::To(ino)), (dir, path.bytes())).await
    }

    async fn renamed(
        &self,
        fs: &Arc<Client>,
        (dir, name, leads): (Ino, Vec<u8>, Leads),
        (new_dir, new_name): (Ino, Vec<u8>),
    ) -> Result<(), FsError> {
        let begun = self.scene.history.lock().removes(self.client, (new_dir, &new_name), None);
        let renamed = fs.rename((dir, &name), (new_dir, &new_name), RenameMode::Replace, None);
        let names = [(dir, &name[..], Leads::Nowhere), (new_dir, &new_name[..], leads)];
        let renamed = self.change_names(&names, renamed, |()| None).await;
        self.scene.history.lock().returned(begun);
        renamed
    }

    async fn rename(&mut self, fs: &Arc<Client>, from: Path, to: Path) -> Result<(), FsError> {
        let (dir, _) = self.find(fs, from).await?;
        let new_dir = self.dir(fs, to.dir).await?;
        // Others may have put something else there meanwhile.
        self.renamed(fs, (dir, from.bytes(), Leads::Somewhere), (new_dir, to.bytes())).await
    }

    async fn unlink(&mut self, fs: &Arc<Client>, path: Path) -> Result<(), FsError> {
        let (dir, ino) = self.find(fs, path).await?;
        let name = path.bytes();
        let begun = self.scene.history.lock().removes(self.client, (dir, &name), Some(ino));
        let removed = fs.unlink(dir, &name);
        let removed = self.change_names(&[(dir, &name, Leads::Nowhere)], removed, |()| None).await;
        self.scene.history.lock().returned(begun);
        removed
    }

    async fn read(&mut self, fs: &Arc<Client>, path: Path) -> Result<(), FsError> {
        let begun = Instant::now();
        let (_, ino) = self.find(fs, path).await?;
        let opened = fs.open(ino, OpenFlags::default()).await?;
        let read = fs.read(&opened.handle, 0, 1 << 20).await;
        fs.release(opened.handle).await;
        match content::parse(&read?) {
            Ok(pieces) => {
                let (mut history, truth) = (self.scene.history.lock(), self.scene.truth.lock());
                history.check_read((self.client, ino), begun, &pieces, (&truth, &self.scene.leases));
            }
            Err(problem) => {
                self.scene.history.lock().problem(format!("client {} reads of {ino}: {problem}", self.client))
            }
        }
        Ok(())
    }

    async fn list(&mut self, fs: &Arc<Client>, dir: Option<char>) -> Result<(), FsError> {
        let dir = self.dir(fs, dir).await?;
        let begun = Instant::now();
        let page = fs.readdir(dir, 0, 1024, true).await?;
        let mut history = self.scene.history.lock();
        let names: Vec<_> = history.names.of(dir).cloned().collect();
        for name in names {
            let shown = page.entries.iter().find(|entry| entry.name[..] == name[..]).map(|entry| entry.ino);
            self.check_name(&mut history, (dir, &name), begun, shown);
        }
        Ok(())
    }

    async fn truncate(&mut self, fs: &Arc<Client>, path: Path) -> Result<(), FsError> {
        let (_, ino) = self.find(fs, path).await?;
        let begun = self.scene.history.lock().cuts(self.client, ino);
        let change = AttrChange { size: Some(0), ..AttrChange::default() };
        let cut = fs.setattr(ino, change).await;
        self.scene.history.lock().returned(begun);
        cut.map(|_| ())
    }

    async fn lock(&mut self, fs: &Arc<Client>, path: Path) -> Result<(), FsError> {
        let (_, ino) = self.find(fs, path).await?;
        let owner = self.owner();
        let lock = Lock { family: LockFamily::Posix, owner, pid: 1, start: 0, end: u64::MAX, exclusive: true };
        let taken = fs.setlk(ino, lock, Wait::Yes).await?;
        taken.confirm(fs);
        self.note_lock(ino, owner);
        sleep(LOCK_HELD_FOR).await;
        let given_up = fs.unlock(ino, LockFamily::Posix, owner, 0, u64::MAX);
        self.scene.history.lock().holders.entry(ino).or_default().retain(|(_, holder)| *holder != owner);
        given_up.await
    }

    /// Checks that nobody else holds the lock, unless the session by which it was taken has ended.
    fn note_lock(&self, ino: Ino, owner: u64) {
        let (mut history, truth) = (self.scene.history.lock(), self.scene.truth.lock());
        let lives = |holder: u64| truth.locked_by.get(&(ino, holder)).is_some_and(|session| !truth.has_ended(*session));
        let holders = history.holders.entry(ino).or_default();
        let others: Vec<u64> =
            holders.iter().map(|(_, holder)| *holder).filter(|holder| *holder != owner && lives(*holder)).collect();
        holders.push((self.client, owner));
        // The new holder may have lost it already.
        if !others.is_empty() && lives(owner) {
            history.problem(format!("{owner} and {others:?} hold the lock of inode {ino}"));
        }
    }
}

fn bytes(name: char) -> Vec<u8> {
    name.to_string().into_bytes()
}

impl Path {
    fn bytes(self) -> Vec<u8> {
        bytes(self.name)
    }
}
