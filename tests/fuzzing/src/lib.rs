//! Damaged and hostile bytes for everything that decodes them.
//!
//! A *target* is a function that takes any bytes as a peer, or a damaged disk, would hand them over. It panics if
//! - the code under test does,
//! - memory is taken for a length before the bytes are there,
//! - a value that was decoded is another one after encoding and decoding it,
//! - or what was refused was changed on the disk.
//!
//! It returns whether it took the bytes for good: this is how a corpus is kept from rotting. Where a checksum would
//! keep damage from the code behind it, the bytes are tried as they come, and with a checksum that fits.
//!
//! [`TARGETS`] lists all of them. `fuzz/` runs them under libFuzzer, [`runner`] without it. Both, and the tests, begin
//! with the files in `corpus/`, which [`corpus`] writes; inputs that have found a fault stay in `regressions/`.

#![forbid(unsafe_code)]

pub mod apply;
pub mod blocks;
pub mod clients;
pub mod corpus;
pub mod identities;
pub mod memory;
pub mod messages;
mod mutate;
pub mod raft;
pub mod runner;
pub mod settings;

/// Inputs by name.
pub type Samples = Vec<(&'static str, Vec<u8>)>;

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
    apply::metad_heartbeat, heartbeat: "the heartbeat of a block daemon, and what a metad derives from it";
    identities::trust, trust: "which CAs a node trusts, in its file";
    identities::certificate, certificate: "a certificate with its private extension, from a peer";
    identities::identity, identity: "a PEM file with an identity";
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
