//! Audits of one daemon, against others that answer wrongly, late or not at all.

use super::audit::{Audited, Auditor, Resume};
use super::claims::Claims;
use super::missing::{Found, Missing};
use super::probe::NoAnswer;
use super::progress::Progress;
use super::read_repair::{self, RepairQueue, Repairer};
use super::search::Search;
use super::test_peers::{ME, Manner, Peers, block, id_of, until};
use super::throttle::{Activity, Throttle};
use crate::config::Rates;
use crate::heartbeat::Metads;
use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::store::{Store, StoreOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch};
use wire::layout::Layout;

struct Setup {
    peers: Peers,
    auditor: Auditor,
    missing: Missing,
    resume: Resume,
    silent: Vec<BlockdId>,
    repairing: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Setup {
    fn new<const N: usize>(manners: [Manner; N], change: impl FnOnce(&mut Layout)) -> Self {
        Self::with_rate(manners, 0, change)
    }

    /// With a limit for copies, in bytes per second.
    fn with_rate<const N: usize>(manners: [Manner; N], rate: u64, change: impl FnOnce(&mut Layout)) -> Self {
        let peers = Peers::start(manners);
        let options = StoreOptions { segment_bytes: 8 << 20, reserve_bytes: 0 };
        let store = Arc::new(Store::open(peers.dir.path(), options).unwrap());
        let (layouts, progress) = (Arc::new(Layouts::default()), Arc::new(Progress::default()));
        let mut layout = peers.layout.clone();
        change(&mut layout);
        // All that a pass would copy is here.
        progress.done(layout.placement);
        layouts.learn(layout);
        let ((repairs, wants), claims) = (RepairQueue::new(), Arc::new(Claims::default()));
        let repairer = Repairer {
            id: ME,
            store: store.clone(),
            layouts: layouts.clone(),
            endpoint: peers.endpoint.clone(),
            claims: claims.clone(),
            throttle: Arc::new(Throttle::new(Rates { idle: rate, busy: rate })),
            activity: Arc::new(Activity::default()),
            metrics: Arc::new(Metrics::default()),
        };
        let stop = CancellationToken::new();
        let repairing = tokio::spawn(read_repair::run(repairer, wants, stop.clone()));
        let search = Search { id: ME, store, endpoint: peers.endpoint.clone(), repairs, claims };
        let metads = Metads::new(peers.endpoint.clone(), vec![peers.metad_addr]);
        let auditor = Auditor { search, layouts, metads, progress, every: Duration::from_secs(600) };
        let (missing, resume, silent) = Default::default();
        Self { peers, auditor, missing, resume, silent, repairing, stop }
    }

    fn refer_to(&self, hashes: impl IntoIterator<Item = BlockHash>) {
        self.peers.metad.referenced.lock().extend(hashes);
    }

    async fn audit_with(&mut self, settled_at: Instant) -> Audited {
        self.auditor.audit(&mut self.resume, &mut self.missing, settled_at, &mut self.silent).await
    }

    async fn audit(&mut self) -> Audited {
        self.audit_with(Instant::now()).await
    }

    async fn look(&mut self) -> bool {
        self.auditor.look_again(&mut self.missing, Instant::now(), &mut self.silent).await
    }

    fn has(&self, hash: &BlockHash) -> bool {
        self.auditor.search.store.contains(hash)
    }

    async fn end(self) {
        self.stop.cancel();
        self.repairing.await.unwrap();
        self.auditor.search.store.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_answers_wrongly_or_not_at_all_is_its_own_matter_and_the_audit_is_incomplete() {
    for (manner, reason) in [
        (Manner::Behind, NoAnswer::Behind),
        (Manner::Busy, NoAnswer::Busy),
        (Manner::Mute, NoAnswer::Silent),
        (Manner::Nonsense, NoAnswer::Malformed),
    ] {
        let mut setup = Setup::new([manner, Manner::Honest], |_| ());
        let ((there, bytes), (nowhere, _)) = (block(1), block(2));
        setup.peers.others[1].give(&bytes);
        setup.refer_to([there, nowhere]);
        let outcome = setup.audit().await;
        assert_eq!(outcome, Audited::Incomplete(vec![(id_of(0), reason)]));
        until("what another one has is fetched", || setup.has(&there)).await;
        assert_eq!(setup.missing.count(), 0, "{manner:?}: once is not enough");
        setup.look().await;
        assert_eq!(setup.missing.count(), 1, "{manner:?}");
        setup.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_was_behind_is_asked_again() {
    let mut setup = Setup::new([Manner::BehindOnce], |_| ());
    let (there, bytes) = block(1);
    setup.peers.others[0].give(&bytes);
    setup.refer_to([there]);
    assert_eq!(setup.audit().await, Audited::Complete);
    until("it is fetched", || setup.has(&there)).await;
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_begins_to_count_while_daemons_learn_the_layout() {
    let mut setup = Setup::new([Manner::Behind, Manner::Behind, Manner::Honest], |_| ());
    setup.refer_to([block(1).0]);
    let later = Instant::now() + Duration::from_secs(600);
    for _ in 0..3 {
        assert!(matches!(setup.audit_with(later).await, Audited::Incomplete(unheard) if unheard.len() == 2));
        assert_eq!(setup.missing.count(), 0);
    }
    setup.audit_with(Instant::now()).await;
    assert_eq!(setup.missing.count(), 1, "they had the time, and are as good as silent");
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_says_it_has_everything_hides_nothing() {
    for manner in [Manner::Claims, Manner::ClaimsAndServesBytes] {
        let mut setup = Setup::new([manner, Manner::Honest], |_| ());
        let ((there, bytes), (nowhere, _)) = (block(1), block(2));
        setup.peers.others[1].give(&bytes);
        setup.refer_to([there, nowhere]);
        setup.audit().await;
        until("what an honest one has is fetched", || setup.has(&there)).await;
        until("it is known to lie", || setup.auditor.search.claims.is_false(&id_of(0), &nowhere)).await;
        for _ in 0..2 {
            setup.look().await;
        }
        assert_eq!(setup.missing.count(), 1, "{manner:?}");
        setup.audit().await;
        assert_eq!(setup.missing.count(), 1, "{manner:?}: it is not believed again");
        // Once it has the block, it is.
        setup.peers.others[0].give(&block(2).1);
        // A fetch that was under way already has found nothing, so one look may not be enough.
        let begun = Instant::now();
        while !setup.has(&nowhere) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{manner:?}: the block is not fetched");
            setup.look().await;
        }
        assert!(!setup.auditor.search.claims.is_false(&id_of(0), &nowhere));
        setup.end().await;
    }
}

/// A pass is incomplete for as long as one of its sources does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_liar_hides_nothing_while_passes_are_incomplete_however_many_blocks_it_says_it_has() {
    let mut setup = Setup::new([Manner::ClaimsAndServesBytes, Manner::Honest], |_| ());
    setup.auditor.progress = Arc::new(Progress::default());
    let (there, bytes) = block(1);
    setup.peers.others[1].give(&bytes);
    setup.refer_to((0..200).map(|number| block(number).0));
    setup.audit().await;
    assert_eq!(setup.missing.names(), 200, "what is not here is remembered, whoever says that he has it");
    let begun = Instant::now();
    while setup.missing.count() < 199 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{} blocks are known to be missing", setup.missing.count());
        setup.look().await;
        setup.missing.forget(|hash| setup.auditor.search.store.contains(hash));
    }
    while !setup.has(&there) {
        assert!(begun.elapsed() < Duration::from_secs(20), "what another one has is not fetched");
        setup.look().await;
    }
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_a_claim_is_checked_once_and_no_copy_is_missing_that_another_one_has() {
    let mut setup = Setup::new([Manner::Claims, Manner::Honest], |_| ());
    let ((there, bytes), (nowhere, _)) = (block(1), block(2));
    setup.peers.others[1].give(&bytes);
    setup.refer_to([there, nowhere]);
    setup.auditor.search.store.pretend_full();
    setup.audit().await;
    let begun = Instant::now();
    while setup.missing.count() < 1 || setup.missing.names() > 1 {
        assert!(begun.elapsed() < Duration::from_secs(20));
        setup.look().await;
    }
    assert!(!setup.has(&there));
    setup.audit().await;
    assert_eq!(setup.missing.count(), 1);
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_audit_has_fetched_comes_at_the_rate_of_repair_and_the_audit_does_not_wait_for_it() {
    let mut setup = Setup::with_rate([Manner::Honest], 10_000, |_| ());
    for number in 0..30 {
        let (hash, bytes) = block(number);
        setup.peers.others[0].give(&bytes);
        setup.refer_to([hash]);
    }
    let begun = Instant::now();
    setup.audit().await;
    let here = (0..30).filter(|number| setup.has(&block(*number).0)).count();
    assert!(here < 30, "30,000 bytes take three seconds");
    until("all are fetched", || (0..30).all(|number| setup.has(&block(number).0))).await;
    assert!(begun.elapsed() > Duration::from_secs(2), "{:?}", begun.elapsed());
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_lie_on_failed_daemons_or_on_those_that_are_out_are_found() {
    for is_out in [false, true] {
        let manner = if is_out { Manner::Behind } else { Manner::FailedDisk };
        let mut setup = Setup::new([manner, Manner::Honest], |layout| {
            let member = &mut layout.members[1];
            (member.out, member.failed) = (is_out, !is_out);
        });
        let ((there, bytes), (nowhere, _)) = (block(1), block(2));
        setup.peers.others[0].give(&bytes);
        setup.refer_to([there, nowhere]);
        assert_eq!(setup.audit().await, Audited::Complete);
        until("it is fetched", || setup.has(&there)).await;
        setup.look().await;
        assert_eq!(setup.missing.count(), 1, "out: {is_out}");
        setup.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_daemon_serves_in_time_counts_though_it_stalls_at_one_block() {
    let stalls = block(9).0;
    let mut setup = Setup::new([Manner::MuteAbout(stalls)], |layout| layout.members[1].failed = true);
    for number in 0..10 {
        setup.peers.others[0].give(&block(number).1);
        setup.refer_to([block(number).0]);
    }
    let begun = Instant::now();
    assert_eq!(setup.audit().await, Audited::Incomplete(Vec::new()));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    until("the others are fetched", || (0..9).all(|number| setup.has(&block(number).0))).await;
    setup.look().await;
    assert_eq!(setup.missing.count(), 1);
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_metad_interrupts_keeps_what_it_found_and_goes_on_there() {
    let mut setup = Setup::new([Manner::Honest], |_| ());
    let mut hashes = [1, 2, 3].map(|number| block(number).0);
    hashes.sort();
    setup.refer_to(hashes);
    let metad = setup.peers.metad.clone();
    (*metad.page.lock(), *metad.fails_at.lock()) = (Some(1), Some(3));
    assert!(matches!(setup.audit().await, Audited::Interrupted(_)));
    assert_eq!((setup.missing.names(), setup.resume.from), (2, Some(hashes[2])));
    metad.asked.lock().clear();
    *metad.fails_at.lock() = None;
    assert_eq!(setup.audit().await, Audited::Complete);
    assert_eq!(*metad.asked.lock(), [hashes[2]]);
    assert_eq!(setup.missing.names(), 3);
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_goes_on_under_a_newer_layout_with_the_same_owners_and_ends_when_they_change() {
    for (placement, outcome) in [(1, Audited::Complete), (2, Audited::Superseded)] {
        let mut setup = Setup::new([Manner::Honest], |_| ());
        setup.refer_to([1, 2, 3].map(|number| block(number).0));
        let (metad, layouts) = (setup.peers.metad.clone(), setup.auditor.layouts.clone());
        *metad.page.lock() = Some(1);
        let newer = Layout {
            epoch: LayoutEpoch(2),
            placement: LayoutEpoch(placement),
            ..setup.auditor.layouts.newest().as_ref().clone()
        };
        *metad.at_second_page.lock() = Some(Box::new(move || layouts.learn(newer)));
        assert_eq!(setup.audit().await, outcome);
        setup.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_a_client_made_up_are_looked_for_in_small_samples_and_forgotten_without_references() {
    let mut setup = Setup::new([Manner::Honest], |_| ());
    let name = |number: u16| BlockHash([number.to_be_bytes(); 16].concat().try_into().unwrap());
    let found = Found { absent: (0..1000).map(name).collect(), ..Found::default() };
    for _ in 0..2 {
        setup.missing.take_page((name(0), name(u16::MAX)), &found, true);
    }
    setup.refer_to((100..1000).map(name));
    for _ in 0..4 {
        setup.look().await;
    }
    assert_eq!(setup.missing.count(), 900, "each look has taken other names");
    assert!(setup.peers.metad.asked.lock().len() <= 4 * 64);
    assert!(setup.peers.others[0].probes.lock().iter().all(|names| *names <= 64));
    assert!(!setup.look().await, "nothing has changed");
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_daemon_is_noticed_when_it_is_back() {
    let mut setup = Setup::new([Manner::Mute], |_| ());
    setup.refer_to([block(1).0]);
    setup.audit().await;
    assert_eq!(setup.silent, [id_of(0)]);
    assert!(setup.auditor.returned(&setup.silent).await.is_empty());
    *setup.peers.others[0].manner.lock() = Manner::Honest;
    assert_eq!(setup.auditor.returned(&setup.silent).await, [id_of(0)]);
    setup.end().await;
}
