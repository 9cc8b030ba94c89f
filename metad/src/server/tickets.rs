//! Block tickets: what confined clients may read, and that they have the blocks which they commit.

use super::Server;
use crate::Shared;
use crate::error::ProposeError;
use crate::fs::{Command, Stamped, tickets};
use crate::in_place::in_place;
use std::collections::{HashMap, HashSet};
use wire::FsError;
use wire::attr::Timestamp;
use wire::cert::KeyId;
use wire::extent::Source;
use wire::ids::BlockHash;
use wire::message::meta::MetaReply;
use wire::op::{ExtentPage, Op, OpFailed, ReadReply};
use wire::ticket::{Receipt, Ticket, TicketKey, TicketKeys};
use wire::tls::PeerIdentity;

/// Makes a key for tickets when one is due.
///
/// # Errors
/// As `Consensus::propose`.
pub(super) async fn renew_key(shared: &Shared) -> Result<(), ProposeError> {
    let (known, now) = (tickets::keys(&**shared.consensus.state()), shared.clock.now());
    if known.is_due(now) {
        let key = TicketKey::make(known.next_number(now), now);
        // Another leader may have made one meanwhile, which is as good.
        shared.consensus.propose(Stamped { now, command: Command::AddTicketKey(key) }).await?;
    }
    Ok(())
}

impl Server {
    /// Adds tickets to what a client is answered, if it is confined.
    pub(super) fn with_tickets(&self, peer: &PeerIdentity, mut reply: MetaReply) -> MetaReply {
        if let MetaReply::Read { answer: Ok(answer), tickets, .. } = &mut reply
            && peer.subject.is_confined()
        {
            let keys = tickets::keys(&**self.shared.consensus.state());
            *tickets = in_place(|| issue(&keys, &peer.certificate.key, answer, self.shared.clock.now()));
        }
        reply
    }

    /// Checks that a client has the blocks that its operations name.
    ///
    /// # Errors
    /// The first operation that names one without a receipt.
    pub(super) fn check_receipts(&self, holder: &KeyId, receipts: &[Receipt], ops: &[Op]) -> Result<(), OpFailed> {
        let keys = tickets::keys(&**self.shared.consensus.state());
        // There may be thousands.
        let unproven = in_place(|| unproven(&keys, holder, receipts, ops));
        unproven.map_or(Ok(()), |index| Err(OpFailed { index: index as u32, error: FsError::NotPermitted }))
    }
}

/// Returns tickets for all blocks that an answer names, each for the part that it shows.
fn issue(keys: &TicketKeys, holder: &KeyId, answer: &ReadReply, now: Timestamp) -> Vec<(BlockHash, Ticket)> {
    let Some(key) = keys.newest() else { return Vec::new() };
    let pages: Vec<&ExtentPage> = match answer {
        ReadReply::Opened { page, .. } | ReadReply::Extents(page) => vec![page],
        ReadReply::Page { entries, .. } => entries.iter().filter_map(|entry| entry.content.as_ref()).collect(),
        ReadReply::Tree(dirs) => {
            dirs.iter().flat_map(|dir| &dir.entries).filter_map(|entry| entry.content.as_ref()).collect()
        }
        _ => Vec::new(),
    };
    let extents = pages.into_iter().flat_map(|page| &page.extents);
    let parts = extents.filter_map(|extent| match extent.source {
        // Content is stored as it is: what is read of a block are the bytes that are stored.
        Source::Block { hash, form, offset } => {
            let len = u32::try_from(extent.len).unwrap_or(u32::MAX);
            let is_whole = offset == 0 && len >= form.stored_len;
            Some((hash, (offset, if is_whole { u32::MAX } else { len })))
        }
        Source::Inline(_) | Source::Zero => None,
    });
    parts.map(|(hash, part)| (hash, key.ticket(holder, &hash, part, now))).collect()
}

