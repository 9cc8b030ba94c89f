//! Raft between peers: each message is a request of `wire`, its openraft type in the payload.

use super::snapshot;
use super::types::{Snapshot, SnapshotFile, SnapshotMeta, TypeConfig, Vote};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::network::stream_append_sequential;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, Raft, RaftNetworkFactory, RaftNetworkV2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify};
use tokio::task::spawn_blocking;
use wire::codec;
use wire::ids::MetadId;
use wire::message::meta::{MetaReply, MetaRequest, RaftKind};
use wire::quic::{Endpoint, Peer};
use wire::tls::Role;

use super::machine::Machine;

/// Size of the pieces in which snapshots travel.
const PIECE_BYTES: usize = 1 << 20;
/// How long one piece may take.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a report that entries are committed waits for entries to be sent with it: a small part of a heartbeat.
const COMMIT_LINGER: Duration = Duration::from_millis(10);
/// Installing the last piece replaces the whole state.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// A piece of a snapshot.
#[derive(Serialize, Deserialize)]
pub(super) struct Piece {
    vote: Vote,
    meta: SnapshotMeta,
    offset: u64,
    total: u64,
    bytes: Bytes,
}

/// Makes connections to peers.
pub struct Network {
    pub(super) endpoint: Endpoint,
    /// Notified when this node's own snapshot is found to be damaged.
    pub(super) damaged: Arc<Notify>,
}

/// The connection to one peer.
pub struct Connection {
    target: u64,
    peer: Option<Peer>,
    damaged: Arc<Notify>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Connection {
        let peer = node.addr.parse::<SocketAddr>().ok().map(|addr| self.endpoint.peer(addr, Role::Metad));
        Connection { target, peer, damaged: self.damaged.clone() }
    }
}

