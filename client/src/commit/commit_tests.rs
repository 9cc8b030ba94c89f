//! Plans and outcomes against a small model of metad: no acknowledged byte is lost, none is written twice, and no
//! content of ours is in conflict with other content of ours.
//!
//! Content is written in cells of two bytes, each with a number of its own, so that every written cell can be found
//! again. Writes at an offset go to the first cells of the file, appends to the cells behind them.

use super::committer::take;
use super::outcome::{Outcome, Pages, Way, judge};
use super::plan::{Draft, Plan, beside};
use crate::file::dirty::{Packed, lay};
use crate::file::sealed::{To, Uploading};
use crate::file::state::{FileState, Step as ReadStep};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;
use tokio::time::Instant;
use wire::FsError;
use wire::attr::{InodeAttr, Timestamp};
use wire::extent::{Extent, ExtentWrite, Source};
use wire::ids::{Ino, Version};
use wire::limits::CHUNK_BYTES;
use wire::op::{ConflictCopy, ConflictPolicy, ExtentPage, Op, OpReply};

const CELL: u64 = 2;
/// Cells of the file at the start.
const CELLS: u64 = 12;
/// Cells below this one are ours; some tests require that others leave them alone.
const OURS: u64 = 8;
const FIRST_COPY: u64 = 10_000;

