//! Events, and the recall protocol: before others change or read what this session has cached or delegated, metad
//! recalls it and waits for the acknowledgement.
//!
//! Coherence rests on this order:
//!
//! 1. **An event first ends what may be done here, and then looks at the queue.** So later operations do not get into
//!    the queue, and the entries that are waited for are all that there will be.
//! 2. **An event is acknowledged when the kernel believes nothing of it any more and has dropped its pages of open
//!    files, and when metad has acknowledged everything that was done to it.** Not before one of these. Only the pages
//!    have a limit: the kernel retains them while they are being read, and a read may be slow.
//! 3. **A later event is never acknowledged before an earlier one of its kind.** There are two kinds: events that need
//!    nothing to be sent do not wait for those that do. The other session may need the first before it can send what
//!    the second waits for.
//! 4. **A session that asks for a stream of events has nothing cached, and neither has the kernel.** metad counts on
//!    it: it has forgotten the leases of an earlier stream.
//! 5. **An acknowledgement goes to the metad that sent the event, or the stream is given up.** Another metad that
//!    believes to lead would take it, and the one that sent the event would wait for a live session. A new stream shows
//!    that the session has nothing cached.
//! 6. **Taking an event never waits.** Other sessions wait for the events behind it. When too many acknowledgements are
//!    queued, the stream is given up, and all leases with it.
//!
//! One task follows one stream after the other. Both queues of acknowledgements live as long as their stream.

use crate::flusher::Flusher;
use crate::kernel::{Dropping, Kernel, Notice};
use crate::known::Known;
use crate::known::held_locks::HeldLocks;
use crate::known::leased::LeasedSession;
use crate::network::EventStream;
use crate::open::OpenFiles;
use crate::queue::Queue;
use crate::upkeep::Upkeep;
use crate::view::View;
use crate::work::Work;
use crate::writeback::WriteBack;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::Instant;
use wire::ids::{Ino, SessionId};
use wire::limits::LEASE_MS;
use wire::message::event::MetaEvent;
use wire::message::meta::MetaRequest;
use wire::retry::Backoff;

/// Pause before the second attempt at a stream of events.
const STREAM_RETRY_FIRST: Duration = Duration::from_millis(20);
/// Time between checks that events still come from the leader, for the present session.
const STREAM_CHECK_EVERY: Duration = Duration::from_secs(1);
/// An acknowledgement that takes longer is useless: the leases have run out.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_millis(LEASE_MS);
/// Acknowledgements of one kind that may be queued. Beyond it, the stream is given up.
const ACKNOWLEDGEMENTS_MAX: usize = 4096;

/// The kernel's pages are waited for until this long after the event; less than half of [`LEASE_MS`].
const DROP_LIMIT: Duration = Duration::from_secs(1);

/// An event to be acknowledged.
#[derive(Debug)]
struct Acknowledgement {
    seq: u64,
    /// It is not sent before this time,
    at: Option<Instant>,
    /// nor before everything up to this entry is acknowledged,
    after: Option<u64>,
    /// nor before these pages are dropped,
    dropping: Vec<Dropping>,
    /// for which this is the limit.
    drop_by: Instant,
}

impl Acknowledgement {
    /// An acknowledgement of an event that has just come.
    fn new(seq: u64, at: Option<Instant>, after: Option<u64>) -> Self {
        Self { seq, at, after, dropping: Vec::new(), drop_by: Instant::now() + DROP_LIMIT }
    }

    fn is_due<F>(&self, queue: &Queue<F>) -> bool {
        self.at.is_none_or(|at| at <= Instant::now())
            && self.after.is_none_or(|entry| queue.is_acknowledged(entry))
            && self.dropping.iter().all(Dropping::is_done)
    }

    /// Waits until the kernel has dropped its pages, or until the limit.
    async fn wait_dropped(&mut self) {
        let dropped = async {
            for dropping in &mut self.dropping {
                dropping.wait().await;
            }
        };
        if tokio::time::timeout_at(self.drop_by, dropped).await.is_err() {
            tracing::debug!(seq = self.seq, "the kernel is still reading pages that others are about to change");
        }
    }
}

