use super::*;
use crate::testing::{Place, bundle};
use crate::{ClientConfig, Error};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

/// A condition that does not hold after this time never will.
const LIMIT: Duration = Duration::from_secs(20);

/// Helpers that open one cache after the other in the same place.
impl Place {
    fn config(&self, limit: u64) -> ClientConfig {
        let mut config = ClientConfig::new(bundle(&self.ca, "c"), "/mnt");
        config.cache_dir = Some(self.dir.path().to_owned());
        config.disk_cache_bytes = limit;
        config.journal = false;
        config
    }

    /// Opens a cache and waits until it has listed its blocks.
    async fn open(&self, limit: u64) -> DiskCache {
        let local = LocalDir::of(&self.config(limit)).await.unwrap().unwrap();
        let cache = DiskCache::start(local, limit).unwrap();
        until("it is listed", || cache.shared.is_listed.load(Ordering::Acquire)).await;
        cache
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LIMIT, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn block(seed: u32, len: usize) -> Bytes {
    (0..len)
        .map(|at| ((at as u32).wrapping_mul(2_654_435_761) >> 24) as u8 ^ (seed.wrapping_mul(167) >> 3) as u8)
        .chain(seed.to_le_bytes())
        .collect()
}

/// Inserts a block and waits until the worker is done with it.
async fn insert_and_wait(cache: &DiskCache, block: &Bytes) -> BlockHash {
    let (hash, sections) = Sections::of(block);
    cache.insert(hash, block.clone(), sections);
    until("the queue is empty", || cache.shared.queued_bytes.load(Ordering::Acquire) == 0).await;
    hash
}

async fn get(cache: &DiskCache, hash: BlockHash) -> Option<Bytes> {
    cache.read(hash, None)?.await
}

fn path(cache: &DiskCache, hash: &BlockHash) -> PathBuf {
    file::path(&cache.shared.dir, hash)
}

/// Returns the bytes of disk used below a directory, without those of the directories themselves.
fn used(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).map(|entries| entries.map(Result::unwrap).collect()).unwrap_or_else(|_| Vec::new());
    let of = |entry: fs::DirEntry| {
        let found = entry.metadata().unwrap();
        if found.is_dir() { used(&entry.path()) } else { room(found.size()) }
    };
    entries.into_iter().map(of).sum()
}

use index::room;

/// Guards I9.
#[tokio::test]
async fn blocks_and_parts_of_them_are_read_as_they_were_written_also_after_a_remount() {
    let place = Place::new();
    let blocks: Vec<Bytes> = [1, 5000, 65_530, 65_532, 65_533, 300_000, (4 << 20) - 4].map(|len| block(7, len)).into();
    for mount in 0..2 {
        let cache = place.open(64 << 20).await;
        for block in &blocks {
            let hash = if mount == 0 { insert_and_wait(&cache, block).await } else { BlockHash::of(block) };
            assert_eq!(get(&cache, hash).await.as_ref(), Some(block), "{} bytes, mount {mount}", block.len());
            for part in [0..1, block.len() / 2..block.len() / 2 + 1, block.len() - 1..block.len(), 0..block.len()] {
                let read = cache.read(hash, Some(part.clone())).unwrap().await;
                assert_eq!(read, Some(block.slice(part)), "of {} bytes, mount {mount}", block.len());
            }
        }
        assert_eq!(used(&cache.shared.dir), cache.shared.index.lock().used());
        assert!(cache.read(BlockHash([9; 32]), None).is_none(), "it is known not to be here");
        cache.close().await;
    }
}

#[tokio::test]
async fn an_earlier_mounts_blocks_are_found_before_they_are_listed() {
    let place = Place::new();
    let cache = place.open(64 << 20).await;
    let hash = insert_and_wait(&cache, &block(1, 5000)).await;
    cache.close().await;
    cache.shared.is_listed.store(false, Ordering::Release);
    cache.shared.index.lock().clear();
    let (jobs, _queue) = std::sync::mpsc::sync_channel(8);
    assert!(cache.shared.may_have(&hash));
    assert_eq!(cache.shared.read_now(&hash, None, &jobs), Some(block(1, 5000)));
    assert_eq!(cache.shared.read_now(&BlockHash([1; 32]), None, &jobs), None);
}

#[tokio::test]
async fn the_cache_stays_within_its_limit_and_the_least_recently_used_go() {
    let place = Place::new();
    let cache = place.open(16 << 20).await;
    let first = insert_and_wait(&cache, &block(0, 100_000)).await;
    for seed in 1..400 {
        insert_and_wait(&cache, &block(seed, 100_000)).await;
        assert!(get(&cache, first).await.is_some(), "used again and again, and gone at {seed}");
        assert!(used(&cache.shared.dir) <= 16 << 20);
    }
    assert!(used(&cache.shared.dir) > 15 << 20);
    assert!(get(&cache, BlockHash::of(&block(1, 100_000))).await.is_none());
    assert!(get(&cache, BlockHash::of(&block(399, 100_000))).await.is_some());
    let large = block(1, (4 << 20) - 4);
    let hash = insert_and_wait(&cache, &large).await;
    assert!(get(&cache, hash).await.is_some() && used(&cache.shared.dir) <= 16 << 20);
}

#[tokio::test]
async fn a_smaller_limit_at_the_next_mount_keeps_what_was_used_last() {
    let place = Place::new();
    let cache = place.open(64 << 20).await;
    let mut hashes = Vec::new();
    for seed in 0..30 {
        hashes.push(insert_and_wait(&cache, &block(seed, 1 << 20)).await);
    }
    cache.close().await;
    // The blocks are used an hour apart, the first ones last.
    for (hours, hash) in hashes.iter().enumerate() {
        let at = SystemTime::now() - Duration::from_secs(3600 * hours as u64);
        let file = fs::File::options().write(true).open(path(&cache, hash)).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(at)).unwrap();
    }
    drop(cache);
    let cache = place.open(16 << 20).await;
    let kept: Vec<bool> = hashes.iter().map(|hash| path(&cache, hash).exists()).collect();
    let count = kept.iter().filter(|kept| **kept).count();
    assert!((14..16).contains(&count) && kept[..count].iter().all(|kept| *kept), "{kept:?}");
    // A use is noted in the file when the last note is old.
    let old = fs::metadata(path(&cache, &hashes[5])).unwrap().mtime();
    assert!(get(&cache, hashes[5]).await.is_some());
    until("the use is noted", || fs::metadata(path(&cache, &hashes[5])).unwrap().mtime() > old + 3600).await;
}