impl Connection {
    async fn ask<Q: Serialize + Sync, R: DeserializeOwned>(
        &self,
        kind: RaftKind,
        message: &Q,
        limit: Duration,
    ) -> Result<R, RPCError<TypeConfig>> {
        let Some(peer) = &self.peer else {
            return Err(RPCError::Unreachable(Unreachable::from_string(format!(
                "metad {} has no address",
                self.target
            ))));
        };
        let payload = Bytes::from(codec::encode(message));
        let request = MetaRequest::Raft { kind, to: MetadId(self.target) };
        let asked = peer.request::<_, MetaReply>(&request, &[payload], limit).await;
        match asked {
            Ok((MetaReply::Raft, reply)) => {
                codec::decode(&reply).map_err(|error| RPCError::Network(NetworkError::new(&error)))
            }
            // Nobody answers for it: a node of another number has its address.
            Ok(_) => Err(RPCError::Unreachable(Unreachable::from_string(format!(
                "another node is where metad {} was",
                self.target
            )))),
            Err(error @ wire::Error::NotSent { .. }) => Err(RPCError::Unreachable(Unreachable::new(&error))),
            Err(error) => Err(RPCError::Network(NetworkError::new(&error))),
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, RPCError<TypeConfig>> {
        let file = snapshot.snapshot.clone();
        let sent = self.send_pieces(vote, snapshot).await;
        if matches!(sent, Err(RPCError::Network(_))) {
            self.report_damage(file).await;
        }
        sent
    }

    /// Checks a snapshot that a peer has not taken. A damaged one would be refused by every peer.
    async fn report_damage(&self, file: SnapshotFile) {
        let path = file.path.clone();
        let checked = spawn_blocking(move || snapshot::verify(&file)).await;
        if let Ok(Err(error)) = checked {
            tracing::error!(%error, path = %path.display(), "the snapshot is damaged on this disk: taking another one");
            self.damaged.notify_one();
        }
    }

    async fn send_pieces(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, RPCError<TypeConfig>> {
        let failed = |error: io::Error| RPCError::Network(NetworkError::new(&error));
        let file = snapshot.snapshot.file.clone();
        let total = file.metadata().map_err(failed)?.len();
        let mut offset = 0;
        loop {
            let len = PIECE_BYTES.min(usize::try_from(total - offset).unwrap_or(PIECE_BYTES));
            let from = file.clone();
            let read = spawn_blocking(move || {
                let mut bytes = vec![0; len];
                from.read_exact_at(&mut bytes, offset).map(|()| bytes)
            });
            let bytes = Bytes::from(read.await.map_err(io::Error::other).map_err(failed)?.map_err(failed)?);
            let piece = Piece { vote, meta: snapshot.meta.clone(), offset, total, bytes };
            offset += len as u64;
            let limit = if offset == total { INSTALL_TIMEOUT } else { PIECE_TIMEOUT };
            let answer: Option<SnapshotResponse<TypeConfig>> = self.ask(RaftKind::Snapshot, &piece, limit).await?;
            match answer {
                Some(response) => return Ok(response),
                None if offset < total => {}
                None => return Err(RPCError::Network(NetworkError::from_string("the snapshot was not installed"))),
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(RaftKind::Append, &rpc, option.hard_ttl()).await
    }

    /// Sends one request after the other. A commit is reported with the next entries if those come soon: a message of
    /// its own for each commit would double the messages of a busy leader.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        stream_append_sequential(self, without_bare_commits(input), option)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(RaftKind::Vote, &rpc, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(RaftKind::PreVote, &rpc, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            sent = self.send_snapshot(vote, snapshot) => sent.map_err(|error| match error {
                RPCError::Unreachable(error) => StreamingError::Unreachable(error),
                error => StreamingError::Network(NetworkError::new(&error)),
            }),
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(RaftKind::TransferLeader, &req, option.hard_ttl()).await
    }
}

/// Leaves out requests without entries that are followed by another within [`COMMIT_LINGER`].
fn without_bare_commits<S>(input: S) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin + Send + 'static
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    Box::pin(futures::stream::unfold((input, false), |(mut input, passed)| async move {
        let mut request = input.next().await?;
        // The first request of a stream may be a probe, which is waited for.
        while passed && request.entries.is_empty() {
            match tokio::time::timeout(COMMIT_LINGER, input.next()).await {
                Ok(Some(next)) => request = next,
                Ok(None) | Err(_) => break,
            }
        }
        Some((request, (input, true)))
    }))
}

/// Handles messages of peers.
pub(super) struct Receiver {
    dir: PathBuf,
    /// The snapshot being received: its sender's vote, and how many bytes have come.
    incoming: Mutex<Option<(Vote, u64)>>,
}

impl Receiver {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), incoming: Mutex::new(None) }
    }

    /// Handles a peer's message, and returns the encoded answer.
    pub(super) async fn handle(
        &self,
        raft: &Raft<TypeConfig, Machine>,
        kind: RaftKind,
        payload: &[u8],
    ) -> Result<Vec<u8>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        match kind {
            RaftKind::Append => {
                let answer = raft.append_entries(decode(payload)?).await.map_err(|error| text(&error))?;
                Ok(codec::encode(&answer))
            }
            RaftKind::Vote => {
                let answer = raft.vote(decode(payload)?).await.map_err(|error| text(&error))?;
                Ok(codec::encode(&answer))
            }
            RaftKind::PreVote => {
                let answer = raft.pre_vote(decode(payload)?).await.map_err(|error| text(&error))?;
                Ok(codec::encode(&answer))
            }
            RaftKind::TransferLeader => {
                let answer = raft.handle_transfer_leader(decode(payload)?).await.map_err(|error| text(&error))?;
                Ok(codec::encode(&answer))
            }
            RaftKind::Snapshot => {
                let answer = self.take_piece(raft, decode(payload)?).await.map_err(|error| text(&error))?;
                Ok(codec::encode(&answer))
            }
        }
    }

    /// Writes a piece; after the last one, checks the snapshot and installs it. `None` asks for more.
    async fn take_piece(
        &self,
        raft: &Raft<TypeConfig, Machine>,
        piece: Piece,
    ) -> io::Result<Option<SnapshotResponse<TypeConfig>>> {
        let path = snapshot::path_in(&self.dir).with_extension("incoming");
        let received = snapshot::path_in(&self.dir).with_extension("received");
        let mut incoming = self.incoming.lock().await;
        // A first piece begins anew, whatever was under way.
        let expected = if piece.offset == 0 { 0 } else { incoming.map_or(0, |(_, at)| at) };
        let same_sender = piece.offset == 0 || incoming.is_some_and(|(vote, _)| vote == piece.vote);
        if piece.offset != expected || !same_sender {
            *incoming = None;
            return Err(io::Error::other("a piece of the snapshot is missing"));
        }
        let at = piece.offset + piece.bytes.len() as u64;
        let done = at == piece.total;
        let (target, bytes, offset) = (path, piece.bytes, piece.offset);
        let write = move || {
            let file = File::options().create(true).write(true).truncate(offset == 0).open(&target)?;
            file.write_all_at(&bytes, offset)?;
            if !done {
                return Ok(None);
            }
            file.sync_all()?;
            // The next snapshot is written elsewhere while this one is being installed.
            fs::rename(&target, &received)?;
            // All of it is checked before Raft takes it up: what cannot be installed ends this node.
            snapshot::open_verified(&received).inspect_err(|_| {
                // The next one needs the room.
                let _ = fs::remove_file(&received);
            })
        };
        *incoming = None;
        let whole = spawn_blocking(write).await.map_err(io::Error::other)?;
        let whole = whole.inspect_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                tracing::error!(%error, "a snapshot of the leader is refused; it is asked for another one");
            }
            _ => tracing::error!(%error, dir = %self.dir.display(), "a snapshot of the leader cannot be stored"),
        })?;
        *incoming = (!done).then_some((piece.vote, at));
        let Some((meta, snapshot)) = whole else { return Ok(None) };
        if meta != piece.meta {
            return Err(io::Error::other("the snapshot is of another position than its sender says"));
        }
        let snapshot = Snapshot { meta, snapshot };
        raft.install_full_snapshot(piece.vote, snapshot).await.map(Some).map_err(io::Error::other)
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    codec::decode(bytes).map_err(|error| error.to_string())
}
