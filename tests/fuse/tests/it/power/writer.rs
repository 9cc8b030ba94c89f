//! A writer of files that knows what was acknowledged as durable, and checks it after a power loss.
//!
//! Each operation ends with a sync. Once that has returned, the operation is *acknowledged*: its effect must be there
//! from then on. At most one operation is under way at a time. After a crash its files may be as before or after it,
//! or, while bytes were written to a file, some of its bytes as before and some as after.

use fuse::{names, random};
use kit::Chance;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Files of a writer.
const NAMES: u64 = 16;
/// Extents of a file are stored by chunks of this size (docs/glossary.md).
const CHUNK_BYTES: u64 = 64 << 20;
/// A file of this size is replaced or removed, and not appended to.
const FILE_BYTES_MAX: usize = 8 << 20;

/// Content of a file: a hole, and the bytes after it.
#[derive(Clone, PartialEq, Eq)]
struct Content {
    hole: u64,
    bytes: Vec<u8>,
}

impl Content {
    fn draw(chance: &mut Chance) -> Self {
        let (hole, len) = match chance.below(20) {
            0..6 => (0, chance.below(4 << 10)),
            6..16 => (0, chance.below(200 << 10)),
            16..19 => (0, chance.below(6 << 20)),
            _ => (CHUNK_BYTES - chance.below(2 << 20), chance.below(4 << 20)),
        };
        Self { hole, bytes: random(chance.below(1 << 31), len as usize + 1) }
    }

    fn len(&self) -> u64 {
        self.hole + self.bytes.len() as u64
    }

    /// Reads a file that should have this hole.
    fn read(path: &Path, hole: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut bytes = vec![0; len.saturating_sub(hole) as usize];
        file.read_exact_at(&mut bytes, hole.min(len))?;
        let mut end = vec![0; hole.min(len).min(64 << 10) as usize];
        let before_end = hole.min(len) - end.len() as u64;
        file.read_exact_at(&mut end, before_end)?;
        if end.iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(ErrorKind::InvalidData, "there are bytes in its hole"));
        }
        Ok(Self { hole: hole.min(len), bytes })
    }

    /// Whether each byte is as before or as after, and so is the length, or in between.
    fn is_between(&self, before: &Self, after: &Self) -> bool {
        let is_known = |(place, byte): (usize, &u8)| {
            let (was, is) = (before.bytes.get(place), after.bytes.get(place));
            was == Some(byte) || is == Some(byte) || (was.is_none() && *byte == 0)
        };
        let lens = before.len().min(after.len())..=before.len().max(after.len());
        lens.contains(&self.len()) && self.bytes.iter().enumerate().all(is_known)
    }

    fn text(&self) -> String {
        let hash = self.bytes.iter().fold(0_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        format!("{} bytes, {hash:x}", self.len())
    }
}

/// An operation under way.
struct Attempt {
    what: &'static str,
    name: String,
    before: Option<Content>,
    after: Option<Content>,
    /// The file has the content before or the one after, and nothing in between.
    is_whole: bool,
}

/// A writer and the only user of a directory.
pub(crate) struct Writer {
    name: String,
    chance: Chance,
    /// What was acknowledged, or seen after a crash.
    files: BTreeMap<String, Content>,
    attempt: Option<Attempt>,
    /// Operations acknowledged.
    pub(crate) acknowledged: u64,
}

impl Writer {
    /// Makes the directory below `root`, durably.
    pub(crate) fn new(root: &Path, number: u64, seed: u64) -> Self {
        let name = format!("writer-{number}");
        fs::create_dir(root.join(&name)).expect("a directory can be made");
        sync_dir(root).expect("a directory can be synced");
        let chance = Chance::of(seed, &name);
        Self { name, chance, files: BTreeMap::new(), attempt: None, acknowledged: 0 }
    }

    /// Does one operation, and returns when it is durable.
    pub(crate) fn step(&mut self, root: &Path) -> io::Result<()> {
        let dir = root.join(&self.name);
        let name = format!("file-{}", self.chance.below(NAMES));
        let path = dir.join(&name);
        let Some(before) = self.files.get(&name).cloned() else { return self.create(&dir, name) };
        let after = Content::draw(&mut self.chance);
        match self.chance.below(10) {
            0..3 if before.bytes.len() < FILE_BYTES_MAX => {
                let mut whole = before.clone();
                whole.bytes.extend_from_slice(&after.bytes);
                self.begin("append", &name, Some(before), Some(whole), false);
                let mut file = File::options().append(true).open(path)?;
                file.write_all(&after.bytes)?;
                file.sync_data()?;
            }
            3..6 => {
                let start = self.chance.below(before.bytes.len() as u64 + 1) as usize;
                let mut whole = before.clone();
                let end = start + after.bytes.len();
                whole.bytes.resize(whole.bytes.len().max(end), 0);
                whole.bytes[start..end].copy_from_slice(&after.bytes);
                let offset = before.hole + start as u64;
                self.begin("overwrite", &name, Some(before), Some(whole), false);
                let file = File::options().write(true).open(path)?;
                file.write_all_at(&after.bytes, offset)?;
                file.sync_all()?;
            }
            6..8 => {
                self.begin("remove", &name, Some(before), None, true);
                fs::remove_file(path)?;
                sync_dir(&dir)?;
            }
            _ => {
                self.begin("replace", &name, Some(before), Some(after.clone()), true);
                let partial = dir.join(partial_of(&name));
                let file = File::create(&partial)?;
                file.write_all_at(&after.bytes, after.hole)?;
                file.sync_all()?;
                fs::rename(partial, path)?;
                sync_dir(&dir)?;
            }
        }
        self.acknowledge();
        Ok(())
    }

