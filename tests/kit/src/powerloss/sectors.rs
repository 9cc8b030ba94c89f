//! What may become of one file's content when the power fails: for each sector, all contents since the last sync.
//!
//! A disk writes whole sectors, in any order, from a page cache that has the newest content. So after a power loss each
//! sector has one of the contents that it had since the last sync, whatever the others have. This covers writes that
//! are kept, dropped, torn between sectors and reordered.

use crate::chance::Chance;
use std::collections::BTreeMap;

/// Bytes that a disk writes whole or not at all.
pub(super) const SECTOR: usize = 512;
/// Contents of a sector that are remembered, the durable one included. The oldest of the others are forgotten, so that
/// a file that is never synced takes a bounded multiple of its size.
const VERSIONS_MAX: usize = 6;
/// Lengths of a file that are remembered, the durable one included.
const SIZES_MAX: usize = 32;

/// Content of a sector; `None` is zeros, of which files that are written in advance have many.
type Bytes = Option<Box<[u8; SECTOR]>>;

/// A content of a sector, and the number of the write that made it; 0 for the durable one.
#[derive(Debug)]
struct Version {
    write: u64,
    bytes: Bytes,
}

/// The changes of one file since its last sync.
#[derive(Debug)]
pub(super) struct Unsynced {
    /// Contents of each changed sector by its number, the durable one first, the present one last.
    sectors: BTreeMap<u64, Vec<Version>>,
    /// Lengths, the durable one first, the present one last.
    sizes: Vec<u64>,
    writes: u64,
}

/// A state that a power loss may leave.
#[derive(Debug)]
pub(super) struct Left {
    /// The file's length.
    pub size: u64,
    /// Contents of the sectors that were not synced, by their numbers.
    pub sectors: Vec<(u64, [u8; SECTOR])>,
}

/// What becomes of a file's unsynced changes.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// None is on the disk.
    Lost,
    /// All are on the disk.
    Kept,
    /// Each sector has any of its contents.
    Scattered,
    /// Each write is kept, dropped or torn as a whole.
    ByWrite,
}

/// What becomes of one write.
#[derive(Clone, Copy, Debug)]
enum WriteFate {
    Kept,
    Dropped,
    /// Sectors before this one are on the disk.
    Before(u64),
    /// This sector and those after it are on the disk.
    From(u64),
}

impl WriteFate {
    fn draw(chance: &mut Chance, (first, last): (u64, u64)) -> Self {
        let cut = first + chance.below(last - first + 1);
        match chance.below(4) {
            0 => Self::Kept,
            1 => Self::Dropped,
            2 => Self::Before(cut),
            _ => Self::From(cut),
        }
    }

    fn keeps(self, sector: u64) -> bool {
        match self {
            Self::Kept => true,
            Self::Dropped => false,
            Self::Before(cut) => sector < cut,
            Self::From(cut) => sector >= cut,
        }
    }
}

impl Unsynced {
    /// A file of this length without unsynced changes.
    pub(super) fn new(size: u64) -> Self {
        Self { sectors: BTreeMap::new(), sizes: vec![size], writes: 0 }
    }

    /// The present length.
    pub(super) fn size(&self) -> u64 {
        *self.sizes.last().expect("the durable length is always there")
    }

    /// Whether a power loss would leave the file as it is.
    pub(super) fn is_synced(&self) -> bool {
        self.sectors.is_empty() && self.sizes.len() == 1
    }

    /// Notes a write that turns `before` into `after`: whole sectors from number `first` on, with zeros beyond the
    /// file's end.
    pub(super) fn write(&mut self, first: u64, before: &[u8], after: &[u8]) {
        debug_assert!(before.len() == after.len() && before.len().is_multiple_of(SECTOR), "sectors are whole");
        self.writes += 1;
        let pairs = before.chunks_exact(SECTOR).zip(after.chunks_exact(SECTOR));
        for (sector, (before, after)) in (first..).zip(pairs) {
            if before == after {
                continue;
            }
            let durable = || vec![Version { write: 0, bytes: pack(before) }];
            let versions = self.sectors.entry(sector).or_insert_with(durable);
            versions.push(Version { write: self.writes, bytes: pack(after) });
            if versions.len() > VERSIONS_MAX {
                versions.remove(1);
            }
        }
    }

    /// Notes a new length. What it cuts off was noted as a write of zeros before.
    pub(super) fn resize(&mut self, size: u64) {
        if size == self.size() {
            return;
        }
        self.sizes.push(size);
        if self.sizes.len() > SIZES_MAX {
            self.sizes.remove(1);
        }
    }

    /// Notes that the present state is durable.
    pub(super) fn sync(&mut self) {
        *self = Self::new(self.size());
    }

    /// Draws a state that a power loss may leave.
    pub(super) fn lose(&self, chance: &mut Chance) -> Left {
        let fate = *chance.pick(&[Fate::Lost, Fate::Kept, Fate::Scattered, Fate::ByWrite, Fate::ByWrite]);
        let writes = self.draw_writes(chance);
        let chosen = |chance: &mut Chance, sector: u64, versions: &[Version]| match fate {
            Fate::Lost => 0,
            Fate::Kept => versions.len() - 1,
            Fate::Scattered => chance.below(versions.len() as u64) as usize,
            Fate::ByWrite => {
                let is_kept = |version: &Version| writes.get(&version.write).is_none_or(|fate| fate.keeps(sector));
                versions.iter().rposition(is_kept).unwrap_or(0)
            }
        };
        let mut sectors = Vec::new();
        for (sector, versions) in &self.sectors {
            let version = &versions[chosen(chance, *sector, versions)];
            sectors.push((*sector, version.bytes.as_deref().copied().unwrap_or([0; SECTOR])));
        }
        let size = match fate {
            Fate::Lost => self.sizes[0],
            Fate::Kept => self.size(),
            // A length in between is rare with many writes, and the last one is what makes other losses visible.
            Fate::Scattered | Fate::ByWrite if chance.happens(0.5) => self.size(),
            Fate::Scattered | Fate::ByWrite => *chance.pick(&self.sizes),
        };
        Left { size, sectors }
    }

    /// Draws the fate of each write, by its number.
    fn draw_writes(&self, chance: &mut Chance) -> BTreeMap<u64, WriteFate> {
        let mut spans: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (sector, versions) in &self.sectors {
            for version in &versions[1..] {
                spans.entry(version.write).or_insert((*sector, *sector)).1 = *sector;
            }
        }
        spans.into_iter().map(|(write, span)| (write, WriteFate::draw(chance, span))).collect()
    }
}

fn pack(bytes: &[u8]) -> Bytes {
    let bytes: [u8; SECTOR] = bytes.try_into().expect("a sector is whole");
    (bytes != [0; SECTOR]).then(|| Box::new(bytes))
}
