//! Pages that a program changes through a mapping, against small models of the kernel's page cache and of metad: what
//! the program has not changed replaces nothing, and what it has changed is judged by what it had seen.

use super::committer::take;
use super::outcome::{Way, judge};
use super::plan::{Draft, Plan};
use crate::file::changed::changed;
use crate::file::dirty::{Packed, lay};
use crate::file::sealed::{To, Uploading};
use crate::file::state::{Below, FileState, Plan as ReadPlan, Seen, Step as ReadStep};
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
const OTHERS: u8 = 200;
const FIRST_COPY: u64 = 10_000;

/// One byte of the file: its value, the version that stored it, the version that wrote it, and whether that was others'
/// version.
#[derive(Clone, Copy, Debug)]
struct Byte {
    value: u8,
    version: Version,
    written: Version,
    foreign: bool,
}

/// What metad knows of one file. It works as `metad/src/fs/commit.rs` does.
struct Metad {
    version: Version,
    bytes: Vec<Byte>,
    copies: HashMap<Ino, Vec<u8>>,
    /// The newest version that the program had seen at a place when it wrote this value there.
    seen: HashMap<(usize, u8), Version>,
    /// Values that have come, each with its place.
    landed: HashMap<(usize, u8), u32>,
}

fn inline(write: &ExtentWrite) -> (Range<usize>, &[u8]) {
    let Source::Inline(bytes) = &write.source else { panic!("all content is inline here") };
    (write.file_off as usize..(write.file_off + write.len) as usize, bytes)
}

impl Metad {
    fn new() -> Self {
        let byte = Byte { value: 0, version: Version(1), written: Version(1), foreign: false };
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
        self.bytes[at] = Byte { value, version: self.version, written: self.version, foreign: true };
    }

    /// Stores all bytes anew.
    fn compact(&mut self) {
        self.version = self.version.next();
        self.bytes.iter_mut().for_each(|byte| byte.version = self.version);
    }

    fn commit(&mut self, op: &Op) -> Result<OpReply, FsError> {
        let Op::Commit { ino, base, own, writes, policy, .. } = op else { panic!("no commit: {op:?}") };
        let all: Vec<(usize, u8)> = writes
            .iter()
            .map(inline)
            .flat_map(|(range, bytes)| range.zip(bytes.iter().copied()).collect::<Vec<_>>())
            .collect();
        let committed = |attr, conflict| OpReply::Committed { attr, appended_at: None, conflict, chunk_extents: 0 };
        all.iter().for_each(|written| *self.landed.entry(*written).or_insert(0) += 1);
        if ino.0 >= FIRST_COPY {
            let copy = self.copies.get_mut(ino).unwrap();
            all.iter().for_each(|(at, value)| copy[*at] = *value);
            return Ok(committed(InodeAttr { ino: *ino, version: Version(9), ..crate::testing::attr() }, None));
        }
        let foreign = |byte: &Byte| byte.version > *base && !own.contains(&byte.version);
        if all.iter().any(|(at, _)| foreign(&self.bytes[*at])) {
            let ConflictPolicy::Copy { ino, .. } = policy else { panic!("{policy:?}") };
            let mut copy: Vec<u8> = self.bytes.iter().map(|byte| byte.value).collect();
            all.iter().for_each(|(at, value)| copy[*at] = *value);
            self.copies.insert(*ino, copy);
            let conflict = ConflictCopy { ino: *ino, parent: Ino::ROOT, name: b"copy".to_vec() };
            return Ok(committed(self.attr(), Some(conflict)));
        }
        self.version = self.version.next();
        for (at, value) in all {
            let old = self.bytes[at];
            // I6: nothing of others is overwritten that the program has not seen.
            let seen = self.seen.get(&(at, value)).copied();
            let known = old.value == value || !old.foreign || seen.is_some_and(|seen| seen >= old.written);
            assert!(known, "{value} (seen {seen:?}) replaces {old:?} at {at}, based on {base}");
            self.bytes[at] = Byte { value, version: self.version, written: self.version, foreign: false };
        }
        Ok(committed(self.attr(), None))
    }
}

