//! What travels between peers, and backup files, which operators carry from one cluster to another.

pub mod samples;

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read};
use wire::backup::{Head, Reader, Record, Writer, verify};
use wire::cert::Certificate;
use wire::codec;
use wire::frame::{REPLY_HEADER, REQUEST_HEADER, ReplyHeader, RequestHeader};
use wire::ids::{BlockHash, Point};
use wire::issuer::SigningRequest;
use wire::layout::Layout;
use wire::layout::ring::Ring;
use wire::limits::{HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX};
use wire::message::admin::{AdminReply, AdminRequest, BackupPiece};
use wire::message::block::{BlockReply, BlockRequest, BlockRequestKind};
use wire::message::check::{CheckReply, CheckRequest};
use wire::message::enroll::{EnrollReply, EnrollRequest};
use wire::message::event::MetaEvent;
use wire::message::meta::{MetaReply, MetaRequest, MetaRequestKind};
use wire::op::{Batch, BatchReply, Op, Read as ReadOf, ReadReply};
use wire::revoked::{Refusals, Revocations};
use wire::tls::{Role, Subject};
use wire::token::JoinToken;

/// Decodes a value. One that was decoded is encoded in no more bytes, and decoded to the same again.
pub(crate) fn again<T: Serialize + DeserializeOwned>(data: &[u8]) -> Option<T> {
    let value: T = codec::decode(data).ok()?;
    let encoded = codec::encode(&value);
    // Numbers may have been sent in more bytes than they need, never in fewer.
    assert!(encoded.len() <= data.len(), "{} bytes became {}", data.len(), encoded.len());
    assert_eq!(codec::encoded_len(&value), encoded.len());
    let decoded: T = codec::decode(&encoded).expect("what was encoded is decoded");
    assert_eq!(codec::encode(&decoded), encoded);
    Some(value)
}

/// Asks a layout what daemons and clients ask it.
fn use_layout(layout: &Layout) {
    let ring = Ring::new(layout);
    for hash in [BlockHash([0; 32]), BlockHash([0x80; 32]), BlockHash([0xff; 32])] {
        let owners = layout.owners(&hash);
        assert!(owners.len() <= usize::from(layout.replicas));
        let (_, _) = layout.owners_and_others(&hash);
        assert!(layout.clockwise(&hash).len() <= layout.members.len());
    }
    for span in ring.spans() {
        assert!(span.first <= span.last);
        assert!(ring.older_owners(span.first).len() <= layout.members.len());
    }
    assert!(ring.owners(Point(0)).len() <= layout.members.len());
}

/// The list of what is revoked.
pub fn blockd_revoked(data: &[u8]) -> bool {
    let Some(list) = again::<Revocations>(data) else { return false };
    let refusals = Refusals::default();
    refusals.adopt(&list);
    assert_eq!(refusals.mark(), list.mark());
    for role in [Role::Metad, Role::Blockd, Role::Client, Role::Admin] {
        let _ = refusals.refuse(&Subject::new(role, "host-1"), &Certificate::default());
    }
    assert!(!refusals.learn(&list), "it is not newer than itself");
    true
}

/// Headers of frames.
pub fn wire_frame(data: &[u8]) -> bool {
    let is_small = |head: u32, payload: u32| head as usize <= HEAD_BYTES_MAX && payload as usize <= PAYLOAD_BYTES_MAX;
    let mut good = false;
    if let Some(header) = data.first_chunk::<REQUEST_HEADER>().and_then(|bytes| RequestHeader::decode(bytes).ok()) {
        assert!(is_small(header.head_len, header.payload_len), "{header:?}");
        assert_eq!(RequestHeader::decode(&header.encode()).ok(), Some(header));
        good = true;
    }
    if let Some(header) = data.first_chunk::<REPLY_HEADER>().and_then(|bytes| ReplyHeader::decode(bytes).ok()) {
        assert!(is_small(header.head_len, header.payload_len), "{header:?}");
        assert_eq!(ReplyHeader::decode(&header.encode()).ok(), Some(header));
        good = true;
    }
    good
}

/// Messages between metad and everybody, newcomers without a certificate included.
pub fn wire_meta(data: &[u8]) -> bool {
    let (newcomer, welcome) = (again::<EnrollRequest>(data), again::<EnrollReply>(data));
    let signs = newcomer.as_ref().and_then(|newcomer| SigningRequest::decode(&newcomer.request).ok());
    if let Some(signs) = signs {
        assert_ne!(signs.key_hash(), [0; 32]);
    }
    let (request, reply) = (again::<MetaRequest>(data), again::<MetaReply>(data));
    if let Some(request) = &request {
        assert_eq!(codec::decode_start::<MetaRequestKind>(data).ok(), Some(request.kind()));
    }
    match &reply {
        Some(MetaReply::Layout(layout) | MetaReply::Session { layout, .. }) => use_layout(layout),
        Some(MetaReply::BlockdAlive { layout: Some(layout), .. } | MetaReply::Alive { layout: Some(layout), .. }) => {
            use_layout(layout);
        }
        _ => {}
    }
    request.is_some() || reply.is_some() || newcomer.is_some() || welcome.is_some()
}

