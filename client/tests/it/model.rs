//! Random operations through two handles of one file, compared byte by byte with a file in memory.
//!
//! Blocks are as small as they can be, and the file's content lies around the border of a chunk behind a hole of almost
//! that length, so that hardly an operation stays within one extent, block or chunk. Everything that was written is
//! committed in the background meanwhile.

use crate::cluster::{Cluster, content, names, pattern, regular};
use client::{Client, Handle, OpenFlags};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::sync::Arc;
use std::time::Duration;
use wire::FsError;
use wire::attr::AttrChange;
use wire::ids::Ino;
use wire::limits::CHUNK_BYTES;
use wire::op::RangeAction;

/// Where content begins: the range before it stays a hole.
const BASE: u64 = CHUNK_BYTES - (32 << 10);
/// Operations begin within this many bytes from there.
const WINDOW: u64 = 64 << 10;
/// Collapsing and inserting work in units of this.
const UNIT: u64 = 4096;
/// The number of cases without `PROPTEST_CASES`.
const CASES: u32 = 32;

#[derive(Clone, Debug)]
enum Step {
    Write { at: u64, len: usize, seed: u64 },
    Append { len: usize, seed: u64 },
    Read { through: bool, at: u64, len: usize },
    Truncate { at: u64 },
    Range { at: u64, len: u64, action: RangeAction },
    Copy { from: u64, to: u64, len: u64 },
    Flush { through: bool },
    Reopen { through: bool },
    Seek { at: u64 },
}

/// Anywhere, or near the borders of blocks.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![0..WINDOW, (0..WINDOW / UNIT, 0_u64..3).prop_map(|(unit, off)| (unit * UNIT + off).saturating_sub(1))]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![1_usize..100, 4000_usize..4200, 1_usize..20_000]
}

fn range() -> impl Strategy<Value = Step> {
    let keep = any::<bool>();
    let free = (place(), length(), 0_u8..3, keep).prop_map(|(at, len, which, keep_size)| {
        let action = match which {
            0 => RangeAction::Punch,
            1 => RangeAction::Zero { keep_size },
            _ => RangeAction::Allocate { keep_size },
        };
        Step::Range { at, len: len as u64, action }
    });
    let aligned = (0..WINDOW / UNIT, 1_u64..4, any::<bool>()).prop_map(|(at, len, collapse)| {
        let action = if collapse { RangeAction::Collapse } else { RangeAction::Insert };
        Step::Range { at: at * UNIT, len: len * UNIT, action }
    });
    prop_oneof![2 => free, 1 => aligned]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (place(), length(), any::<u64>())
            .prop_map(|(at, len, seed)| Step::Write { at, len, seed }),
        2 => (length(), any::<u64>()).prop_map(|(len, seed)| Step::Append { len, seed }),
        8 => (any::<bool>(), place(), length()).prop_map(|(through, at, len)| Step::Read { through, at, len }),
        2 => place().prop_map(|at| Step::Truncate { at }),
        4 => range(),
        2 => (place(), place(), length()).prop_map(|(from, to, len)| Step::Copy { from, to, len: len as u64 }),
        2 => any::<bool>().prop_map(|through| Step::Flush { through }),
        1 => any::<bool>().prop_map(|through| Step::Reopen { through }),
        2 => place().prop_map(|at| Step::Seek { at }),
    ]
}

/// The expected content of the file behind `BASE`.
#[derive(Default)]
struct Model {
    bytes: Vec<u8>,
}

impl Model {
    fn write(&mut self, at: u64, data: &[u8]) {
        let end = at as usize + data.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[at as usize..end].copy_from_slice(data);
    }

    /// Returns the existing part of a range.
    fn part(&self, at: u64, len: usize) -> &[u8] {
        let end = (at as usize + len).min(self.bytes.len());
        self.bytes.get(at as usize..end).unwrap_or_default()
    }

