//! Progress of repair, for heartbeats: written by the tasks that repair, audit and scrub, read by the one that sends
//! heartbeats.

use super::duties::Duties;
use super::pass::Lacking;
use crate::store::Store;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use wire::attr::Timestamp;
use wire::ids::LayoutEpoch;
use wire::message::block::{Digest, RepairReport};

/// The rate is measured over this time.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Progress of repair.
#[derive(Default)]
pub struct Progress {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    done: LayoutEpoch,
    lacking: Lacking,
    empty: bool,
    duties: Arc<Duties>,
    missing: u64,
    scrubbed: Option<Timestamp>,
    copied: VecDeque<(Instant, u64)>,
}

impl Progress {
    /// Notes that repair begins with these duties.
    pub fn begin(&self, duties: Arc<Duties>) {
        let mut state = self.state.lock();
        state.empty = false;
        state.duties = duties;
    }

    /// Notes that all that is owed under these owners is here.
    pub fn done(&self, placement: LayoutEpoch) {
        let mut state = self.state.lock();
        state.lacking = Lacking::default();
        if std::mem::replace(&mut state.done, placement) != placement {
            self.news.notify_one();
        }
    }

    /// Notes what is still to be copied.
    pub fn lacks(&self, lacking: Lacking) {
        self.state.lock().lacking = lacking;
    }

    /// Notes whether nothing that matters is here and belongs elsewhere.
    pub fn set_empty(&self, empty: bool) {
        if std::mem::replace(&mut self.state.lock().empty, empty) != empty {
            self.news.notify_one();
        }
    }

    /// Returns whether all that is owed under these owners was compared and is here.
    pub fn is_done(&self, placement: LayoutEpoch) -> bool {
        self.state.lock().done == placement
    }

    /// Sets the number of missing blocks.
    pub fn set_missing(&self, blocks: u64) {
        if std::mem::replace(&mut self.state.lock().missing, blocks) != blocks {
            self.news.notify_one();
        }
    }

    /// Sets when scrub last had read everything.
    pub fn set_scrubbed(&self, at: Timestamp) {
        self.state.lock().scrubbed = Some(at);
    }

    /// Counts copied bytes.
    pub fn copied(&self, bytes: u64) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.copied.push_back((now, bytes));
        state.forget(now);
    }

    /// Waits for progress that metad waits for. Cancel-safe.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// The report for a heartbeat.
    #[must_use]
    pub fn report(&self, store: &Store) -> RepairReport {
        let (mut report, duties) = {
            let mut state = self.state.lock();
            state.forget(Instant::now());
            let copied: u64 = state.copied.iter().map(|(_, bytes)| bytes).sum();
            let report = RepairReport {
                done: state.done,
                lacking_blocks: state.lacking.blocks,
                lacking_bytes: state.lacking.bytes,
                bytes_per_s: copied / RATE_WINDOW.as_secs(),
                empty: state.empty,
                missing_blocks: state.missing,
                scrubbed: state.scrubbed,
                ..RepairReport::default()
            };
            (report, state.duties.clone())
        };
        let mut foreign = Digest::default();
        store.digests(&duties.foreign).iter().for_each(|digest| foreign.join(digest));
        (report.misplaced_blocks, report.misplaced_bytes) = (foreign.count, foreign.bytes);
        report.damaged_blocks = store.bad_count();
        report.sync_us = store.sync_time().map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        report
    }
}

impl State {
    fn forget(&mut self, now: Instant) {
        while self.copied.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW) {
            self.copied.pop_front();
        }
    }
}