/// Open files whose content others are about to change.
#[derive(PartialEq, Eq, Debug)]
enum Stale {
    None,
    These(Vec<Ino>),
    All,
}

/// Gives back what an event asks for. Returns the acknowledgement to be sent; `None` when the event asks for nothing.
fn give_back<F>(event: MetaEvent, known: &Known, queue: &Queue<F>) -> Option<(Acknowledgement, Stale)> {
    let (seq, at, after, stale) = match event {
        MetaEvent::Attached { seq } => {
            let after = queue.tail();
            known.attached();
            (seq?, None, after, Stale::None)
        }
        MetaEvent::Recall { seq, inos } => {
            let inos = queue.with_made_in(inos);
            // Invariant 1: in this order.
            let believed = known.recall(&inos);
            (seq, believed, queue.tail_on(&inos), Stale::These(inos))
        }
        MetaEvent::Share { seq, inos } => {
            let inos = queue.with_made_in(inos);
            // Invariant 1: in this order.
            known.share(&inos);
            (seq, None, queue.tail_on(&inos), Stale::None)
        }
        MetaEvent::RecallAll { seq } => {
            let believed = known.recall_all();
            (seq, believed, queue.tail(), Stale::All)
        }
        MetaEvent::Company { seq } => (seq, known.company(), None, Stale::None),
        MetaEvent::Orphaned(_) | MetaEvent::LockReleased(_) | MetaEvent::LayoutChanged(_) | MetaEvent::TrustChanged => {
            return None;
        }
    };
    if let Some(entry) = after {
        queue.hurry(entry);
    }
    Some((Acknowledgement::new(seq, at, after), stale))
}

/// Queues of acknowledgements, by kind.
struct Acknowledgements {
    /// Acknowledgements that need nothing to be sent.
    at_once: Sender<Acknowledgement>,
    behind_queue: Sender<Acknowledgement>,
}

impl Acknowledgements {
    /// Queues an acknowledgement. False when too many wait: the stream is of no use any more.
    fn put(&self, acknowledgement: Acknowledgement) -> bool {
        let queue = if acknowledgement.after.is_some() { &self.behind_queue } else { &self.at_once };
        // Invariant 6.
        queue.try_send(acknowledgement).is_ok()
    }
}

/// Follows events, and gives back what they ask for.
pub(crate) struct Events {
    pub session: Arc<LeasedSession>,
    pub upkeep: Arc<Upkeep>,
    pub known: Arc<Known>,
    pub held_locks: Arc<HeldLocks>,
    pub writeback: Arc<WriteBack>,
    pub open_files: Arc<OpenFiles>,
    pub view: Arc<View>,
    pub flusher: Arc<Flusher>,
    pub kernel: Arc<Kernel>,
    /// Notified when another session gives up a lock.
    pub lock_released: Arc<Notify>,
    pub work: Work,
}

