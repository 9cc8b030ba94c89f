//! Raft between peers: each message is a request of `wire`, its openraft type in the payload.

use super::damage::OwnSnapshot;
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
use tokio::sync::Mutex;
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
    /// What is known about damage to this node's own snapshot.
    pub(super) own: Arc<OwnSnapshot>,
}

/// The connection to one peer.
pub struct Connection {
    target: u64,
    peer: Option<Peer>,
    own: Arc<OwnSnapshot>,
}

/// Why a message has no answer.
enum Unanswered {
    /// The peer does not take it.
    Refused(wire::Error),
    /// Another reason.
    Failed(RPCError<TypeConfig>),
}

impl From<Unanswered> for RPCError<TypeConfig> {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Refused(error) => network_error(&error),
            Unanswered::Failed(error) => error,
        }
    }
}

fn network_error<E: std::error::Error + 'static>(error: &E) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(error))
}

/// Why a peer has not installed a snapshot.
enum NotInstalled {
    /// It has refused the last piece, and so perhaps the whole.
    Refused(wire::Error),
    /// The snapshot cannot be read here.
    Unreadable(io::Error),
    /// Another reason.
    Failed(RPCError<TypeConfig>),
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Connection {
        let peer = node.addr.parse::<SocketAddr>().ok().map(|addr| self.endpoint.peer(addr, Role::Metad));
        Connection { target, peer, own: self.own.clone() }
    }
}

impl Connection {
    async fn ask<Q: Serialize + Sync, R: DeserializeOwned>(
        &self,
        kind: RaftKind,
        message: &Q,
        limit: Duration,
    ) -> Result<R, RPCError<TypeConfig>> {
        Ok(self.try_to_ask(kind, message, limit).await?)
    }

    async fn try_to_ask<Q: Serialize + Sync, R: DeserializeOwned>(
        &self,
        kind: RaftKind,
        message: &Q,
        limit: Duration,
    ) -> Result<R, Unanswered> {
        let unreachable = |reason: String| {
            let error = Unreachable::from_string(reason);
            Unanswered::Failed(RPCError::Unreachable(error))
        };
        let Some(peer) = &self.peer else {
            return Err(unreachable(format!("metad {} has no address", self.target)));
        };
        let payload = Bytes::from(codec::encode(message));
        let request = MetaRequest::Raft { kind, to: MetadId(self.target) };
        let asked = peer.request::<_, MetaReply>(&request, &[payload], limit).await;
        match asked {
            Ok((MetaReply::Raft, reply)) => {
                codec::decode(&reply).map_err(|error| Unanswered::Failed(network_error(&error)))
            }
            // Nobody answers for it: a node of another number has its address.
            Ok(_) => Err(unreachable(format!("another node is where metad {} was", self.target))),
            Err(error @ wire::Error::NotSent { .. }) => {
                Err(Unanswered::Failed(RPCError::Unreachable(Unreachable::new(&error))))
            }
            Err(error @ wire::Error::Refused { .. }) => Err(Unanswered::Refused(error)),
            Err(error) => Err(Unanswered::Failed(network_error(&error))),
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (file, at) = (snapshot.snapshot.clone(), snapshot.meta.last_log_id);
        match self.send_pieces(vote, snapshot).await {
            Ok(response) => Ok(response),
            Err(NotInstalled::Refused(error)) => {
                // A damaged one would be refused by every peer.
                self.own.check(file, at).await;
                Err(network_error(&error))
            }
            Err(NotInstalled::Unreadable(error)) => {
                self.own.report(&file.path, &error);
                Err(network_error(&error))
            }
            Err(NotInstalled::Failed(error)) => Err(error),
        }
    }

    async fn send_pieces(&self, vote: Vote, snapshot: Snapshot) -> Result<SnapshotResponse<TypeConfig>, NotInstalled> {
        let file = snapshot.snapshot.file.clone();
        let total = file.metadata().map_err(NotInstalled::Unreadable)?.len();
        let mut offset = 0;
        loop {
            let len = PIECE_BYTES.min(usize::try_from(total - offset).unwrap_or(PIECE_BYTES));
            let from = file.clone();
            let read = spawn_blocking(move || {
                let mut bytes = vec![0; len];
                from.read_exact_at(&mut bytes, offset).map(|()| bytes)
            });
            let read = read.await.map_err(|error| NotInstalled::Failed(network_error(&error)))?;
            let bytes = Bytes::from(read.map_err(NotInstalled::Unreadable)?);
            let piece = Piece { vote, meta: snapshot.meta.clone(), offset, total, bytes };
            offset += len as u64;
            let limit = if offset == total { INSTALL_TIMEOUT } else { PIECE_TIMEOUT };
            match self.try_to_ask(RaftKind::Snapshot, &piece, limit).await {
                Ok(Some(response)) => return Ok(response),
                Ok(None) if offset < total => {}
                Ok(None) => {
                    let error = NetworkError::from_string("the snapshot was not installed");
                    return Err(NotInstalled::Failed(RPCError::Network(error)));
                }
                Err(Unanswered::Refused(error)) if offset == total => return Err(NotInstalled::Refused(error)),
                Err(unanswered) => return Err(NotInstalled::Failed(unanswered.into())),
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
            let sync = |file: &File| if done { file.sync_all() } else { Ok(()) };
            file.write_all_at(&bytes, offset).and_then(|()| sync(&file)).inspect_err(|_| {
                // The log needs the room. The leader begins anew.
                let _ = fs::remove_file(&target);
            })?;
            if !done {
                return Ok(None);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::runtime::Handle;
    use wire::quic::{Incoming, Service};
    use wire::tls::{ClusterCa, PeerIdentity, Subject};

    /// Takes this many pieces and refuses the next.
    struct Full(AtomicU64);

    impl Service for Full {
        fn authorize(&self, _: &PeerIdentity) -> Result<(), wire::Error> {
            Ok(())
        }

        async fn handle(self: Arc<Self>, _: Arc<PeerIdentity>, mut incoming: Incoming) {
            incoming.decode::<MetaRequest>().unwrap();
            incoming.read_payload().await.unwrap();
            if self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
                return incoming.refuse("the disk is full").await;
            }
            let more = codec::encode(&None::<SnapshotResponse<TypeConfig>>);
            incoming.respond(&MetaReply::Raft, &[more.into()]).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_snapshot_is_read_again_only_when_a_peer_has_refused_all_of_it() {
        let ca = ClusterCa::create("test").unwrap();
        let endpoint = || {
            let identity = ca.issue(&Subject::new(Role::Metad, "metad-1")).unwrap();
            Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = snapshot::path_in(dir.path());
        // Two pieces of damage.
        fs::write(&path, vec![7; PIECE_BYTES + 1]).unwrap();
        for (taken, is_reported) in [(0, false), (1, true)] {
            let (here, there) = (endpoint(), endpoint());
            let _serving = there.serve(Arc::new(Full(AtomicU64::new(taken))), &Handle::current());
            let peer = Some(here.peer(there.local_addr(), Role::Metad));
            let connection = Connection { target: 2, peer, own: Arc::default() };
            let file = SnapshotFile { path: path.clone(), file: Arc::new(File::open(&path).unwrap()) };
            let snapshot = Snapshot { meta: SnapshotMeta::default(), snapshot: file };
            let sent = connection.send_snapshot(Vote::new(1, 1), snapshot).await;
            assert!(
                matches!(&sent, Err(RPCError::Network(error)) if error.to_string().contains("disk is full")),
                "{sent:?}"
            );
            assert_eq!(connection.own.damaged.notified().now_or_never().is_some(), is_reported, "{taken} pieces");
        }
    }
}
