//! A directory under test: a column of the table.

use crate::mounts::Mount;
use crate::process::Node;
use crate::{signals, sys};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A directory under test. Dropping it takes down what was set up for it, the mount first, and removes every file.
pub(crate) struct Side {
    pub name: String,
    /// Its description, for the reader of the figures.
    pub what: String,
    /// Directory in which the rows work.
    dir: PathBuf,
    mount: Option<Mount>,
    _node: Option<Node>,
    _files: Files,
}

/// Files of a side, removed when this is dropped.
pub(crate) struct Files(pub PathBuf);

impl Files {
    /// Makes a directory.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        Ok(Self(dir.to_owned()))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

/// Splits NAME=DIRECTORY, as flags have it.
pub(crate) fn named(text: &str) -> Option<(&str, &Path)> {
    text.split_once('=')
        .filter(|(name, dir)| !name.is_empty() && !dir.is_empty())
        .map(|(name, dir)| (name, Path::new(dir)))
}

impl Side {
    /// An existing directory, which stays.
    pub(crate) fn plain(name: &str, dir: &Path) -> Result<Self> {
        let dir = dir.join(format!("bench-{}", std::process::id()));
        let files = Files::new(&dir)?;
        let what = format!("a directory in {}", dir.parent().unwrap_or(&dir).display());
        Ok(Self { name: name.to_owned(), what, dir, mount: None, _node: None, _files: files })
    }

    /// A file system that was set up for this run.
    pub(crate) fn mounted(name: &str, what: String, files: Files, node: Option<Node>, mount: Mount) -> Result<Self> {
        let dir = mount.path().join("work");
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self { name: name.to_owned(), what, dir, mount: Some(mount), _node: node, _files: files })
    }

    /// The directory in which the rows work.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Empties the caches of all that was written or read: a mount of the bench is made anew, and the kernel's caches
    /// are dropped.
    pub(crate) fn make_cold(&mut self) -> Result<()> {
        signals::check()?;
        if let Some(mount) = &mut self.mount {
            mount.remount()?;
        }
        sys::drop_caches();
        Ok(())
    }

    /// Removes the files of a run.
    pub(crate) fn empty(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        Ok(())
    }
}
