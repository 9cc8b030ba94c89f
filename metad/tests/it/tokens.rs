//! Join tokens: what operators make, and what newcomers get for them.

use super::cluster::{Cluster, LIMIT};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wire::FsError;
use wire::ids::{BatchSeq, Ino, TokenId};
use wire::issuer::NewKey;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::enroll::EnrollRefusal;
use wire::message::meta::{MetaReply, MetaRequest};
use wire::op::{Batch, Op, OpFailed};
use wire::quic::Endpoint;
use wire::quic::enroll::{EnrollError, enroll};
use wire::tls::{ClientGrant, Role, Subject};
use wire::token::{JoinToken, NewToken, Secret, TokenInfo, TokenState, hash_of};

pub(super) fn new(secret: &Secret) -> NewToken {
    NewToken {
        id: TokenId(u64::from_be_bytes(secret.hash().0[..8].try_into().unwrap())),
        hash: secret.hash(),
        role: Role::Client,
        name: None,
        grant: ClientGrant::default(),
        uses: 1,
        valid_ms: 60_000,
    }
}

/// Makes a token, which names these metads.
pub(super) async fn made(cluster: &Cluster, new: NewToken, secret: Secret, metads: Vec<SocketAddr>) -> JoinToken {
    let (id, role) = (new.id, new.role);
    let made = cluster.admin(AdminRequest::CreateToken(new)).await;
    assert!(matches!(made, AdminReply::Done), "{made:?}");
    let ca = hash_of(cluster.ca.issue(&Subject::new(Role::Client, "any")).unwrap().ca());
    JoinToken { cluster: "test".to_owned(), metads, ca, role, id, secret }
}

pub(super) fn all(cluster: &Cluster) -> Vec<SocketAddr> {
    cluster.nodes.values().map(metad::Node::local_addr).collect()
}

async fn listed(cluster: &Cluster) -> Vec<TokenInfo> {
    match cluster.admin(AdminRequest::Tokens).await {
        AdminReply::Tokens(tokens) => tokens,
        other => panic!("{other:?}"),
    }
}

/// Returns why somebody with this token and a new key gets nothing.
async fn refused(token: &JoinToken) -> EnrollRefusal {
    match enroll(token, &NewKey::generate().unwrap(), "host", LIMIT).await.unwrap_err() {
        EnrollError::Refused { why, .. } => why,
        other => panic!("{other}"),
    }
}

