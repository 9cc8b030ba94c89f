use super::*;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(20);
const MIB: usize = 1 << 20;

/// What a disk has done.
#[derive(Debug, PartialEq, Eq)]
enum Done {
    Written(u64),
    Failed(ErrorKind),
    Freed { place: u64, is_last: bool },
}

/// A disk that says what it has done.
struct Watched {
    disk: SpoolFile,
    done: mpsc::Sender<Done>,
}

impl Disk for Watched {
    fn write(&mut self, place: u64, bytes: &[u8]) -> io::Result<()> {
        let written = self.disk.write(place, bytes);
        let _ =
            self.done.send(written.as_ref().map_or_else(|error| Done::Failed(error.kind()), |()| Done::Written(place)));
        written
    }

    fn read(&mut self, place: u64, len: usize) -> io::Result<Vec<u8>> {
        self.disk.read(place, len)
    }

    fn free(&mut self, place: u64, is_last: bool) -> io::Result<()> {
        let freed = self.disk.free(place, is_last);
        let _ = self.done.send(Done::Freed { place, is_last });
        freed
    }
}

/// A disk that hangs in each step until its channel is closed.
pub(crate) struct Stuck {
    begun: mpsc::Sender<()>,
    hangs: mpsc::Receiver<()>,
}

impl Stuck {
    fn hang<T>(&self) -> io::Result<T> {
        let _ = self.begun.send(());
        let _ = self.hangs.recv();
        Err(io::Error::other("it hung"))
    }
}

impl Disk for Stuck {
    fn write(&mut self, _place: u64, _bytes: &[u8]) -> io::Result<()> {
        self.hang()
    }

    fn read(&mut self, _place: u64, _len: usize) -> io::Result<Vec<u8>> {
        self.hang()
    }

    fn free(&mut self, _place: u64, _is_last: bool) -> io::Result<()> {
        Ok(())
    }
}

fn file(dir: &Path, free_min: u64) -> SpoolFile {
    SpoolFile { free_min, ..SpoolFile::open(dir).unwrap() }
}

fn watched(dir: &Path, free_min: u64, places_max: u64) -> (Spool, File, mpsc::Receiver<Done>) {
    let (done, log) = mpsc::channel();
    let disk = file(dir, free_min);
    let seen = disk.file.try_clone().unwrap();
    (Spool::start(move || Ok(Watched { disk, done }), places_max, LIMIT).unwrap(), seen, log)
}

fn content(number: u8) -> Vec<u8> {
    vec![number; MIB]
}

#[tokio::test]
async fn content_is_in_a_file_that_nobody_finds_until_it_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, file, log) = watched(dir.path(), 0, 100);
    let asides: Vec<_> = (0..18).map(|number| spool.put(content(number))).collect();
    for place in 0..18 {
        assert_eq!(log.recv_timeout(LIMIT), Ok(Done::Written(place)));
    }
    assert_eq!(file.metadata().unwrap().len(), 18 * MIB as u64);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    for (number, aside) in (0..18).zip(&asides) {
        assert!(aside.take().await.unwrap() == content(number));
    }
    for place in 0..18 {
        assert_eq!(log.recv_timeout(LIMIT), Ok(Done::Freed { place, is_last: place == 17 }));
    }
    assert_eq!(file.metadata().unwrap().len(), 0, "the disk gets its space back");
    drop((spool, asides));
    assert_eq!(log.recv_timeout(LIMIT), Err(mpsc::RecvTimeoutError::Disconnected), "the thread ends");
}

#[tokio::test]
async fn content_that_the_disk_has_changed_is_an_error_and_no_other_content_suffers() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, file, log) = watched(dir.path(), 0, 100);
    let asides: Vec<_> = (0..3).map(|number| spool.put(content(number))).collect();
    // The thread begins the next one when it has noted where this one is.
    let _last = spool.put(content(3));
    for place in 0..4 {
        assert_eq!(log.recv_timeout(LIMIT), Ok(Done::Written(place)));
    }
    file.write_all_at(b"x", PLACE_BYTES + 12_345).unwrap();
    let damaged = asides[1].take().await;
    assert_eq!(damaged.map_err(|error| error.kind()), Err(ErrorKind::InvalidData));
    for number in [0, 2] {
        assert!(asides[usize::from(number)].take().await.unwrap() == content(number));
    }
}

#[tokio::test]
async fn places_are_used_again_and_no_content_is_mixed_up() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, file, _log) = watched(dir.path(), 0, 10);
    let mut put: Vec<_> = (0..10).map(|number| (number, spool.put(content(number)))).collect();
    for number in 10..60 {
        // From all sides, so that the file has holes.
        let (old, aside) = put.remove(usize::from(number) * 7 % put.len());
        assert!(aside.take().await.unwrap() == content(old));
        put.push((number, spool.put(content(number))));
    }
    for (number, aside) in put {
        assert!(aside.take().await.unwrap() == content(number));
    }
    assert!(file.metadata().unwrap().len() <= 10 * MIB as u64);
}

