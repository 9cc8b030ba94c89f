//! What is in the journal's files, and how it is read back.
//!
//! ```text
//! segment = group*
//! group   = MAGIC | length u32 | first 16 bytes of a BLAKE3 sum | record*    (written and synced at once)
//! record  = length of head u32 | length of content u32 | head (wire::codec) | content
//! ```
//! Numbers are little endian. A group is complete or ignored: what a crash has torn at the end of a segment was never
//! promised to anybody. A bad group that a good one follows is damage.
//!
//! The sum covers the records, and before them the numbers of journal and segment and the group's offset. So a group is
//! good only where it was written: files may hold copies of journals, and such content in a torn group is no good group
//! that follows it.

use crate::file::state::Snapshot;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use wire::attr::Timestamp;
use wire::codec;
use wire::ids::{Ino, JournalId, Version};
use wire::limits::{BLOCK_BYTES_MAX, HEAD_BYTES_MAX};
use wire::op::{Expect, Name, Op};

const MAGIC: &[u8; 8] = b"surfjrn2";
/// What all versions of this format begin with.
const MAGIC_OF_ANY_VERSION: &[u8] = b"surfjrn";
const SUM_BYTES: usize = 16;
const LENGTH_AT: usize = MAGIC.len();
const SUM_AT: usize = LENGTH_AT + 4;
/// Bytes before a group's records.
const GROUP_HEAD: usize = SUM_AT + SUM_BYTES;
/// How often the bytes of a segment are summed in the search for a good group behind a bad one. Copies of journals in a
/// journal need two.
const SUMMED_LENGTHS_MAX: usize = 16;
/// Bytes before a record's head.
const RECORD_HEAD: usize = 8;

/// The head of a record.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Record {
    /// A change of metadata.
    Change(Change),
    /// Content; its bytes follow the head.
    Piece(Piece),
    /// An entry in the journal was undone.
    Undone {
        /// Number of the entry.
        number: u64,
    },
    /// New numbers of inodes that metad did not know when a later client began to send the journal.
    Renumbered {
        /// Number of the journal's last entry.
        number: u64,
        /// Old and new numbers.
        inos: Vec<(Ino, Ino)>,
    },
    /// Mapped pages came with content of a file that are based on an older version than its earlier content. All of it is
    /// judged by that version, whatever metad remembers of the file. Precedes the pieces.
    Late {
        /// Number of the entry that has them.
        number: u64,
        /// The file.
        ino: Ino,
        /// The older version.
        base: Version,
    },
}

/// A change of metadata, as it is in the queue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    /// Number of the entry.
    pub number: u64,
    /// When it was done, by the leader's clock.
    pub at: Timestamp,
    /// The names as they were.
    pub expect: Vec<Expect>,
    /// What was done.
    pub op: Op,
}

/// A sealed piece of a file's content. Several may belong to one entry.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// Number of the entry.
    pub number: u64,
    /// When it was written, by the leader's clock.
    pub at: Timestamp,
    /// The file.
    pub ino: Ino,
    /// A name of the file, if one is known: for the new file if others have removed this one.
    pub place: Option<(Ino, Name)>,
    /// Mode, owner and group, for the same case.
    pub owner: (u32, u32, u32),
    /// Number of the piece within the file.
    pub sealed: u64,
    /// File offset, offset within the bytes, length.
    pub parts: Vec<(u64, u32, u32)>,
    /// Version that the content is based on, as known here when it was written.
    pub base: Version,
    /// Everything uncommitted was appended, from this offset on.
    pub append_from: Option<u64>,
    /// Time of the last change of content.
    pub mtime: Option<Timestamp>,
    /// Writing clears setuid and setgid.
    pub clear_privileges: bool,
}

/// Returns what was sealed of a file, as part of the entry of this number, with its bytes. Names are not known here.
pub(super) fn pieces_of(
    snapshot: &Snapshot,
    number: u64,
    at: Timestamp,
) -> impl Iterator<Item = (Record, Bytes)> + use<'_> {
    let attr = &snapshot.attr;
    let late = snapshot.late && !snapshot.pieces.is_empty();
    let late = late.then(|| (Record::Late { number, ino: attr.ino, base: snapshot.base }, Bytes::new()));
    let pieces = snapshot.pieces.iter().map(move |(sealed, packed)| {
        let piece = Piece {
            number,
            at,
            ino: attr.ino,
            place: None,
            owner: (attr.mode, attr.uid, attr.gid),
            sealed: *sealed,
            // A block is far below 4 GiB.
            parts: packed.pieces.iter().map(|(at, from, len)| (*at, *from as u32, *len as u32)).collect(),
            base: snapshot.base,
            append_from: snapshot.append_from,
            mtime: snapshot.mtime,
            clear_privileges: snapshot.clear_privileges,
        };
        (Record::Piece(piece), packed.bytes.clone())
    });
    late.into_iter().chain(pieces)
}