    /// Does what `fallocate(2)` does; false where it must refuse.
    fn range(&mut self, at: u64, len: u64, action: RangeAction) -> bool {
        let (from, to) = (at as usize, (at + len) as usize);
        let size = self.bytes.len();
        match action {
            RangeAction::Allocate { keep_size } | RangeAction::Zero { keep_size } if !keep_size => {
                self.bytes.resize(size.max(to), 0);
            }
            _ => {}
        }
        match action {
            RangeAction::Allocate { .. } => {}
            RangeAction::Punch | RangeAction::Zero { .. } => {
                let to = to.min(self.bytes.len());
                if let Some(gone) = self.bytes.get_mut(from..to) {
                    gone.fill(0);
                }
            }
            RangeAction::Collapse if to < size => drop(self.bytes.drain(from..to)),
            RangeAction::Insert if from < size => drop(self.bytes.splice(from..from, vec![0; len as usize])),
            RangeAction::Collapse | RangeAction::Insert => return false,
        }
        true
    }
}

/// A file, open twice (the second time for appending), and its expected content.
struct File {
    client: Arc<Client>,
    plain: Handle,
    appending: Handle,
    model: Model,
}

const APPEND: OpenFlags = OpenFlags { append: true, sync: false, truncate: false };

impl File {
    async fn make(client: Arc<Client>, name: &str) -> Self {
        let opened = client.create(Ino::ROOT, name.as_bytes(), regular(), OpenFlags::default()).await.unwrap();
        let change = AttrChange { size: Some(BASE), ..AttrChange::default() };
        client.setattr(opened.attr.ino, change).await.unwrap();
        let appending = client.open(opened.attr.ino, APPEND).await.unwrap().handle;
        Self { client, plain: opened.handle, appending, model: Model::default() }
    }

    /// Returns a handle for an operation. Reads and seeks go through either handle, writes at an offset only through
    /// the plain one.
    fn handle(&self, plain: bool) -> &Handle {
        if plain { &self.plain } else { &self.appending }
    }

    async fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Write { at, len, seed } => {
                let data = pattern(seed, len);
                prop_assert_eq!(self.client.write(&self.plain, BASE + at, &data, false).await, Ok(len));
                self.model.write(at, &data);
            }
            Step::Append { len, seed } => {
                let data = pattern(seed, len);
                prop_assert_eq!(self.client.write(&self.appending, 0, &data, false).await, Ok(len));
                self.model.write(self.model.bytes.len() as u64, &data);
            }
            Step::Read { through, at, len } => {
                let read = self.client.read(self.handle(through), BASE + at, len).await.unwrap();
                prop_assert!(read == self.model.part(at, len), "differs");
            }
            Step::Truncate { at } => {
                let change = AttrChange { size: Some(BASE + at), ..AttrChange::default() };
                let attr = self.client.setattr(self.plain.ino(), change).await.unwrap();
                prop_assert_eq!(attr.size, BASE + at);
                self.model.bytes.resize(at as usize, 0);
            }
            Step::Range { at, len, action } => {
                let done = self.client.fallocate(&self.plain, BASE + at, len, action).await;
                let expected = if self.model.range(at, len, action) { Ok(()) } else { Err(FsError::Invalid) };
                prop_assert_eq!(done, expected);
            }
            Step::Copy { from, to, len } => self.copy(from, to, len).await?,
            Step::Flush { through } => prop_assert_eq!(self.client.flush(self.handle(through)).await, Ok(())),
            Step::Reopen { through } => self.reopen(through).await,
            Step::Seek { at } => self.seek(at).await?,
        }
        let size = self.client.getattr(self.plain.ino()).await.unwrap().size;
        prop_assert_eq!(size, BASE + self.model.bytes.len() as u64);
        Ok(())
    }

    async fn copy(&mut self, from: u64, to: u64, len: u64) -> Result<(), TestCaseError> {
        let part = self.model.part(from, len as usize).to_vec();
        let (source, target) = ((&self.plain, BASE + from), (&self.appending, BASE + to));
        let copied = self.client.copy_range(source, target, len).await;
        // `copy_file_range(2)`: the two ranges of one file must not overlap.
        if !part.is_empty() && from.abs_diff(to) < part.len() as u64 {
            prop_assert_eq!(copied, Err(FsError::Invalid));
            return Ok(());
        }
        prop_assert_eq!(copied, Ok(part.len() as u64));
        if !part.is_empty() {
            self.model.write(to, &part);
        }
        Ok(())
    }

    async fn reopen(&mut self, plain: bool) {
        let flags = if plain { OpenFlags::default() } else { APPEND };
        let again = self.client.open(self.plain.ino(), flags).await.unwrap().handle;
        let old = std::mem::replace(if plain { &mut self.plain } else { &mut self.appending }, again);
        self.client.flush(&old).await.unwrap();
        self.client.release(old).await;
    }

    /// Checks that ranges reported as holes read as zeros.
    async fn seek(&self, at: u64) -> Result<(), TestCaseError> {
        let end = BASE + self.model.bytes.len() as u64;
        let data = self.client.seek(&self.plain, BASE + at, false).await;
        if BASE + at >= end {
            prop_assert_eq!(data, Err(FsError::NoSuchDataOrHole));
            return Ok(());
        }
        let data = data.unwrap_or(end);
        prop_assert!((BASE + at..=end).contains(&data));
        prop_assert!(self.model.bytes[at as usize..(data - BASE) as usize].iter().all(|byte| *byte == 0));
        let hole = self.client.seek(&self.plain, BASE + at, true).await.unwrap();
        prop_assert!((BASE + at..=end).contains(&hole) && (hole == BASE + at) == (data > BASE + at));
        Ok(())
    }
}