/// Guards I9.
#[tokio::test]
async fn damaged_and_truncated_files_are_noticed_dropped_and_written_again() {
    let place = Place::new();
    let cache = place.open(64 << 20).await;
    let content = block(3, 1_000_000);
    let damages: [fn(&mut Vec<u8>); 6] = [
        |file| file[500_000] ^= 1,
        |file| *file.last_mut().unwrap() ^= 0x80,
        |file| file.truncate(700_000),
        |file| file.truncate(0),
        |file| file.push(0),
        |file| file.fill(0),
    ];
    for (number, damage) in damages.iter().enumerate() {
        for part in [None, Some(499_000..501_000)] {
            let hash = insert_and_wait(&cache, &content).await;
            let path = path(&cache, &hash);
            let mut file = fs::read(&path).unwrap();
            damage(&mut file);
            fs::write(&path, &file).unwrap();
            let read = cache.read(hash, part.clone()).unwrap().await;
            // The last bit is one of the list of sections, which a whole block does not need.
            if number == 1 && part.is_none() {
                assert_eq!(read.as_ref(), Some(&content));
                fs::remove_file(&path).unwrap();
                assert_eq!(cache.read(hash, None).unwrap().await, None);
            } else {
                assert_eq!(read, None, "damage {number}, {part:?}");
            }
            until("it is dropped", || !path.exists()).await;
            assert_eq!(cache.shared.index.lock().used(), 0);
            assert!(!cache.shared.is_off());
        }
    }
}

