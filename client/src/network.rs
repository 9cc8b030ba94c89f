//! The metads and block daemons that a client talks to, by address. QUIC is one way to reach them; the simulation has
//! another.
//!
//! These traits carry single messages. The layers above decide which metad leads, and what is asked again and when
//! ([`crate::meta::rpc`], [`crate::block`]).

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::runtime::Handle;
use wire::Error;
use wire::message::block::{BlockReply, BlockRequest};
use wire::message::event::MetaEvent;
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::{Endpoint, EventReceiver};
use wire::tls::Role;

/// The metads.
pub trait Metad: Send + Sync {
    /// Asks the metad at this address once, for at most `limit`. Cancel-safe, except that the caller does not know then
    /// whether the request has arrived.
    ///
    /// # Errors
    /// As `Peer::request`.
    fn ask<'a>(
        &'a self,
        metad: SocketAddr,
        request: &'a MetaRequest,
        limit: Duration,
    ) -> BoxFuture<'a, Result<MetaReply, Error>>;

    /// Opens a stream of events with the metad at this address.
    ///
    /// # Errors
    /// As `Peer::open_events`.
    fn events<'a>(
        &'a self,
        metad: SocketAddr,
        request: &'a MetaRequest,
    ) -> BoxFuture<'a, Result<Box<dyn EventStream>, Error>>;

    /// The metads say that other CAs are trusted. A network without certificates has nothing to do.
    fn trust_changed(&self) {}
}

/// Events from a metad. Dropping the stream makes the metad stop.
pub trait EventStream: Send {
    /// Returns the next event. Cancel-safe: bytes that have arrived are retained for the next call.
    ///
    /// # Errors
    /// As `EventReceiver::next`.
    fn next(&mut self) -> BoxFuture<'_, Result<MetaEvent, Error>>;
}

/// The block daemons.
pub trait Blockd: Send + Sync {
    /// Asks the block daemon at this address once, for at most `limit`. Returns its answer with the payload.
    /// Cancel-safe like [`Metad::ask`].
    ///
    /// # Errors
    /// As `Peer::request`.
    fn ask<'a>(
        &'a self,
        blockd: SocketAddr,
        request: &'a BlockRequest,
        payload: &'a [Bytes],
        limit: Duration,
    ) -> BoxFuture<'a, Result<(BlockReply, Bytes), Error>>;
}

/// All daemons, and the runtime that drives the messages.
pub trait Network: Metad + Blockd {
    /// Returns the runtime that drives the messages.
    fn runtime(&self) -> Handle;

    /// Closes the network: peers see at once that this client is gone.
    fn close(&self) -> BoxFuture<'_, ()>;
}

impl Metad for Endpoint {
    fn ask<'a>(
        &'a self,
        metad: SocketAddr,
        request: &'a MetaRequest,
        limit: Duration,
    ) -> BoxFuture<'a, Result<MetaReply, Error>> {
        async move { Ok(self.peer(metad, Role::Metad).request(request, &[], limit).await?.0) }.boxed()
    }

    fn events<'a>(
        &'a self,
        metad: SocketAddr,
        request: &'a MetaRequest,
    ) -> BoxFuture<'a, Result<Box<dyn EventStream>, Error>> {
        async move {
            let stream = self.peer(metad, Role::Metad).open_events(request).await?;
            Ok(Box::new(stream) as Box<dyn EventStream>)
        }
        .boxed()
    }

    fn trust_changed(&self) {
        self.hint_trust();
    }
}

impl EventStream for EventReceiver {
    fn next(&mut self) -> BoxFuture<'_, Result<MetaEvent, Error>> {
        EventReceiver::next(self).boxed()
    }
}

impl Blockd for Endpoint {
    fn ask<'a>(
        &'a self,
        blockd: SocketAddr,
        request: &'a BlockRequest,
        payload: &'a [Bytes],
        limit: Duration,
    ) -> BoxFuture<'a, Result<(BlockReply, Bytes), Error>> {
        async move { self.peer(blockd, Role::Blockd).request(request, payload, limit).await }.boxed()
    }
}

impl Network for Endpoint {
    fn runtime(&self) -> Handle {
        self.handle()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Endpoint::close(self).boxed()
    }
}
