//! A file system with a volatile write cache: present contents lie in files of a backing directory, one for each inode;
//! names, and what is not synced, are in memory.
//!
//! Attributes other than the length are durable at once: no daemon relies on when they are.

use super::entries::{Entries, Ino, NameModel, ROOT};
use super::sectors::{SECTOR, Unsynced};
use crate::chance::Chance;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What an inode is.
#[derive(Debug)]
pub(super) enum Kind {
    Dir,
    File(Unsynced),
    Symlink(OsString),
}

/// An inode.
#[derive(Debug)]
pub(super) struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: SystemTime,
}

impl Node {
    pub(super) fn new(kind: Kind, mode: u32, (uid, gid): (u32, u32)) -> Self {
        Self { kind, mode: mode & 0o7777, uid, gid, mtime: SystemTime::now() }
    }

    pub(super) fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir)
    }

    pub(super) fn size(&self) -> u64 {
        match &self.kind {
            Kind::Dir => 0,
            Kind::File(unsynced) => unsynced.size(),
            Kind::Symlink(target) => target.len() as u64,
        }
    }
}

/// What was at stake when the power failed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stake {
    /// Files with unsynced content.
    pub files: usize,
    /// Unsynced changes of names.
    pub names: usize,
}

/// The file system.
#[derive(Debug)]
pub(super) struct Volume {
    backing: PathBuf,
    nodes: BTreeMap<Ino, Node>,
    entries: Entries,
    last_ino: Ino,
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// Rounds down and up to whole sectors.
fn sectors_around(start: u64, end: u64) -> (u64, u64) {
    (start / SECTOR as u64, end.div_ceil(SECTOR as u64))
}

impl Volume {
    /// An empty file system; its contents lie in an empty directory.
    pub(super) fn new(backing: &Path, model: NameModel) -> Self {
        let root = Node::new(Kind::Dir, 0o755, (0, 0));
        let nodes = BTreeMap::from([(ROOT, root)]);
        Self { backing: backing.to_owned(), nodes, entries: Entries::new(model), last_ino: ROOT }
    }

    pub(super) fn node(&self, ino: Ino) -> io::Result<&Node> {
        self.nodes.get(&ino).ok_or_else(|| error(libc::ESTALE))
    }

    pub(super) fn node_mut(&mut self, ino: Ino) -> io::Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or_else(|| error(libc::ESTALE))
    }

    pub(super) fn lookup(&self, dir: Ino, name: &OsStr) -> io::Result<Ino> {
        self.entries.get(dir, name).ok_or_else(|| error(libc::ENOENT))
    }

    /// The inodes of a directory and their names, in an order that stays when others are removed.
    pub(super) fn list(&self, dir: Ino) -> io::Result<BTreeMap<Ino, OsString>> {
        let entries = self.entries.list(dir).ok_or_else(|| error(libc::ENOTDIR))?;
        Ok(entries.iter().map(|(name, ino)| (*ino, name.clone())).collect())
    }

    /// Numbers of all files that have this name, in whatever directory.
    pub(super) fn find(&self, name: &OsStr) -> Vec<Ino> {
        let dirs = self.nodes.iter().filter(|(_, node)| node.is_dir());
        dirs.filter_map(|(dir, _)| self.entries.get(*dir, name)).collect()
    }

    pub(super) fn make(&mut self, dir: Ino, name: &OsStr, node: Node) -> io::Result<Ino> {
        if self.entries.get(dir, name).is_some() {
            return Err(error(libc::EEXIST));
        }
        self.last_ino += 1;
        let ino = self.last_ino;
        match node.kind {
            Kind::Dir => self.entries.add_dir(ino),
            Kind::File(_) => drop(File::create(self.path(ino))?),
            Kind::Symlink(_) => {}
        }
        self.nodes.insert(ino, node);
        self.entries.link(dir, name, ino);
        Ok(ino)
    }

