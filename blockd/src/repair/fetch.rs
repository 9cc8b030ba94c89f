//! Fetching a copy of a block from another daemon, verified.

use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;
use wire::ids::{BlockHash, LayoutEpoch};
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::Endpoint;
use wire::tls::Role;

/// How long a daemon may take to send a copy.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// A good copy of a block from another daemon, if it has one.
pub async fn fetch(endpoint: &Endpoint, addr: SocketAddr, hash: BlockHash, epoch: LayoutEpoch) -> Option<Bytes> {
    let request = BlockRequest::Get { hash, epoch, offset: 0, len: u32::MAX };
    match endpoint.peer(addr, Role::Blockd).request::<_, BlockReply>(&request, &[], FETCH_TIMEOUT).await {
        // I9: the copy is verified here again, whatever its sender says.
        Ok((BlockReply::Content { .. }, block)) => {
            let hashed = block.clone();
            let name = tokio::task::spawn_blocking(move || BlockHash::of(&hashed)).await.ok()?;
            (name == hash).then_some(block)
        }
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%hash, %addr, %error, "no copy from there");
            None
        }
    }
}