/// A page in the kernel.
#[derive(Clone)]
struct Cached {
    bytes: [u8; PAGE],
    /// What was read, and what the client has got of it since.
    clean: [u8; PAGE],
    /// The version that the program sees in each byte.
    seen: [Version; PAGE],
    dirty: bool,
}

#[derive(Clone, Debug)]
enum Step {
    /// The kernel begins to read a page for the program's mapping.
    Fault(usize),
    /// It gets the answer.
    Reply,
    /// The program changes a byte of the mapping to a new value; the page is read before if need be.
    Store(usize),
    /// It puts a value back that it has once seen there.
    StoreBack(usize, usize),
    /// It calls `write(2)`.
    Write(usize),
    /// The kernel begins to write a page back.
    WriteBack(usize),
    /// The client takes it.
    Take,
    /// The client refuses the next page that comes.
    Refuse,
    /// The kernel gives a clean page up.
    Reclaim(usize),
    BeginDrop,
    /// The kernel writes all changed pages back, and drops all.
    Drop,
    EndDrop,
    Seal,
    Plan,
    /// The commit does not reach metad, and is given up.
    Fail,
    Deliver,
    Answer,
    Others(usize),
    Refresh,
    Hear,
    /// This client compacts the file, if it is at rest.
    Compact,
}

