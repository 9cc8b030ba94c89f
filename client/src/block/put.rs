//! Storing blocks: down a chain of daemons, until enough of them have synced it (I9).

use super::layout::{Holder, Layouts};
use crate::network::Blockd;
use crate::tickets::Tickets;
use bytes::Bytes;
use futures::future::select;
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::Layout;
use wire::message::block::{BlockReply, BlockRequest};
use wire::retry::Backoff;
use wire::{Error, FsError};

/// Time for one block to pass the whole chain, with syncs, on a slow disk.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(20);
/// When the first daemon of the chain has not answered after this long for each copy, the others are asked to store the
/// block without it. On a slow network all blocks take long, so a multiple of the usual time counts if that is longer.
const PATIENCE_PER_COPY: Duration = Duration::from_millis(500);
/// This much is added for each MiB of the block: many blocks are under way at once, and sending them twice makes a slow
/// network slower.
const PATIENCE_FOR_MIB: Duration = Duration::from_millis(500);
/// The multiple of the usual time.
const PATIENCE_FACTOR: u64 = 4;
/// Blocks under way at once.
const IN_FLIGHT: usize = 8;
/// Time between warnings while too few daemons answer.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// How long a full cluster is asked again before the writer gets the error.
const FULL_PATIENCE: Duration = Duration::from_secs(2);

/// How long metad is waited for when a daemon says that a block has other owners by now.
const LAYOUT_PATIENCE: Duration = Duration::from_secs(1);
/// When the first daemon of the chain has answered for this long that it has too much to do, another one is first. One
/// that only has much to do goes on within this time; one whose disk hangs would say so for ever.
const BUSY_PATIENCE: Duration = Duration::from_millis(2500);

/// Stores blocks.
pub struct Putter {
    blockds: Arc<dyn Blockd>,
    layouts: Arc<Layouts>,
    in_flight: Semaphore,
    soft_timeout: Option<Duration>,
    usual: UsualTime,
    /// Takes the receipts for what is stored.
    tickets: Arc<Tickets>,
}

/// The usual time to store a block lately, in microseconds.
#[derive(Default)]
struct UsualTime(AtomicU64);

impl UsualTime {
    fn took(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min(ATTEMPT_LIMIT.as_micros() as u64);
        // An update that is lost to a concurrent one does no harm.
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before - before / 4 + micros / 4, Ordering::Relaxed);
    }

    /// Returns how long to wait for a daemon that has to store this many copies of a block of `bytes`.
    fn patience(&self, copies: u8, bytes: usize) -> Duration {
        let usual = Duration::from_micros(self.0.load(Ordering::Relaxed) * PATIENCE_FACTOR);
        let for_bytes = PATIENCE_FOR_MIB.mul_f64(bytes as f64 / f64::from(1 << 20));
        usual.max(PATIENCE_PER_COPY * u32::from(copies.max(1)) + for_bytes).min(ATTEMPT_LIMIT)
    }
}

/// Why an attempt failed.
enum Missed {
    NoSpace,
    /// The block has other owners by now, as this daemon says.
    OldLayout(BlockdId),
    TooFew(String),
    /// The first one has too much to do, in these words.
    Busy(BlockdId, String),
}

/// Which daemons have had too much to do for too long, for one block.
#[derive(Default)]
struct Postponed {
    /// The one that says so now, and since when.
    busy: Option<(BlockdId, Instant)>,
    /// Those that others come before. If all have too much to do, each is first in its turn.
    last: Vec<BlockdId>,
}

impl Postponed {
    fn was_busy(&mut self, id: BlockdId) {
        let since = self.busy.filter(|(busy, _)| *busy == id).map_or_else(Instant::now, |(_, since)| since);
        self.busy = Some((id, since));
        if since.elapsed() >= BUSY_PATIENCE {
            self.busy = None;
            self.last.retain(|other| *other != id);
            self.last.push(id);
        }
    }

    /// Those that failed stay behind: they need not answer at all.
    fn sort(&self, targets: &mut [Holder], layouts: &Layouts) {
        let place = |id: &BlockdId| self.last.iter().position(|other| other == id).map(|place| place + 1);
        targets.sort_by_key(|(id, _)| (layouts.is_suspect(id), place(id)));
    }
}

impl Putter {
    /// Creates a putter that stores with these daemons.
    #[must_use]
    pub fn new(
        blockds: Arc<dyn Blockd>,
        layouts: Arc<Layouts>,
        soft_timeout: Option<Duration>,
        tickets: Arc<Tickets>,
    ) -> Self {
        let in_flight = Semaphore::new(IN_FLIGHT);
        Self { blockds, layouts, in_flight, soft_timeout, usual: UsualTime::default(), tickets }
    }

