//! A disk for journals, in memory. What was not synced is lost in part or as a whole when the power fails.

use client::disk::{Disk, DiskFile};
use kit::chance::Chance;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
struct File {
    written: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, File>,
    next: u64,
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    /// The number of the process that may use it.
    user: u64,
}

/// A disk that outlives the processes that use it.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

/// The disk, as one process has opened it.
#[derive(Clone, Debug)]
struct Opened {
    state: Arc<Mutex<State>>,
    user: u64,
}

#[derive(Debug)]
struct OpenedFile {
    disk: Opened,
    file: u64,
}

impl SimulatedDisk {
    /// Opens the disk for the next process; the previous one is dead.
    #[must_use]
    pub fn open(&self) -> Arc<dyn Disk> {
        let mut state = self.state.lock();
        state.user += 1;
        Arc::new(Opened { state: self.state.clone(), user: state.user })
    }

    /// Notes that the process that uses the disk has died.
    pub fn kill_user(&self) {
        self.state.lock().user += 1;
    }

    /// Cuts the power: a part of what was not synced has reached the disk.
    pub fn cut_power(&self, chance: &mut Chance) {
        let mut state = self.state.lock();
        state.user += 1;
        let State { files, names, synced_names, .. } = &mut *state;
        // Names are changed in order, so a part of the changes may be there. For simplicity, it is all of them or none.
        if chance.happens(0.5) {
            names.clone_from(synced_names);
        } else {
            synced_names.clone_from(names);
        }
        for file in files.values_mut() {
            let behind = file.written.len().saturating_sub(file.synced.len()) as u64;
            let prefix = file.written.starts_with(&file.synced);
            let kept = if prefix { file.synced.len() + chance.below(behind + 1) as usize } else { file.synced.len() };
            let source = if prefix { &file.written } else { &file.synced };
            file.written = source[..kept].to_vec();
            file.synced.clone_from(&file.written);
        }
        let named: Vec<u64> = names.values().copied().collect();
        files.retain(|number, _| named.contains(number));
    }

    /// Returns whether these bytes are in any file.
    #[must_use]
    pub fn contains(&self, wanted: &[u8]) -> bool {
        let state = self.state.lock();
        let is_in = |file: &File| file.written.windows(wanted.len()).any(|window| window == wanted);
        state.names.values().filter_map(|number| state.files.get(number)).any(is_in)
    }
}

impl Opened {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        if state.user != self.user {
            return Err(io::Error::other("the process is dead"));
        }
        work(&mut state)
    }
}

fn missing() -> io::Error {
    io::Error::from(ErrorKind::NotFound)
}

impl Disk for Opened {
    fn path(&self) -> &Path {
        Path::new("/simulated")
    }

    fn is_instant(&self) -> bool {
        true
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.with(|state| Ok(state.names.keys().cloned().collect()))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.with(|state| {
            let number = state.names.get(name).ok_or_else(missing)?;
            Ok(state.files[number].written.clone())
        })
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.with(|state| {
            state.next += 1;
            let file = state.next;
            state.files.insert(file, File::default());
            state.names.insert(name.to_owned(), file);
            Ok(Box::new(OpenedFile { disk: self.clone(), file }) as Box<dyn DiskFile>)
        })
    }

    fn rename(&self, name: &str, new_name: &str) -> io::Result<()> {
        self.with(|state| {
            let file = state.names.remove(name).ok_or_else(missing)?;
            state.names.insert(new_name.to_owned(), file);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|state| state.names.remove(name).map(|_| ()).ok_or_else(missing))
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| {
            state.synced_names.clone_from(&state.names);
            Ok(())
        })
    }
}

impl OpenedFile {
    fn with(&self, work: impl FnOnce(&mut File)) -> io::Result<()> {
        self.disk.with(|state| {
            work(state.files.get_mut(&self.file).ok_or_else(missing)?);
            Ok(())
        })
    }
}

impl DiskFile for OpenedFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|file| {
            let (start, end) = (offset as usize, offset as usize + bytes.len());
            if file.written.len() < end {
                file.written.resize(end, 0);
            }
            file.written[start..end].copy_from_slice(bytes);
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|file| file.synced.clone_from(&file.written))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|file| file.written.resize(len as usize, 0))
    }
}