fn bytes_of(cells: &[u16]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

fn cells_of(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks(CELL as usize).map(|cell| u16::from_be_bytes([cell[0], cell[1]])).collect()
}

fn written(write: &ExtentWrite) -> (usize, Vec<u16>) {
    let Source::Inline(bytes) = &write.source else { panic!("all content is inline here") };
    ((write.file_off / CELL) as usize, cells_of(bytes))
}

/// What metad knows of one file. It works as `metad/src/fs/commit.rs` does.
struct Metad {
    version: Version,
    removed: bool,
    /// Number of each cell, and the version that wrote it.
    cells: Vec<(u16, Version)>,
    copies: HashMap<Ino, Vec<u16>>,
    /// Cells of ours that got into the file, or into a copy, and how often.
    landed: HashMap<u16, u32>,
}

impl Metad {
    fn new() -> Self {
        let cells = vec![(0, Version(1)); CELLS as usize];
        Self { version: Version(1), removed: false, cells, copies: HashMap::new(), landed: HashMap::new() }
    }

    fn attr(&self) -> InodeAttr {
        InodeAttr { version: self.version, size: self.cells.len() as u64 * CELL, ..crate::testing::attr() }
    }

    fn page(&self) -> ExtentPage {
        let extents = self.cells.iter().enumerate().map(|(place, (cell, version))| Extent {
            file_off: place as u64 * CELL,
            len: CELL,
            source: Source::Inline(cell.to_be_bytes().to_vec()),
            version: *version,
        });
        ExtentPage { version: self.version, size: self.attr().size, extents: extents.collect(), more_from: None }
    }

    fn put(&mut self, at: usize, cells: &[u16]) {
        for (place, cell) in (at..).zip(cells) {
            if self.cells.len() <= place {
                self.cells.resize(place + 1, (0, self.version));
            }
            self.cells[place] = (*cell, self.version);
        }
    }

    fn others_write(&mut self, at: Option<usize>, len: usize) {
        self.version = self.version.next();
        self.put(at.unwrap_or(self.cells.len()), &vec![u16::MAX; len]);
    }

    fn note_landed(&mut self, writes: &[ExtentWrite]) {
        for cell in writes.iter().flat_map(|write| written(write).1) {
            *self.landed.entry(cell).or_insert(0) += 1;
        }
    }

    fn commit(&mut self, op: &Op) -> Result<OpReply, FsError> {
        let Op::Commit { ino, base, own, writes, append_from, policy, .. } = op else { panic!("no commit: {op:?}") };
        if ino.0 >= FIRST_COPY {
            let copy = self.copies.get_mut(ino).ok_or(FsError::NotFound)?;
            put_into(copy, writes);
            self.note_landed(writes);
            let attr = InodeAttr { ino: *ino, version: Version(9), ..crate::testing::attr() };
            return Ok(OpReply::Committed { attr, appended_at: None, conflict: None, chunk_extents: 0 });
        }
        if self.removed {
            return Err(FsError::NotFound);
        }
        assert!(*base <= self.version, "based on what never was");
        let appended_at = append_from.map(|_| self.attr().size);
        let moved = append_from.map_or(0, |from| (self.attr().size - from) / CELL) as usize;
        let foreign = |place: usize| {
            let version = self.cells.get(place).map_or(Version(0), |(_, version)| *version);
            version > *base && !own.contains(&version)
        };
        let touched = writes.iter().any(|write| {
            let (at, cells) = written(write);
            (at + moved..at + moved + cells.len()).any(foreign)
        });
        self.note_landed(writes);
        let conflict = (appended_at.is_none() && touched).then(|| {
            let ConflictPolicy::Copy { ino, .. } = policy else { panic!("always a copy here") };
            let mut copy: Vec<u16> = self.cells.iter().map(|(cell, _)| *cell).collect();
            put_into(&mut copy, writes);
            self.copies.insert(*ino, copy);
            ConflictCopy { ino: *ino, parent: Ino::ROOT, name: b"copy".to_vec() }
        });
        if conflict.is_none() {
            self.version = self.version.next();
            for write in writes {
                let (at, cells) = written(write);
                self.put(at + moved, &cells);
            }
        }
        Ok(OpReply::Committed { attr: self.attr(), appended_at, conflict, chunk_extents: 0 })
    }
}

fn put_into(copy: &mut Vec<u16>, writes: &[ExtentWrite]) {
    for (at, cells) in writes.iter().map(written) {
        copy.resize(copy.len().max(at + cells.len()), 0);
        copy[at..at + cells.len()].copy_from_slice(&cells);
    }
}

/// One step of a test.
#[derive(Clone, Debug)]
enum Step {
    /// We write cells at a place, or append them.
    Write(Option<u64>, usize),
    Seal,
    /// A commit of what is sealed is made, unless one is under way.
    Plan,
    /// The commit reaches metad.
    Deliver,
    /// The answer to the commit arrives.
    Answer,
    /// Others write, behind our cells or anywhere.
    Others(Option<u64>, usize),
    /// The client looks at what metad has now.
    Refresh,
    /// The client asks for the extents of the content.
    List,
    /// The writer closes the file, and gets the errors there are to report.
    Hear,
}

fn step(others_from: u64, appends: bool) -> impl Strategy<Value = Step> {
    let place = (0..OURS).prop_map(Some);
    let ours = if appends { prop_oneof![place, Just(None)].boxed() } else { place.boxed() };
    let theirs = if others_from < CELLS {
        prop_oneof![(others_from..CELLS).prop_map(Some), Just(None)].boxed()
    } else {
        Just(None).boxed()
    };
    prop_oneof![
        4 => (ours, 1_usize..4).prop_map(|(at, len)| Step::Write(at, at.map_or(len, |at| len.min((OURS - at) as usize)))),
        3 => Just(Step::Seal),
        3 => Just(Step::Plan),
        3 => Just(Step::Deliver),
        3 => Just(Step::Answer),
        2 => (theirs, 1_usize..3).prop_map(|(at, len)| Step::Others(at, len)),
        1 => Just(Step::Refresh),
        1 => Just(Step::List),
        1 => Just(Step::Hear),
    ]
}

/// One client with the file open, and metad.
struct World {
    metad: Metad,
    file: Arc<FileState>,
    under_way: Option<(Plan, Option<Result<OpReply, FsError>>)>,
    last_cell: u16,
    last_copy: u64,
    /// Cells that were written at an offset and not overwritten there since.
    placed: HashMap<u64, u16>,
    appended: Vec<u16>,
    /// Content that went into a new file because others have removed the file.
    beside: Vec<u16>,
    now: Instant,
}

fn inline(_: &Packed, _: To) -> Uploading {
    Uploading { outcome: watch::channel(Some(Ok(None))).1, since: SystemTime::UNIX_EPOCH }
}

impl World {
    fn new() -> Self {
        let metad = Metad::new();
        let file = FileState::new(metad.attr(), Some(&metad.page()), Arc::default(), 4 << 20);
        Self {
            metad,
            file,
            under_way: None,
            last_cell: 0,
            last_copy: FIRST_COPY,
            placed: HashMap::new(),
            appended: Vec::new(),
            beside: Vec::new(),
            now: Instant::now(),
        }
    }

    fn write(&mut self, at: Option<u64>, len: usize) {
        let cells: Vec<u16> = (1..=len as u16).map(|number| self.last_cell + number).collect();
        self.last_cell += len as u16;
        self.file.write(at.map(|at| at * CELL), &bytes_of(&cells), false, Timestamp::default()).unwrap();
        match at {
            Some(at) => self.placed.extend((at..).zip(cells)),
            None => self.appended.extend(cells),
        }
    }

    fn plan(&mut self) {
        let Some(last) = self.file.commit_target().1.filter(|_| self.under_way.is_none()) else { return };
        let mut draft = Draft::default();
        while let Some(next) = self.file.sealed_at(draft.pieces(), last).filter(|next| draft.takes(&next.packed)) {
            draft.add(&next.packed, None);
        }
        self.under_way = Some((draft.finish(self.file.basis(self.now)), None));
    }

    fn deliver(&mut self) {
        let Some((plan, answer @ None)) = &mut self.under_way else { return };
        self.last_copy += 1;
        let policy = ConflictPolicy::Copy { ino: Ino(self.last_copy), suffix: b".copy".to_vec() };
        *answer = Some(self.metad.commit(&plan.op(self.file.ino(), policy)));
    }

    fn answer(&mut self) {
        let Some((plan, answer)) = self.under_way.take() else { return };
        let Some(answer) = answer else {
            self.under_way = Some((plan, None));
            return;
        };
        let outcome = judge(&plan, answer, Way::Queued);
        let report = outcome.report();
        if outcome == Outcome::Beside {
            let [_, commit] = beside((Ino::ROOT, b"beside"), Ino(5), &self.file.attr(), plan.writes());
            let Op::Commit { writes, .. } = commit else { panic!("made, and written to") };
            self.beside.extend(writes.iter().flat_map(|write| written(write).1));
        }
        take(outcome, &self.file, &plan, self.now);
        self.file.note_committed(report);
    }

    fn seal(&self) {
        self.file.seal_rest(To::OwnBlock, inline);
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write(at, len) => self.write(*at, *len),
            Step::Seal => self.seal(),
            Step::Plan => self.plan(),
            Step::Deliver => self.deliver(),
            Step::Answer => self.answer(),
            Step::Others(at, len) => self.metad.others_write(at.map(|at| at as usize), *len),
            Step::Refresh => {
                self.file.refresh(&self.metad.attr(), None);
            }
            Step::List => {
                self.file.take_listing(0..CHUNK_BYTES, &[self.metad.page()], true);
            }
            Step::Hear => {
                self.file.take_unreported();
            }
        }
    }

    /// Commits what is left.
    fn finish(&mut self) {
        self.seal();
        for _ in 0..1000 {
            self.plan();
            self.deliver();
            self.answer();
            if !self.file.is_dirty() {
                return;
            }
        }
        panic!("content is never committed");
    }

    /// Returns every cell that was written and not overwritten by us, and in how many places it is.
    fn found(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        let ours = self.placed.values().chain(&self.appended);
        ours.map(|cell| {
            let beside = self.beside.iter().filter(|found| *found == cell).count() as u32;
            (*cell, self.metad.landed.get(cell).copied().unwrap_or(0) + beside)
        })
    }

    /// Returns the content as a reader here sees it.
    fn read(&self) -> Vec<u16> {
        let len = self.file.attr().size as usize;
        loop {
            match self.file.plan_read((0, len), false) {
                ReadStep::Done(bytes) => return cells_of(&bytes),
                ReadStep::Load(_) => {
                    self.file.take_listing(0..CHUNK_BYTES, &[self.metad.page()], true);
                }
                ReadStep::Fetch(plan) => {
                    let mut buffer = vec![0; plan.range.end as usize];
                    for extent in &plan.extents {
                        let Source::Inline(bytes) = &extent.source else { panic!("not inline") };
                        lay(extent.file_off, bytes, 0, &mut buffer);
                    }
                    plan.over.iter().for_each(|(at, bytes)| lay(*at, bytes, 0, &mut buffer));
                    return cells_of(&buffer);
                }
            }
        }
    }
}