    /// Returns whether a block must be sent before it is committed, though daemons may have it.
    pub fn lacks_receipt(&self, hash: &BlockHash) -> bool {
        self.tickets.lack_receipt(hash)
    }

    /// Stores a block. On return it is on stable storage on at least `min_sync` daemons. Cancel-safe: a block to which
    /// nothing refers is deleted after a while.
    ///
    /// # Errors
    /// `NoSpace`, or `Io` when a soft mount's patience ends.
    pub async fn put(&self, hash: BlockHash, block: Bytes) -> Result<(), FsError> {
        let _slot = self.in_flight.acquire().await.map_err(|_| FsError::Io)?;
        let started = Instant::now();
        let mut warned = started;
        let (mut backoff, mut postponed) = (Backoff::default(), Postponed::default());
        loop {
            let layout = self.layouts.newest();
            let mut targets = self.layouts.targets(&layout, &hash);
            postponed.sort(&mut targets, &self.layouts);
            let missed = match self.attempt_or_hedge(&layout, &targets, hash, &block).await {
                Ok(()) => return Ok(()),
                Err(missed) => missed,
            };
            if let Missed::Busy(id, _) = &missed {
                postponed.was_busy(*id);
            }
            let reason = match missed {
                Missed::OldLayout(_) if self.layouts.wait_for_newer(layout.epoch, LAYOUT_PATIENCE).await => continue,
                Missed::OldLayout(id) => {
                    // It would say the same again at once.
                    self.layouts.suspect(id);
                    Some(format!("{id} speaks of newer owners, of which metad knows nothing"))
                }
                Missed::NoSpace if started.elapsed() > FULL_PATIENCE => return Err(FsError::NoSpace),
                Missed::NoSpace => None,
                Missed::TooFew(reason) | Missed::Busy(_, reason) => Some(reason),
            };
            if let Some(reason) = reason {
                if self.soft_timeout.is_some_and(|limit| started.elapsed() > limit) {
                    return Err(FsError::Io);
                }
                if warned.elapsed() > WARN_EVERY {
                    warned = Instant::now();
                    tracing::warn!(%hash, reason, "waiting for block daemons");
                }
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    /// Asks the first target. If it does not answer in time, asks the next one as well, with the first at the end of
    /// the chain.
    async fn attempt_or_hedge(
        &self,
        layout: &Layout,
        targets: &[Holder],
        hash: BlockHash,
        block: &Bytes,
    ) -> Result<(), Missed> {
        let mut first = pin!(self.attempt(layout, targets, hash, block));
        if let Ok(outcome) = tokio::time::timeout(self.usual.patience(layout.min_sync, block.len()), &mut first).await {
            return outcome;
        }
        let Some((slow, others)) = targets.split_first().filter(|_| targets.len() > 1) else { return first.await };
        self.layouts.suspect(slow.0);
        let others: Vec<Holder> = others.iter().chain([slow]).copied().collect();
        let second = pin!(self.attempt(layout, &others, hash, block));
        // The first attempt that stores the block, or learns of new owners, decides. If neither does, the last result
        // counts.
        let (outcome, other) = select(first, second).await.factor_first();
        if matches!(outcome, Ok(()) | Err(Missed::OldLayout(_))) { outcome } else { other.await }
    }

    async fn attempt(&self, layout: &Layout, targets: &[Holder], hash: BlockHash, block: &Bytes) -> Result<(), Missed> {
        // I9: fewer daemons than must sync the block are too few, however well they do.
        let needed = usize::from(layout.min_sync.max(1));
        let Some(((first, addr), chain)) = targets.split_first().filter(|_| targets.len() >= needed) else {
            if layout.owners(&hash).len() >= needed {
                return Err(Missed::NoSpace);
            }
            return Err(Missed::TooFew(format!("{} block daemons are known, {needed} are needed", targets.len())));
        };
        let chain = chain.iter().map(|(id, _)| *id).collect();
        let request = BlockRequest::Put { hash, epoch: layout.epoch, chain, needed: layout.min_sync, origin: None };
        let started = Instant::now();
        match self.blockds.ask(*addr, &request, std::slice::from_ref(block), ATTEMPT_LIMIT).await {
            Ok((BlockReply::Stored { synced, failed, full, layout, receipt }, _)) => {
                self.layouts.trust(*first);
                // It speaks only for itself and for those behind it.
                let is_asked = |id: &&BlockdId| targets.iter().any(|(target, _)| target == *id);
                failed.iter().map(|(id, _)| id).filter(is_asked).for_each(|id| self.layouts.suspect(*id));
                full.iter().filter(is_asked).for_each(|id| self.layouts.full(*id));
                layout.into_iter().for_each(|newer| self.layouts.hint(newer.epoch));
                // I9: one daemon that stands twice in the chain is one copy, and one that was not asked is none.
                let copies = synced.iter().filter(is_asked).collect::<BTreeSet<_>>().len();
                if copies >= needed && receipt.is_none() && self.tickets.are_needed() {
                    // It knows no key yet. Without a receipt, the block could not be committed.
                    return Err(Missed::TooFew(format!("{addr} gave no receipt")));
                }
                if copies >= needed {
                    receipt.into_iter().for_each(|receipt| self.tickets.note_receipt(receipt));
                    self.usual.took(started.elapsed());
                    return Ok(());
                }
                Err(Missed::TooFew(format!("{copies} of {needed} stored it; {failed:?}")))
            }
            Ok((BlockReply::OldLayout(newer), _)) => {
                self.layouts.hint(newer.epoch);
                Err(Missed::OldLayout(*first))
            }
            Ok((other, _)) => {
                self.layouts.suspect(*first);
                Err(Missed::TooFew(format!("{addr} answered {}", other.kind_name())))
            }
            // It answers: what it holds for all mounts of this certificate is as much as it may. Others would be asked for
            // as much, so the same one is asked again after a pause. But that is no sign that its disk goes on.
            Err(error @ Error::Busy { .. }) => Err(Missed::Busy(*first, error.to_string())),
            Err(error) => {
                self.layouts.suspect(*first);
                Err(Missed::TooFew(error.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answering, blockd as member};
    use futures::future::ready;
    use parking_lot::Mutex;
    use std::net::SocketAddr;
    use std::sync::atomic::AtomicU32;
    use wire::attr::Timestamp;
    use wire::cert::KeyId;
    use wire::ids::LayoutEpoch;
    use wire::ticket::TicketKey;

    /// Both attempts fail, the first one first.
    #[tokio::test]
    async fn a_put_that_failed_both_ways_is_tried_again() {
        let members = vec![member(1), member(2)];
        let layouts = Arc::new(Layouts::new(Layout { replicas: 2, min_sync: 2, members, ..Layout::default() }));
        // The second daemon does not answer at first: a chain with it has too few copies after a while.
        let asked = AtomicU32::new(0);
        let one_away = Answering(move |blockd| {
            let is_early = asked.fetch_add(1, Ordering::Relaxed) < 2;
            async move {
                let mut synced = vec![BlockdId([1; 16])];
                if is_early {
                    tokio::time::sleep(PATIENCE_PER_COPY * 4).await;
                    if blockd == member(2).addr {
                        return Err(wire::Error::Closed);
                    }
                } else {
                    synced.push(BlockdId([2; 16]));
                }
                Ok(BlockReply::Stored { synced, failed: Vec::new(), full: Vec::new(), layout: None, receipt: None })
            }
        });
        let putter = Putter::new(Arc::new(one_away), layouts, None, Arc::new(Tickets::new(false)));
        putter.put(BlockHash([0; 32]), Bytes::from_static(b"x")).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_daemon_says_of_others_than_those_behind_it_and_at_length_is_ignored() {
        let members: Vec<_> = (1..=5).map(member).collect();
        let layout = Layout { replicas: 2, min_sync: 2, members, ..Layout::default() };
        let (layouts, hash) = (Arc::new(Layouts::new(layout.clone())), BlockHash([0; 32]));
        let targets = layouts.targets(&layout, &hash);
        let everybody = Layout { replicas: 5, ..layout.clone() };
        let before = layouts.targets(&everybody, &hash);
        let others = before.iter().map(|(id, _)| *id).filter(|id| targets.iter().all(|(target, _)| target != id));
        let others: Vec<BlockdId> = others.collect();
        assert_eq!(others.len(), 3);
        let failed = others.iter().map(|id| (*id, String::new())).collect();
        let stored = BlockReply::Stored { synced: others.clone(), failed, full: others, layout: None, receipt: None };
        for reply in [stored, BlockReply::Blocks(vec![(hash, 0); 100_000])] {
            let says = Answering(move |_| ready(Ok(reply.clone())));
            let putter = Putter::new(Arc::new(says), layouts.clone(), None, Arc::new(Tickets::new(false)));
            match putter.attempt(&layout, &targets, hash, &Bytes::from_static(b"x")).await {
                Err(Missed::TooFew(reason)) => assert!(reason.len() < 1000, "{} bytes", reason.len()),
                _ => panic!("nobody has stored it"),
            }
            layouts.trust(targets[0].0);
            assert_eq!(layouts.targets(&everybody, &hash), before);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_has_too_much_to_do_is_asked_again_and_makes_nobody_suspect() {
        let members = vec![member(1), member(2)];
        let layouts = Arc::new(Layouts::new(Layout { replicas: 2, min_sync: 1, members, ..Layout::default() }));
        let hash = BlockHash([0; 32]);
        let targets = layouts.targets(&layouts.newest(), &hash);
        let asked = Arc::<Mutex<Vec<SocketAddr>>>::default();
        let (noted, first) = (asked.clone(), targets[0]);
        let busy = Answering(move |blockd| {
            noted.lock().push(blockd);
            ready(if noted.lock().len() <= 3 {
                Err(Error::Busy { peer: blockd.to_string(), reason: "this is a test".to_owned() })
            } else {
                Ok(BlockReply::Stored {
                    synced: vec![first.0],
                    failed: Vec::new(),
                    full: Vec::new(),
                    layout: None,
                    receipt: None,
                })
            })
        });
        let putter = Putter::new(Arc::new(busy), layouts.clone(), None, Arc::new(Tickets::new(false)));
        putter.put(hash, Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(*asked.lock(), [first.1; 4]);
        assert_eq!(layouts.targets(&layouts.newest(), &hash), targets);
    }

    #[tokio::test(start_paused = true)]
    async fn a_put_of_a_client_that_needs_receipts_counts_once_a_daemon_gives_one() {
        let members = vec![member(1)];
        let layouts = Arc::new(Layouts::new(Layout { replicas: 1, min_sync: 1, members, ..Layout::default() }));
        let (hash, asked) = (BlockHash([0; 32]), AtomicU32::new(0));
        let key = TicketKey::make(1, Timestamp::default());
        let says = Answering(move |_| {
            let knows_a_key = asked.fetch_add(1, Ordering::Relaxed) > 2;
            let receipt = knows_a_key.then(|| key.receipt(&KeyId::default(), &hash));
            let synced = vec![BlockdId([1; 16])];
            ready(Ok(BlockReply::Stored { synced, failed: Vec::new(), full: Vec::new(), layout: None, receipt }))
        });
        let tickets = Arc::new(Tickets::new(true));
        let putter = Putter::new(Arc::new(says), layouts, None, tickets.clone());
        assert!(putter.lacks_receipt(&hash));
        putter.put(hash, Bytes::from_static(b"x")).await.unwrap();
        assert!(!putter.lacks_receipt(&hash));
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_makes_a_layout_up_is_not_believed_and_not_asked_without_end() {
        let members = vec![member(1), member(2)];
        let old = Layout { replicas: 2, min_sync: 1, members, ..Layout::default() };
        let layouts = Arc::new(Layouts::new(old.clone()));
        let hash = BlockHash([0; 32]);
        let [first, second] = layouts.targets(&old, &hash)[..] else { panic!("there are two") };
        let asked = Arc::<Mutex<Vec<SocketAddr>>>::default();
        let noted = asked.clone();
        let says = Answering(move |blockd| {
            noted.lock().push(blockd);
            assert!(noted.lock().len() < 100, "it is asked in a loop");
            ready(Ok(if blockd == first.1 {
                let alone = vec![member(1)];
                BlockReply::OldLayout(Layout { epoch: LayoutEpoch(u64::MAX), members: alone, ..Layout::default() })
            } else {
                BlockReply::Stored {
                    synced: vec![second.0],
                    failed: Vec::new(),
                    full: Vec::new(),
                    layout: None,
                    receipt: None,
                }
            }))
        });
        let putter = Putter::new(Arc::new(says), layouts.clone(), None, Arc::new(Tickets::new(false)));
        putter.put(hash, Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(*asked.lock(), [first.1, second.1]);
        assert_eq!(*layouts.newest(), old, "layouts come from metad");
        layouts.wanted().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_put_under_an_old_layout_goes_on_under_the_one_that_metad_gives() {
        let layout = |epoch, number| Layout {
            epoch: LayoutEpoch(epoch),
            replicas: 1,
            min_sync: 1,
            members: vec![member(number)],
            ..Layout::default()
        };
        let layouts = Arc::new(Layouts::new(layout(1, 1)));
        let says = Answering(move |blockd| {
            let synced = vec![BlockdId([2; 16])];
            ready(Ok(if blockd == member(1).addr {
                BlockReply::OldLayout(layout(2, 2))
            } else {
                BlockReply::Stored { synced, failed: Vec::new(), full: Vec::new(), layout: None, receipt: None }
            }))
        });
        let putter = Putter::new(Arc::new(says), layouts.clone(), None, Arc::new(Tickets::new(false)));
        let metad = async {
            layouts.wanted().await;
            layouts.learn(layout(2, 2));
        };
        let (stored, ()) = tokio::join!(putter.put(BlockHash([0; 32]), Bytes::from_static(b"x")), metad);
        stored.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_has_too_much_to_do_for_long_is_asked_after_those_that_are_well_and_makes_nobody_suspect() {
        let members = vec![member(1), member(2), member(3)];
        let layouts = Arc::new(Layouts::new(Layout { replicas: 3, min_sync: 1, members, ..Layout::default() }));
        let hash = BlockHash([0; 32]);
        let targets = layouts.targets(&layouts.newest(), &hash);
        for first_well in [1, 2] {
            let noted = Arc::<Mutex<Vec<SocketAddr>>>::default();
            let (asked, (id, addr)) = (noted.clone(), targets[first_well]);
            let says = Answering(move |blockd| {
                asked.lock().push(blockd);
                ready(if blockd == addr {
                    Ok(BlockReply::Stored {
                        synced: vec![id],
                        failed: Vec::new(),
                        full: Vec::new(),
                        layout: None,
                        receipt: None,
                    })
                } else {
                    Err(Error::Busy { peer: blockd.to_string(), reason: "its disk hangs".to_owned() })
                })
            });
            let putter = Putter::new(Arc::new(says), layouts.clone(), None, Arc::new(Tickets::new(false)));
            let put = putter.put(hash, Bytes::from_static(b"x"));
            tokio::time::timeout(BUSY_PATIENCE * 4, put).await.expect("others are well").unwrap();
            let mut in_order = noted.lock().clone();
            in_order.dedup();
            assert_eq!(in_order, targets[..=first_well].iter().map(|(_, addr)| *addr).collect::<Vec<_>>());
            assert_eq!(layouts.targets(&layouts.newest(), &hash), targets);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspect_that_has_too_much_to_do_stays_one() {
        let members = vec![member(1), member(2)];
        let layouts = Arc::new(Layouts::new(Layout { replicas: 2, min_sync: 1, members, ..Layout::default() }));
        let (layout, hash) = (layouts.newest(), BlockHash([0; 32]));
        let targets = layouts.targets(&layout, &hash);
        layouts.suspect(targets[0].0);
        let busy = Answering(|blockd: SocketAddr| {
            ready(Err(Error::Busy { peer: blockd.to_string(), reason: "its disk hangs".to_owned() }))
        });
        let putter = Putter::new(Arc::new(busy), layouts.clone(), None, Arc::new(Tickets::new(false)));
        let missed = putter.attempt(&layout, &targets, hash, &Bytes::from_static(b"x")).await;
        assert!(matches!(missed, Err(Missed::Busy(id, _)) if id == targets[0].0));
        assert_eq!(layouts.targets(&layout, &hash), [targets[1], targets[0]]);
    }

    #[test]
    fn patience_grows_with_copies_and_with_what_is_usual() {
        let usual = UsualTime::default();
        assert_eq!((usual.patience(1, 0), usual.patience(2, 0)), (PATIENCE_PER_COPY, PATIENCE_PER_COPY * 2));
        assert_eq!(usual.patience(2, 4 << 20), PATIENCE_PER_COPY * 2 + PATIENCE_FOR_MIB * 4);
        (0..20).for_each(|_| usual.took(Duration::from_millis(10)));
        assert_eq!(usual.patience(2, 0), PATIENCE_PER_COPY * 2);
        (0..20).for_each(|_| usual.took(Duration::from_secs(2)));
        assert!(usual.patience(2, 0) > Duration::from_secs(7), "{:?}", usual.patience(2, 0));
        (0..20).for_each(|_| usual.took(Duration::from_secs(3600)));
        assert!(usual.patience(2, 0) <= ATTEMPT_LIMIT);
    }
}