#[tokio::test]
async fn files_of_others_are_left_alone_and_torn_ones_break_nothing() {
    let place = Place::new();
    let cache = place.open(64 << 20).await;
    let hash = insert_and_wait(&cache, &block(1, 100)).await;
    let dir = cache.shared.dir.clone();
    cache.close().await;
    drop(cache);
    let other = BlockHash::of(b"other").to_string();
    let empty = dir.join(&other[..2]).join(&other);
    fs::create_dir_all(dir.join(&other[..2])).unwrap();
    fs::write(&empty, "").unwrap();
    let upper = other.to_uppercase();
    fs::create_dir_all(dir.join("zz/below")).unwrap();
    let foreign =
        [dir.join("zz").join(&other), dir.join(&other[..2]).join(&upper), dir.join("note"), dir.join("zz/note")];
    for path in &foreign {
        fs::write(path, "not a block").unwrap();
    }
    let link = BlockHash::of(b"link");
    fs::create_dir_all(file::path(&dir, &link).parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/zero", file::path(&dir, &link)).unwrap();
    let cache = place.open(64 << 20).await;
    assert!(!empty.exists());
    assert!(foreign.iter().all(|path| path.exists()));
    assert_eq!(cache.shared.index.lock().used(), 4096);
    assert!(get(&cache, hash).await.is_some() && get(&cache, link).await.is_none());
    let (jobs, _queue) = std::sync::mpsc::sync_channel(8);
    assert_eq!(cache.shared.read_now(&link, None, &jobs), None, "a link is not followed");
    assert!(!cache.shared.is_off());
}

#[tokio::test]
async fn an_error_switches_the_cache_off_and_nothing_else() {
    let place = Place::new();
    let cache = place.open(64 << 20).await;
    let hash = insert_and_wait(&cache, &block(1, 100)).await;
    // A file stands where the folder was: this is neither absent nor damaged, but an error.
    let folder = path(&cache, &hash).parent().unwrap().to_owned();
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    assert_eq!(get(&cache, hash).await, None);
    assert!(cache.shared.is_off() && cache.read(hash, None).is_none());
    insert_and_wait(&cache, &block(2, 100)).await;
    cache.close().await;
}

#[tokio::test]
async fn a_full_queue_takes_no_more_blocks_and_delays_nobody() {
    let place = Place::new();
    let cache = place.open(64 << 20).await;
    let jobs = cache.jobs.lock().clone().unwrap();
    // The worker cannot go on while the index is locked.
    let index = cache.shared.index.lock();
    for seed in 0..QUEUE_COUNT as u32 + 10 {
        let _ = jobs.try_send(Job::Drop(BlockHash::of(&seed.to_le_bytes())));
    }
    drop(index);
    let (hash, sections) = Sections::of(&block(1, 40 << 20)[..4 << 20]);
    for _ in 0..2 {
        cache.insert(hash, block(1, QUEUE_BYTES + 1), sections.clone());
    }
    assert!(cache.shared.queued_bytes.load(Ordering::Acquire) <= QUEUE_BYTES);
    drop(jobs);
    cache.close().await;
    assert!(!path(&cache, &hash).exists());
}

#[tokio::test]
async fn a_disk_that_hangs_costs_a_moment_and_then_nothing() {
    let place = Place::new();
    let cache = place.open(64 << 20).await;
    let hash = insert_and_wait(&cache, &block(1, 100)).await;
    let hung = cache.shared.readers.clone().acquire_many_owned(READERS as u32).await.unwrap();
    let mut reading = std::pin::pin!(cache.read(hash, None).unwrap());
    assert_eq!(cache.patience(), DISK_PATIENCE);
    assert!(tokio::time::timeout(cache.patience(), &mut reading).await.is_err());
    cache.was_slow();
    assert_eq!(cache.patience(), Duration::ZERO);
    drop(hung);
    assert_eq!(reading.await, Some(block(1, 100)), "it is still there when the disk answers again");
}

#[tokio::test]
async fn a_directory_that_is_a_mistake_is_reported() {
    let place = Place::new();
    let held = place.open(64 << 20).await;
    assert!(matches!(LocalDir::of(&place.config(64 << 20)).await, Err(Error::LocalInUse { .. })));
    drop(held);
    let mut config = place.config(64 << 20);
    let file = place.dir.path().join("file");
    fs::write(&file, "").unwrap();
    config.cache_dir = Some(file);
    assert!(matches!(LocalDir::of(&config).await, Err(Error::Local { .. })));
    config.cache_dir_is_default = true;
    assert!(LocalDir::of(&config).await.unwrap().is_none(), "nobody has asked for it");
    assert!(LocalDir::of(&place.config(0)).await.unwrap().is_none());
}

/// A small filesystem of its own, unmounted at the end of the test.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(dir: &Path, size: &str) -> Self {
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "surf-test"]).arg(dir).status().unwrap();
        assert!(mounted.success(), "a tmpfs can be mounted");
        Self(dir.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_makes_the_cache_smaller_and_it_goes_on() {
    let place = Place::new();
    let mounted = Command::new("id").arg("-u").output().unwrap();
    if mounted.stdout != b"0\n" {
        eprintln!("needs root, to mount a small disk");
        return;
    }
    let _disk = Tmpfs::mount(place.dir.path(), "8m");
    let cache = place.open(1 << 30).await;
    let mut last = None;
    for seed in 0..60 {
        last = Some(insert_and_wait(&cache, &block(seed, 300_000)).await);
    }
    assert!(!cache.shared.is_off());
    assert!(used(&cache.shared.dir) > 5 << 20, "{}", used(&cache.shared.dir));
    assert_eq!(used(&cache.shared.dir), cache.shared.index.lock().used());
    // The newest block is cached, in place of the oldest.
    assert!(get(&cache, last.unwrap()).await.is_some());
    assert!(get(&cache, BlockHash::of(&block(0, 300_000))).await.is_none());
    cache.close().await;
    drop(cache);
}
