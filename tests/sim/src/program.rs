//! Programs on a client: each act is what the kernel and a program would ask of it, and what they are told is noted.

use crate::content::{self, SLOT};
use crate::history::{History, Write};
use crate::plan::{Act, Path};
use crate::truth::Truth;
use client::NewNode;
use client::{Client, Handle, OpenFlags, Wait};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use wire::FsError;
use wire::attr::AttrChange;
use wire::ids::Ino;
use wire::op::{Lock, LockFamily, NewInode, RenameMode};

/// The directory below the top.
const DIR: &[u8] = b"d";
/// How long a lock is held.
const LOCKED: Duration = Duration::from_millis(30);
/// Attempts to open what others remove meanwhile.
const OPENS_TRIED: usize = 3;

/// What all programs share.
pub struct Scene {
    /// What they did.
    pub history: Mutex<History>,
    /// What the metads agreed on.
    pub truth: Arc<Mutex<Truth>>,
    /// Looks for a piece in a file as it is committed.
    pub in_file: Box<dyn Fn(Ino, content::Piece) -> bool + Send + Sync>,
}

/// An open file of a program.
struct Open {
    handle: Handle,
    begun: Instant,
    append: bool,
    /// Writes by it that nobody was told of.
    writes: Vec<u32>,
}

/// A program.
pub struct Program {
    scene: Arc<Scene>,
    client: usize,
    lane: usize,
    open: Option<Open>,
}

fn node(node: NewInode) -> NewNode {
    NewNode { node, mode: 0o644, umask: 0, uid: 0, gid: 0 }
}

impl Program {
    /// A program that has done nothing.
    #[must_use]
    pub fn new(scene: Arc<Scene>, client: usize, lane: usize) -> Self {
        Self { scene, client, lane, open: None }
    }

    /// Its client has died, and all that it had open is gone.
    pub fn forget(&mut self) {
        self.open = None;
    }

    fn owner(&self) -> u64 {
        (self.client * 10 + self.lane) as u64 + 1
    }