#[tokio::test]
async fn a_disk_that_hangs_keeps_nobody_waiting_and_is_not_used_meanwhile() {
    let (begun, begins) = mpsc::channel();
    let (ends, hangs) = mpsc::channel();
    let mut spool = Spool::start(move || Ok(Stuck { begun, hangs }), 10, LIMIT).unwrap();
    let first = spool.put(content(0));
    begins.recv_timeout(LIMIT).expect("it is being written");
    spool.step_limit = Duration::ZERO;
    let others: Vec<_> = (1..100).map(|number| spool.put(content(number))).collect();
    assert_eq!(spool.queue.jobs.lock().usable, Usable::Overdue, "the step has taken longer than the limit");
    assert!(spool.queue.jobs.lock().stores.is_empty());
    assert!(first.take().await.unwrap() == content(0), "although it is being written");
    for (number, aside) in (1..).zip(&others) {
        assert!(aside.take().await.unwrap() == content(number));
    }
    drop(ends);
    drop(spool);
    assert_eq!(begins.recv_timeout(LIMIT), Err(mpsc::RecvTimeoutError::Disconnected), "nothing else was begun");
}

#[test]
fn a_disk_is_used_again_a_while_after_a_step_that_took_too_long() {
    let (begun, begins) = mpsc::channel();
    let (ends, hangs) = mpsc::channel();
    let mut spool = Spool::start(move || Ok(Stuck { begun, hangs }), 10, LIMIT).unwrap();
    let mut kept = vec![spool.put(content(0))];
    begins.recv_timeout(LIMIT).unwrap();
    spool.step_limit = Duration::ZERO;
    kept.push(spool.put(content(1)));
    assert_eq!(spool.queue.jobs.lock().usable, Usable::Overdue);
    drop(ends);
    let started = Instant::now();
    while spool.queue.jobs.lock().usable == Usable::Overdue {
        assert!(started.elapsed() < LIMIT, "the step has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    spool.step_limit = LIMIT;
    kept.push(spool.put(content(2)));
    assert!(spool.queue.jobs.lock().stores.is_empty(), "it rests");
    spool.rest = Duration::ZERO;
    kept.push(spool.put(content(3)));
    begins.recv_timeout(LIMIT).expect("it is used again");
    assert_eq!(begins.try_recv(), Err(mpsc::TryRecvError::Empty), "nothing that came meanwhile is written");
}

#[test]
fn content_of_an_interrupted_write_is_not_kept_for_a_disk_that_hangs() {
    let (begun, begins) = mpsc::channel();
    let (ends, hangs) = mpsc::channel();
    let spool = Spool::start(move || Ok(Stuck { begun, hangs }), 10, LIMIT).unwrap();
    let _first = spool.put(content(0));
    begins.recv_timeout(LIMIT).unwrap();
    let waiting = spool.put(content(1));
    let (gone, queued) = (Arc::downgrade(&waiting), spool.queue.jobs.lock().stores.len());
    drop(waiting);
    assert!(gone.upgrade().is_none());
    assert_eq!(queued, 1);
    drop(ends);
}

#[tokio::test]
async fn the_file_takes_no_more_than_its_part_and_what_is_beyond_stays_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, file, log) = watched(dir.path(), 0, 3);
    let asides: Vec<_> = (0..10).map(|number| spool.put(content(number))).collect();
    for place in 0..3 {
        assert_eq!(log.recv_timeout(LIMIT), Ok(Done::Written(place)));
    }
    for (number, aside) in (3..10).zip(&asides[3..]) {
        assert!(aside.take().await.unwrap() == content(number));
    }
    assert_eq!(file.metadata().unwrap().len(), 3 * MIB as u64);
    for (number, aside) in (0..3).zip(&asides) {
        assert!(aside.take().await.unwrap() == content(number));
    }
}

#[tokio::test]
async fn a_disk_that_must_stay_free_takes_nothing_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, file, log) = watched(dir.path(), u64::MAX, 10);
    let aside = spool.put(content(7));
    assert_eq!(log.recv_timeout(LIMIT), Ok(Done::Failed(ErrorKind::StorageFull)));
    assert_eq!(log.recv_timeout(LIMIT), Ok(Done::Freed { place: 0, is_last: true }));
    assert_eq!(file.metadata().unwrap().len(), 0);
    assert!(aside.take().await.unwrap() == content(7));
}

#[test]
fn the_space_of_a_place_in_the_middle_is_given_back_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = file(dir.path(), 0);
    for place in 0..3 {
        disk.write(place, &content(1)).unwrap();
    }
    disk.file.sync_all().unwrap();
    let taken = |disk: &SpoolFile| disk.file.metadata().unwrap().blocks() * 512;
    let before = taken(&disk);
    disk.free(1, false).unwrap();
    assert!(taken(&disk) <= before - PLACE_BYTES, "{} bytes of {before} are taken", taken(&disk));
    assert_eq!(disk.read(2, MIB).unwrap(), content(1));
}

#[test]
fn a_file_that_a_killed_process_has_left_behind_is_not_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("waiting-1");
    std::fs::write(&path, "what another process wrote").unwrap();
    let file = open_and_remove(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    assert!(!path.exists());
}