impl Record {
    /// Returns the number of its entry.
    pub(crate) fn number(&self) -> u64 {
        match self {
            Self::Change(change) => change.number,
            Self::Piece(piece) => piece.number,
            Self::Undone { number } | Self::Renumbered { number, .. } | Self::Late { number, .. } => *number,
        }
    }

    /// Returns whether a piece's parts lie within its content.
    fn fits(&self, content: &Bytes) -> bool {
        let Self::Piece(Piece { parts, .. }) = self else { return true };
        let is_within = |(at, from, len): &(u64, u32, u32)| {
            let end = from.checked_add(*len).is_some_and(|end| end as usize <= content.len());
            end && at.checked_add(u64::from(*len)).is_some()
        };
        parts.iter().all(is_within)
    }

    /// Returns its place in the order of operations; `None` when it is about other records.
    pub(crate) fn place(&self) -> Option<(u64, u64)> {
        match self {
            Self::Change(change) => Some((change.number, 0)),
            Self::Piece(piece) => Some((piece.number, piece.sealed)),
            Self::Undone { .. } | Self::Renumbered { .. } | Self::Late { .. } => None,
        }
    }
}

/// Records that are written together.
pub(crate) struct Group(Vec<u8>);

impl Default for Group {
    fn default() -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.resize(GROUP_HEAD, 0);
        Self(bytes)
    }
}

impl Group {
    /// Adds a record. Each of its parts is far below 4 GiB, as is the whole group.
    pub(crate) fn add(&mut self, record: &Record, content: &[u8]) {
        let head = codec::encode(record);
        self.0.extend_from_slice(&(head.len() as u32).to_le_bytes());
        self.0.extend_from_slice(&(content.len() as u32).to_le_bytes());
        self.0.extend_from_slice(&head);
        self.0.extend_from_slice(content);
    }

    /// Returns a group of these records.
    #[cfg(feature = "fuzzing")]
    pub(super) fn of(records: &[u8]) -> Self {
        let mut group = Self::default();
        group.0.extend_from_slice(records);
        group
    }

    /// Returns its records.
    #[cfg(feature = "fuzzing")]
    pub(super) fn records(&self) -> &[u8] {
        &self.0[GROUP_HEAD..]
    }

    /// Returns the bytes to be written at this offset of the segment.
    pub(crate) fn finish(mut self, segment: SegmentId, offset: u64) -> Vec<u8> {
        let (head, body) = self.0.split_at_mut(GROUP_HEAD);
        head[LENGTH_AT..SUM_AT].copy_from_slice(&(body.len() as u32).to_le_bytes());
        head[SUM_AT..].copy_from_slice(&segment.group_sum(offset, body));
        self.0
    }
}

/// Which segment of which journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentId {
    /// The journal.
    pub journal: JournalId,
    /// Number of the segment within it; 0 for the file of shared content.
    pub number: u64,
}

impl SegmentId {
    /// Returns the sum of a group that begins at this offset.
    fn group_sum(self, offset: u64, body: &[u8]) -> [u8; SUM_BYTES] {
        let mut hasher = blake3::Hasher::new();
        for number in [self.journal.0, self.number, offset] {
            hasher.update(&number.to_le_bytes());
        }
        let mut sum = [0; SUM_BYTES];
        sum.copy_from_slice(&hasher.update(body).finalize().as_bytes()[..SUM_BYTES]);
        sum
    }
}

/// What a segment holds.
pub(super) struct Parsed {
    pub records: Vec<(Record, Bytes)>,
    /// Bytes at its end that are not a group: torn by a crash.
    pub torn: usize,
}

/// Reads a segment's bytes.
///
/// # Errors
/// Returns where the segment is damaged, in bytes from its start.
pub(super) fn parse(bytes: &Bytes, segment: SegmentId) -> Result<Parsed, usize> {
    let version = bytes.strip_prefix(MAGIC_OF_ANY_VERSION).and_then(|rest| rest.first());
    if version.is_some_and(|digit| digit.is_ascii_digit() && !MAGIC.ends_with(&[*digit])) {
        // Another version has written it, so it is neither empty nor torn.
        return Err(0);
    }
    let (mut at, mut records) = (0, Vec::new());
    while at < bytes.len() {
        match group_at(bytes, segment, at) {
            Some(body) => {
                at = body.end;
                let start = at - body.len();
                // The checksum was right, so records that cannot be read were written by another version.
                records.extend(records_of(&bytes.slice(body)).ok_or(start)?);
            }
            None if is_followed(bytes, segment, at) => return Err(at),
            None => break,
        }
    }
    Ok(Parsed { records, torn: bytes.len() - at })
}

