//! Asking another daemon which of some blocks it has. The answers are typed by what a caller can do about them, and
//! none repeats a peer's words.
//!
//! A probe is only what the other daemon says. [`readable`] has it serve the first byte of each block.

use futures::StreamExt;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;
use wire::ids::{BlockHash, LayoutEpoch};
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::Endpoint;
use wire::tls::Role;
use wire::{Error, chance};

/// Blocks of which a daemon is asked for the first byte at once.
const READS_MAX: usize = 8;

/// Why a daemon's answer does not help.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoAnswer {
    /// It does not know the layout of the question yet.
    #[error("it does not know the layout yet")]
    Behind,
    /// It has too much to do.
    #[error("it has too much to do")]
    Busy,
    /// It was not reached, or did not answer in time.
    #[error("it does not answer")]
    Silent,
    /// It takes so long for each answer that all of them would take too long.
    #[error("it answers too slowly")]
    Slow,
    /// It answered something else, or not for each block.
    #[error("it gives no fitting answer")]
    Malformed,
}

/// Asks the daemon at an address which of these blocks it has, to stay. It answers within `limit`, or is silent.
///
/// # Errors
/// Why it does not say.
pub async fn probe(
    endpoint: &Endpoint,
    addr: SocketAddr,
    epoch: LayoutEpoch,
    hashes: &[BlockHash],
    limit: Duration,
) -> Result<BTreeSet<BlockHash>, NoAnswer> {
    let request = BlockRequest::Probe { epoch, hashes: hashes.to_vec() };
    match endpoint.peer(addr, Role::Blockd).request::<_, BlockReply>(&request, &[], limit).await {
        Ok((BlockReply::Present(present), _)) if present.len() == hashes.len() => {
            Ok(hashes.iter().zip(present).filter(|(_, is_here)| *is_here).map(|(hash, _)| *hash).collect())
        }
        Ok((BlockReply::Behind, _)) => Err(NoAnswer::Behind),
        Ok(_) | Err(Error::Refused { .. } | Error::Malformed(_)) => Err(NoAnswer::Malformed),
        Err(Error::Busy { .. }) => Err(NoAnswer::Busy),
        Err(_) => Err(NoAnswer::Silent),
    }
}

/// Outcome of reading first bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Readable {
    /// Blocks of which the first byte came.
    pub read: BTreeSet<BlockHash>,
    /// Blocks that were refused.
    pub refused: usize,
    /// Blocks about which nothing is known, because the daemon or the time did not suffice.
    pub unknown: usize,
    /// The daemon has said that it has too much to do.
    pub is_busy: bool,
}

/// Has the daemon at an address serve the first byte of each of these blocks, several at once, for `limit` in all. What came until then
/// counts. Unlike a probe, it does not depend on the layout that the daemon knows.
pub async fn readable(
    endpoint: &Endpoint,
    addr: SocketAddr,
    epoch: LayoutEpoch,
    hashes: &[BlockHash],
    limit: Duration,
) -> Readable {
    let peer = endpoint.peer(addr, Role::Blockd);
    let until = Instant::now() + limit;
    // Where time does not suffice for all, it is not always the same ones that are left out.
    let start = if hashes.is_empty() { 0 } else { (chance::number() % hashes.len() as u64) as usize };
    let read = |hash: BlockHash| {
        let peer = peer.clone();
        async move {
            let request = BlockRequest::Get { hash, epoch, offset: 0, len: 1 };
            match peer.request::<_, BlockReply>(&request, &[], limit).await {
                Ok((BlockReply::Content { .. }, bytes)) => (hash, Ok(bytes.len() == 1)),
                Ok(_) | Err(Error::Refused { .. } | Error::Malformed(_)) => (hash, Ok(false)),
                Err(error) => (hash, Err(error)),
            }
        }
    };
    let mut turn = hashes.to_vec();
    turn.rotate_left(start);
    let mut reading = futures::stream::iter(turn).map(read).buffer_unordered(READS_MAX);
    let mut readable = Readable { unknown: hashes.len(), ..Readable::default() };
    while let Ok(Some((hash, answer))) = tokio::time::timeout_at(until, reading.next()).await {
        match answer {
            Ok(true) => {
                readable.read.insert(hash);
            }
            Ok(false) => readable.refused += 1,
            // A daemon that does not answer for one block is not waited for again and again.
            Err(error) => {
                readable.is_busy = matches!(error, Error::Busy { .. });
                break;
            }
        }
        readable.unknown -= 1;
    }
    readable
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repair::fetch::{Fetched, fetch};
    use crate::repair::test_peers::{Manner, Peers, block};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_daemon_that_has_too_much_to_do_answers_and_one_that_is_silent_does_not() {
        let peers = Peers::start([Manner::Busy, Manner::Mute]);
        let (endpoint, epoch) = (&peers.endpoint, peers.layout.epoch);
        // Only the silent one is waited for to the end.
        let (short, limit) = (Duration::from_millis(500), Duration::from_secs(20));
        let [busy, mute] = [1, 2].map(|place| peers.layout.members[place].addr);
        let hashes = [1, 2].map(|number| block(number).0);
        let read = async |addr, limit| readable(endpoint, addr, epoch, &hashes, limit).await;
        assert_eq!(read(busy, limit).await, Readable { unknown: 2, is_busy: true, ..Readable::default() });
        assert_eq!(read(mute, short).await, Readable { unknown: 2, ..Readable::default() });
        assert!(matches!(fetch(endpoint, busy, hashes[0], epoch).await, Fetched::Busy));
        assert_eq!(probe(endpoint, busy, epoch, &hashes, limit).await, Err(NoAnswer::Busy));
    }
}
