//! Pages that a program changes through a mapping, against small models of the kernel's page cache and of metad: what
//! the program has not changed is never written, and what it has changed is judged by what it had seen.
//!
//! Every byte that we write has a value of its own, so that it can be found again.

use super::outcome::{Way, judge};
use super::plan::{Draft, Plan};
use super::unchanged::{alike, without};
use crate::file::dirty::{Packed, lay};
use crate::file::sealed::{To, Uploading};
use crate::file::state::{FileState, Mapped, Step as ReadStep, When};
use proptest::prelude::*;
use std::collections::HashMap;
use std::ops::Range;
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

const PAGE: usize = 8;
const PAGES: usize = 3;
const SIZE: usize = PAGE * PAGES;
/// Values from here on are others'.
const OTHERS: u8 = 240;
const FIRST_COPY: u64 = 10_000;

/// One byte of the file: its value, the version that wrote it, and whether that was others' version.
#[derive(Clone, Copy, Debug)]
struct Byte {
    value: u8,
    version: Version,
    foreign: bool,
}

/// What metad knows of one file. It works as `metad/src/fs/commit.rs` does.
struct Metad {
    version: Version,
    bytes: Vec<Byte>,
    copies: HashMap<Ino, Vec<u8>>,
    /// The version that the program had seen when it wrote a value.
    seen: HashMap<u8, Version>,
    landed: HashMap<u8, u32>,
}

fn inline(write: &ExtentWrite) -> (Range<usize>, &[u8]) {
    let Source::Inline(bytes) = &write.source else { panic!("all content is inline here") };
    (write.file_off as usize..(write.file_off + write.len) as usize, bytes)
}

impl Metad {
    fn new() -> Self {
        let byte = Byte { value: 0, version: Version(1), foreign: false };
        let (copies, seen, landed) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { version: Version(1), bytes: vec![byte; SIZE], copies, seen, landed }
    }

    fn attr(&self) -> InodeAttr {
        InodeAttr { version: self.version, size: SIZE as u64, ..crate::testing::attr() }
    }

    fn page(&self) -> ExtentPage {
        let extents = self.bytes.iter().enumerate().map(|(at, byte)| Extent {
            file_off: at as u64,
            len: 1,
            source: Source::Inline(vec![byte.value]),
            version: byte.version,
        });
        ExtentPage { version: self.version, size: SIZE as u64, extents: extents.collect(), more_from: None }
    }

    fn others_write(&mut self, at: usize, value: u8) {
        self.version = self.version.next();
        self.bytes[at] = Byte { value, version: self.version, foreign: true };
    }

    fn commit(&mut self, op: &Op) -> Result<OpReply, FsError> {
        let Op::Commit { ino, base, own, writes, policy, .. } = op else { panic!("no commit: {op:?}") };
        let all = || writes.iter().map(inline).flat_map(|(range, bytes)| range.zip(bytes.iter().copied()));
        let committed = |attr, conflict| OpReply::Committed { attr, appended_at: None, conflict, chunk_extents: 0 };
        if ino.0 >= FIRST_COPY {
            let copy = self.copies.get_mut(ino).unwrap();
            all().for_each(|(at, value)| copy[at] = value);
            all().for_each(|(_, value)| *self.landed.entry(value).or_insert(0) += 1);
            return Ok(committed(InodeAttr { ino: *ino, version: Version(9), ..crate::testing::attr() }, None));
        }
        let foreign = |byte: &Byte| byte.version > *base && !own.contains(&byte.version);
        let conflict = if all().any(|(at, _)| foreign(&self.bytes[at])) {
            let ConflictPolicy::Copy { ino, .. } = policy else { return Err(FsError::Stale) };
            let mut copy: Vec<u8> = self.bytes.iter().map(|byte| byte.value).collect();
            all().for_each(|(at, value)| copy[at] = value);
            self.copies.insert(*ino, copy);
            Some(ConflictCopy { ino: *ino, parent: Ino::ROOT, name: b"copy".to_vec() })
        } else {
            self.version = self.version.next();
            for (at, value) in all() {
                let old = self.bytes[at];
                // I6: nothing of others is overwritten that the program has not seen.
                let seen = self.seen.get(&value).copied();
                let known = old.value == value || !old.foreign || seen.is_some_and(|seen| seen >= old.version);
                assert!(known, "{value} (seen {seen:?}) replaces {old:?} at {at}, based on {base}");
                self.bytes[at] = Byte { value, version: self.version, foreign: false };
            }
            None
        };
        all().for_each(|(_, value)| *self.landed.entry(value).or_insert(0) += 1);
        Ok(committed(self.attr(), conflict))
    }
}

