//! Messages of blockd.

use super::{AT, EPOCH, HASH, HOLDER, addr, coded, layout, ticket_key};
use crate::Samples;
use wire::ids::{BlockdId, Point};
use wire::layout::ring::Span;
use wire::message::block::{BlockReply, BlockRequest, BlockdStatus, ChordReply, ChordRequest, Digest, Member};

/// Messages of blockd.
#[must_use]
pub fn block() -> Samples {
    let member = Member { point: Point(5), id: BlockdId([1; 16]), addr: addr(7201) };
    let chain = vec![BlockdId([2; 16])];
    let spans = vec![Span { first: Point(1), last: Point(u128::MAX) }];
    let stored = BlockReply::Stored {
        synced: chain.clone(),
        failed: vec![(BlockdId([3; 16]), "disk".to_owned())],
        full: Vec::new(),
        layout: Some(layout()),
        receipt: Some(ticket_key().receipt(&HOLDER, &HASH)),
    };
    let ticket = ticket_key().ticket(&HOLDER, &HASH, (0, u32::MAX), AT);
    let status = BlockdStatus {
        id: BlockdId([1; 16]),
        capacity_bytes: 9,
        free_bytes: 8,
        block_count: 7,
        epoch: EPOCH,
        predecessor: Some(member),
        successors: vec![member],
    };
    let state = ChordReply::State { me: member, predecessor: None, successors: vec![member; 2] };
    vec![
        coded("put", BlockRequest::Put { hash: HASH, epoch: EPOCH, chain, needed: 2, origin: None }),
        coded("get", BlockRequest::Get { hash: HASH, epoch: EPOCH, offset: 5, len: u32::MAX }),
        coded("get-by-ticket", BlockRequest::GetByTicket { hash: HASH, epoch: EPOCH, offset: 5, len: 9, ticket }),
        coded("ticket-refused", BlockReply::TicketRefused),
        coded("drop", BlockRequest::Drop { hashes: vec![HASH; 3], epoch: EPOCH, grace_ms: 600_000 }),
        coded("digests", BlockRequest::Digests { epoch: EPOCH, spans }),
        coded("notify", BlockRequest::Chord(ChordRequest::Notify { candidate: member })),
        coded("stored", stored),
        coded("old-layout", BlockReply::OldLayout(layout())),
        coded("digest", BlockReply::Digests(vec![Digest { count: 1, bytes: 2, sum: u128::MAX }])),
        coded("blocks", BlockReply::Blocks(vec![(HASH, 4096)])),
        coded("state", BlockReply::Chord(state)),
        coded("status", BlockReply::Status(status)),
        coded("revoked-changed", BlockRequest::RevokedChanged { version: 3 }),
    ]
}
