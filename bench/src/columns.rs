//! Columns that the bench sets up by itself, each in a directory of its own below one place, so that all are on the
//! same disk. Services get a network of their own (see [`crate::process::Node`]) with a loopback interface only.

mod glusterfs;
mod moosefs;
mod surf;

use crate::mounts::{Mount, Serving};
use crate::packages;
use crate::side::{Files, Side};
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

    fn set_up(self, place: &Path) -> Result<Side> {
        let dir = place.join(self.name());
        let files = Files::new(&dir)?;
        match self {
            Column::Ext4 => {
                drop(files);
                Side::plain(self.name(), &dir)
            }
            Column::Null => null(files),
            Column::Embedded => surf::embedded(files),
            Column::Cluster => surf::cluster(files),
            Column::Moosefs => moosefs::set_up(files),
            Column::Glusterfs => glusterfs::set_up(files),
        }
    }
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

/// Sets columns up below a place.
pub(crate) fn set_up(columns: &[Column], place: &Path) -> Result<Vec<Side>> {
    let one = |column: &Column| {
        eprintln!("setting up {}", column.name());
        column.set_up(place).with_context(|| format!("{} cannot be set up", column.name()))
    };
    columns.iter().map(one).collect()
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
}