/// A page in the kernel.
struct Cached {
    bytes: [u8; PAGE],
    /// The version that was read.
    version: Version,
    dirty: bool,
}

#[derive(Clone, Debug)]
enum Step {
    /// The program reads a page through its mapping.
    Fault(usize),
    /// It changes a byte of the mapping, which is read before if need be.
    Store(usize),
    /// It calls `write(2)`.
    Write(usize),
    /// The kernel writes a page back.
    WriteBack(usize),
    /// The kernel gives a clean page up.
    Reclaim(usize),
    BeginDrop,
    /// The kernel writes all changed pages back, and drops all.
    Drop,
    EndDrop,
    Seal,
    Plan,
    Deliver,
    Answer,
    Others(usize),
    Refresh,
    Hear,
}

/// Steps at our places and at those of others.
fn steps(ours: Vec<usize>, others: Vec<usize>, others_max: usize) -> impl Strategy<Value = Vec<Step>> {
    let ours = move || proptest::sample::select(ours.clone());
    let page = || 0..PAGES;
    let step = prop_oneof![
        3 => page().prop_map(Step::Fault),
        6 => ours().prop_map(Step::Store),
        1 => ours().prop_map(Step::Write),
        4 => page().prop_map(Step::WriteBack),
        1 => page().prop_map(Step::Reclaim),
        1 => Just(Step::BeginDrop),
        1 => Just(Step::Drop),
        1 => Just(Step::EndDrop),
        2 => Just(Step::Seal),
        2 => Just(Step::Plan),
        2 => Just(Step::Deliver),
        2 => Just(Step::Answer),
        3 => proptest::sample::select(others).prop_map(Step::Others),
        2 => Just(Step::Refresh),
        1 => Just(Step::Hear),
    ];
    proptest::collection::vec(step, 1..70).prop_map(move |steps| {
        let mut left = others_max;
        let few = |step: &Step| {
            let others = matches!(step, Step::Others(_));
            let is_left = !others || left > 0;
            left -= usize::from(others && is_left);
            is_left
        };
        steps.into_iter().filter(few).collect()
    })
}

/// A commit under way: it is of whole pages until metad says that others were first.
struct UnderWay {
    plan: Plan,
    whole: bool,
    answer: Option<Result<OpReply, FsError>>,
}

struct World {
    metad: Metad,
    file: Arc<FileState>,
    cached: [Option<Cached>; PAGES],
    drops: Vec<u64>,
    dropped: Vec<u64>,
    under_way: Option<UnderWay>,
    last: u8,
    last_copy: u64,
    /// What we have written last at each place, and what others have.
    ours: HashMap<usize, u8>,
    others: HashMap<usize, u8>,
    compared: u32,
    /// A read waits until pages that hide what others have changed are committed.
    flushes: bool,
}

fn upload(_: &Packed, _: To) -> Uploading {
    Uploading { outcome: watch::channel(Some(Ok(None))).1, since: SystemTime::UNIX_EPOCH }
}

fn assembled(range: &Range<u64>, extents: &[Extent]) -> Vec<u8> {
    let mut buffer = vec![0; (range.end - range.start) as usize];
    for extent in extents {
        let Source::Inline(bytes) = &extent.source else { panic!("not inline") };
        lay(extent.file_off, bytes, range.start, &mut buffer);
    }
    buffer
}

impl World {
    fn new(flushes: bool) -> Self {
        let metad = Metad::new();
        let file = FileState::new(metad.attr(), Some(&metad.page()), Arc::default(), 4 << 20);
        Self {
            metad,
            file,
            cached: [None, None, None],
            drops: Vec::new(),
            dropped: Vec::new(),
            under_way: None,
            last: 0,
            last_copy: FIRST_COPY,
            ours: HashMap::new(),
            others: HashMap::new(),
            compared: 0,
            flushes,
        }
    }