struct World {
    cluster: Cluster,
    client: Arc<Client>,
    reader: Arc<Client>,
}

impl World {
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let mut config = cluster.config();
        config.block_bytes = UNIT;
        config.dirty_age = Duration::from_millis(3);
        let client = Client::connect(config).await.unwrap();
        let reader = cluster.client().await;
        Self { cluster, client, reader }
    }

    async fn run(&self, steps: &[Step]) -> Result<(), TestCaseError> {
        let mut file = File::make(self.client.clone(), "file").await;
        for step in steps {
            file.take(step).await?;
        }
        let File { client, plain, appending, model } = file;
        prop_assert_eq!(client.flush(&plain).await, Ok(()));
        let elsewhere = content(&self.reader, "file").await;
        prop_assert!(elsewhere[BASE as usize..] == model.bytes, "differs on another client");
        prop_assert!(elsewhere[..BASE as usize].iter().all(|byte| *byte == 0));
        prop_assert_eq!(names(&client).await, ["file"], "nothing was in conflict with itself");
        client.release(plain).await;
        client.release(appending).await;
        client.unlink(Ino::ROOT, b"file").await.unwrap();
        Ok(())
    }
}

#[test]
fn a_file_reads_as_bytes_in_memory_would_over_the_borders_of_blocks_and_chunks() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = runtime.block_on(World::start());
    let mut config = Config::with_source_file(file!());
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let steps = proptest::collection::vec(step(), 1..50);
    let checked = TestRunner::new(config).run(&steps, |steps| {
        let outcome = runtime.block_on(world.run(&steps));
        // What a failed case has left would disturb the next one.
        runtime.block_on(async {
            for name in names(&world.client).await {
                let _ = world.client.unlink(Ino::ROOT, name.as_bytes()).await;
            }
        });
        outcome
    });
    let stopped = runtime.block_on(async { world.client.shutdown().await.and(world.reader.shutdown().await) });
    drop(world.cluster);
    checked.unwrap_or_else(|failure| panic!("{failure}"));
    stopped.unwrap();
}