fn steps(others_from: u64, appends: bool) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(others_from, appends), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Guards I6.
    #[test]
    fn every_acknowledged_byte_is_in_the_file_or_a_copy_and_in_one_of_them_once(steps in steps(0, true)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.take(step));
        world.finish();
        for (cell, times) in world.found() {
            prop_assert_eq!(times, 1, "cell {} of {:?}", cell, world.metad.cells);
        }
        // What was acknowledged as being in the file is there, unless others have overwritten it since.
        let copied: Vec<u16> = world.metad.copies.values().flatten().copied().collect();
        for cell in &world.appended {
            let times = world.metad.cells.iter().filter(|(found, _)| found == cell).count();
            prop_assert!(times <= 1, "cell {} is in the file {} times", cell, times);
            prop_assert!(times == 1 || copied.contains(cell) || world.metad.cells.iter().any(|(found, _)| *found == u16::MAX));
        }
    }

    /// Guards I6.
    #[test]
    fn writes_of_others_elsewhere_are_merged_and_own_versions_are_no_conflict(steps in steps(OURS, false)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.take(step));
        world.finish();
        prop_assert!(world.metad.copies.is_empty(), "in conflict with itself: {:?}", world.metad.copies);
        for (place, cell) in &world.placed {
            prop_assert_eq!(world.metad.cells[*place as usize].0, *cell);
        }
    }

    #[test]
    fn a_reader_sees_what_metad_has_once_all_is_committed(steps in steps(0, true)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.take(step));
        world.finish();
        world.file.refresh(&world.metad.attr(), None);
        let cells: Vec<u16> = world.metad.cells.iter().map(|(cell, _)| *cell).collect();
        prop_assert_eq!(world.read(), cells);
    }

    /// Guards I6.
    #[test]
    fn content_written_to_a_file_that_others_remove_goes_beside_it(steps in steps(0, true), removed_at in 0_usize..60) {
        let mut world = World::new();
        for (number, step) in steps.iter().enumerate() {
            world.metad.removed |= number == removed_at;
            world.take(step);
        }
        world.metad.removed = true;
        world.finish();
        for (cell, times) in world.found() {
            prop_assert_eq!(times, 1, "cell {}", cell);
        }
    }

    #[test]
    fn the_kernels_pages_follow_only_changes_that_are_ours_alone(steps in steps(0, true)) {
        let mut world = World::new();
        for step in &steps {
            if let (Step::Answer, Some((plan, Some(answer)))) = (step, &world.under_way) {
                let outcome = judge(plan, answer.clone(), Way::Queued);
                if let Pages::Follow(from, to) = outcome.pages(plan) {
                    prop_assert_eq!(to, from.next());
                    let mut ours = plan.writes().iter().flat_map(|write| written(write).1);
                    prop_assert!(ours.all(|cell| world.metad.landed[&cell] == 1));
                }
            }
            world.take(step);
        }
    }
}