/// Returns the range of the records of the group that begins here, if it is complete and undamaged.
fn group_at(bytes: &[u8], segment: SegmentId, at: usize) -> Option<Range<usize>> {
    let body = body_at(bytes, at)?;
    let sum = segment.group_sum(at as u64, &bytes[body.clone()]);
    (sum == bytes[at + SUM_AT..body.start]).then_some(body)
}

/// Returns the range of the records of the group that begins here, if it is complete.
fn body_at(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let head = bytes.get(at..at + GROUP_HEAD).filter(|head| head.starts_with(MAGIC))?;
    let body = at + GROUP_HEAD..at + GROUP_HEAD + u32_at(head, LENGTH_AT)? as usize;
    (body.end <= bytes.len()).then_some(body)
}

/// Returns whether a good group follows a bad one. The bad one may hold anything that a program has written, even heads
/// of groups without end, each of which seems to reach to the end: when too much had to be read to know, it is damage.
fn is_followed(bytes: &[u8], segment: SegmentId, bad: usize) -> bool {
    let rest = bytes.get(bad + 1..).unwrap_or_default();
    let starts = rest.windows(MAGIC.len()).enumerate().filter(|(_, window)| window == MAGIC);
    let mut left = SUMMED_LENGTHS_MAX * bytes.len();
    starts.into_iter().any(|(at, _)| {
        let at = bad + 1 + at;
        let Some(body) = body_at(bytes, at) else { return false };
        let within = left.checked_sub(body.len());
        left = within.unwrap_or(0);
        within.is_none() || group_at(bytes, segment, at).is_some()
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn records_of(bytes: &Bytes) -> Option<Vec<(Record, Bytes)>> {
    let (mut at, mut records) = (0, Vec::new());
    while at < bytes.len() {
        let (head, content) = (u32_at(bytes, at)? as usize, u32_at(bytes, at + 4)? as usize);
        let start = at + RECORD_HEAD;
        if head > HEAD_BYTES_MAX || content > BLOCK_BYTES_MAX || start + head + content > bytes.len() {
            return None;
        }
        let record = codec::decode::<Record>(&bytes[start..start + head]).ok()?;
        at = start + head + content;
        let content = bytes.slice(start + head..at);
        if !record.fits(&content) {
            return None;
        }
        records.push((record, content));
    }
    Some(records)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEGMENT: SegmentId = SegmentId { journal: JournalId(7), number: 3 };

    fn change(number: u64) -> Record {
        let op = Op::Rmdir { parent: Ino(1), name: vec![b'n'; number as usize % 7 + 1], seen: None };
        Record::Change(Change { number, at: Timestamp::default(), expect: Vec::new(), op })
    }

    /// Returns segments of several groups, and where these end.
    fn segment(appends: &[Vec<usize>]) -> (Vec<u8>, Vec<usize>, usize) {
        let (mut bytes, mut ends, mut count) = (Vec::new(), Vec::new(), 0);
        for contents in appends {
            let mut group = Group::default();
            for len in contents {
                count += 1;
                group.add(&change(count as u64), &vec![count as u8; *len]);
            }
            bytes.extend(group.finish(SEGMENT, bytes.len() as u64));
            ends.push(bytes.len());
        }
        (bytes, ends, count)
    }

    fn appends() -> impl Strategy<Value = Vec<Vec<usize>>> {
        proptest::collection::vec(proptest::collection::vec(0_usize..300, 1..4), 1..6)
    }

    proptest! {
        #[test]
        fn appended_groups_are_read_and_torn_ones_are_left_out(appends in appends(), cut: proptest::sample::Index) {
            let (bytes, ends, count) = segment(&appends);
            let whole = parse(&Bytes::from(bytes.clone()), SEGMENT).unwrap();
            prop_assert_eq!((whole.records.len(), whole.torn), (count, 0));
            let (record, content) = whole.records.last().unwrap();
            let len = *appends.last().unwrap().last().unwrap();
            prop_assert_eq!((record, &content[..]), (&change(count as u64), &vec![count as u8; len][..]));
            let cut = cut.index(bytes.len());
            let whole_groups = ends.iter().zip(&appends).filter(|(end, _)| **end <= cut);
            let kept: usize = whole_groups.map(|(_, group)| group.len()).sum();
            let torn = parse(&Bytes::copy_from_slice(&bytes[..cut]), SEGMENT).unwrap();
            prop_assert_eq!(torn.records.len(), kept);
            prop_assert_eq!(torn.torn > 0, !ends.contains(&cut) && cut > 0);
        }

        #[test]
        fn a_changed_bit_is_damage_unless_it_can_have_been_torn(
            appends in appends(),
            place: proptest::sample::Index,
            bit in 0_u8..8,
        ) {
            let (mut bytes, ends, _) = segment(&appends);
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            let begin = ends.iter().rev().find(|end| **end <= place).copied().unwrap_or(0);
            let is_last = place >= ends.len().checked_sub(2).map_or(0, |before| ends[before]);
            let names_another_version = place == MAGIC.len() - 1 && bytes[place].is_ascii_digit();
            match parse(&Bytes::from(bytes.clone()), SEGMENT) {
                Ok(parsed) => prop_assert!(is_last && parsed.torn == bytes.len() - begin),
                Err(at) => prop_assert!((!is_last || names_another_version) && at == begin),
            }
        }

        #[test]
        fn a_torn_group_whose_content_is_another_journal_is_no_damage(
            appends in appends(),
            same_segment: bool,
            cut: proptest::sample::Index,
        ) {
            let (mut bytes, ends, count) = segment(&appends);
            let begin = bytes.len();
            let other = SegmentId { journal: JournalId(8), ..SEGMENT };
            let mut copy = Group::default();
            copy.add(&change(1), b"content");
            let mut group = Group::default();
            group.add(&change(9), &copy.finish(if same_segment { SEGMENT } else { other }, 0));
            let whole = group.finish(SEGMENT, begin as u64);
            bytes.extend_from_slice(&whole);
            let all = parse(&Bytes::from(bytes.clone()), SEGMENT).unwrap();
            prop_assert_eq!((all.records.len(), all.torn), (count + 1, 0));
            // The content is there whole, and the head of its group is not.
            bytes[begin + LENGTH_AT + cut.index(GROUP_HEAD - LENGTH_AT)] ^= 1;
            let torn = parse(&Bytes::from(bytes), SEGMENT).unwrap();
            prop_assert_eq!((torn.records.len(), torn.torn), (count, whole.len()));
            prop_assert_eq!(ends.last(), Some(&begin));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&Bytes::from(bytes), SEGMENT);
        }
    }

    /// Returns a piece of one part: file offset, offset within the content, length.
    pub(in crate::journal) fn piece(part: (u64, u32, u32)) -> Piece {
        Piece {
            number: 1,
            at: Timestamp::default(),
            ino: Ino(2000),
            place: None,
            owner: (0o644, 0, 0),
            sealed: 1,
            parts: vec![part],
            base: Version(1),
            append_from: None,
            mtime: None,
            clear_privileges: false,
        }
    }

    #[test]
    fn a_piece_whose_parts_lie_outside_its_content_is_damage() {
        let parsed = |at: u64, from: u32, len: u32| {
            let mut group = Group::default();
            group.add(&Record::Piece(piece((at, from, len))), &[7; 10]);
            parse(&Bytes::from(group.finish(SEGMENT, 0)), SEGMENT).map(|parsed| parsed.records.len())
        };
        assert_eq!(parsed(0, 0, 10), Ok(1));
        assert_eq!(parsed(u64::MAX - 3, 7, 3), Ok(1));
        for (at, from, len) in [(0, 0, 11), (0, 8, 3), (0, u32::MAX, 1), (u64::MAX, 0, 1)] {
            assert_eq!(parsed(at, from, len), Err(GROUP_HEAD), "{at} {from} {len}");
        }
    }

    #[test]
    fn heads_without_end_in_a_torn_group_are_damage_and_are_not_summed_without_end() {
        const HEADS: usize = 4000;
        let content: Vec<u8> = (0..HEADS)
            .flat_map(|at| {
                let mut head = [0; GROUP_HEAD];
                head[..LENGTH_AT].copy_from_slice(MAGIC);
                head[LENGTH_AT..SUM_AT].copy_from_slice(&(((HEADS - 1 - at) * GROUP_HEAD) as u32).to_le_bytes());
                head
            })
            .collect();
        let mut group = Group::default();
        group.add(&change(1), &content);
        let mut bytes = group.finish(SEGMENT, 0);
        assert_eq!(parse(&Bytes::from(bytes.clone()), SEGMENT).map(|parsed| parsed.records.len()), Ok(1));
        bytes[SUM_AT] ^= 1;
        assert_eq!(parse(&Bytes::from(bytes), SEGMENT).err(), Some(0));
    }

    #[test]
    fn a_segment_of_another_version_is_refused_and_not_taken_for_torn() {
        let mut bytes = segment(&[vec![3]]).0;
        bytes[MAGIC.len() - 1] += 1;
        assert_eq!(parse(&Bytes::from(bytes), SEGMENT).err(), Some(0));
    }
}
