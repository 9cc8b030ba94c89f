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
    let id = SegmentId(name.parse().ok()?);
    // Only a name that we would have given, and that has a successor.
    (id.to_string() == name && id.0 < u64::MAX).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_this_store_gives_are_segments() {
        let id = |name: &str| id_of(Path::new(name)).map(|id| id.0);
        assert_eq!(id("/x/000000000012.segment"), Some(12));
        assert_eq!(id("/x/1234567890123.segment"), Some(1_234_567_890_123));
        for other in
            ["12.segment", "+00000000012.segment", "18446744073709551615.segment", "000000000012.hint", ".segment"]
        {
            assert_eq!(id(other), None, "{other}");
        }
    }
}
