//! Raft's log, snapshots and messages.

use crate::memory;
use metad::raft::fuzzing::{self, Node};
use wire::message::meta::RaftKind;

thread_local! {
    static NODE: Node = Node::new(&memory::empty_dir("node")).expect("an empty state can be made");
}

/// A stored entry of the log.
pub fn raft_entry(data: &[u8]) -> bool {
    let Ok(again) = fuzzing::entry(data) else { return false };
    assert_eq!(fuzzing::entry(&again).expect("what was stored can be read"), again);
    true
}

/// A message of another metad, of any kind.
pub fn raft_message(data: &[u8]) -> bool {
    let kinds = [RaftKind::Append, RaftKind::Vote, RaftKind::Snapshot, RaftKind::TransferLeader];
    let good = kinds.map(|kind| match fuzzing::message(kind, data) {
        Ok(again) => {
            assert_eq!(fuzzing::message(kind, &again).expect("what was sent can be read"), again);
            true
        }
        Err(_) => false,
    });
    good.contains(&true)
}

/// A snapshot file; also with a checksum that fits.
pub fn metad_snapshot(data: &[u8]) -> bool {
    let open = |bytes: &[u8]| NODE.with(|node| node.open(bytes)).expect("memory takes all").is_some();
    let mut sealed = data.to_vec();
    if let Some((body, sum)) = sealed.split_last_chunk_mut::<32>() {
        *sum = *blake3::hash(body).as_bytes();
        open(&sealed);
    }
    open(data)
}

/// Good inputs.
pub mod samples {
    use super::{NODE, fuzzing};
    use crate::Samples;
    use crate::messages::samples::{batches, layout, ticket_key};
    use metad::fs::Command;
    use metad::fs::cert::{Asker, Enrolling, Revoking};
    use metad::fs::operator::Change;
    use metad::fs::session::{Confined, Opening};
    use metad::fs::token::Use;
    use wire::attr::Timestamp;
    use wire::cert::{AuthorityId, KeyId};
    use wire::ids::{Ino, MetadId, SessionId, TokenId};
    use wire::message::check::CheckId;
    use wire::revoked::Revoked;
    use wire::tls::Squash;
    use wire::token::SecretHash;

    fn commands() -> Vec<(&'static str, Command)> {
        let opening = Opening {
            host: "host".to_owned(),
            purpose: "/mnt".to_owned(),
            client: "client-1".to_owned(),
            caches: true,
            resumes: Some(SessionId(4)),
            token: Some(9),
            confined: Some(Confined {
                subtree: Some("/home".to_owned()),
                root: Ino(1025),
                squash: Squash::Root { uid: 65_534, gid: 65_534 },
            }),
        };
        let (token, hash) = (TokenId(9), SecretHash([5; 32]));
        let newcomer = Use { token, hash, key: [6; 32], host: "laptop".to_owned() };
        let addr = ([10, 0, 0, 1], 7).into();
        let enrolling = Enrolling {
            newcomer: newcomer.clone(),
            issuer: KeyId([7; 32]),
            authority: AuthorityId([4; 16]),
            by: MetadId(1),
            addr,
        };
        let asker = Asker { name: "admin".to_owned(), key: KeyId([8; 32]), issued: Timestamp::default(), addr };
        let list = vec![Revoked::Key(KeyId([6; 32]))];
        let revoking = Revoking { asker: asker.clone(), list, reason: "lost".to_owned() };
        vec![
            ("init", Command::Init { cluster: "fuzzing".to_owned(), replicas: 2, min_sync: 2 }),
            ("batches", Command::Batches(batches().into_iter().map(|(_, batch)| (SessionId(1), batch)).collect())),
            ("session", Command::OpenSession(opening)),
            ("layout", Command::SetLayout(layout())),
            ("mark", Command::Mark(CheckId(3))),
            ("use-token", Command::UseToken(newcomer)),
            ("expire-tokens", Command::ExpireTokens),
            ("enroll", Command::Enroll(enrolling)),
            ("revoke", Command::Revoke(revoking)),
            ("ticket-key", Command::AddTicketKey(ticket_key())),
            ("by-operator", Command::ByOperator { asker, change: Change::RevokeToken(token) }),
        ]
    }

    /// Entries with several commands.
    #[must_use]
    pub fn entry() -> Samples {
        commands().into_iter().map(|(name, command)| (name, fuzzing::sample_entry(command))).collect()
    }

    /// Messages with entries.
    #[must_use]
    pub fn message() -> Samples {
        commands().into_iter().map(|(name, command)| (name, fuzzing::sample_message(command))).collect()
    }

    /// Snapshots without pairs, and with some.
    #[must_use]
    pub fn snapshot() -> Samples {
        let made = |count: u8| {
            let pairs = (0..count).map(|number| (vec![b'I', number], vec![number; usize::from(number) % 9]));
            NODE.with(|node| node.sample(pairs.collect())).expect("memory takes all")
        };
        vec![("empty", made(0)), ("pairs", made(40))]
    }
}