/// Steps at our places and at those of others.
fn steps(ours: Vec<usize>, others: Vec<usize>, others_max: usize) -> impl Strategy<Value = Vec<Step>> {
    let ours = move || proptest::sample::select(ours.clone());
    let page = || 0..PAGES;
    let step = prop_oneof![
        4 => page().prop_map(Step::Fault),
        3 => Just(Step::Reply),
        5 => ours().prop_map(Step::Store),
        3 => (ours(), 0..4_usize).prop_map(|(at, which)| Step::StoreBack(at, which)),
        1 => ours().prop_map(Step::Write),
        4 => page().prop_map(Step::WriteBack),
        3 => Just(Step::Take),
        1 => page().prop_map(Step::Reclaim),
        2 => Just(Step::BeginDrop),
        2 => Just(Step::Drop),
        2 => Just(Step::EndDrop),
        2 => Just(Step::Seal),
        2 => Just(Step::Plan),
        1 => Just(Step::Fail),
        2 => Just(Step::Deliver),
        2 => Just(Step::Answer),
        4 => proptest::sample::select(others).prop_map(Step::Others),
        3 => Just(Step::Refresh),
        1 => Just(Step::Hear),
        1 => Just(Step::Compact),
    ];
    proptest::collection::vec(step, 1..80).prop_map(move |steps| {
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

/// A commit under way.
struct UnderWay {
    plan: Plan,
    answer: Option<Result<OpReply, FsError>>,
}

/// A page that is being written back, and what it is compared with.
struct Writing {
    page: usize,
    number: u64,
    data: [u8; PAGE],
    /// The parts that were looked at already.
    seen: Vec<(Seen, Option<Vec<u8>>)>,
}

struct World {
    metad: Metad,
    file: Arc<FileState>,
    cached: [Option<Cached>; PAGES],
    reading: Option<(usize, Cached)>,
    writing: Option<Writing>,
    refuses: bool,
    drops: Vec<u64>,
    dropped: Vec<u64>,
    under_way: Option<UnderWay>,
    last: u8,
    last_copy: u64,
    /// What was once at each place.
    history: HashMap<usize, Vec<u8>>,
    /// Who wrote last at each place, by the order of steps: our value, if it was us.
    writer: HashMap<usize, Option<u8>>,
    /// What we have written last at each place, and what others have.
    ours: HashMap<usize, u8>,
    others: HashMap<usize, u8>,
    /// New values of ours, which are nowhere else.
    unique: Vec<(usize, u8)>,
    compared: u32,
    /// Nobody else has the file open.
    alone: bool,
    /// The kernel writes copies of pages back, as Linux does before 6.16, and drops pages without waiting for these.
    copies: bool,
}

fn upload(_: &Packed, _: To) -> Uploading {
    Uploading { outcome: watch::channel(Some(Ok(None))).1, since: SystemTime::UNIX_EPOCH }
}

fn assembled(plan: &ReadPlan) -> Vec<u8> {
    let mut buffer = vec![0; (plan.range.end - plan.range.start) as usize];
    for extent in &plan.extents {
        let Source::Inline(bytes) = &extent.source else { panic!("not inline") };
        lay(extent.file_off, bytes, plan.range.start, &mut buffer);
    }
    plan.over.iter().for_each(|(at, bytes)| lay(*at, bytes, plan.range.start, &mut buffer));
    buffer
}

impl World {
    fn new(alone: bool, copies: bool) -> Self {
        let metad = Metad::new();
        let file = FileState::new(metad.attr(), Some(&metad.page()), Arc::default(), 4 << 20);
        Self {
            metad,
            file,
            cached: [const { None }; PAGES],
            reading: None,
            writing: None,
            refuses: false,
            drops: Vec::new(),
            dropped: Vec::new(),
            under_way: None,
            last: 0,
            last_copy: FIRST_COPY,
            history: (0..SIZE).map(|at| (at, vec![0])).collect(),
            writer: HashMap::new(),
            ours: HashMap::new(),
            others: HashMap::new(),
            unique: Vec::new(),
            compared: 0,
            alone,
            copies,
        }
    }

    fn fault(&mut self, page: usize) {
        if self.cached[page].is_some() || self.reading.is_some() {
            return;
        }
        self.wait_written(page);
        let bytes = loop {
            match self.file.plan_read(((page * PAGE) as u64, PAGE), false) {
                ReadStep::Done(bytes) => break bytes.to_vec(),
                ReadStep::Load(_) => {
                    self.file.take_listing(0..CHUNK_BYTES, &[self.metad.page()], true);
                }
                ReadStep::Fetch(plan) => break assembled(&plan),
            }
        };
        let known = self.file.known_version();
        let mut seen = [known; PAGE];
        for (index, value) in bytes.iter().enumerate() {
            let at = page * PAGE + index;
            if self.metad.bytes[at].value != *value
                && let Some(written) = self.metad.seen.get(&(at, *value))
            {
                // It hides what is in the file there.
                seen[index] = known.min(*written);
            }
        }
        let bytes = bytes.try_into().unwrap();
        self.reading = Some((page, Cached { bytes, clean: bytes, seen, dirty: false }));
    }

    fn reply(&mut self) {
        if let Some((page, cached)) = self.reading.take() {
            self.cached[page] = Some(cached);
        }
    }

    /// Waits for the page as the kernel does for its lock.
    fn settle(&mut self, page: usize) {
        if self.reading.as_ref().is_some_and(|(read, _)| *read == page) {
            self.reply();
        }
        self.wait_written(page);
    }

    fn wait_written(&mut self, page: usize) {
        if self.writing.as_ref().is_some_and(|writing| writing.page == page) {
            self.take_page();
        }
    }

    fn note_ours(&mut self, at: usize, value: u8, seen: Version) {
        let known = self.metad.seen.entry((at, value)).or_insert(seen);
        *known = seen.max(*known);
        self.ours.insert(at, value);
        self.writer.insert(at, Some(value));
        self.history.entry(at).or_default().push(value);
    }

    fn next_value(&mut self, at: usize) -> u8 {
        self.last += 1;
        assert!(self.last < OTHERS);
        self.unique.push((at, self.last));
        self.last
    }

    fn store(&mut self, at: usize, value: Option<u8>) {
        let page = at / PAGE;
        self.settle(page);
        if self.cached[page].is_none() {
            self.reply();
            self.fault(page);
            self.reply();
        }
        let value = value.unwrap_or_else(|| self.next_value(at));
        let cached = self.cached[page].as_mut().unwrap();
        if cached.bytes[at % PAGE] == value {
            return;
        }
        (cached.bytes[at % PAGE], cached.dirty) = (value, true);
        let (seen, is_change) = (cached.seen[at % PAGE], cached.clean[at % PAGE] != value);
        self.note_ours(at, value, seen);
        if !is_change {
            // Nobody can tell that it was ever different.
            self.writer.remove(&at);
        }
    }

    fn write(&mut self, at: usize) {
        self.settle(at / PAGE);
        let value = self.next_value(at);
        // A program that writes is judged by what this client knew.
        self.note_ours(at, value, self.file.known_version());
        if let Some(cached) = &mut self.cached[at / PAGE] {
            (cached.bytes[at % PAGE], cached.clean[at % PAGE]) = (value, value);
        }
        self.file.write(Some(at as u64), &[value], false, Timestamp::default()).unwrap();
    }

    fn begin_write_back(&mut self, page: usize) {
        self.settle(page);
        if self.writing.is_some() {
            return;
        }
        let Some(cached) = self.cached[page].as_mut().filter(|cached| cached.dirty) else { return };
        cached.dirty = false;
        let data = cached.bytes;
        let at = page * PAGE;
        if self.refuses {
            self.refuses = false;
            self.file.pages_stay();
            // The program gets an error, and what it has stored there may be lost.
            for place in at..at + PAGE {
                self.writer.remove(&place);
                self.ours.remove(&place);
                self.unique.retain(|(unique, _)| *unique != place);
            }
            return;
        }
        cached.clean = data;
        if self.alone
            && let Some(taken) = self.file.write_pages_at_once(at as u64, &data, Timestamp::default())
        {
            taken.unwrap();
            return;
        }
        self.writing = Some(Writing { page, number: self.file.begin_taking(), data, seen: Vec::new() });
        if !self.copies {
            self.look();
        }
    }

    /// Looks at the next part of the page that is written back.
    fn look(&mut self) {
        let Some(writing) = &mut self.writing else { return };
        let at = (writing.page * PAGE) as u64;
        let from = writing.seen.last().map_or(at, |(seen, _)| seen.range.end);
        self.compared += 1;
        let mut seen = self.file.seen(&(from..at + PAGE as u64));
        if let Below::Load(_) = seen.below {
            self.file.take_listing(0..CHUNK_BYTES, &[self.metad.page()], true);
            seen = self.file.seen(&(from..at + PAGE as u64));
        }
        let bytes = if let Below::Read(plan) = &seen.below { Some(assembled(plan)) } else { None };
        writing.seen.push((seen, bytes));
    }

    fn take_page(&mut self) {
        if self.writing.as_ref().is_some_and(|writing| writing.seen.is_empty()) {
            // It has waited for room.
            self.look();
        }
        let Some(writing) = &self.writing else { return };
        let at = writing.page * PAGE;
        let (seen, bytes) = writing.seen.last().unwrap();
        let part = seen.range.start as usize - at..seen.range.end as usize - at;
        let data = &writing.data[part.clone()];
        let runs = bytes.as_ref().map(|bytes| changed(bytes, data));
        self.file.write_changed(seen, data, runs.as_deref(), Timestamp::default()).unwrap();
        if part.end < PAGE {
            self.look();
            return self.take_page();
        }
        self.file.end_taking(writing.number, true);
        self.writing = None;
    }

    fn drop_pages(&mut self) {
        self.reply();
        if !self.copies {
            self.take_page();
        }
        for page in 0..PAGES {
            let dirty = self.cached[page].as_ref().is_some_and(|cached| cached.dirty);
            let refused = self.refuses && dirty;
            if dirty {
                self.take_page();
                self.begin_write_back(page);
                self.take_page();
            }
            if !refused {
                self.cached[page] = None;
            }
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
        self.under_way = Some(UnderWay { plan, answer: None });
    }

    fn fail(&mut self) {
        if self.under_way.as_ref().is_some_and(|under_way| under_way.answer.is_none()) {
            self.under_way = None;
            let _ = self.file.note_unsaved(FsError::Io);
        }
    }

    fn deliver(&mut self) {
        let Some(under_way) = self.under_way.as_mut().filter(|under_way| under_way.answer.is_none()) else { return };
        self.last_copy += 1;
        let policy = ConflictPolicy::Copy { ino: Ino(self.last_copy), suffix: b".copy".to_vec() };
        under_way.answer = Some(self.metad.commit(&under_way.plan.op(self.file.ino(), policy)));
    }

    fn answer(&mut self) {
        let Some(UnderWay { plan, answer }) = self.under_way.take() else { return };
        let Some(answer) = answer else {
            self.under_way = Some(UnderWay { plan, answer });
            return;
        };
        let outcome = judge(&plan, answer, Way::Queued);
        let report = outcome.report();
        take(outcome, &self.file, &plan, Instant::now());
        self.file.note_committed(report);
    }

    fn compact(&mut self) {
        self.metad.compact();
        self.file.changed_here(&self.metad.attr(), None);
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
            Step::Reply => self.reply(),
            Step::Store(at) => self.store(*at, None),
            Step::StoreBack(at, which) => {
                let old = &self.history[at];
                let value = old[which % old.len()];
                self.store(*at, Some(value));
            }
            Step::Write(at) => self.write(*at),
            Step::WriteBack(page) => self.begin_write_back(*page),
            Step::Take => self.take_page(),
            Step::Refuse => self.refuses = true,
            Step::Reclaim(page) => {
                self.settle(*page);
                if self.cached[*page].as_ref().is_some_and(|cached| !cached.dirty) {
                    self.cached[*page] = None;
                }
            }
            Step::BeginDrop => self.drops.push(self.file.begin_drop()),
            Step::Drop => self.drop_pages(),
            Step::EndDrop => std::mem::take(&mut self.dropped).into_iter().for_each(|drop| self.file.end_drop(drop)),
            Step::Seal => {
                self.file.seal_rest(To::OwnBlock, upload);
            }
            Step::Plan => self.plan(),
            Step::Fail => self.fail(),
            Step::Deliver => self.deliver(),
            Step::Answer => self.answer(),
            Step::Others(at) => {
                self.alone = false;
                let value = OTHERS + self.metad.version.0 as u8 % 50;
                self.metad.others_write(*at, value);
                self.others.insert(*at, value);
                self.writer.insert(*at, None);
                self.history.entry(*at).or_default().push(value);
            }
            Step::Refresh => {
                self.file.refresh(&self.metad.attr(), None);
            }
            Step::Hear => {
                self.file.take_unreported();
            }
            Step::Compact => {
                let at_rest = !self.file.is_dirty() && self.file.known_version() == self.metad.version;
                if at_rest && self.file.pages_show_present() {
                    self.compact();
                }
            }
        }
    }

    fn run(steps: &[Step], alone: bool, copies: bool) -> Self {
        let mut world = Self::new(alone, copies);
        steps.iter().for_each(|step| world.take(step));
        world.take_page();
        world.refuses = false;
        world.drop_pages();
        world.flush();
        world
    }

    /// Returns what was written here last at a place, and neither is in the file nor in a copy.
    fn lost(&self) -> Vec<(usize, u8)> {
        let is_there = |at: usize, value: u8| {
            self.metad.bytes[at].value == value || self.metad.copies.values().any(|copy| copy[at] == value)
        };
        let last = self.writer.iter().filter_map(|(at, value)| Some((*at, (*value)?)));
        last.filter(|(at, value)| !is_there(*at, *value)).collect()
    }
}

/// Values that a later value of ours has replaced before they were written back need not come.
fn replaced(world: &World, at: usize, value: u8) -> bool {
    world.ours.get(&at) != Some(&value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Guards I6. Each commit is checked for not replacing what the program has not seen.
    #[test]
    fn what_a_program_changes_in_a_page_is_in_the_file_or_in_a_copy_and_replaces_only_what_it_has_seen(
        steps in steps((0..SIZE).collect(), (0..SIZE).collect(), usize::MAX),
        refusals in proptest::collection::vec(0_usize..80, 0..3),
        alone in any::<bool>(),
        copies in any::<bool>(),
    ) {
        let mut steps = steps;
        refusals.into_iter().for_each(|at| steps.insert(at.min(steps.len()), Step::Refuse));
        let world = World::run(&steps, alone, copies);
        for (at, value) in &world.unique {
            let landed = world.metad.landed.contains_key(&(*at, *value));
            prop_assert!(landed || replaced(&world, *at, *value), "{} of {} is lost", value, at);
        }
        prop_assert_eq!(world.lost(), []);
    }

    /// Guards I6.
    #[test]
    fn pages_that_two_mounts_change_in_different_places_are_in_no_conflict(
        steps in steps((0..SIZE).step_by(2).collect(), (1..SIZE).step_by(2).collect(), 6),
        copies in any::<bool>(),
    ) {
        // Where the content is stored that a page shows is not known after a compaction, if others change it next.
        let steps: Vec<Step> = steps.into_iter().filter(|step| !matches!(step, Step::Compact)).collect();
        let world = World::run(&steps, false, copies);
        prop_assert!(world.metad.copies.is_empty(), "{:?}", world.metad.copies);
        for (at, value) in world.ours.iter().chain(&world.others) {
            prop_assert_eq!(world.metad.bytes[*at].value, *value, "at {}", at);
        }
    }

    #[test]
    fn while_nobody_else_has_the_file_pages_are_taken_whole_and_compared_with_nothing(
        steps in steps((0..SIZE).collect(), vec![0], 0),
    ) {
        // An answer that has a commit before the commit's own answer arrives makes it look like another session's. After a
        // compaction, extents are asked for anew.
        let steps: Vec<Step> =
            steps.into_iter().filter(|step| !matches!(step, Step::Refresh | Step::Compact)).collect();
        let world = World::run(&steps, true, false);
        prop_assert_eq!(world.compared, 0);
        for (at, value) in &world.ours {
            prop_assert_eq!(world.metad.bytes[*at].value, *value, "at {}", at);
        }
    }
}

/// Guards I6.
#[test]
fn what_others_have_written_is_not_our_own_once_this_client_has_compacted_it() {
    let mut world = World::new(false, false);
    [Step::Fault(0), Step::Reply, Step::Others(1), Step::Refresh].iter().for_each(|step| world.take(step));
    // Others' change became known just before this client's compaction.
    world.compact();
    [Step::Store(0), Step::WriteBack(0), Step::Take].iter().for_each(|step| world.take(step));
    world.flush();
    assert_eq!((world.metad.bytes[0].value, world.metad.bytes[1].value >= OTHERS), (0, true));
    assert_eq!((world.metad.copies.len(), world.lost()), (1, Vec::new()));
}

/// Guards I6.
#[test]
fn a_page_that_had_our_content_over_newer_content_of_others_does_not_replace_that_once_ours_is_known_to_be_older() {
    let mut world = World::new(false, false);
    [Step::Write(0), Step::Seal, Step::Plan, Step::Deliver].iter().for_each(|step| world.take(step));
    // The answer is late: others change the same byte, and the page is read before it comes.
    let steps = [Step::Others(0), Step::Refresh, Step::BeginDrop, Step::Drop, Step::EndDrop];
    steps.iter().for_each(|step| world.take(step));
    [Step::Fault(0), Step::Reply, Step::Answer].iter().for_each(|step| world.take(step));
    assert_eq!((world.file.is_dirty(), world.file.known_version()), (false, Version(3)));
    [Step::Store(1), Step::WriteBack(0), Step::Take].iter().for_each(|step| world.take(step));
    world.flush();
    assert_eq!((world.metad.bytes[0].value >= OTHERS, world.metad.bytes[1].value), (true, 0));
    assert_eq!((world.metad.copies.len(), world.lost()), (1, Vec::new()));
}

/// Guards I6. metad may remember a newer version for the file's earlier content.
#[test]
fn the_journal_says_that_a_page_is_based_on_an_older_version_than_what_was_written_before() {
    let mut world = World::new(false, false);
    let steps = [Step::Fault(0), Step::Reply, Step::Others(1), Step::Refresh, Step::Write(16), Step::Seal];
    steps.iter().for_each(|step| world.take(step));
    let before = world.file.picture(u64::MAX);
    assert_eq!((before.base, before.late), (Version(2), false));
    [Step::Store(0), Step::WriteBack(0), Step::Take, Step::Seal].iter().for_each(|step| world.take(step));
    let picture = world.file.picture(u64::MAX);
    assert_eq!((picture.base, picture.late, picture.pieces.len()), (Version(1), true, 2));
    world.flush();
    [Step::Write(16), Step::Seal].iter().for_each(|step| world.take(step));
    assert!(!world.file.picture(u64::MAX).late);
}

/// A program appends 54 bytes to a file of 4,046, while others append 50: in its pages they begin at the end that it knows,
/// in the file behind what others have appended. Returns the file, the page, and the answer to the commit.
fn moved_append() -> (Arc<FileState>, Plan, Vec<u8>, OpReply) {
    const END: u64 = 4046;
    let attr = |version, size| InodeAttr { version: Version(version), size, ..crate::testing::attr() };
    let file = FileState::new(attr(1, END), None, Arc::default(), 4 << 20);
    let appended: Vec<u8> = (0..54).collect();
    file.write(None, &appended, false, Timestamp::default()).unwrap();
    let last = file.seal_rest(To::OwnBlock, upload).unwrap();
    let mut draft = Draft::default();
    draft.add(&file.sealed_at(0, last).unwrap().packed, None);
    let plan = draft.finish(file.basis(Instant::now()));
    // The first bytes of the second page.
    let page = appended[50..].to_vec();
    let attr = attr(3, END + 50 + 54);
    let landed = OpReply::Committed { attr, appended_at: Some(END + 50), conflict: None, chunk_extents: 0 };
    (file, plan, page, landed)
}

fn take_answer(file: &FileState, plan: &Plan, answer: OpReply) {
    take(judge(plan, Ok(answer), Way::Queued), file, plan, Instant::now());
}

/// Guards I6. The page has other bytes of the same append where the file has its first ones.
#[test]
fn a_page_that_comes_after_an_append_has_moved_does_not_replace_what_was_appended() {
    let (file, plan, mut page, landed) = moved_append();
    page[2] = b'x';
    take_answer(&file, &plan, landed);
    let seen = file.seen(&(4096..4100));
    assert!(matches!(seen.below, Below::Unknown), "no content has what the page shows");
    file.write_changed(&seen, &page, None, Timestamp::default()).unwrap();
    let basis = file.basis(Instant::now());
    assert_eq!((basis.base, basis.own), (Version(1), Vec::new()), "version 3 is in conflict with it");
}

/// Guards I6.
#[test]
fn what_was_stored_in_a_page_before_an_append_has_moved_does_not_replace_what_was_appended() {
    let (file, plan, page, landed) = moved_append();
    let seen = file.seen(&(4096..4100));
    file.write_changed(&seen, &page, Some(std::slice::from_ref(&(2..3))), Timestamp::default()).unwrap();
    take_answer(&file, &plan, landed);
    let basis = file.basis(Instant::now());
    assert_eq!((basis.base, basis.own), (Version(1), Vec::new()), "version 3 is in conflict with it");
}
