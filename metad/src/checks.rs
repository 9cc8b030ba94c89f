//! Checks of the whole metadata that are under way on this node.
//!
//! A check reads a frozen state in a thread of its own, and returns its findings page by page: the thread waits when
//! nobody fetches them. A check exists in the memory of the node that began it, and ends when nobody asks for it.
//!
//! Checks and backups take and read all of the state. So one check and one backup go on at a time, and each is admitted
//! before the state is taken ([`Checks::admit`]).

use crate::consensus::Frozen;
use crate::fs::check::{self, Listener};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use wire::message::check::{CheckId, Finding, Repair};
use wire::tls::PeerIdentity;

/// A check that nobody asks for ends after this time: `surf fsck` says more often that it goes on.
const IDLE_LIMIT: Duration = Duration::from_secs(120);
/// Findings that wait to be fetched.
const WAITING_MAX: usize = 256;
/// How long a request for findings waits for some.
const FINDINGS_WAIT: Duration = Duration::from_secs(1);

/// What takes all of the state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reader {
    /// A check, by `surf fsck` or before deletion resumes.
    Check,
    /// A backup.
    Backup,
}

/// Who takes all of the state, and since when.
struct Taken {
    who: String,
    since: Instant,
}

type Readers = Arc<Mutex<BTreeMap<Reader, Taken>>>;

/// The right to take all of the state, until it is dropped.
pub struct Admission {
    readers: Readers,
    reader: Reader,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.readers.lock().remove(&self.reader);
    }
}

/// Checks under way on this node.
#[derive(Default)]
pub struct Checks {
    running: Mutex<BTreeMap<CheckId, Arc<Running>>>,
    readers: Readers,
}

/// The repairs that may be asked for.
#[derive(Default)]
struct Justified {
    /// Those of the findings that were returned last.
    open: Vec<Repair>,
    /// The last that were taken, with the number of the request.
    taken: Option<(u64, Vec<Repair>)>,
}

/// A check under way.
pub struct Running {
    /// The state that it looks at.
    pub state: Arc<dyn Frozen>,
    /// No other repairs are asked for honestly.
    justified: Mutex<Justified>,
    findings: tokio::sync::Mutex<mpsc::Receiver<Finding>>,
    looked: Arc<AtomicU64>,
    given_up: Arc<AtomicBool>,
    completed: Arc<AtomicBool>,
    asked: Mutex<Instant>,
    _admission: Admission,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

/// Where the thread reports.
struct Reporter {
    findings: mpsc::Sender<Finding>,
    looked: Arc<AtomicU64>,
    given_up: Arc<AtomicBool>,
}

impl Listener for Reporter {
    fn found(&mut self, finding: Finding) {
        if self.findings.blocking_send(finding).is_err() {
            self.given_up.store(true, Ordering::Relaxed);
        }
    }

    fn looked(&mut self) -> bool {
        self.looked.fetch_add(1, Ordering::Relaxed);
        !self.given_up.load(Ordering::Relaxed)
    }
}

impl Checks {
    /// Lets a peer take all of the state. To be asked before any work is done for it.
    ///
    /// # Errors
    /// When another one is at it: who, and since when.
    pub fn admit(&self, reader: Reader, peer: &PeerIdentity) -> Result<Admission, String> {
        self.forget_idle();
        let mut readers = self.readers.lock();
        if let Some(Taken { who, since }) = readers.get(&reader) {
            let what = match reader {
                Reader::Check => "a check of the metadata",
                Reader::Backup => "a backup",
            };
            let seconds = since.elapsed().as_secs();
            return Err(format!(
                "busy: {what} is under way for {who} since {seconds} s: wait until it has ended; if its program was \
                 killed, that is within minutes"
            ));
        }
        let who = format!("{} at {}", peer.subject.name, peer.addr);
        readers.insert(reader, Taken { who, since: Instant::now() });
        Ok(Admission { readers: self.readers.clone(), reader })
    }

    /// Begins to look through a state.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn begin(&self, state: Arc<dyn Frozen>, admission: Admission) -> Result<CheckId, String> {
        let mut running = self.running.lock();
        let (sender, findings) = mpsc::channel(WAITING_MAX);
        let (looked, given_up) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let mut reporter = Reporter { findings: sender, looked: looked.clone(), given_up: given_up.clone() };
        let looked_at = state.clone();
        let thread = std::thread::Builder::new().name("check".to_owned());
        let completed = Arc::<AtomicBool>::default();
        let done = completed.clone();
        let looks = move || {
            check::check_all(&*looked_at, &mut reporter);
            // Before the findings end with `reporter`.
            done.store(true, Ordering::Release);
        };
        thread.spawn(looks).map_err(|error| error.to_string())?;
        let check = CheckId(wire::chance::number());
        let (findings, asked) = (tokio::sync::Mutex::new(findings), Mutex::new(Instant::now()));
        let justified = Mutex::default();
        let run = Running { state, justified, findings, looked, given_up, completed, asked, _admission: admission };
        running.insert(check, Arc::new(run));
        Ok(check)
    }

    /// Ends checks that nobody asks for.
    pub fn forget_idle(&self) {
        self.running.lock().retain(|_, check| check.asked.lock().elapsed() < IDLE_LIMIT);
    }