    /// Removes a name. Its inode stays, because a power loss may bring the name back.
    pub(super) fn remove(&mut self, dir: Ino, name: &OsStr) -> io::Result<()> {
        let child = self.lookup(dir, name)?;
        if self.entries.list(child).is_some_and(|entries| !entries.is_empty()) {
            return Err(error(libc::ENOTEMPTY));
        }
        self.entries.unlink(dir, name);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> io::Result<()> {
        if let Some(target) = self.entries.get(to.0, to.1)
            && self.entries.list(target).is_some_and(|entries| !entries.is_empty())
        {
            return Err(error(libc::ENOTEMPTY));
        }
        if self.entries.rename(from, to) { Ok(()) } else { Err(error(libc::ENOENT)) }
    }

    pub(super) fn read(&self, ino: Ino, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let count = read_fully(&File::open(self.path(ino))?, &mut bytes, offset)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    pub(super) fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        self.change(ino, (offset, end), |range| range.copy_from_slice(bytes))?;
        let Kind::File(unsynced) = &mut self.node_mut(ino)?.kind else { return Err(error(libc::EINVAL)) };
        unsynced.resize(end.max(unsynced.size()));
        Ok(())
    }

    /// Sets a range to zeros, without making the file longer.
    pub(super) fn zero(&mut self, ino: Ino, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len).min(self.node(ino)?.size());
        if offset < end { self.change(ino, (offset, end), |range| range.fill(0)) } else { Ok(()) }
    }

    pub(super) fn resize(&mut self, ino: Ino, size: u64) -> io::Result<()> {
        self.zero(ino, size, u64::MAX)?;
        let path = self.path(ino);
        let Kind::File(unsynced) = &mut self.node_mut(ino)?.kind else { return Err(error(libc::EINVAL)) };
        File::options().write(true).open(path)?.set_len(size)?;
        unsynced.resize(size);
        Ok(())
    }

    /// Changes the bytes of a range.
    fn change(&mut self, ino: Ino, (start, end): (u64, u64), change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let file = File::options().read(true).write(true).open(self.path(ino))?;
        let (first, last) = sectors_around(start, end);
        let mut before = vec![0; (last - first) as usize * SECTOR];
        if first * (SECTOR as u64) < self.node(ino)?.size() {
            read_fully(&file, &mut before, first * SECTOR as u64)?;
        }
        let mut after = before.clone();
        let from = (start - first * SECTOR as u64) as usize;
        let range = from..from + (end - start) as usize;
        change(&mut after[range.clone()]);
        let node = self.node_mut(ino)?;
        let Kind::File(unsynced) = &mut node.kind else { return Err(error(libc::EINVAL)) };
        if before == after {
            // Files that are written in advance with zeros stay holes: that is fast, and looks the same.
            file.set_len(end.max(unsynced.size()))?;
        } else {
            file.write_all_at(&after[range], start)?;
        }
        unsynced.write(first, &before, &after);
        node.mtime = SystemTime::now();
        Ok(())
    }

    /// Makes durable what a sync of this inode makes durable.
    pub(super) fn sync(&mut self, ino: Ino) -> io::Result<()> {
        if let Kind::File(unsynced) = &mut self.node_mut(ino)?.kind {
            unsynced.sync();
        }
        self.entries.sync(ino);
        Ok(())
    }

    /// Goes on from a state that a power loss may leave. Returns what was at stake.
    pub(super) fn lose(&mut self, seed: u64) -> io::Result<Stake> {
        let mut chance = Chance::of(seed, "power loss");
        let mut stake = Stake { files: 0, names: self.entries.pending() };
        let reached = self.entries.lose(&mut chance);
        let backing = self.backing.clone();
        for (ino, node) in &mut self.nodes {
            let Kind::File(unsynced) = &mut node.kind else { continue };
            let path = backing.join(ino.to_string());
            if !reached.contains(ino) {
                fs::remove_file(path)?;
            } else if !unsynced.is_synced() {
                stake.files += 1;
                let left = unsynced.lose(&mut chance);
                let file = File::options().write(true).open(path)?;
                for (sector, bytes) in left.sectors {
                    file.write_all_at(&bytes, sector * SECTOR as u64)?;
                }
                file.set_len(left.size)?;
                *unsynced = Unsynced::new(left.size);
            }
        }
        self.nodes.retain(|ino, _| reached.contains(ino));
        Ok(stake)
    }

    fn path(&self, ino: Ino) -> PathBuf {
        self.backing.join(ino.to_string())
    }
}

/// Fills a buffer from an offset on, and returns how much of it the file has.
fn read_fully(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read_at(&mut buffer[count..], offset + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
