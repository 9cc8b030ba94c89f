//! Writes that wait for servers, over a network that the test holds up.

use crate::cluster::{Cluster, create, open};
use bytes::Bytes;
use client::network::{Blockd, EventStream, Metad, Network};
use client::{Client, ClientConfig};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use wire::Error;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::block::{BlockReply, BlockRequest};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::op::Read;
use wire::quic::Endpoint;
use wire::tls::{ClusterCa, Role, Subject};
use wire::trust::Trust;

const LIMIT: Duration = Duration::from_secs(20);

/// Real daemons. Metad does not answer questions for attributes while this is held up.
struct HeldUp {
    endpoint: Endpoint,
    held: watch::Sender<bool>,
    /// Whether metad has said that other CAs are trusted.
    told: watch::Sender<bool>,
}

impl HeldUp {
    fn new(config: &ClientConfig) -> Arc<Self> {
        let endpoint = Endpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &config.bundle.identity).unwrap();
        Arc::new(Self { endpoint, held: watch::Sender::new(false), told: watch::Sender::new(false) })
    }
}

impl Metad for HeldUp {
    fn ask<'a>(
        &'a self,
        metad: SocketAddr,
        request: &'a MetaRequest,
        limit: Duration,
    ) -> BoxFuture<'a, Result<MetaReply, Error>> {
        async move {
            if let MetaRequest::Read { read: Read::GetAttr { .. }, .. } = request {
                let _ = self.held.subscribe().wait_for(|held| !held).await;
            }
            Metad::ask(&self.endpoint, metad, request, limit).await
        }
        .boxed()
    }

    fn events<'a>(
        &'a self,
        metad: SocketAddr,
        request: &'a MetaRequest,
    ) -> BoxFuture<'a, Result<Box<dyn EventStream>, Error>> {
        self.endpoint.events(metad, request)
    }

    fn trust_changed(&self) {
        self.told.send_replace(true);
    }
}

impl Blockd for HeldUp {
    fn ask<'a>(
        &'a self,
        blockd: SocketAddr,
        request: &'a BlockRequest,
        payload: &'a [Bytes],
        limit: Duration,
    ) -> BoxFuture<'a, Result<(BlockReply, Bytes), Error>> {
        Blockd::ask(&self.endpoint, blockd, request, payload, limit)
    }
}

impl Network for HeldUp {
    fn runtime(&self) -> Handle {
        Network::runtime(&self.endpoint)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Network::close(&self.endpoint)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_stays_where_it_waits_while_metad_does_not_say_what_others_did() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config();
    config.dirty_age = Duration::from_secs(3600);
    let network = HeldUp::new(&config);
    let one = Client::connect_over(config, network.clone(), None).await.unwrap();
    let two = cluster.lazy_client().await;
    let first = create(&one, "file").await;
    one.write(&first.handle, 0, b"before", false).await.unwrap();
    one.fsync(&first.handle).await.unwrap();
    let second = open(&two, "file").await;
    network.held.send_replace(true);
    two.write(&second.handle, 0, b"others", false).await.unwrap();
    two.fsync(&second.handle).await.unwrap();
    // From here on, the first client knows that others change the file, and not how.
    let fetched = AtomicBool::new(false);
    let comes = async {
        fetched.store(true, Ordering::Relaxed);
        tokio::task::yield_now().await;
        Ok(b"mine")
    };
    let mut write = pin!(one.write_content(&first.handle, 0, (4, comes), false));
    // Longer than a write keeps its room.
    assert!(timeout(Duration::from_secs(3), write.as_mut()).await.is_err());
    assert!(!fetched.load(Ordering::Relaxed), "it is in memory, and waits");
    network.held.send_replace(false);
    let written = timeout(LIMIT, write).await.expect("metad answers again");
    assert_eq!(written, Ok(4));
    assert_eq!(one.fsync(&first.handle).await, Ok(()), "it is based on what the other one wrote");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_at_once_when_other_cas_are_trusted() {
    let cluster = Cluster::start().await;
    let config = cluster.config();
    let network = HeldUp::new(&config);
    let _client = Client::connect_over(config, network.clone(), None).await.unwrap();
    let bundle = cluster.embedded.admin_bundle();
    let operator = &bundle.identity;
    let id = operator.cluster_id();
    let new = ClusterCa::succeeding("new", id).unwrap();
    let authorities = vec![operator.ca().to_vec(), new.cert().unwrap()];
    let trust = Trust { version: 1, authorities, ..Trust::original(id) };
    let other = new.issue(&Subject::new(Role::Admin, "other")).unwrap();
    let step = operator.sign_trust(&trust, Some(&other)).unwrap();
    let endpoint = Endpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0)), operator).unwrap();
    let request = MetaRequest::Admin(AdminRequest::SetTrust { step, force: false });
    let changed = Metad::ask(&endpoint, bundle.metads[0], &request, LIMIT).await;
    assert!(matches!(changed, Ok(MetaReply::Admin(AdminReply::Report(_)))), "{changed:?}");
    timeout(LIMIT, network.told.subscribe().wait_for(|told| *told)).await.expect("it is told").unwrap();
}