    fn fault(&mut self, page: usize) {
        if self.cached[page].is_some() {
            return;
        }
        let part = (page * PAGE) as u64..((page + 1) * PAGE) as u64;
        if self.flushes && self.file.is_below_pages(&part) {
            if self.file.unknown_below_pages(Some(&part)).is_some() {
                self.file.take_listing(0..CHUNK_BYTES, &[self.metad.page()], true);
            }
            if self.file.hides_changes(&part) {
                self.flush();
            }
        }
        let bytes = loop {
            match self.file.plan_read((page * PAGE) as u64, PAGE, false) {
                ReadStep::Done(bytes) => break bytes.to_vec(),
                ReadStep::Load(_) => {
                    self.file.take_listing(0..CHUNK_BYTES, &[self.metad.page()], true);
                }
                ReadStep::Fetch(plan) => {
                    let mut buffer = assembled(&plan.range, &plan.extents);
                    plan.over.iter().for_each(|(at, bytes)| lay(*at, bytes, plan.range.start, &mut buffer));
                    break buffer;
                }
            }
        };
        let version = self.file.known_version();
        self.cached[page] = Some(Cached { bytes: bytes.try_into().unwrap(), version, dirty: false });
    }

    fn next_value(&mut self, at: usize, seen: Version) -> u8 {
        self.last += 1;
        assert!(self.last < OTHERS);
        self.ours.insert(at, self.last);
        self.metad.seen.insert(self.last, seen);
        self.last
    }

    fn store(&mut self, at: usize) {
        self.fault(at / PAGE);
        let seen = self.cached[at / PAGE].as_ref().unwrap().version;
        let value = self.next_value(at, seen);
        let page = self.cached[at / PAGE].as_mut().unwrap();
        (page.bytes[at % PAGE], page.dirty) = (value, true);
    }

    fn write(&mut self, at: usize) {
        // A program that writes is judged by what this client knew.
        let seen = self.file.known_version();
        let value = self.next_value(at, seen);
        if let Some(page) = &mut self.cached[at / PAGE] {
            page.bytes[at % PAGE] = value;
        }
        self.file.write(Some(at as u64), &[value], false, Timestamp::default()).unwrap();
    }

    fn write_back(&mut self, page: usize) {
        let Some(cached) = self.cached[page].as_mut().filter(|cached| cached.dirty) else { return };
        cached.dirty = false;
        let (data, at) = (cached.bytes, page * PAGE);
        let mut done = 0;
        let mut when = When::Alike;
        while done < data.len() {
            match self.file.write_mapped((at + done) as u64, &data[done..], Timestamp::default(), when).unwrap() {
                Mapped::Taken { len, .. } => done += len,
                Mapped::Later => {
                    self.flush();
                    when = if self.file.is_dirty() { When::Anyway } else { When::Alike };
                }
            }
        }
    }

    fn drop_pages(&mut self) {
        for page in 0..PAGES {
            self.write_back(page);
            self.cached[page] = None;
        }
        self.dropped.append(&mut self.drops);
    }

    fn plan(&mut self) {
        let Some(last) = self.file.commit_target().1.filter(|_| self.under_way.is_none()) else { return };
        let mut draft = Draft::default();
        while let Some(next) = self.file.sealed_at(draft.pieces(), last).filter(|next| draft.takes(&next.packed)) {
            draft.add(&next.packed, None);
        }
        let plan = draft.finish(self.file.basis(Instant::now()));
        let whole = !self.file.mapped_in(plan.writes()).is_empty();
        let plan = if whole && plan.is_diverted() { self.changed(plan) } else { plan };
        self.under_way = Some(UnderWay { whole: whole && !plan.is_diverted(), plan, answer: None });
    }

    /// Does what `Committer::leave_out_unchanged` does.
    fn changed(&mut self, plan: Plan) -> Plan {
        self.compared += 1;
        let ranges = self.file.mapped_in(plan.writes());
        let Some(known) = self.file.content_of(plan.basis().base, &ranges) else { return plan };
        let mut unchanged = rangemap::RangeSet::new();
        for (range, extents) in ranges.into_iter().zip(known) {
            let mut page = vec![0; (range.end - range.start) as usize];
            self.file
                .sealed_in(plan.pieces(), &range)
                .iter()
                .for_each(|(at, bytes)| lay(*at, bytes, range.start, &mut page));
            unchanged.extend(alike(range.start, &assembled(&range, &extents), &page));
        }
        let writes = without(plan.writes(), &unchanged);
        plan.with_writes(writes)
    }

