//! Revocations take effect: this node refuses a revoked certificate as soon as the entry is applied here. While it leads, it
//! also notifies the block daemons, and ends the sessions of refused clients.
//!
//! A block daemon takes its list only from the leader's answer to a heartbeat. When notified of a change, it sends a heartbeat
//! at once.

use crate::Shared;
use crate::config::IDENTITY_FILE;
use crate::error::ProposeError;
use crate::fs::{Command, Stamped, cert, session, settings, trust};
use crate::refused::log;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use wire::ids::SessionId;
use wire::message::block::{BlockReply, BlockRequest};
use wire::message::cert::{AuditEvent, AuditRecord};
use wire::message::event::MetaEvent;
use wire::tls::{Identity, Role};

/// How often the list is looked at. The node that has proposed a change looks at once.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How often the leader looks for sessions of refused clients.
const SESSIONS_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a block daemon may take to hear of it.
const NOTIFY_LIMIT: Duration = Duration::from_secs(3);
/// Sessions closed by one entry of the log.
const CLOSED_AT_ONCE: usize = 16;

/// Takes the list of the applied state into use. Call it before anybody is served. Returns its version if it is new.
pub fn learn(shared: &Shared) -> Option<u64> {
    let state = &**shared.consensus.state();
    if cert::version(state) <= shared.endpoint.refusals().version() {
        return None;
    }
    let revocations = cert::revocations(state);
    let (version, count) = (revocations.version, revocations.list.len());
    let is_newer = shared.endpoint.revoke(&revocations);
    if is_newer {
        tracing::info!(version, count, "the list of what is revoked has changed");
        if shared.issuer.get().is_some() && shared.signing_issuer().is_none() {
            tracing::warn!(
                "the issuer of this metad is revoked, so it signs nothing: make another one with `surf cluster issuer`"
            );
        }
    }
    is_newer.then_some(version)
}

/// Trusts the CAs that the applied state says. Call it before anybody is served. Returns this node's identity if it has
/// changed: it is to be kept.
pub fn learn_trust(shared: &Shared) -> Option<Identity> {
    let trust = trust::trust(&**shared.consensus.state())?;
    let own = shared.endpoint.identity();
    // An identity of another CA was put here by hand: that of a cluster that has lost its CA, or was recovered.
    if trust.version <= own.trust().version || !own.is_below_one_of(&trust) {
        return None;
    }
    match shared.endpoint.trust(&trust) {
        Ok(identity) => {
            tracing::info!(version = trust.version, authorities = ?trust.ids(), "other CAs are trusted");
            if shared.issuer.get().is_some() && shared.signing_issuer().is_none() {
                tracing::warn!(
                    "the issuer of this metad is of a CA that is not trusted any more, so it signs nothing: make another one \
                     with `surf cluster issuer`, and put it in its place"
                );
            }
            identity
        }
        Err(error) => {
            tracing::error!(%error, "the CAs that the cluster trusts cannot be used");
            None
        }
    }
}

/// Writes this node's identity. The task that renews it writes again what this could not.
pub fn keep(shared: &Shared, identity: &Identity) {
    let written = identity.save(&shared.config.data_dir.join(IDENTITY_FILE));
    if shared.endpoint.note_written(written.is_ok())
        && let Err(error) = written
    {
        tracing::warn!(%error, "the identity, with the CAs to trust, is not on disk; make it writable, or make room");
    }
}

/// Watches the list and the CAs until cancelled.
pub async fn run(shared: Arc<Shared>) {
    // Dropped with this task: a daemon that does not answer learns of the list by its next heartbeat.
    let mut notifying = JoinSet::new();
    loop {
        let changed = shared.revoked_changed.notified();
        if let Some(identity) = learn_trust(&shared) {
            // Only sessions of the leader have streams. Block daemons hear of it with the list.
            shared.events.send_to_others(SessionId::default(), &MetaEvent::TrustChanged);
            let shared = shared.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || keep(&shared, &identity)).await {
                tracing::warn!(%error, "the identity may not be on disk");
            }
        }
        if let Some(version) = learn(&shared)
            && shared.consensus.leads()
        {
            notifying.abort_all();
            notifying = notify_blockds(&shared, version);
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
    }
}

/// Notifies all block daemons of a new list, for which they then ask the leader.
fn notify_blockds(shared: &Shared, version: u64) -> JoinSet<()> {
    let request = Arc::new(BlockRequest::RevokedChanged { version });
    let members = settings::layout(&**shared.consensus.state()).members;
    let mut notifying = JoinSet::new();
    for member in members {
        let (peer, request) = (shared.endpoint.peer(member.addr, Role::Blockd), request.clone());
        notifying.spawn(async move {
            if let Err(error) = peer.request::<_, BlockReply>(&*request, &[], NOTIFY_LIMIT).await {
                tracing::debug!(name = member.name, %error, "a block daemon learns later what is revoked");
            }
        });
    }
    notifying
}

/// Ends the sessions of those who are refused, until cancelled. Only sessions that this leader has heard are looked at: a
/// session that nobody hears any more ends by its silence.
pub async fn end_sessions(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SESSIONS_CHECK_INTERVAL).await;
        let refusals = shared.endpoint.refusals();
        let Some(term) = shared.consensus.leadership().filter(|_| refusals.version() > 0) else { continue };
        let refused = shared.liveness.refused_sessions(refusals);
        if !refused.is_empty()
            && let Err(error) = end(&shared, term, &refused).await
        {
            tracing::debug!(%error, "sessions of those who are refused end later");
        }
    }
}

/// Ends sessions as an operator ends one: first the leases, then the rest.
async fn end(shared: &Shared, term: u64, ids: &[SessionId]) -> Result<(), ProposeError> {
    futures::future::try_join_all(ids.iter().map(|id| shared.end_leases(term, *id))).await?;
    for step in ids.chunks(CLOSED_AT_ONCE) {
        let state = &**shared.consensus.state();
        let ended: Vec<_> = step.iter().filter_map(|id| Some((*id, session::find(state, *id)?.opening))).collect();
        let stamped = Stamped { now: shared.clock.now(), command: Command::CloseSessions(step.to_vec()) };
        shared.consensus.propose_in(Some(term), stamped).await?;
        step.iter().for_each(|id| {
            shared.forget_leases(*id);
            shared.liveness.forget_session(*id);
        });
        for (id, opening) in ended {
            let who = format!("session {id} of client {}", opening.client);
            let detail = "its certificate is revoked".to_owned();
            let record = AuditRecord { at: shared.clock.now(), event: AuditEvent::Evicted, who, addr: None, detail };
            log(&record);
            shared.propose(Command::Note(record)).await?;
        }
    }
    Ok(())
}
