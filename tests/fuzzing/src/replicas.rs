//! Three metads with one log: each applies the entries in other groups, and one of them begins with a snapshot. Their
//! states must be equal byte by byte, and clients must get the same answer whichever of them leads.

use crate::apply::apply_together;
use crate::commands::{Choices, Log};
use crate::memory;
use metad::fs::view::{KvExt, MemoryKv, View};
use metad::fs::{CommandReply, Stamped, apply, check};
use metad::raft::fuzzing::Node;
use metad::store::Store;

thread_local! {
    static NODE: Node = Node::new(&memory::empty_dir("replica")).expect("an empty state can be made");
}

/// Bytes that say which commands a log has, in which groups the second and the third metad apply them, and where the
/// third one begins.
pub fn metad_replicas(data: &[u8]) -> bool {
    let mut choices = Choices(data);
    let (together, later_together) = (1 + choices.below(16), 1 + choices.below(16));
    let cut = usize::from(choices.byte());
    let log = Log::of(&mut choices);
    assert_eq!(check::check(&log.state), Vec::<String>::new(), "the state contradicts itself");
    // The first entry, which makes the cluster, is in every snapshot.
    let (before, after) = log.entries.split_at(1 + cut * log.entries.len() / 256);

    let mut grouped = MemoryKv::default();
    let mut replies = in_groups(before, together, |group| apply_together(&mut grouped, group));
    let snapshot = grouped.0.clone().into_iter().collect();
    replies.extend(in_groups(after, together, |group| apply_together(&mut grouped, group)));
    assert_eq!(replies, log.replies, "entries are answered in another way in groups of {together}");
    assert!(grouped == log.state, "entries have another effect in groups of {together}");

    NODE.with(|node| {
        node.restore_from(snapshot).expect("memory takes all");
        let replies = in_groups(after, later_together, |group| apply_to_store(node.replica(), group));
        assert_eq!(replies, log.replies[before.len()..], "entries are answered in another way after a snapshot");
        assert!(content(node.replica()) == log.state, "entries have another effect after a snapshot");
    });
    log.has_effect
}

fn in_groups(
    entries: &[Stamped],
    together: usize,
    apply_group: impl FnMut(&[Stamped]) -> Vec<CommandReply>,
) -> Vec<CommandReply> {
    entries.chunks(together).flat_map(apply_group).collect()
}

fn apply_to_store(store: &Store, commands: &[Stamped]) -> Vec<CommandReply> {
    let mut view = View::new(store);
    let replies: Vec<CommandReply> = commands.iter().map(|command| apply(&mut view, command)).collect();
    store.apply(view.into_changes(), b"position");
    replies
}

/// Returns everything but the position.
fn content(store: &Store) -> MemoryKv {
    MemoryKv(store.pairs(vec![1]..vec![u8::MAX], usize::MAX).into_iter().collect())
}

/// Good inputs.
pub mod samples {
    use crate::Samples;

    /// Groups of four and six entries, and a snapshot in the middle.
    const GROUPS: &[u8] = &[3, 5, 128];
    /// The first client makes a file, a directory, and another one in it.
    const MAKE: &[u8] = &[
        0, 0, 0, 0, 0, 0, 0, 2, // three operations in one batch
        0, 0, 0, 0, 0, 0, 0, 0, 0, // `a`
        0, 4, 0, 1, 0, 0, 0, 0, 0, // `b`
        0, 4, 2, 2, 0, 0, 0, 0, 0, // `b/c`
    ];
    /// The second client writes the file.
    const WRITE: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 0, 7, 2, 0, 0, 0, 1, 0, 9, 0, 2, 1, 1, 0, 2, 0, 0, 0, 0, 0];
    /// It sets an attribute, and locks and removes the file.
    const REMOVE: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 2, 11, 2, 0, 1, 0, 0, 15, 2, 0, 0, 0, 0, 1, 3, 0, 0, 0];
    /// The second session ends. What it has left is removed, and after a while the blocks are.
    const END: &[u8] = &[0, 9, 1, 1, 10, 2, 10, 3, 12];
    /// Two more sessions, one of which is confined to `b`. A pin, and its release.
    const SESSIONS: &[u8] = &[0, 8, 0, 1, 3, 0, 1, 8, 2, 0, 2, 0, 1, 0, 13, 1, 2, 14, 0];
    /// Two batches of different clients in one entry, the second of which makes `b/d`.
    const TOGETHER: &[u8] = &[0, 0, 1, 0, 0, 0, 0, 0, 17, 2, 2, 0, 0, 0, 0, 0, 0, 2, 3, 0, 0, 0, 0, 0];

    /// Logs.
    #[must_use]
    pub fn log() -> Samples {
        let any: Vec<u8> = (0..=u8::MAX).collect();
        vec![
            ("files", [GROUPS, MAKE, WRITE, REMOVE, END].concat()),
            ("sessions", [GROUPS, MAKE, SESSIONS, TOGETHER, WRITE, END].concat()),
            ("any", [GROUPS, MAKE, &any].concat()),
        ]
    }
}
