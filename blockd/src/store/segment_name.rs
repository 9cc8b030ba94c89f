//! Numbers of segments, and the files that they name.

use std::fmt;
use std::path::{Path, PathBuf};

/// Number of a segment; later ones have larger numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentId(pub u64);

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012}", self.0)
    }
}

/// Path of a segment's file.
pub(super) fn path(dir: &Path, id: SegmentId) -> PathBuf {
    dir.join(format!("{id}.segment"))
}

/// Path of a segment's hint file.
pub(super) fn hint_path(dir: &Path, id: SegmentId) -> PathBuf {
    dir.join(format!("{id}.hint"))
}

/// The segment of a file name.
pub(super) fn id_of(path: &Path) -> Option<SegmentId> {
    let name = path.file_name()?.to_str()?.strip_suffix(".segment")?;
    name.parse().ok().map(SegmentId)
}