    /// Returns a check that is asked for now.
    ///
    /// # Errors
    /// When the check is not known, or not any more.
    pub fn find(&self, check: CheckId) -> Result<Arc<Running>, String> {
        let found = self.running.lock().get(&check).cloned();
        let found = found
            .ok_or("this check has ended here (the leader changed, or nobody asked for long): run `surf fsck` again")?;
        *found.asked.lock() = Instant::now();
        Ok(found)
    }

    /// Ends a check that is not needed any more.
    pub fn end(&self, check: CheckId) {
        self.running.lock().remove(&check);
    }
}

impl Running {
    /// Returns what was found since the last call, within a second, and whether that was all.
    ///
    /// # Errors
    /// When the check has broken off.
    pub async fn findings(&self) -> Result<(Vec<Finding>, bool), String> {
        let mut waiting = self.findings.lock().await;
        let mut findings = Vec::new();
        let ended = matches!(timeout(FINDINGS_WAIT, waiting.recv_many(&mut findings, WAITING_MAX)).await, Ok(0));
        if ended && !self.completed.load(Ordering::Acquire) {
            return Err(
                "the check has broken off: something in the state cannot be read; the log of this metad says what"
                    .to_owned(),
            );
        }
        self.justified.lock().open = findings.iter().filter_map(|finding| finding.repair.clone()).collect();
        Ok((findings, ended))
    }

    /// Takes repairs of the findings that were returned last, for the request of this number. Returns whether all were
    /// there. A repair can be taken once, because what is right now may be wrong after others have changed the same; and
    /// again by the same request, of which the answer may have been lost.
    #[must_use]
    pub fn take(&self, seq: u64, repairs: &[Repair]) -> bool {
        let mut justified = self.justified.lock();
        let Justified { open, taken } = &mut *justified;
        if taken.as_ref().is_some_and(|(last, same)| *last == seq && same == repairs) {
            return true;
        }
        if !repairs.iter().all(|repair| open.contains(repair)) {
            return false;
        }
        open.retain(|repair| !repairs.contains(repair));
        *taken = Some((seq, repairs.to_vec()));
        true
    }

    /// Returns the number of pairs that were read.
    #[must_use]
    pub fn looked(&self) -> u64 {
        self.looked.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::keys::Key;
    use crate::fs::view::Kv;
    use std::ops::Range;
    use wire::ids::Ino;

    /// A state with nothing in it.
    struct Empty;

    impl Kv for Empty {
        fn get(&self, _key: &[u8]) -> Option<Vec<u8>> {
            None
        }

        fn scan(&self, _range: Range<Key>, _visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {}

        fn last(&self, _range: Range<Key>) -> Option<(Key, Vec<u8>)> {
            None
        }
    }

    impl Frozen for Empty {
        fn term(&self) -> u64 {
            1
        }

        fn applied(&self) -> u64 {
            1
        }

        fn pair_count(&self) -> u64 {
            0
        }

        fn failure(&self) -> Option<String> {
            None
        }
    }

    /// A check whose last page had these repairs.
    fn running(open: Vec<Repair>) -> Running {
        let admission = Admission { readers: Readers::default(), reader: Reader::Check };
        Running {
            state: Arc::new(Empty),
            justified: Mutex::new(Justified { open, taken: None }),
            findings: tokio::sync::Mutex::new(mpsc::channel(1).1),
            looked: Arc::default(),
            given_up: Arc::default(),
            completed: Arc::default(),
            asked: Mutex::new(Instant::now()),
            _admission: admission,
        }
    }

    fn repairs(numbers: &[u64]) -> Vec<Repair> {
        numbers.iter().map(|number| Repair::NextIno(Ino(*number))).collect()
    }

    #[test]
    fn only_repairs_of_the_last_findings_are_taken_all_or_none_and_each_once() {
        let check = running(repairs(&[1, 2, 3]));
        assert!(!check.take(1, &repairs(&[1, 9])), "9 was not found");
        assert!(check.take(2, &repairs(&[1, 2])), "1 was not taken with 9");
        assert!(!check.take(3, &repairs(&[2, 3])), "2 was taken before");
        assert!(check.take(4, &repairs(&[3])));
        assert!(!check.take(5, &repairs(&[3])));
    }

    #[test]
    fn a_request_whose_answer_was_lost_gets_its_repairs_again_and_no_other_request_does() {
        let check = running(repairs(&[1, 2]));
        assert!(check.take(7, &repairs(&[1])));
        assert!(check.take(7, &repairs(&[1])), "it is sent again");
        assert!(!check.take(7, &repairs(&[1, 2])), "the number of a request with other content");
        assert!(!check.take(8, &repairs(&[1])));
        assert!(check.take(9, &repairs(&[2])));
        assert!(!check.take(7, &repairs(&[1])), "only the last request is sent again");
    }

    #[tokio::test]
    async fn the_next_findings_replace_what_may_be_repaired() {
        let checks = Checks::default();
        let admission = Admission { readers: checks.readers.clone(), reader: Reader::Check };
        let id = checks.begin(Arc::new(Empty), admission).unwrap();
        let check = checks.find(id).unwrap();
        check.justified.lock().open = repairs(&[5]);
        let (findings, _) = check.findings().await.unwrap();
        assert!(findings.iter().all(|finding| finding.repair != Some(Repair::NextIno(Ino(5)))));
        assert!(!check.take(1, &repairs(&[5])), "it was of an earlier page");
    }
}
