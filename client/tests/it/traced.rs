//! The id of a request reaches the daemons also from work that runs to its end without its caller.

use crate::cluster::{Cluster, create, pattern};
use bytes::Bytes;
use client::network::{Blockd, EventStream, Metad, Network};
use client::{Client, Wait};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use wire::caller::{self, Caller};
use wire::ids::Ino;
use wire::message::block::{BlockReply, BlockRequest};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::op::{Lock, LockFamily, Op};
use wire::quic::Endpoint;
use wire::{Error, trace};

/// What a daemon is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Unlink,
    Commit,
    SetLock,
    Unlock,
    Put,
}

/// The request for which a daemon is asked, and on whose behalf.
type For = (Option<u64>, Option<Caller>);

/// Reaches real daemons, and notes for what each is asked.
struct Noting {
    endpoint: Endpoint,
    noted: Mutex<Vec<(Asked, For)>>,
}

impl Noting {
    fn note(&self, asked: Asked) {
        self.noted.lock().push((asked, (trace::current_id(), caller::current())));
    }

    /// Returns for what this was asked.
    fn noted(&self, what: Asked) -> Vec<For> {
        self.noted.lock().iter().filter(|(asked, _)| *asked == what).map(|(_, noted)| noted.clone()).collect()
    }
}

impl Metad for Noting {
    fn ask<'a>(
        &'a self,
        metad: SocketAddr,
        request: &'a MetaRequest,
        limit: Duration,
    ) -> BoxFuture<'a, Result<MetaReply, Error>> {
        Box::pin(async move {
            let ops = if let MetaRequest::Submit { batch, .. } = request { &batch.ops[..] } else { &[] };
            for op in ops {
                match op {
                    Op::Unlink { .. } => self.note(Asked::Unlink),
                    Op::Commit { .. } => self.note(Asked::Commit),
                    Op::SetLock { .. } => self.note(Asked::SetLock),
                    Op::Unlock { .. } => self.note(Asked::Unlock),
                    _ => {}
                }
            }
            Metad::ask(&self.endpoint, metad, request, limit).await
        })
    }

    fn events<'a>(
        &'a self,
        metad: SocketAddr,
        request: &'a MetaRequest,
    ) -> BoxFuture<'a, Result<Box<dyn EventStream>, Error>> {
        self.endpoint.events(metad, request)
    }
}

impl Blockd for Noting {
    fn ask<'a>(
        &'a self,
        blockd: SocketAddr,
        request: &'a BlockRequest,
        payload: &'a [Bytes],
        limit: Duration,
    ) -> BoxFuture<'a, Result<(BlockReply, Bytes), Error>> {
        Box::pin(async move {
            if let BlockRequest::Put { .. } = request {
                self.note(Asked::Put);
            }
            Blockd::ask(&self.endpoint, blockd, request, payload, limit).await
        })
    }
}

impl Network for Noting {
    fn runtime(&self) -> Handle {
        self.endpoint.runtime()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Network::close(&self.endpoint)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_learn_for_which_request_they_work_and_a_flush_is_sent_on_nobodys_behalf() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config();
    // Each operation is sent at once, and content only when it is asked for.
    (config.write_back, config.dirty_age) = (false, Duration::from_secs(3600));
    let endpoint = Endpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &config.bundle.identity).unwrap();
    let network = Arc::new(Noting { endpoint, noted: Mutex::default() });
    let client = Client::connect_over(config, network.clone(), None).await.unwrap();
    let program = Some(Caller { uid: 7, gid: 8, groups: vec![9] });
    let opened = create(&client, "file").await;
    let (ino, lock) = (
        opened.attr.ino,
        Lock { family: LockFamily::Posix, owner: 1, pid: 1, start: 0, end: u64::MAX, exclusive: true },
    );
    let requests = async {
        client.write(&opened.handle, 0, &pattern(1, 1 << 20), false).await.unwrap();
        trace::within(1, client.fsync(&opened.handle)).await.unwrap();
        trace::within(2, client.setlk(ino, lock, Wait::No)).await.unwrap().confirm(&client);
        client.write(&opened.handle, 0, b"under the lock", false).await.unwrap();
        trace::within(3, client.unlock(ino, LockFamily::Posix, 1, 0, u64::MAX)).await.unwrap();
        trace::within(4, client.unlink(Ino::ROOT, b"file")).await.unwrap();
    };
    caller::on_behalf(program.clone(), Box::pin(requests)).await;
    assert_eq!(network.noted(Asked::Commit), [(Some(1), None), (Some(3), None)]);
    let put = network.noted(Asked::Put);
    assert!(put.first() == Some(&(Some(1), None)), "{put:?}");
    assert_eq!(network.noted(Asked::SetLock), [(Some(2), program.clone())]);
    assert_eq!(network.noted(Asked::Unlock), [(Some(3), program)]);
    let unlinked: Vec<_> = network.noted(Asked::Unlink).into_iter().map(|(id, _)| id).collect();
    assert_eq!(unlinked, [Some(4)]);
    client.release(opened.handle).await;
    client.shutdown().await.unwrap();
}
