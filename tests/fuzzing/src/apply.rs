//! What clients and block daemons tell a metad, where it has an effect. What panics in the state machine would end every
//! metad, and again at each start.

use crate::messages::{self, again};
use metad::cluster::liveness::Liveness;
use metad::fs::session::Opening;
use metad::fs::view::{MemoryKv, View};
use metad::fs::{Command, CommandReply, Stamped, apply, check};
use std::sync::LazyLock;
use wire::attr::Timestamp;
use wire::codec;
use wire::ids::{BatchSeq, SessionId};
use wire::message::meta::BlockdHeartbeat;
use wire::op::Batch;

/// A small filesystem, and a session that has made it: in the root a directory, a file with content and attributes, a
/// second name of it, a symlink, and a file that was removed and is still open.
static BEGUN: LazyLock<(MemoryKv, SessionId)> = LazyLock::new(|| {
    let mut kv = MemoryKv::default();
    apply_to(&mut kv, 1, Command::Init { cluster: "fuzzing".to_owned(), replicas: 1, min_sync: 1 });
    let opening = Opening {
        host: "host".to_owned(),
        purpose: "/mnt".to_owned(),
        client: "client-1".to_owned(),
        caches: false,
        resumes: None,
        token: None,
        confined: None,
    };
    let CommandReply::Session(session) = apply_to(&mut kv, 2, Command::OpenSession(opening)) else {
        panic!("the session is opened")
    };
    for (name, batch) in samples::first() {
        let reply = apply_to(&mut kv, 3, Command::Batches(vec![(session, batch)]));
        let CommandReply::Batches(outcomes) = reply else { panic!("a batch is answered") };
        assert!(matches!(outcomes[..], [Ok(Ok(_))]), "{name}: {outcomes:?}");
    }
    assert_eq!(check::check(&kv), Vec::<String>::new());
    (kv, session)
});

fn apply_to(kv: &mut MemoryKv, secs: i64, command: Command) -> CommandReply {
    apply_together(kv, &[Stamped { now: Timestamp { secs, nanos: 0 }, command }]).remove(0)
}

/// Applies commands with one write, as a metad does with entries that come together.
pub(crate) fn apply_together(kv: &mut MemoryKv, commands: &[Stamped]) -> Vec<CommandReply> {
    let mut view = View::new(kv);
    let replies: Vec<CommandReply> = commands.iter().map(|command| apply(&mut view, command)).collect();
    let changes = view.into_changes();
    kv.absorb(changes);
    replies
}

/// A batch of a client, which is its next one whatever number it has. It is checked as by a server, and applied.
pub fn metad_batch(data: &[u8]) -> bool {
    let Ok(mut batch) = codec::decode::<Batch>(data) else { return false };
    if !metad::server::fuzzing::may_be_proposed(&batch) {
        return false;
    }
    let (begun, session) = &*BEGUN;
    let before = samples::first().len() as u64;
    (batch.seq, batch.acked) = (BatchSeq(before + 1), BatchSeq(batch.acked.0.min(before)));
    let mut kv = begun.clone();
    let reply = apply_to(&mut kv, 10, Command::Batches(vec![(*session, batch.clone())]));
    // I1: applied once, whatever it did.
    let once = kv.clone();
    assert_eq!(apply_to(&mut kv, 11, Command::Batches(vec![(*session, batch)])), reply);
    assert!(kv == once, "the second time changes nothing");
    assert_eq!(check::check(&kv), Vec::<String>::new(), "the state contradicts itself");
    // What it left can be taken apart.
    apply_to(&mut kv, 12, Command::CloseSessions(vec![*session]));
    apply_to(&mut kv, 13, Command::Reap);
    assert_eq!(check::check(&kv), Vec::<String>::new(), "the state contradicts itself after the session");
    matches!(reply, CommandReply::Batches(outcomes) if matches!(outcomes[..], [Ok(Ok(_))]))
}

/// The heartbeat of a block daemon, which all daemons of a layout send. A metad derives from it what operators and files
/// see.
pub fn metad_heartbeat(data: &[u8]) -> bool {
    let Some(heartbeat) = again::<BlockdHeartbeat>(data) else { return false };
    let (layout, liveness) = (messages::samples::layout(), Liveness::default());
    for member in &layout.members {
        liveness.heard_blockd(BlockdHeartbeat { id: member.id, ..heartbeat.clone() });
    }
    assert_eq!(liveness.blockds(&layout).len(), layout.members.len());
    assert!(liveness.statfs(&layout, 1).total_bytes >= heartbeat.capacity_bytes / u64::from(layout.replicas));
    assert!(liveness.silent_blockds(&layout).is_empty());
    let _ = (liveness.emptied(&layout), liveness.all_done(&layout));
    true
}

/// Good inputs.
pub mod samples {
    use crate::Samples;
    use crate::messages::samples::batches;
    use wire::codec;
    use wire::ids::BatchSeq;
    use wire::op::Batch;

    /// The batches that make the filesystem.
    #[must_use]
    pub fn first() -> Vec<(&'static str, Batch)> {
        numbered().into_iter().take(2).collect()
    }

    fn numbered() -> Vec<(&'static str, Batch)> {
        let batches = batches().into_iter().zip(1..);
        batches.map(|((name, batch), seq)| (name, Batch { seq: BatchSeq(seq), ..batch })).collect()
    }

    /// A heartbeat.
    #[must_use]
    pub fn heartbeat() -> Samples {
        vec![("blockd-1", codec::encode(&crate::messages::samples::heartbeat()))]
    }

    /// The batches that come after those.
    #[must_use]
    pub fn batch() -> Samples {
        numbered().into_iter().skip(2).map(|(name, batch)| (name, codec::encode(&batch))).collect()
    }
}
