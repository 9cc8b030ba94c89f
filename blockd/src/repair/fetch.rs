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

/// What another daemon has sent.
pub enum Fetched {
    /// A good copy.
    Good(Bytes),
    /// Something else, or the answer that it has none.
    Nothing,
    /// No answer: whether it has a copy is not known.
    NoAnswer,
}

impl Fetched {
    /// Returns the copy, if it is good.
    pub fn good(self) -> Option<Bytes> {
        match self {
            Self::Good(block) => Some(block),
            Self::Nothing | Self::NoAnswer => None,
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
                Ok(name) if name == hash => Fetched::Good(block),
                Ok(_) => Fetched::Nothing,
                Err(_) => Fetched::NoAnswer,
            }
        }
        Ok(_) => Fetched::Nothing,
        Err(error) => {
            tracing::debug!(%hash, %addr, %error, "no copy from there");
            if matches!(error, Error::Refused { .. }) { Fetched::Nothing } else { Fetched::NoAnswer }
        }
    }
}
