//! Checks against block daemons that lie, over real QUIC.

use super::*;
use crate::admin::Admin;
use crate::cmd::fsck::{EXIT_FINDINGS_LEFT, EXIT_UNCHECKED};
use std::sync::Arc;
use tokio::runtime::Handle;
use wire::bundle::Bundle;
use wire::ids::Point;
use wire::layout::{Layout, LayoutMember};
use wire::quic::{Endpoint, Incoming, ServerHandle, Service};
use wire::tls::{ClusterCa, PeerIdentity, Role, Subject};

/// How a daemon answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answers {
    Honestly,
    OutOfOrder,
    BeyondTheRange,
    WithAnotherKind,
    WithTooFew,
    WithRefusals,
    WithEscapes,
    Slowly,
}

/// A daemon that has one block, or says something else.
struct Daemon(Answers);

/// How long a slow daemon takes for an answer: longer than the answer is worth.
const SLOW: Duration = Duration::from_millis(700);

const BLOCK: BlockHash = BlockHash([7; 32]);

impl Service for Daemon {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), wire::Error> {
        Ok(())
    }

    async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, incoming: Incoming) {
        let here = |hash: &BlockHash| *hash == BLOCK;
        let honest = match incoming.decode::<BlockRequest>() {
            Ok(BlockRequest::List { .. }) => BlockReply::Blocks(vec![(BLOCK, 1)]),
            Ok(BlockRequest::Probe { hashes, .. }) => BlockReply::Present(hashes.iter().map(here).collect()),
            Ok(BlockRequest::Verify { hashes }) => {
                BlockReply::Verified(hashes.iter().map(|hash| here(hash).then_some(true)).collect())
            }
            _ => BlockReply::Failed("not here".to_owned()),
        };
        let lists = matches!(honest, BlockReply::Blocks(_));
        let reply = match self.0 {
            Answers::Honestly => honest,
            Answers::OutOfOrder if lists => BlockReply::Blocks(vec![(BLOCK, 1); 2]),
            Answers::BeyondTheRange if lists => BlockReply::Blocks(vec![(BlockHash([0xff; 32]), 1)]),
            Answers::WithAnotherKind if !lists => BlockReply::Fetching(u32::MAX),
            Answers::WithTooFew => match honest {
                BlockReply::Present(_) => BlockReply::Present(Vec::new()),
                BlockReply::Verified(_) => BlockReply::Verified(Vec::new()),
                other => other,
            },
            Answers::Slowly => {
                tokio::time::sleep(SLOW).await;
                honest
            }
            Answers::WithRefusals => return incoming.refuse("no").await,
            Answers::WithEscapes => BlockReply::Failed("\u{1b}[2Jall is well".to_owned()),
            _ => honest,
        };
        incoming.respond(&reply, &[]).await;
    }
}

/// Daemons with these answers, and the way to ask them.
struct Ring {
    cluster: Cluster,
    layout: Layout,
    _daemons: Vec<(Endpoint, ServerHandle)>,
}

fn ring(answers: &[Answers]) -> Ring {
    let ca = ClusterCa::create("test").unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let (mut members, mut daemons) = (Vec::new(), Vec::new());
    for (at, answers) in answers.iter().enumerate() {
        let name = format!("blockd-{at}");
        let endpoint = Endpoint::bind(any, &ca.issue(&Subject::new(Role::Blockd, &name)).unwrap()).unwrap();
        let member = LayoutMember::new(BlockdId([at as u8; 16]), name.clone(), endpoint.local_addr(), name);
        members.push(LayoutMember { points: vec![Point((at as u128) << 120)], ..member });
        let server = endpoint.serve(Arc::new(Daemon(*answers)), &Handle::current());
        daemons.push((endpoint, server));
    }
    let layout = Layout { replicas: 2, min_sync: 1, members, ..Layout::default() };
    let identity = ca.issue(&Subject::new(Role::Admin, "operator")).unwrap();
    let admin = Admin::open(&Bundle { cluster: "test".to_owned(), metads: vec![any], identity }).unwrap();
    Ring { cluster: Cluster { admin, wait: Duration::from_secs(1), leader: any }, layout, _daemons: daemons }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_answers_nonsense_is_a_finding_of_its_own_and_the_check_goes_on() {
    use Answers::{BeyondTheRange, Honestly, OutOfOrder, WithAnotherKind, WithEscapes, WithRefusals, WithTooFew};
    for lie in [Honestly, OutOfOrder, BeyondTheRange, WithAnotherKind, WithTooFew, WithRefusals, WithEscapes] {
        let Ring { cluster, layout, _daemons } = ring(&[lie, Honestly, Honestly]);
        let mut report = Report::new(true, false);
        let daemons = Daemons::new(layout);
        let mut checking = Checking {
            cluster: &cluster,
            check: CheckId(1),
            report: &mut report,
            how: How { verify: true, repair: false },
            daemons,
            suspects: BTreeSet::new(),
            surplus: Surplus::default(),
            looked: 0,
        };
        let block = CheckedBlock { hash: BLOCK, len: 1, referenced: true, overdue: false };
        checking.page(&[block], BlockHash([0; 32]), BlockHash([8; 32])).await.unwrap();
        let holders = checking.probe(&BTreeSet::from([BLOCK])).await.unwrap();
        assert!(holders[&BLOCK].len() >= 2, "{lie:?}: the others are asked");
        let liar = BlockdId([0; 16]);
        assert_eq!(checking.daemons.away.contains(&liar), lie != Honestly, "{lie:?}");
        assert!(checking.suspects.is_empty(), "{lie:?}: the others have it");
        let code = match lie {
            Honestly => 0,
            // It gives no answer: what it holds could not be checked.
            WithRefusals | WithEscapes => EXIT_UNCHECKED,
            _ => EXIT_FINDINGS_LEFT,
        };
        assert_eq!(report.end(), code, "{lie:?}");
        cluster.admin.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_always_slow_is_a_finding_and_not_asked_without_end() {
    use Answers::{Honestly, Slowly};
    let Ring { cluster, layout, _daemons } = ring(&[Slowly, Honestly, Honestly]);
    let mut report = Report::new(true, false);
    let mut daemons = Daemons::new(layout);
    daemons.patience = 2 * SLOW;
    let how = How { verify: false, repair: false };
    let (suspects, surplus) = (BTreeSet::new(), Surplus::default());
    let mut checking = Checking {
        cluster: &cluster,
        check: CheckId(1),
        report: &mut report,
        how,
        daemons,
        suspects,
        surplus,
        looked: 0,
    };
    let slow = BlockdId([0; 16]);
    let mut asked = 0;
    while !checking.daemons.away.contains(&slow) && asked < 20 {
        checking.probe(&BTreeSet::from([BLOCK])).await.unwrap();
        asked += 1;
    }
    assert!((3..20).contains(&asked), "asked {asked} times: some slow answers are no fault");
    assert_eq!(checking.probe(&BTreeSet::from([BLOCK])).await.unwrap()[&BLOCK].len(), 2);
    assert_eq!(report.end(), EXIT_FINDINGS_LEFT);
    cluster.admin.close().await;
}
