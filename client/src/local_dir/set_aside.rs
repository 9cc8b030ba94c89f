//! Journals that a full cluster could not take. Each is set aside beside the one in use, in `DIR/journal.kept-N`, and
//! every mount tries to send them, the oldest first, until there is room.
//!
//! If a mount waited for room instead, nobody could use it to make room.

use super::{JOURNAL, LocalDir};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use wire::durable::sync_dir;

/// Names of the folders of such journals are this and a number.
const PREFIX: &str = "journal.kept-";

/// Sets the journal in use aside. Returns its new place. Blocks: not for a runtime thread.
///
/// # Errors
/// Fails when the disk does.
pub(crate) fn add(local: &LocalDir) -> io::Result<PathBuf> {
    let number = list(local.path())?.last().and_then(|folder| number_of(folder)).unwrap_or(0).saturating_add(1);
    let path = local.path().join(format!("{PREFIX}{number}"));
    fs::rename(local.path().join(JOURNAL), &path)?;
    sync_dir(local.path())?;
    Ok(path)
}

/// Lists the folders of journals set aside in a mount's directory, the oldest first. Blocks: not for a runtime thread.
///
/// # Errors
/// Fails when the disk does.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut folders = names.collect::<io::Result<Vec<String>>>()?;
    folders.retain(|name| number_of(name).is_some());
    folders.sort_by_key(|name| number_of(name));
    Ok(folders)
}

/// Removes a journal that was set aside, once all of it is sent. Blocks: not for a runtime thread.
///
/// # Errors
/// Fails when the disk does.
pub(crate) fn remove(local: &LocalDir, folder: &str) -> io::Result<()> {
    fs::remove_dir_all(path_of(local, folder))?;
    sync_dir(local.path())
}

/// Returns the path of this folder.
pub(crate) fn path_of(local: &LocalDir, folder: &str) -> PathBuf {
    local.path().join(folder)
}

/// Returns whether this is the directory of a journal set aside: later mounts have worked since it was written.
pub(crate) fn is_set_aside(dir: &Path) -> bool {
    dir.file_name().and_then(|name| name.to_str()).and_then(number_of).is_some()
}

fn number_of(folder: &str) -> Option<u64> {
    folder.strip_prefix(PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use wire::tls::ClusterCa;

    #[test]
    fn journals_set_aside_are_listed_in_their_order_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = testing::bundle(&ClusterCa::create("t").unwrap(), "one");
        let local = LocalDir::open(dir.path(), &bundle, "/mnt").unwrap();
        for number in 1..=11 {
            fs::create_dir(local.path().join(JOURNAL)).unwrap();
            fs::write(local.path().join(JOURNAL).join("id"), number.to_string()).unwrap();
            assert_eq!(add(&local).unwrap(), path_of(&local, &format!("journal.kept-{number}")));
        }
        fs::create_dir(local.path().join("journal.kept-by-hand")).unwrap();
        let folders = list(local.path()).unwrap();
        let read = |folder: &String| fs::read_to_string(path_of(&local, folder).join("id")).unwrap();
        let expected: Vec<String> = (1..=11).map(|number: u32| number.to_string()).collect();
        assert_eq!(folders.iter().map(read).collect::<Vec<_>>(), expected);
        remove(&local, &folders[0]).unwrap();
        assert_eq!(list(local.path()).unwrap(), folders[1..]);
    }
}