/// Other programs than `surf` make tokens, too.
#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_made_for_a_metad_without_a_name_or_for_an_operator() {
    let cluster = Cluster::start(1).await;
    for (role, says) in [(Role::Metad, "names it"), (Role::Admin, "operators get no tokens")] {
        let asked = NewToken { role, ..new(&Secret::random()) };
        let reply = cluster.admin(AdminRequest::CreateToken(asked)).await;
        assert!(matches!(&reply, AdminReply::Failed(reason) if reason.contains(says)), "{reply:?}");
    }
    assert!(listed(&cluster).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_gives_one_machine_an_identity_and_the_next_one_nothing_whichever_metad_is_asked() {
    let cluster = Cluster::start(3).await;
    let secret = Secret::random();
    let leader = cluster.leader().await;
    // The token names a follower alone, which knows the leader.
    let follower = cluster.nodes.iter().find(|(id, _)| **id != leader).unwrap().1.local_addr();
    let token = made(&cluster, new(&secret), secret, vec![follower]).await;
    let key = NewKey::generate().unwrap();
    let bundle = enroll(&token, &key, "laptop", LIMIT).await.unwrap();
    let name = bundle.identity.subject().name.clone();
    assert!(name.starts_with("laptop-") && bundle.cluster == "test", "{name}");
    let mut metads = bundle.metads.clone();
    metads.sort_unstable();
    let mut expected = all(&cluster);
    expected.sort_unstable();
    assert_eq!(metads, expected);
    let client = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &bundle.identity).unwrap();
    let (host, purpose) = ("h".to_owned(), "t".to_owned());
    let opening = MetaRequest::OpenSession { host, purpose, caches: false, resumes: None, token: None };
    assert!(matches!(cluster.ask_as(&client, &opening).await, MetaReply::Session { .. }));
    assert_eq!(refused(&token).await, EnrollRefusal::UsedUp);
    // The first one may have lost the answer.
    let again = enroll(&JoinToken { metads: all(&cluster), ..token }, &key, "renamed", LIMIT).await.unwrap();
    assert_eq!(again.identity.subject().name, name);
    let tokens = listed(&cluster).await;
    assert_eq!((tokens.len(), tokens[0].state, &tokens[0].used_by), (1, TokenState::UsedUp, &vec![name]));
    assert_eq!(cluster.findings().await, Vec::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_come_at_once_use_a_token_as_often_as_it_may_be_used() {
    let cluster = Cluster::start(1).await;
    let secret = Secret::random();
    let token = made(&cluster, NewToken { uses: 3, ..new(&secret) }, secret, all(&cluster)).await;
    let come = || async { enroll(&token, &NewKey::generate().unwrap(), "host", LIMIT).await };
    let came = futures::future::join_all((0..8).map(|_| come())).await;
    let mut names: Vec<String> = came.iter().flatten().map(|bundle| bundle.identity.subject().name.clone()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3, "{came:?}");
    assert_eq!(came.iter().filter(|come| come.is_err()).count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_ended_or_that_nobody_made_gives_nothing_and_says_why() {
    let cluster = Cluster::start(1).await;
    let secrets: Vec<Secret> = (0..2).map(|_| Secret::random()).collect();
    let short = NewToken { valid_ms: 1, ..new(&secrets[0]) };
    let expired = made(&cluster, short, secrets[0], all(&cluster)).await;
    let revoked = made(&cluster, new(&secrets[1]), secrets[1], all(&cluster)).await;
    assert!(matches!(cluster.admin(AdminRequest::RevokeToken { id: revoked.id }).await, AdminReply::Done));
    assert!(matches!(refused(&expired).await, EnrollRefusal::Expired { .. }));
    assert_eq!(refused(&revoked).await, EnrollRefusal::Revoked);
    assert_eq!(refused(&JoinToken { secret: Secret::random(), ..revoked.clone() }).await, EnrollRefusal::Unknown);
    assert_eq!(refused(&JoinToken { id: TokenId(9), ..revoked }).await, EnrollRefusal::Unknown);
    let unknown = cluster.admin(AdminRequest::RevokeToken { id: TokenId(9) }).await;
    assert!(matches!(&unknown, AdminReply::Failed(reason) if reason.contains("surf token list")), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_by_token_is_held_to_what_the_token_says() {
    let cluster = Cluster::start(1).await;
    let secret = Secret::random();
    let grant = ClientGrant { read_only: true, ..ClientGrant::default() };
    let token = made(&cluster, NewToken { grant, ..new(&secret) }, secret, all(&cluster)).await;
    let bundle = enroll(&token, &NewKey::generate().unwrap(), "host", LIMIT).await.unwrap();
    assert!(bundle.identity.subject().grant.read_only);
    let client = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &bundle.identity).unwrap();
    let (host, purpose) = ("h".to_owned(), "t".to_owned());
    let opening = MetaRequest::OpenSession { host, purpose, caches: false, resumes: None, token: None };
    let MetaReply::Session { session, .. } = cluster.ask_as(&client, &opening).await else { panic!("no session") };
    let ops = vec![Op::Rmdir { parent: Ino::ROOT, name: b"d".to_vec(), seen: None }];
    let batch = Batch { seq: BatchSeq(1), acked: BatchSeq(0), caller: None, ops };
    let reply = cluster.ask_as(&client, &MetaRequest::Submit { session, batch, receipts: Vec::new() }).await;
    let denied = Err(OpFailed { index: 0, error: FsError::ReadOnly });
    assert!(matches!(&reply, MetaReply::Batch { reply, .. } if *reply == denied), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_would_give_too_much_or_what_nobody_enforces_are_not_made() {
    let cluster = Cluster::start(1).await;
    let good = new(&Secret::random());
    let confined = |path: &str| ClientGrant { subtree: Some(path.to_owned()), ..ClientGrant::default() };
    let read_only = ClientGrant { read_only: true, ..ClientGrant::default() };
    for (token, word) in [
        (NewToken { role: Role::Admin, ..good.clone() }, "CA itself"),
        (NewToken { grant: confined("home"), ..good.clone() }, "absolute path"),
        (NewToken { grant: confined("/home/../etc"), ..good.clone() }, "without .."),
        (NewToken { grant: confined("/home"), role: Role::Blockd, ..good.clone() }, "only clients"),
        (NewToken { grant: read_only, role: Role::Blockd, ..good.clone() }, "only clients"),
        (NewToken { uses: 0, ..good.clone() }, "1 to 1000"),
        (NewToken { uses: 1_001, ..good.clone() }, "1 to 1000"),
        (NewToken { valid_ms: 8 * 86_400_000, ..good.clone() }, "7 days"),
        (NewToken { name: Some("a b".to_owned()), ..good.clone() }, "letters"),
        (NewToken { name: Some("a".to_owned()), uses: 2, ..good.clone() }, "one machine"),
    ] {
        match cluster.admin(AdminRequest::CreateToken(token)).await {
            AdminReply::Failed(reason) => assert!(reason.contains(word), "{word}: {reason}"),
            other => panic!("{word}: {other:?}"),
        }
    }
    assert!(listed(&cluster).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_survives_a_change_of_the_leader_with_what_was_used_of_it() {
    let mut cluster = Cluster::start(3).await;
    let secret = Secret::random();
    let token = made(&cluster, NewToken { uses: 2, ..new(&secret) }, secret, all(&cluster)).await;
    let key = NewKey::generate().unwrap();
    let first = enroll(&token, &key, "host", LIMIT).await.unwrap();
    let leader = cluster.leader().await;
    cluster.stop_node(leader).await;
    let again = enroll(&token, &key, "host", Duration::from_secs(60)).await.unwrap();
    assert_eq!(again.identity.subject(), first.identity.subject());
    enroll(&token, &NewKey::generate().unwrap(), "host", LIMIT).await.unwrap();
    assert_eq!(refused(&token).await, EnrollRefusal::UsedUp);
}

/// Returns up to where the leader has applied the log.
async fn applied(cluster: &Cluster) -> u64 {
    match cluster.admin(AdminRequest::Status).await {
        AdminReply::Status(status) => status.applied,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_that_are_refused_or_come_again_add_nothing_to_the_log() {
    let cluster = Cluster::start(1).await;
    let secrets: Vec<Secret> = (0..2).map(|_| Secret::random()).collect();
    let used = made(&cluster, new(&secrets[0]), secrets[0], all(&cluster)).await;
    let revoked = made(&cluster, new(&secrets[1]), secrets[1], all(&cluster)).await;
    assert!(matches!(cluster.admin(AdminRequest::RevokeToken { id: revoked.id }).await, AdminReply::Done));
    let key = NewKey::generate().unwrap();
    // Then the cluster's first entries are in the log.
    cluster.session().await;
    enroll(&used, &key, "host", LIMIT).await.unwrap();
    let before = applied(&cluster).await;
    enroll(&used, &key, "host", LIMIT).await.unwrap();
    assert_eq!(refused(&used).await, EnrollRefusal::UsedUp);
    assert_eq!(refused(&revoked).await, EnrollRefusal::Revoked);
    assert_eq!(refused(&JoinToken { id: TokenId(9), ..revoked }).await, EnrollRefusal::Unknown);
    assert_eq!(applied(&cluster).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_judged_by_the_leader_alone() {
    let cluster = Cluster::start(3).await;
    let secret = Secret::random();
    let leader = cluster.leader().await;
    let follower = cluster.nodes.iter().find(|(id, _)| **id != leader).unwrap().1.local_addr();
    let token = made(&cluster, new(&secret), secret, vec![follower]).await;
    assert_eq!(refused(&JoinToken { secret: Secret::random(), ..token }).await, EnrollRefusal::Unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn that_a_token_has_expired_is_recorded_though_nobody_uses_it() {
    let cluster = Cluster::start(1).await;
    let secret = Secret::random();
    cluster.session().await;
    let token = made(&cluster, NewToken { valid_ms: 1, ..new(&secret) }, secret, all(&cluster)).await;
    let made_at = applied(&cluster).await;
    let started = Instant::now();
    while applied(&cluster).await == made_at {
        assert!(started.elapsed() < LIMIT, "nothing is recorded");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(listed(&cluster).await[0].state, TokenState::Expired);
    let recorded_at = applied(&cluster).await;
    let until = listed(&cluster).await[0].until;
    assert_eq!(refused(&token).await, EnrollRefusal::Expired { at: until });
    assert_eq!(applied(&cluster).await, recorded_at, "once");
}
