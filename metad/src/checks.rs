//! Checks of the whole metadata that are under way on this node.
//!
//! A check reads a frozen state in a thread of its own, and returns its findings page by page: the thread waits when
//! nobody fetches them. A check exists in the memory of the node that began it, and ends when nobody asks for it.

use crate::consensus::Frozen;
use crate::fs::check::{self, Listener};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use wire::message::check::{CheckId, Finding};

/// Checks under way at a time: each holds a file open, and up to a window of inodes or blocks in memory.
const CHECKS_MAX: usize = 4;
/// A check that nobody asks for ends after this time. A daemon may read its copies of a page of blocks for long
/// meanwhile.
const IDLE_LIMIT: Duration = Duration::from_secs(1800);
/// Findings that wait to be fetched.
const WAITING_MAX: usize = 256;
/// How long a request for findings waits for some.
const FINDINGS_WAIT: Duration = Duration::from_secs(1);

/// Checks under way on this node.
#[derive(Default)]
pub struct Checks {
    running: Mutex<BTreeMap<CheckId, Arc<Running>>>,
}

/// A check under way.
pub struct Running {
    /// The state that it looks at.
    pub state: Arc<dyn Frozen>,
    findings: tokio::sync::Mutex<mpsc::Receiver<Finding>>,
    looked: Arc<AtomicU64>,
    given_up: Arc<AtomicBool>,
    completed: Arc<AtomicBool>,
    asked: Mutex<Instant>,
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
    /// Begins to look through a state.
    ///
    /// # Errors
    /// When too many checks are under way, or no thread can be started.
    pub fn begin(&self, state: Arc<dyn Frozen>) -> Result<CheckId, String> {
        self.forget_idle();
        let mut running = self.running.lock();
        if running.len() >= CHECKS_MAX {
            return Err("too many checks are under way: wait until one has ended".to_owned());
        }
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
        running.insert(check, Arc::new(Running { state, findings, looked, given_up, completed, asked }));
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
        Ok((findings, ended))
    }

    /// Returns the number of pairs that were read.
    #[must_use]
    pub fn looked(&self) -> u64 {
        self.looked.load(Ordering::Relaxed)
    }
}
