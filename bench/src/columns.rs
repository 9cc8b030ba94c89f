//! Columns that the bench sets up by itself, each in a directory of its own below one place, so that all are on the
//! same disk. Services get a network of their own (see [`crate::process::Node`]) with a loopback interface only.

mod glusterfs;
mod moosefs;
mod surf;

use crate::mounts::{Mount, Serving};
use crate::packages;
use crate::side::{self, Files, Side};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A column that the bench sets up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Column {
    /// The disk itself.
    Ext4,
    /// A file system over fuser that only stores things in memory: the cost of FUSE.
    Null,
    /// surfmount with a cluster of one node within.
    Embedded,
    /// surfmount on three metads and three blockds, three replicas.
    Cluster,
    /// MooseFS with three chunkservers, goal 3.
    Moosefs,
    /// GlusterFS with three bricks, replica 3.
    Glusterfs,
}

impl Column {
    /// Its name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Column::Ext4 => "ext4",
            Column::Null => NULL,
            Column::Embedded => "embedded",
            Column::Cluster => "cluster",
            Column::Moosefs => "moosefs",
            Column::Glusterfs => "glusterfs",
        }
    }

    /// Programs that it needs, each with its Debian package.
    fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Column::Ext4 | Column::Null | Column::Embedded => &[],
            Column::Cluster => &NAMESPACES,
            Column::Moosefs => &moosefs::PROGRAMS,
            Column::Glusterfs => &glusterfs::PROGRAMS,
        }
    }

    /// True if it is Surf, and so can be set up with another build, too.
    pub(crate) fn is_surf(self) -> bool {
        matches!(self, Column::Embedded | Column::Cluster)
    }

    /// Sets it up in a directory of its own in `place`, Surf with the programs of `build`.
    fn set_up(self, place: &Path, build: &Build) -> Result<Side> {
        let name = build.side(self);
        let dir = place.join(&name);
        let files = Files::new(&dir)?;
        match self {
            Column::Ext4 => {
                drop(files);
                Side::plain(&name, &dir)
            }
            Column::Null => null(files),
            Column::Embedded => surf::embedded(&name, files, build),
            Column::Cluster => surf::cluster(&name, files, build),
            Column::Moosefs => moosefs::set_up(files),
            Column::Glusterfs => glusterfs::set_up(files),
        }
    }
}

/// The programs of Surf that a side runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Build {
    /// Name and directory of another build; otherwise those beside this program, or in PATH.
    other: Option<(String, PathBuf)>,
}

impl Build {
    /// Reads NAME=DIRECTORY.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match side::named(text) {
            Some((name, dir)) if is_plain(name) => {
                let dir = dir.canonicalize().with_context(|| format!("--build {text}"))?;
                Ok(Self { other: Some((name.to_owned(), dir)) })
            }
            _ => bail!("--build {text}: expected NAME=DIRECTORY, with a name of letters, digits, `-` and `_`"),
        }
    }

    /// Name of a column with this build in the table.
    fn side(&self, column: Column) -> String {
        match &self.other {
            Some((name, _)) => format!("{}-{name}", column.name()),
            None => column.name().to_owned(),
        }
    }

    fn program(&self, name: &str) -> Result<PathBuf> {
        let Some((_, dir)) = &self.other else {
            return own_program(name);
        };
        let path = dir.join(name);
        ensure!(path.is_file(), "{} is missing: build the workspace there first", path.display());
        Ok(path)
    }
}

/// The name becomes a part of a directory's name.
fn is_plain(name: &str) -> bool {
    name.chars().all(|char| char.is_ascii_alphanumeric() || "-_".contains(char))
}

/// Name of the column that others are compared with, besides the first one.
pub(crate) const NULL: &str = "null";
/// Programs that every column with services needs.
const NAMESPACES: [(&str, &str); 3] = [("unshare", "util-linux"), ("nsenter", "util-linux"), ("ip", "iproute2")];

/// Prepares for columns. This process must still have only one thread.
pub(crate) fn prepare(columns: &[Column], install: bool) -> Result<()> {
    let mounts = columns.iter().any(|column| *column != Column::Ext4);
    if !mounts {
        return Ok(());
    }
    ensure!(crate::sys::is_root(), "only root can set up these columns (mounts, namespaces, cold caches)");
    let programs: Vec<_> = columns.iter().flat_map(|column| column.programs()).copied().collect();
    packages::need(&programs, install)?;
    crate::sys::leave_mount_namespace()
}

/// Sets columns up below a place, those of Surf also with each other build, which come first.
pub(crate) fn set_up(columns: &[Column], others: &[Build], place: &Path) -> Result<Vec<Side>> {
    let own = Build::default();
    let mut sides = Vec::new();
    for column in columns {
        let others = if column.is_surf() { others } else { &[] };
        for build in others.iter().chain([&own]) {
            let name = build.side(*column);
            // Both would have one directory.
            ensure!(sides.iter().all(|side: &Side| side.name != name), "{name} is asked for twice");
            eprintln!("setting up {name}");
            sides.push(column.set_up(place, build).with_context(|| format!("{name} cannot be set up"))?);
        }
    }
    Ok(sides)
}

/// A program of this workspace: beside this one, or in PATH.
fn own_program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let beside = own.parent().map(|dir| dir.join(name)).filter(|path| path.is_file());
    match beside.or_else(|| packages::find(name)) {
        Some(path) => Ok(path),
        None => bail!("{name} is neither beside {} nor in PATH: build the workspace first", own.display()),
    }
}

fn null(files: Files) -> Result<Side> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let path = Mount::path_below(&files.0);
    let command = move || {
        let mut command = Command::new(&own);
        command.args(["null", "--again"]).arg(&path);
        command
    };
    let mount = Mount::new(NULL, &files.0, Serving::Again(Box::new(command)))?;
    Side::mounted(NULL, "in memory, over fuser".to_owned(), files, None, mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_asked_for_by_its_name_in_the_table() {
        for column in Column::value_variants() {
            assert_eq!(Column::from_str(column.name(), false), Ok(*column));
        }
        assert!(Column::from_str("ceph", false).is_err());
    }

    #[test]
    fn a_column_that_is_asked_for_twice_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let error = set_up(&[Column::Ext4, Column::Ext4], &[], place.path()).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "ext4 is asked for twice");
    }

    #[test]
    fn another_build_needs_a_name_and_a_directory_with_its_programs() {
        let dir = tempfile::tempdir().unwrap();
        let build = Build::parse(&format!("before={}", dir.path().display())).unwrap();
        assert_eq!(build.side(Column::Cluster), "cluster-before");
        assert!(build.program("surfmount").unwrap_err().to_string().contains("surfmount is missing"));
        std::fs::write(dir.path().join("surfmount"), "").unwrap();
        assert!(build.program("surfmount").is_ok());
        for bad in ["before", "=/tmp", "before=", "a/b=/tmp", "before=/nowhere/at/all"] {
            let error = Build::parse(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--build {bad}")), "{error}");
        }
    }
}