    /// Does something. What a program would shrug at, it does.
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
            Act::List(below) => self.list(fs, below).await,
            Act::Unlink(path) => self.unlink(fs, path).await,
            Act::Rename(from, to) => self.rename(fs, from, to).await,
            Act::Mkdir => fs.make_node(Ino::ROOT, DIR, node(NewInode::Directory)).await.map(|_| ()),
            Act::Rmdir => {
                let begun = self.scene.history.lock().removes(self.client, Ino::ROOT, DIR);
                let removed = fs.rmdir(Ino::ROOT, DIR).await;
                self.scene.history.lock().returned(begun);
                removed
            }
            Act::Truncate(path) => self.truncate(fs, path).await,
            Act::Lock(path) => self.lock(fs, path).await,
            Act::Sync => fs.send_all().await,
        }
    }

    async fn dir(&self, fs: &Arc<Client>, below: bool) -> Result<Ino, FsError> {
        if below { Ok(fs.lookup(Ino::ROOT, DIR).await?.ino) } else { Ok(Ino::ROOT) }
    }

    async fn find(&self, fs: &Arc<Client>, path: Path) -> Result<(Ino, Ino), FsError> {
        let dir = self.dir(fs, path.below).await?;
        let attr = fs.lookup(dir, &path.bytes()).await?;
        Ok((dir, attr.ino))
    }

    async fn open(&mut self, fs: &Arc<Client>, path: Path, append: bool) -> Result<(), FsError> {
        let closed = self.close(fs).await;
        let flags = OpenFlags { append, ..OpenFlags::default() };
        let dir = self.dir(fs, path.below).await?;
        for _ in 0..OPENS_TRIED {
            let begun = Instant::now();
            let opened = match fs.lookup(dir, &path.bytes()).await {
                Ok(attr) => fs.open(attr.ino, flags).await,
                Err(FsError::NotFound) => fs.create(dir, &path.bytes(), node(NewInode::Regular), flags).await,
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
            let all = (0..write.pieces)
                .all(|index| (self.scene.in_file)(write.ino, content::Piece { write: *number, index }));
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
        let dir = self.dir(fs, path.below).await?;
        let name = format!("new{}", self.owner()).into_bytes();
        let _ = self.close(fs).await;
        let begun = Instant::now();
        let flags = OpenFlags::default();
        let opened = match fs.create(dir, &name, node(NewInode::Regular), flags).await {
            Err(FsError::Exists) => fs.open(fs.lookup(dir, &name).await?.ino, flags).await?,
            opened => opened?,
        };
        self.open = Some(Open { handle: opened.handle, begun, append: false, writes: Vec::new() });
        self.put(fs, 0, false).await?;
        self.close(fs).await?;
        self.renamed(fs, (dir, name), (dir, path.bytes())).await
    }

    async fn renamed(
        &self,
        fs: &Arc<Client>,
        (dir, name): (Ino, Vec<u8>),
        (new_dir, new_name): (Ino, Vec<u8>),
    ) -> Result<(), FsError> {
        let begun = self.scene.history.lock().removes(self.client, new_dir, &new_name);
        let renamed = fs.rename(dir, &name, new_dir, &new_name, RenameMode::Replace).await;
        self.scene.history.lock().returned(begun);
        renamed
    }

    async fn rename(&self, fs: &Arc<Client>, from: Path, to: Path) -> Result<(), FsError> {
        let (dir, _) = self.find(fs, from).await?;
        let new_dir = self.dir(fs, to.below).await?;
        self.renamed(fs, (dir, from.bytes()), (new_dir, to.bytes())).await
    }

    async fn unlink(&self, fs: &Arc<Client>, path: Path) -> Result<(), FsError> {
        let (dir, _) = self.find(fs, path).await?;
        let begun = self.scene.history.lock().removes(self.client, dir, &path.bytes());
        let removed = fs.unlink(dir, &path.bytes()).await;
        self.scene.history.lock().returned(begun);
        removed
    }

    async fn read(&self, fs: &Arc<Client>, path: Path) -> Result<(), FsError> {
        let begun = Instant::now();
        let (_, ino) = self.find(fs, path).await?;
        let opened = fs.open(ino, OpenFlags::default()).await?;
        let read = fs.read(&opened.handle, 0, 1 << 20).await;
        fs.release(opened.handle).await;
        match content::parse(&read?) {
            Ok(pieces) => self.scene.history.lock().check_read(self.client, ino, begun, &pieces),
            Err(problem) => {
                self.scene.history.lock().problem(format!("client {} reads of {ino}: {problem}", self.client))
            }
        }
        Ok(())
    }

    async fn list(&self, fs: &Arc<Client>, below: bool) -> Result<(), FsError> {
        let dir = self.dir(fs, below).await?;
        fs.readdir(dir, 0, 1024, true).await.map(|_| ())
    }

    async fn truncate(&self, fs: &Arc<Client>, path: Path) -> Result<(), FsError> {
        let (_, ino) = self.find(fs, path).await?;
        let begun = self.scene.history.lock().cuts(self.client, ino);
        let change = AttrChange { size: Some(0), ..AttrChange::default() };
        let cut = fs.setattr(ino, change).await;
        self.scene.history.lock().returned(begun);
        cut.map(|_| ())
    }

    async fn lock(&self, fs: &Arc<Client>, path: Path) -> Result<(), FsError> {
        let (_, ino) = self.find(fs, path).await?;
        let owner = self.owner();
        let lock = Lock { family: LockFamily::Posix, owner, pid: 1, start: 0, end: u64::MAX, exclusive: true };
        let taken = fs.setlk(ino, lock, Wait::Yes).await?;
        taken.keep(fs);
        self.note_lock(ino, owner);
        sleep(LOCKED).await;
        let given_up = fs.unlock(ino, LockFamily::Posix, owner, 0, u64::MAX);
        self.scene.history.lock().holders.entry(ino).or_default().retain(|(_, holder)| *holder != owner);
        given_up.await
    }

    /// Nobody else holds the lock, unless the session by which it was taken has ended.
    fn note_lock(&self, ino: Ino, owner: u64) {
        let (mut history, truth) = (self.scene.history.lock(), self.scene.truth.lock());
        let lives = |holder: u64| truth.locked_by.get(&(ino, holder)).is_some_and(|session| !truth.has_ended(*session));
        let holders = history.holders.entry(ino).or_default();
        let others: Vec<u64> =
            holders.iter().map(|(_, holder)| *holder).filter(|holder| *holder != owner && lives(*holder)).collect();
        holders.push((self.client, owner));
        // Who has just taken it may have lost it already.
        if !others.is_empty() && lives(owner) {
            history.problem(format!("{owner} and {others:?} hold the lock of inode {ino}"));
        }
    }
}

impl Path {
    fn bytes(self) -> Vec<u8> {
        self.name.to_string().into_bytes()
    }
}
