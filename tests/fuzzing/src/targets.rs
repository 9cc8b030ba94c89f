//! All targets, with what each reads and good inputs for it.

use crate::Samples;
use crate::{apply, blocks, clients, identities, messages, raft, replicas, settings};

/// A function that is tried with any bytes.
pub struct Target {
    /// Its name: of the function, of its folders of inputs, and of its program in `fuzz/`.
    pub name: &'static str,
    /// What it reads, and where the bytes come from.
    pub reads: &'static str,
    /// Takes the bytes. Returns whether they were good.
    pub run: fn(&[u8]) -> bool,
    /// Makes good inputs.
    pub samples: fn() -> Samples,
}

macro_rules! targets {
    ($($module:ident::$name:ident, $samples:ident: $reads:literal;)*) => {
        /// All targets.
        pub const TARGETS: &[Target] = &[
            $(Target { name: stringify!($name), reads: $reads, run: $module::$name, samples: $module::samples::$samples }),*
        ];
    };
}

targets! {
    messages::wire_frame, frame: "headers of requests and replies, from a peer";
    messages::wire_meta, meta: "requests to metad and its replies, from a peer";
    messages::wire_block, block: "requests to blockd and its replies, from a peer";
    messages::wire_admin, admin: "requests of operators, the replies, and pieces of a backup, from a peer";
    messages::wire_check, check: "requests of `surf fsck` and the replies, from a peer";
    messages::wire_event, event: "events for a session, from a metad";
    messages::wire_op, op: "operations, batches, reads and their replies, from a peer";
    messages::backup, backup: "a backup file";
    apply::metad_batch, batch: "a batch of a client, checked and applied by a metad";
    replicas::metad_replicas, log: "which commands a log has, applied by three metads in three ways";
    apply::metad_heartbeat, heartbeat: "the heartbeat of a block daemon, and what a metad derives from it";
    identities::trust, trust: "which CAs a node trusts, in its file";
    identities::certificate, certificate: "a certificate with its private extension, from a peer";
    identities::identity, identity: "a PEM file with an identity";
    identities::issuer, issuer: "`issuer.pem` of a metad";
    identities::bundle, bundle: "a bundle file";
    identities::metad_owner, metad_owner: "`IDENTITY` of a metad's data directory";
    identities::blockd_owner, blockd_owner: "`blockd.id` of a blockd's data directory";
    identities::client_owner, client_owner: "`owner` of a mount's own directory";
    raft::raft_entry, entry: "a stored entry of the Raft log";
    raft::raft_message, message: "messages of Raft, from another metad";
    raft::metad_snapshot, snapshot: "a snapshot file, by a metad that starts and by a check";
    blocks::block_record, record: "the header of a block's record in a segment";
    blocks::block_segment, segment: "a segment without a hint, by a store that is opened";
    blocks::block_hint, hint: "the hint of a segment, by a store that is opened";
    messages::blockd_revoked, revoked: "`revoked` of a blockd's data directory, and the list as a metad sends it";
    clients::journal_segment, journal_segment: "a segment of a mount's journal";
    clients::journal_picture, journal_picture: "the file `shared` of a mount's journal";
    clients::journal_id, journal_id: "the file `id` of a mount's journal";
    clients::cached_block, cached_block: "the file of a block in a mount's cache";
    settings::metad_config, metad: "a metad's configuration";
    settings::blockd_config, blockd: "a blockd's configuration";
}

/// Returns the target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
