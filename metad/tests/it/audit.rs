//! The audit: whatever happens to identities leaves a record of whom it is about, whence it was asked for, and who did it.

use super::cluster::{Cluster, LIMIT, free_addr};
use super::hostile::{client, leading, opened};
use super::tokens::new;
use std::time::{Duration, Instant};
use wire::attr::Timestamp;
use wire::codec;
use wire::ids::{BlockdId, LayoutEpoch, MetadId, TokenId};
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::block::RepairReport;
use wire::message::cert::{AuditEvent, AuditRecord, CertTarget};
use wire::message::meta::{BlockdHeartbeat, MetaReply, MetaRequest};
use wire::quic::Endpoint;
use wire::revoked::ListMark;
use wire::tls::{Role, Subject};
use wire::token::{NewToken, Secret};

const TOKEN: TokenId = TokenId(7);

async fn records(cluster: &Cluster, request: AdminRequest) -> Vec<AuditRecord> {
    match cluster.admin(request).await {
        AdminReply::Audit(audit) => audit.records,
        other => panic!("{other:?}"),
    }
}

async fn done(cluster: &Cluster, request: AdminRequest) {
    let reply = cluster.admin(request).await;
    assert!(matches!(reply, AdminReply::Done | AdminReply::Report(_)), "{reply:?}");
}

pub(super) fn heartbeat() -> MetaRequest {
    MetaRequest::BlockdHeartbeat(BlockdHeartbeat {
        id: BlockdId([1; 16]),
        name: "b1".to_owned(),
        addr: ([127, 0, 0, 1], 7001).into(),
        zone: "z".to_owned(),
        weight: 1,
        capacity_bytes: 1 << 30,
        free_bytes: 1 << 30,
        block_count: 0,
        epoch: LayoutEpoch(0),
        every_ms: 100,
        repair: RepairReport::default(),
        failed: false,
        revoked: ListMark::default(),
    })
}

/// Does what is recorded as this. Returns whom the record names, and what it says; nothing for what other tests do, which look
/// at the record themselves. A new kind of event has to be added here.
async fn cause(cluster: &Cluster, event: AuditEvent) -> Option<(String, &'static str)> {
    let by_operator = |who: &str| Some((who.to_owned(), "by test"));
    let target = || CertTarget { text: "gone".to_owned(), role: Some(Role::Client), issuer: false };
    match event {
        // Of machines that come by token, and metads that leave: `certs.rs`.
        AuditEvent::Enrolled | AuditEvent::Renewed | AuditEvent::MetadRemoved => None,
        // `rotate.rs`
        AuditEvent::CaAdded | AuditEvent::CaReplaced | AuditEvent::CaAborted => None,
        AuditEvent::Refused => {
            // Others who are refused: `certs.rs`, `tokens.rs`.
            let liar = client(&cluster.ca, "liar", false);
            let request = MetaRequest::Admin(AdminRequest::Pins);
            let asked = leading(cluster, &liar).await.request::<_, MetaReply>(&request, &[], LIMIT).await;
            assert!(asked.is_err(), "{asked:?}");
            Some(("client liar".to_owned(), "this is for the role admin"))
        }
        AuditEvent::Revoked => {
            done(cluster, AdminRequest::RevokeCert { target: target(), force: false, reason: "lost".to_owned() }).await;
            Some(("client gone".to_owned(), "by test: lost"))
        }
        AuditEvent::Allowed => {
            done(cluster, AdminRequest::AllowCert { target: target() }).await;
            by_operator("client gone")
        }
        AuditEvent::TokenCreated => {
            let token = NewToken { id: TOKEN, ..new(&Secret::random()) };
            done(cluster, AdminRequest::CreateToken(token)).await;
            by_operator("token 0000000000000007 for 1 x client")
        }
        AuditEvent::TokenRevoked => {
            done(cluster, AdminRequest::RevokeToken { id: TOKEN }).await;
            by_operator("token 0000000000000007")
        }
        AuditEvent::Evicted => {
            let session = opened(cluster, &client(&cluster.ca, "stuck", false), false).await;
            done(cluster, AdminRequest::EvictSession { session }).await;
            by_operator("of client stuck")
        }
        AuditEvent::MetadAdded => {
            // It never answers.
            done(cluster, AdminRequest::AddLearner { id: MetadId(4), addr: free_addr() }).await;
            by_operator("metad-4")
        }
        AuditEvent::BlockdJoined => {
            let identity = cluster.ca.issue(&Subject::new(Role::Blockd, "b1")).unwrap();
            let blockd = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
            let reply = cluster.ask_as(&blockd, &heartbeat()).await;
            assert!(matches!(reply, MetaReply::BlockdAlive { .. }), "{reply:?}");
            Some(("blockd b1".to_owned(), "by b1"))
        }
        AuditEvent::BlockdRemoved => {
            let started = Instant::now();
            // It is not removed before it is down.
            let remove = AdminRequest::RemoveBlockd { name: "b1".to_owned(), keep_identity: true };
            while let AdminReply::Failed(reason) = cluster.admin(remove.clone()).await {
                assert!(started.elapsed() < LIMIT, "{reason}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            by_operator("blockd b1")
        }
        AuditEvent::LifeSet => {
            done(cluster, AdminRequest::SetCertLife { ms: 3_600_000 }).await;
            by_operator("3600 s")
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_event_is_recorded_with_whom_it_is_about_whence_it_came_and_who_did_it() {
    let cluster = Cluster::start(1).await;
    cluster.session().await;
    let event = |byte: u8| codec::decode::<AuditEvent>(&codec::encode(&byte)).ok();
    let events: Vec<AuditEvent> = (0..128).map_while(event).collect();
    assert!(events.len() > 10, "they are not found");
    for event in events {
        let Some((who, says)) = cause(&cluster, event).await else { continue };
        let since = Timestamp::default();
        let request =
            if event == AuditEvent::Refused { AdminRequest::Refusals { since } } else { AdminRequest::Audit { since } };
        let found = records(&cluster, request).await;
        let is_it = |record: &&AuditRecord| {
            record.event == event && record.who.contains(&who) && record.detail.starts_with(says)
        };
        let record = found.iter().find(is_it).unwrap_or_else(|| panic!("{event} of {who} is not in {found:?}"));
        assert!(record.addr.is_some_and(|addr| addr.ip().is_loopback()) && record.at > since, "{record:?}");
    }
}