    /// Makes a file. Surf promises that a sync of a file covers its name (docs/semantics.md), so not every name gets a
    /// sync of its own.
    fn create(&mut self, dir: &Path, name: String) -> io::Result<()> {
        let after = Content::draw(&mut self.chance);
        self.begin("create", &name, None, Some(after.clone()), false);
        let file = File::create_new(dir.join(name))?;
        file.write_all_at(&after.bytes, after.hole)?;
        file.sync_all()?;
        if self.chance.happens(0.5) {
            sync_dir(dir)?;
        }
        self.acknowledge();
        Ok(())
    }

    fn begin(
        &mut self,
        what: &'static str,
        name: &str,
        before: Option<Content>,
        after: Option<Content>,
        is_whole: bool,
    ) {
        self.attempt = Some(Attempt { what, name: name.to_owned(), before, after, is_whole });
    }

    fn acknowledge(&mut self) {
        let attempt = self.attempt.take().expect("an operation is under way");
        self.acknowledged += 1;
        self.set(attempt.name, attempt.after);
    }

    fn set(&mut self, name: String, content: Option<Content>) {
        match content {
            Some(content) => drop(self.files.insert(name, content)),
            None => drop(self.files.remove(&name)),
        }
    }

    /// Checks all files, and takes over what has become of the operation that was under way. Returns the number of
    /// files read.
    ///
    /// # Panics
    /// When something acknowledged is not there.
    pub(crate) fn check(&mut self, root: &Path) -> usize {
        let dir = root.join(&self.name);
        let mut known: BTreeSet<String> = self.files.keys().cloned().collect();
        if let Some(attempt) = self.attempt.take() {
            known.extend([attempt.name.clone(), partial_of(&attempt.name)]);
            let found = self.judge(&dir, &attempt);
            self.set(attempt.name, found);
        }
        for (name, content) in &self.files {
            let path = dir.join(name);
            let found = Content::read(&path, content.hole).unwrap_or_else(|error| lost(&path, content, &error));
            assert!(found == *content, "{} has {}, not {}", path.display(), found.text(), content.text());
        }
        for name in names(&dir) {
            assert!(known.contains(&name), "{} is back", dir.join(name).display());
        }
        self.files.len()
    }

    /// Returns what an operation that was under way has left.
    fn judge(&self, dir: &Path, attempt: &Attempt) -> Option<Content> {
        let path = dir.join(&attempt.name);
        match fs::remove_file(dir.join(partial_of(&attempt.name))) {
            Ok(()) => sync_dir(dir).expect("a directory can be synced"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{}: {error}", path.display()),
        }
        let (before, after) = (&attempt.before, &attempt.after);
        for content in [before, after] {
            let is_it = match content {
                Some(content) => Content::read(&path, content.hole).is_ok_and(|found| found == *content),
                None => !path.try_exists().expect("a name can be looked up"),
            };
            if is_it {
                return content.clone();
            }
        }
        let found = Content::read(&path, after.as_ref().map_or(0, |content| content.hole));
        let nothing = Content { hole: 0, bytes: Vec::new() };
        let is_allowed = !attempt.is_whole
            && found.as_ref().is_ok_and(|found| {
                after.as_ref().is_some_and(|after| found.is_between(before.as_ref().unwrap_or(&nothing), after))
            });
        let text = |content: Option<&Content>| content.map_or("nothing".to_owned(), Content::text);
        let (was, is) = (text(before.as_ref()), text(after.as_ref()));
        let found = found.unwrap_or_else(|error| panic!("{}: {error} after a {}", path.display(), attempt.what));
        assert!(is_allowed, "{} has {}, after a {} of {was} to {is}", path.display(), found.text(), attempt.what);
        Some(found)
    }
}

fn lost(path: &Path, content: &Content, error: &io::Error) -> ! {
    panic!("{} is lost ({error}): it had {}", path.display(), content.text())
}

fn partial_of(name: &str) -> String {
    format!("{name}.partial")
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