fn write(file_off: u64, len: u64) -> Packed {
    Packed { bytes: vec![7; len as usize].into(), pieces: vec![(file_off, 0, len as usize)] }
}

fn planned(file: &FileState) -> Plan {
    let mut draft = Draft::default();
    draft.add(&write(0, 4), None);
    draft.finish(file.basis(Instant::now()))
}

#[test]
fn bytes_overwritten_between_two_seals_go_into_a_commit_of_their_own() {
    let mut draft = Draft::default();
    assert!(draft.takes(&write(0, 10)));
    draft.add(&write(10, 10), None);
    draft.add(&write(0, 10), None);
    assert!(draft.takes(&write(20, 10)) && !draft.takes(&write(19, 2)) && !draft.takes(&write(5, 1)));
    let plan = draft.finish(World::new().file.basis(Instant::now()));
    let places: Vec<u64> = plan.writes().iter().map(|write| write.file_off).collect();
    assert_eq!((places, plan.pieces()), (vec![0, 10], 2));
}

#[test]
fn each_refusal_leaves_the_content_where_it_can_be_found() {
    let file = World::new().file;
    let plan = planned(&file);
    let unlinked = Way::AtOnce { unlinked: true };
    let gone = Err(FsError::NotFound);
    assert_eq!(judge(&plan, gone.clone(), unlinked), Outcome::Dropped, "for who had it open");
    assert_eq!(judge(&plan, gone.clone(), Way::AtOnce { unlinked: false }), Outcome::Beside);
    assert_eq!(judge(&plan, gone.clone(), Way::Queued), Outcome::Beside);
    for error in [FsError::NoSpace, FsError::Stale, FsError::Io, FsError::SessionExpired] {
        assert_eq!(judge(&plan, Err(error), Way::Queued), Outcome::Stays(error));
    }
    assert_eq!(judge(&plan, Ok(OpReply::Done), Way::Queued), Outcome::Stays(FsError::Io), "no answer to a commit");
    file.divert(Ino(77), Instant::now());
    assert_eq!(judge(&planned(&file), gone, Way::Queued), Outcome::CopyGone);
}