impl Events {
    /// Follows one stream of events after the other.
    pub async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::new(STREAM_RETRY_FIRST, STREAM_CHECK_EVERY);
        loop {
            // Invariant 4.
            if let Some(until) = self.known.empty() {
                tokio::time::sleep_until(until).await;
            }
            // Finds the leader, if it has changed.
            self.upkeep.beat(STREAM_CHECK_EVERY).await;
            let from = self.source();
            let dirty = self.writeback.tail().is_some();
            let stream = self.session.rpc().events(&MetaRequest::Events { session: from.0, dirty }).await;
            if let Ok(stream) = stream {
                let (at_once, to_acknowledge) = mpsc::channel(ACKNOWLEDGEMENTS_MAX);
                let (behind_queue, to_acknowledge_behind) = mpsc::channel(ACKNOWLEDGEMENTS_MAX);
                let acknowledge = |seqs| self.session.acknowledge(from, seqs, ACKNOWLEDGE_LIMIT);
                tokio::select! {
                    // In a fixed order, so that a run can be repeated.
                    biased;
                    () = self.follow(stream, from, Acknowledgements { at_once, behind_queue }) => {}
                    // metad does not wait any more for what it asked for by a stream that has ended.
                    () = acknowledge_in_order(&self.writeback, to_acknowledge, &acknowledge) => {}
                    () = acknowledge_in_order(&self.writeback, to_acknowledge_behind, &acknowledge) => {}
                }
                backoff = Backoff::new(STREAM_RETRY_FIRST, STREAM_CHECK_EVERY);
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    /// Takes events until the stream breaks, or the session or the leader changes: an old leader sends nothing.
    async fn follow(
        &self,
        mut stream: Box<dyn EventStream>,
        from: (SessionId, SocketAddr),
        acknowledgements: Acknowledgements,
    ) {
        let opened = Instant::now();
        loop {
            let event = tokio::select! {
                biased;
                event = tokio::time::timeout(STREAM_CHECK_EVERY, stream.next()) => Some(event),
                () = self.upkeep.wait_detached() => None,
                () = self.session.rpc().moved() => {
                    if self.source() == from { continue }
                    return;
                }
            };
            match event {
                Some(Ok(Ok(event))) => {
                    if !self.take(event, &acknowledgements) {
                        return;
                    }
                }
                Some(Ok(Err(_))) => return,
                Some(Err(_)) if self.source() != from => return,
                Some(Err(_)) => {}
                // The request for events may still be under way.
                None if opened.elapsed() < STREAM_CHECK_EVERY => {}
                None => return,
            }
        }
    }

    /// Returns which session's events are followed, and from which metad.
    fn source(&self) -> (SessionId, SocketAddr) {
        (self.session.id(), self.session.rpc().leader())
    }

    /// Handles an event. False when the stream is to be given up.
    fn take(&self, event: MetaEvent, acknowledgements: &Acknowledgements) -> bool {
        match &event {
            MetaEvent::Orphaned(inos) => {
                let (open_files, inos) = (self.open_files.clone(), inos.clone());
                self.work.spawn_until_stopped(async move { open_files.retain_or_release(&inos).await });
            }
            MetaEvent::LockReleased(_) => self.lock_released.notify_waiters(),
            MetaEvent::LayoutChanged(_) => self.beat_soon(),
            MetaEvent::TrustChanged => self.session.rpc().trust_changed(),
            _ => {}
        }
        self.queue_whole_pages(&event);
        let is_attached = matches!(event, MetaEvent::Attached { .. });
        let given_back = give_back(event, &self.known, &self.writeback);
        if is_attached {
            // The kernel's pages may have been read under a lock that is lost.
            for ino in self.held_locks.lost_on() {
                self.kernel.notify(Notice::Changed(ino));
            }
            self.view.refresh_all_open();
            // Leases are of use once they are extended.
            self.beat_soon();
        }
        let Some((mut acknowledgement, stale)) = given_back else { return true };
        let stale = match stale {
            Stale::None => Vec::new(),
            Stale::These(inos) => inos,
            Stale::All => self.open_files.inos(),
        };
        acknowledgement.dropping = stale.into_iter().filter_map(|ino| self.view.recalled(ino)).collect();
        let taken = acknowledgements.put(acknowledgement);
        if !taken {
            tracing::warn!("too many events wait to be acknowledged: the leases are given up");
        }
        taken
    }

    /// Puts mapped pages into the queue that were taken whole under a delegation, before the event ends it: they are
    /// committed before others can change other bytes of them.
    fn queue_whole_pages(&self, event: &MetaEvent) {
        let inos = match event {
            MetaEvent::Recall { inos, .. } | MetaEvent::Share { inos, .. } => self.writeback.with_made_in(inos.clone()),
            MetaEvent::RecallAll { .. } => self.open_files.inos(),
            _ => return,
        };
        for file in inos.into_iter().filter_map(|ino| self.open_files.get(ino)).filter(|file| file.has_whole_pages()) {
            // Without a delegation they wait as they are: at worst, they are in conflict.
            self.flusher.defer_content(&file);
        }
    }

    fn beat_soon(&self) {
        let upkeep = self.upkeep.clone();
        self.work.spawn_until_stopped(async move { upkeep.beat(STREAM_CHECK_EVERY).await });
    }
}

/// Sends acknowledgements of one kind, each when it is due, and never a later one before an earlier one. Ends when one
/// could not be delivered.
async fn acknowledge_in_order<F, A: Future<Output = bool>>(
    queue: &Queue<F>,
    mut events: Receiver<Acknowledgement>,
    acknowledge: impl Fn(Vec<u64>) -> A,
) {
    let mut next = events.recv().await;
    while let Some(mut acknowledgement) = next.take() {
        let mut done = vec![acknowledgement.seq];
        // Invariant 2: all conditions are waited for.
        acknowledgement.wait_dropped().await;
        if let Some(at) = acknowledgement.at {
            tokio::time::sleep_until(at).await;
        }
        if let Some(entry) = acknowledgement.after {
            // A failed attempt is repeated; metad waits for as long as it sees fit.
            while queue.wait_acknowledged(entry).await.is_err() {}
        }
        // Invariant 3: the following ones go along, up to the first that is not due.
        loop {
            match events.try_recv() {
                Ok(more) if more.is_due(queue) => done.push(more.seq),
                Ok(more) => break next = Some(more),
                Err(_) => break,
            }
        }
        // Invariant 5.
        if !acknowledge(done).await {
            return;
        }
        if next.is_none() {
            next = events.recv().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::known::{Now, Pinned};
    use crate::queue::here::Decided;
    use crate::testing;
    use parking_lot::Mutex;
    use std::sync::Arc;
    use wire::attr::{AttrChange, InodeAttr, Timestamp};
    use wire::op::Op;

    const FILE: Ino = Ino(7);

    /// Returns a session that holds a delegation on a file.
    fn alone() -> (Arc<Known>, Queue<()>) {
        let known = Arc::<Known>::default();
        known.attached();
        known.extend(Now::here().boot, known.mark(), false);
        known.delegated(&[FILE], known.mark());
        known.learn_attr(&InodeAttr { ino: FILE, ..testing::attr() }, known.mark());
        (known.clone(), Queue::new(known))
    }

    /// Does something to the file here. Returns whether that was allowed.
    fn work(queue: &Queue<()>) -> bool {
        let entered = queue.begin(&[FILE]).and_then(|doing| {
            doing.enter(Timestamp::default(), &[FILE], |_| {
                let op = Op::SetAttr { ino: FILE, change: AttrChange::default() };
                let pinned = Pinned { attrs: vec![InodeAttr { ino: FILE, ..testing::attr() }], ..Pinned::default() };
                Some((Decided { op, expect: Vec::new(), pinned }, ()))
            })
        });
        entered.is_some()
    }

    /// Guards invariant 1.
    #[test]
    fn after_an_event_nothing_gets_into_the_queue_that_is_not_waited_for() {
        for event in [MetaEvent::Recall { seq: 5, inos: vec![FILE] }, MetaEvent::Share { seq: 5, inos: vec![FILE] }] {
            let (known, queue) = alone();
            assert!(work(&queue) && work(&queue));
            let (acknowledgement, _) = give_back(event, &known, &queue).unwrap();
            assert_eq!((acknowledgement.seq, acknowledgement.after), (5, Some(2)));
            assert!(!work(&queue), "it is not this session's alone any more");
            assert_eq!(queue.tail(), Some(2));
        }
    }

    /// Guards invariant 2.
    #[tokio::test]
    async fn an_event_is_acknowledged_when_the_kernel_believes_nothing_and_everything_is_sent() {
        let (known, queue) = alone();
        let believed = known.believe_attr(&known.attr(FILE).unwrap());
        assert!(believed > Duration::ZERO && work(&queue));
        let (acknowledgement, stale) =
            give_back(MetaEvent::Recall { seq: 5, inos: vec![FILE] }, &known, &queue).unwrap();
        assert_eq!(stale, Stale::These(vec![FILE]));
        assert!(acknowledgement.at.is_some_and(|at| at > Instant::now()));
        let acknowledged = Mutex::new(Vec::new());
        let (put, events) = mpsc::channel(1);
        put.try_send(acknowledgement).unwrap();
        drop(put);
        let acknowledge = async |seqs: Vec<u64>| {
            acknowledged.lock().extend(seqs);
            true
        };
        let mut acknowledging = std::pin::pin!(acknowledge_in_order(&queue, events, acknowledge));
        let early = tokio::time::timeout(believed * 3, &mut acknowledging).await;
        assert!(early.is_err() && acknowledged.lock().is_empty(), "it is not sent");
        queue.done(1, &[FILE], &[]);
        acknowledging.await;
        assert_eq!(*acknowledged.lock(), [5]);
    }

    /// Guards invariant 2.
    #[tokio::test(start_paused = true)]
    async fn an_event_waits_for_the_kernels_pages_but_not_for_ever() {
        let (_known, queue) = alone();
        let kernel = Kernel::default();
        let mut notices = kernel.notices();
        let (put, events) = mpsc::channel(2);
        for seq in [1, 2] {
            let dropping = kernel.drop_pages(FILE).into_iter().collect();
            put.try_send(Acknowledgement { dropping, ..Acknowledgement::new(seq, None, None) }).unwrap();
        }
        drop(put);
        let (begun, acknowledged) = (Instant::now(), Mutex::new(Vec::new()));
        let acknowledge = async |seqs: Vec<u64>| {
            acknowledged.lock().push((seqs, begun.elapsed()));
            true
        };
        let report = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            if let Ok(Notice::Recalled(FILE, dropped)) = notices.recv().await {
                dropped.report();
            }
        };
        tokio::join!(acknowledge_in_order(&queue, events, acknowledge), report);
        let [(first, soon), (second, late)] = &acknowledged.lock()[..] else { panic!("not one by one") };
        assert_eq!((&first[..], &second[..]), (&[1][..], &[2][..]));
        assert!(*soon >= Duration::from_millis(300) && *soon < DROP_LIMIT, "{soon:?}");
        assert!(*late >= DROP_LIMIT && *late < DROP_LIMIT * 2, "{late:?}, counted from the event");
    }

    /// Guards invariant 3.
    #[tokio::test]
    async fn events_are_acknowledged_in_order_and_those_that_are_due_together() {
        let (_known, queue) = alone();
        let acknowledged = Mutex::new(Vec::new());
        let (put, events) = mpsc::channel(4);
        let later = Instant::now() + Duration::from_millis(50);
        for (seq, at) in [(1, None), (2, None), (3, Some(later)), (4, None)] {
            put.try_send(Acknowledgement::new(seq, at, None)).unwrap();
        }
        drop(put);
        let acknowledge = async |seqs: Vec<u64>| {
            acknowledged.lock().push(seqs);
            true
        };
        acknowledge_in_order(&queue, events, acknowledge).await;
        assert_eq!(*acknowledged.lock(), [vec![1, 2], vec![3, 4]]);
    }

    /// Guards invariant 4: leases of an earlier stream are not used.
    #[test]
    fn a_session_that_asks_for_events_knows_nothing() {
        let (known, _queue) = alone();
        assert!(known.believe_attr(&known.attr(FILE).unwrap()) > Duration::ZERO);
        assert!(known.empty().is_some_and(|until| until > Instant::now()), "the kernel's belief is waited for");
        assert!(known.attr(FILE).is_none() && !known.is_delegated(&[FILE]));
    }

    /// Guards invariant 5.
    #[tokio::test]
    async fn a_stream_ends_when_an_acknowledgement_is_not_delivered() {
        let (_known, queue) = alone();
        let (put, events) = mpsc::channel(2);
        put.try_send(Acknowledgement::new(1, None, None)).unwrap();
        // The sender lives, so only the failed delivery ends it.
        acknowledge_in_order(&queue, events, async |_| false).await;
        assert!(put.is_closed());
    }

    /// Guards invariant 6.
    #[test]
    fn a_stream_on_which_too_much_waits_is_given_up() {
        let ((at_once, _to_acknowledge), (behind_queue, _behind)) = (mpsc::channel(1), mpsc::channel(1));
        let acknowledgements = Acknowledgements { at_once, behind_queue };
        let event = |seq, after| Acknowledgement::new(seq, None, after);
        assert!(acknowledgements.put(event(1, None)) && acknowledgements.put(event(2, Some(1))));
        assert!(!acknowledgements.put(event(3, None)));
    }
}