/// Messages between blockd and everybody.
pub fn wire_block(data: &[u8]) -> bool {
    let (request, reply) = (again::<BlockRequest>(data), again::<BlockReply>(data));
    if let Some(request) = &request {
        assert_eq!(codec::decode_start::<BlockRequestKind>(data).ok(), Some(request.kind()));
    }
    match &reply {
        Some(BlockReply::OldLayout(layout)) => use_layout(layout),
        Some(BlockReply::Stored { layout: Some(layout), .. } | BlockReply::NotHere { layout: Some(layout), .. }) => {
            use_layout(layout);
        }
        _ => {}
    }
    request.is_some() || reply.is_some()
}

/// Messages between operators and metad, and join tokens, which are passed on by hand.
pub fn wire_admin(data: &[u8]) -> bool {
    let token = std::str::from_utf8(data).ok().and_then(|text| text.parse::<JoinToken>().ok());
    if let Some(token) = &token {
        let text = token.to_text();
        assert_eq!(text.parse::<JoinToken>().expect("what was written can be read").to_text(), text);
    }
    let (request, reply) = (again::<AdminRequest>(data), again::<AdminReply>(data));
    let piece = again::<BackupPiece>(data);
    if let Some(AdminReply::Status(status)) = &reply {
        use_layout(&status.layout);
    }
    request.is_some() || reply.is_some() || piece.is_some() || token.is_some()
}

/// Messages between `surf fsck` and metad.
pub fn wire_check(data: &[u8]) -> bool {
    let (request, reply) = (again::<CheckRequest>(data), again::<CheckReply>(data));
    request.is_some() || reply.is_some()
}

/// Events of a session.
pub fn wire_event(data: &[u8]) -> bool {
    again::<MetaEvent>(data).is_some()
}

/// Operations, batches, reads, and their replies.
pub fn wire_op(data: &[u8]) -> bool {
    let (op, batch) = (again::<Op>(data), again::<Batch>(data));
    for op in op.iter().chain(batch.iter().flat_map(|batch| &batch.ops)) {
        // A deferred operation holds a plain one, however it was encoded.
        assert!(!matches!(op.plain(), Op::Deferred { .. }));
        assert!(op.names_changed().count() <= 2 && op.attrs_changed().count() <= 4);
    }
    let replies = (again::<BatchReply>(data), again::<ReadReply>(data));
    let others = (again::<ReadOf>(data), again::<Subject>(data));
    let replied = replies.0.is_some() || replies.1.is_some();
    op.is_some() || batch.is_some() || replied || others.0.is_some() || others.1.is_some()
}

/// A file that is read, and nobody may ask for much more of it than it has.
struct Watched<'a> {
    left: &'a [u8],
    room_max: usize,
}

/// Room that a reader may make before it has read anything.
const ROOM_MIN: usize = 64 << 10;

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(buffer.len() <= self.room_max, "room was made for {} bytes", buffer.len());
        self.left.read(buffer)
    }
}

fn watched(bytes: &[u8]) -> Watched<'_> {
    Watched { left: bytes, room_max: ROOM_MIN.max(2 * bytes.len()) }
}

/// A backup file.
pub fn backup(data: &[u8]) -> bool {
    let good = read_backup(data);
    let mut sealed = data.to_vec();
    if let Some((body, sum)) = sealed.split_last_chunk_mut::<32>() {
        *sum = *blake3::hash(body).as_bytes();
        read_backup(&sealed);
    }
    good
}

fn read_backup(bytes: &[u8]) -> bool {
    let Ok((head, counts, len)) = verify(watched(bytes)) else { return false };
    assert_eq!(len, bytes.len() as u64);
    let (_, records) = records(bytes);
    assert_eq!(records.len() as u64, counts.records());
    let mut writer = Writer::begin(Vec::new(), &head).expect("memory takes all");
    records.iter().for_each(|(key, value)| writer.record(key, value).expect("memory takes all"));
    let written = writer.finish().expect("memory takes all");
    assert_eq!(self::records(&written), (head, records));
    true
}

fn records(bytes: &[u8]) -> (Head, Vec<Record>) {
    let mut reader = Reader::open(watched(bytes)).expect("it was read before");
    let mut records = Vec::new();
    while let Some(record) = reader.next().expect("it was read before") {
        records.push(record);
    }
    (reader.head().clone(), records)
}