/// Pages that have lost content are judged whole: each time that they come, they would go into one more file.
#[test]
fn the_kernel_drops_pages_whose_content_went_into_another_file() {
    let file = World::new().file;
    let plan = planned(&file);
    assert_eq!([Outcome::Beside, Outcome::Dropped].map(|outcome| outcome.pages(&plan)), [Pages::Old, Pages::Same]);
}

#[test]
fn writes_after_a_conflict_go_into_the_copy_whatever_it_holds() {
    let file = World::new().file;
    file.divert(Ino(77), Instant::now());
    let op = planned(&file).op(file.ino(), ConflictPolicy::Fail);
    let Op::Commit { ino, base, append_from, policy, .. } = op else { panic!("no commit") };
    assert_eq!((ino, base, append_from, policy), (Ino(77), Version(0), None, ConflictPolicy::LastWriter));
}

#[test]
fn a_compacted_chunk_is_refused_when_anybody_was_faster_and_keeps_its_time() {
    let attr = InodeAttr { version: Version(8), ..crate::testing::attr() };
    let op = Plan::compaction(&attr, Vec::new()).op(attr.ino, ConflictPolicy::Fail);
    let Op::Commit { base, own, mtime, policy, .. } = op else { panic!("no commit") };
    assert_eq!((base, own, mtime, policy), (Version(8), Vec::new(), Some(attr.mtime), ConflictPolicy::Fail));
}

#[test]
fn a_file_made_beside_another_gives_nobody_more_rights_than_that_did() {
    let like = InodeAttr { mode: 0o674, uid: 7, gid: 8, has_xattrs: true, ..crate::testing::attr() };
    let [create, commit] = beside((Ino::ROOT, b"name"), Ino(99), &like, &[]);
    let Op::Create { mode, uid, gid, ino, .. } = create else { panic!("made first") };
    assert_eq!((mode, uid, gid, ino), (0o604, 7, 8, Ino(99)), "without the group's, which were the access list's");
    assert!(matches!(commit, Op::Commit { ino: Ino(99), base: Version(1), .. }));
}
