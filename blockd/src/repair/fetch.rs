//! Fetching a copy of a block from another daemon, verified.

use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;
use wire::Error;
use wire::ids::{BlockHash, LayoutEpoch};
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::Endpoint;
use wire::tls::Role;

/// How long a daemon may take to send a copy.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// How another daemon answered when it was asked for a block.
pub enum Fetched {
    /// It sent the block.
    Sent(Bytes),
    /// It sent something else, or said that it has none.
    Refused,
    /// It answered that it has too much to do: whether it has the block is not known.
    Busy,
    /// It did not answer: whether it has the block is not known.
    Silent,
}

impl Fetched {
    /// Returns the block, if it was sent.
    pub fn sent(self) -> Option<Bytes> {
        match self {
            Self::Sent(block) => Some(block),
            Self::Refused | Self::Busy | Self::Silent => None,
        }
    }
}

/// Asks another daemon for a block.
pub async fn fetch(endpoint: &Endpoint, addr: SocketAddr, hash: BlockHash, epoch: LayoutEpoch) -> Fetched {
    let request = BlockRequest::Get { hash, epoch, offset: 0, len: u32::MAX };
    match endpoint.peer(addr, Role::Blockd).request::<_, BlockReply>(&request, &[], FETCH_TIMEOUT).await {
        // I9: the copy is verified here again, whatever its sender says.
        Ok((BlockReply::Content { .. }, block)) => {
            let hashed = block.clone();
            match tokio::task::spawn_blocking(move || BlockHash::of(&hashed)).await {
                Ok(name) if name == hash => Fetched::Sent(block),
                Ok(_) => Fetched::Refused,
                Err(_) => Fetched::Silent,
            }
        }
        Ok(_) => Fetched::Refused,
        Err(error) => {
            tracing::debug!(%hash, %addr, %error, "no copy from there");
            match error {
                Error::Refused { .. } => Fetched::Refused,
                Error::Busy { .. } => Fetched::Busy,
                _ => Fetched::Silent,
            }
        }
    }
}