    fn deliver(&mut self) {
        let Some(mut under_way) = self.under_way.take() else { return };
        if under_way.answer.is_none() {
            self.last_copy += 1;
            let copy = ConflictPolicy::Copy { ino: Ino(self.last_copy), suffix: b".copy".to_vec() };
            let policy = if under_way.whole { ConflictPolicy::Fail } else { copy };
            match self.metad.commit(&under_way.plan.op(self.file.ino(), policy)) {
                Err(FsError::Stale) if under_way.whole => {
                    under_way.plan = self.changed(under_way.plan);
                    under_way.whole = false;
                }
                answer => under_way.answer = Some(answer),
            }
        }
        self.under_way = Some(under_way);
    }

    fn answer(&mut self) {
        let Some(under_way) = self.under_way.take() else { return };
        let Some(answer) = under_way.answer else {
            self.under_way = Some(under_way);
            return;
        };
        let outcome = judge(&under_way.plan, answer, Way::Queued);
        let report = outcome.report();
        outcome.take(&self.file, &under_way.plan, Instant::now());
        self.file.note_committed(report);
    }

    fn flush(&mut self) {
        self.file.seal_rest(To::OwnBlock, upload);
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

    fn take(&mut self, step: &Step) {
        match step {
            Step::Fault(page) => self.fault(*page),
            Step::Store(at) => self.store(*at),
            Step::Write(at) => self.write(*at),
            Step::WriteBack(page) => self.write_back(*page),
            Step::Reclaim(page) if self.cached[*page].as_ref().is_some_and(|cached| cached.dirty) => {}
            Step::Reclaim(page) => self.cached[*page] = None,
            Step::BeginDrop => self.drops.push(self.file.begin_drop().number),
            Step::Drop => self.drop_pages(),
            Step::EndDrop => std::mem::take(&mut self.dropped).into_iter().for_each(|drop| self.file.end_drop(drop)),
            Step::Seal => {
                self.file.seal_rest(To::OwnBlock, upload);
            }
            Step::Plan => self.plan(),
            Step::Deliver => self.deliver(),
            Step::Answer => self.answer(),
            Step::Others(at) => {
                let value = OTHERS + self.metad.version.0 as u8 % 16;
                self.metad.others_write(*at, value);
                self.others.insert(*at, value);
            }
            Step::Refresh => {
                self.file.refresh(&self.metad.attr(), None);
            }
            Step::Hear => {
                self.file.take_unreported();
            }
        }
    }

    fn run(steps: &[Step], flushes: bool) -> Self {
        let mut world = Self::new(flushes);
        steps.iter().for_each(|step| world.take(step));
        world.drop_pages();
        world.flush();
        world
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Guards I6. Each commit is checked for not replacing what the program has not seen.
    #[test]
    fn what_a_program_changes_in_a_page_is_in_the_file_or_in_a_copy_and_replaces_only_what_it_has_seen(
        steps in steps((0..SIZE).collect(), (0..SIZE).collect(), usize::MAX),
        flushes in any::<bool>(),
    ) {
        let world = World::run(&steps, flushes);
        for (at, value) in &world.ours {
            prop_assert!(world.metad.landed.contains_key(value), "{} of {} is lost", value, at);
        }
    }

    /// Guards I6.
    #[test]
    fn pages_that_two_mounts_change_in_different_places_are_in_no_conflict(
        steps in steps((0..SIZE).step_by(2).collect(), (1..SIZE).step_by(2).collect(), 4),
    ) {
        let world = World::run(&steps, true);
        prop_assert!(world.metad.copies.is_empty(), "{:?}", world.metad.copies);
        for (at, value) in world.ours.iter().chain(&world.others) {
            prop_assert_eq!(world.metad.bytes[*at].value, *value, "at {}", at);
        }
    }

    #[test]
    fn while_nobody_else_changes_the_file_pages_are_taken_at_once_and_compared_with_nothing(
        steps in steps((0..SIZE).collect(), vec![0], 0),
    ) {
        // An answer that has a commit before the commit's own answer arrives makes it look like another session's.
        let steps: Vec<Step> = steps.into_iter().filter(|step| !matches!(step, Step::Refresh)).collect();
        let mut world = World::run(&steps, true);
        prop_assert_eq!(world.compared, 0);
        world.store(0);
        let page = world.cached[0].as_ref().unwrap().bytes;
        let taken = world.file.write_mapped(0, &page, Timestamp::default(), When::AtOnce).unwrap();
        prop_assert_eq!(taken, Mapped::Taken { len: PAGE, added: PAGE });
    }
}