/// Returns the first operation that commits a block for which there is no receipt.
fn unproven(keys: &TicketKeys, holder: &KeyId, receipts: &[Receipt], ops: &[Op]) -> Option<usize> {
    let mut known: HashMap<&BlockHash, &Receipt> = receipts.iter().map(|receipt| (&receipt.hash, receipt)).collect();
    let mut proven = HashSet::new();
    // Each is checked once, and only if it is needed.
    let mut is_proven = |hash: &BlockHash| {
        if known.remove(hash).is_some_and(|receipt| keys.confirms(receipt, holder)) {
            proven.insert(*hash);
        }
        proven.contains(hash)
    };
    ops.iter().position(|op| match op.plain() {
        Op::Commit { writes, .. } => writes.iter().any(|write| match &write.source {
            Source::Block { hash, .. } => !is_proven(hash),
            Source::Inline(_) | Source::Zero => false,
        }),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::extent::{Extent, ExtentWrite};
    use wire::ids::{Ino, Version};
    use wire::op::ConflictPolicy;

    const HOLDER: KeyId = KeyId([1; 32]);

    fn keys() -> TicketKeys {
        let mut keys = TicketKeys::default();
        assert!(keys.add(TicketKey::make(1, Timestamp::default())));
        keys
    }

    fn hash(number: u8) -> BlockHash {
        BlockHash([number; 32])
    }

    #[test]
    fn an_answer_comes_with_tickets_for_exactly_what_it_shows() {
        let keys = keys();
        let extent = |file_off, len, source| Extent { file_off, len, version: Version(1), source };
        let page = ExtentPage {
            version: Version(1),
            size: 99,
            extents: vec![
                extent(0, 10, Source::block(hash(1), 4096, 20)),
                extent(10, 5, Source::Zero),
                extent(15, 7, Source::block(hash(2), 7, 0)),
            ],
            more_from: None,
        };
        let tickets = issue(&keys, &HOLDER, &ReadReply::Extents(page), Timestamp::default());
        let parts: Vec<_> = tickets.iter().map(|(hash, ticket)| (*hash, ticket.offset, ticket.len)).collect();
        assert_eq!(parts, [(hash(1), 20, 10), (hash(2), 0, u32::MAX)]);
        assert!(tickets.iter().all(|(hash, ticket)| keys.admits(ticket, &HOLDER, hash, Timestamp::default())));
        let attr = ReadReply::Names(Vec::new());
        assert_eq!(issue(&keys, &HOLDER, &attr, Timestamp::default()), []);
    }

    #[test]
    fn a_block_is_committed_only_with_a_receipt_for_whoever_commits_it() {
        let keys = keys();
        let commit = |number| Op::Commit {
            ino: Ino(2),
            base: Version(1),
            own: Vec::new(),
            writes: vec![ExtentWrite { file_off: 0, len: 7, source: Source::block(hash(number), 7, 0) }],
            append_from: None,
            mtime: None,
            clear_privileges: false,
            policy: ConflictPolicy::Fail,
        };
        let receipt = |holder, number| keys.newest().unwrap().receipt(holder, &hash(number));
        let ops = [Op::LeaseInos { count: 1 }, commit(1), commit(2)];
        let mine = [receipt(&HOLDER, 1), receipt(&HOLDER, 2)];
        assert_eq!(unproven(&keys, &HOLDER, &mine, &ops), None);
        assert_eq!(unproven(&keys, &HOLDER, &mine[..1], &ops), Some(2));
        assert_eq!(unproven(&keys, &KeyId([9; 32]), &mine, &ops), Some(1));
        let late = Op::Deferred { at: Timestamp::default(), expect: Vec::new(), op: Box::new(commit(3)) };
        assert_eq!(unproven(&keys, &HOLDER, &mine, &[late]), Some(0));
        let inline = Op::Commit {
            ino: Ino(2),
            base: Version(1),
            own: Vec::new(),
            writes: vec![ExtentWrite { file_off: 0, len: 1, source: Source::Inline(vec![1]) }],
            append_from: None,
            mtime: None,
            clear_privileges: false,
            policy: ConflictPolicy::Fail,
        };
        assert_eq!(unproven(&keys, &HOLDER, &[], &[inline]), None);
    }
}
