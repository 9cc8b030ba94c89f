//! Join tokens: operators make them, newcomers get certificates for them.

use super::Server;
use super::cert::asker;
use crate::Shared;
use crate::error::ProposeError;
use crate::fs::operator::Change;
use crate::fs::{Command, CommandReply, cert, token, trust};
use crate::refused::log;
use std::net::SocketAddr;
use std::time::Duration;
use wire::cert::{KeyId, Term};
use wire::ids::{MetadId, TokenId};
use wire::issuer::{IssuerKey, SigningRequest};
use wire::limits::{
    NEWCOMER_HOST_BYTES_MAX, SUBJECT_NAME_BYTES_MAX, SUBTREE_BYTES_MAX, TOKEN_METADS_MAX, TOKEN_USES_MAX,
    TOKEN_VALID_MAX_MS, TOKENS_MAX,
};
use wire::message::admin::AdminReply;
use wire::message::cert::{AuditEvent, AuditRecord};
use wire::message::enroll::{EnrollRefusal, EnrollReply, EnrollRequest};
use wire::tls::{ClientGrant, PeerIdentity, Role, Subject};
use wire::token::NewToken;

/// Who shows a wrong secret waits for this long: a connection tries few of them.
const WRONG_SECRET_PAUSE: Duration = Duration::from_secs(1);

/// Records, while this node leads, that the time of tokens is over: a leader whose clock is behind must not forget it.
pub(super) async fn expire_tokens(shared: &Shared) {
    if token::any_passed(&**shared.consensus.state(), shared.clock.now())
        && let Err(error) = shared.propose(Command::ExpireTokens).await
    {
        tracing::debug!(%error, "that tokens have expired is recorded later");
    }
}

fn has_dots(path: &str) -> bool {
    path.split('/').any(|name| name == "..")
}

impl Server {
    pub(super) async fn create_token(&self, peer: &PeerIdentity, new: NewToken) -> Result<AdminReply, ProposeError> {
        if let Err(reason) = self.check_token(&new) {
            return Ok(AdminReply::Failed(reason));
        }
        let (id, role, uses, valid_ms) = (new.id, new.role, new.uses, new.valid_ms);
        match self.shared.propose_by(None, &asker(peer), Change::CreateToken(new)).await? {
            CommandReply::Done => {
                let who = format!("token {:016x} for {uses} x {role}, valid for {} s", id.0, valid_ms / 1_000);
                self.shared.note(peer, AuditEvent::TokenCreated, who).await;
                Ok(AdminReply::Done)
            }
            _ => Ok(AdminReply::Failed(format!(
                "there are {TOKENS_MAX} tokens that are still valid: revoke one with `surf token revoke`"
            ))),
        }
    }

    fn check_token(&self, new: &NewToken) -> Result<(), String> {
        let me = self.shared.config.id;
        let Some(issuer) = self.shared.signing_issuer() else { return Err(EnrollRefusal::NoIssuer(me).to_string()) };
        if new.role == Role::Admin {
            return Err("operators get no tokens: their identities are made with the CA itself".to_owned());
        }
        if !issuer.roles().contains(&new.role) {
            return Err(EnrollRefusal::RoleNotIssued(me, new.role).to_string());
        }
        if new.role == Role::Metad && new.name.is_none() {
            return Err("a token for a metad names it: metad-N, with a number that was never used".to_owned());
        }
        if new.grant != ClientGrant::default() && new.role != Role::Client {
            return Err(format!("only clients can be restricted, not the role {}", new.role));
        }
        let is_path = |path: &String| path.starts_with('/') && path.len() <= SUBTREE_BYTES_MAX && !has_dots(path);
        if new.grant.subtree.as_ref().is_some_and(|path| !is_path(path)) {
            return Err(format!(
                "a client is confined to an absolute path without .. of at most {SUBTREE_BYTES_MAX} bytes"
            ));
        }
        let name = new.name.clone().unwrap_or_else(|| "the new client".to_owned());
        // Nobody would serve its holder.
        Subject { role: new.role, name, grant: new.grant.clone() }
            .check_enforced()
            .map_err(|error| error.to_string())?;
        if !(1..=TOKEN_USES_MAX).contains(&new.uses) {
            return Err(format!("a token is for 1 to {TOKEN_USES_MAX} machines"));
        }
        if !(1..=TOKEN_VALID_MAX_MS).contains(&new.valid_ms) {
            return Err(format!("a token is valid for at most {} days", TOKEN_VALID_MAX_MS / 86_400_000));
        }
        if let Some(name) = &new.name {
            let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
            if name.is_empty() || name.len() > SUBJECT_NAME_BYTES_MAX || !is_plain {
                return Err(format!(
                    "a name has 1 to {SUBJECT_NAME_BYTES_MAX} letters, digits, and characters of `-._`"
                ));
            }
            if new.uses != 1 {
                return Err("a name belongs to one machine: leave out the name, or the uses".to_owned());
            }
        }
        Ok(())
    }

    pub(super) async fn revoke_token(&self, peer: &PeerIdentity, id: TokenId) -> Result<AdminReply, ProposeError> {
        match self.shared.propose_by(None, &asker(peer), Change::RevokeToken(id)).await? {
            CommandReply::Done => {
                self.shared.note(peer, AuditEvent::TokenRevoked, format!("token {:016x}", id.0)).await;
                Ok(AdminReply::Done)
            }
            _ => Ok(AdminReply::Failed(format!("there is no token {id}: `surf token list` shows all"))),
        }
    }

    /// Answers a newcomer.
    pub(super) async fn answer_newcomer(&self, addr: SocketAddr, request: EnrollRequest) -> EnrollReply {
        let why = match self.issue(addr, request).await {
            Ok(reply) => return reply,
            Err(why) => why,
        };
        self.shared.refused.add(self.shared.clock.now(), "a newcomer", addr, &why.to_string());
        if why == EnrollRefusal::Unknown {
            self.shared.wrong_secrets.count(addr);
            // No wait for anything: it makes trying slow.
            tokio::time::sleep(WRONG_SECRET_PAUSE).await;
        }
        EnrollReply::Refused { why, now: self.shared.clock.now() }
    }

    async fn issue(&self, addr: SocketAddr, request: EnrollRequest) -> Result<EnrollReply, EnrollRefusal> {
        let (me, consensus) = (self.shared.config.id, &self.shared.consensus);
        let not_leader =
            |leader: Option<MetadId>| EnrollReply::NotLeader { leader: leader.and_then(|id| self.addr_of(id)) };
        match consensus.read_barrier().await {
            // The secret is not looked at: the leader counts who tries out some.
            Err(ProposeError::NotLeader(leader)) => return Ok(not_leader(leader)),
            Err(_) => return Ok(EnrollReply::Busy),
            Ok(()) => {}
        }
        let (state, id, hash) = (&**consensus.state(), request.token, request.secret.hash());
        let new = token::known(state, id, &hash)?;
        let issuer = self.shared.signing_issuer().ok_or(EnrollRefusal::NoIssuer(me))?;
        if !issuer.roles().contains(&new.role) {
            return Err(EnrollRefusal::RoleNotIssued(me, new.role));
        }
        let signing = SigningRequest::decode(&request.request).map_err(|error| {
            tracing::debug!(%addr, %error, "a signing request was refused");
            EnrollRefusal::BadRequest
        })?;
        let host = request.host.chars().filter(char::is_ascii).take(NEWCOMER_HOST_BYTES_MAX).collect();
        let newcomer = token::Use { token: id, hash, key: signing.key_hash(), host };
        // The log gets what changes something, and no refusals: strangers must not fill it.
        let (subject, term) = match cert::earlier(state, self.shared.clock.now(), &newcomer, &issuer.key())? {
            Some(earlier) => earlier,
            None => {
                let enrolling =
                    cert::Enrolling { newcomer, issuer: issuer.key(), authority: issuer.authority(), by: me, addr };
                match self.shared.propose(Command::Enroll(enrolling)).await {
                    Ok(CommandReply::Issued(outcome)) => outcome?,
                    Err(ProposeError::NotLeader(leader)) => return Ok(not_leader(leader)),
                    // The same request can be sent again: its key counts once.
                    Ok(_) | Err(_) => return Ok(EnrollReply::Busy),
                }
            }
        };
        Ok(self.signed(addr, &issuer, &signing, (&subject, &term)))
    }

    fn signed(
        &self,
        addr: SocketAddr,
        issuer: &IssuerKey,
        signing: &SigningRequest,
        (subject, term): (&Subject, &Term),
    ) -> EnrollReply {
        match issuer.sign(signing, subject, term) {
            Ok(certificate) => {
                let who = format!("{} {}", subject.role, subject.name);
                let detail = format!("key {}, signed by metad-{}", KeyId(signing.key_hash()), self.shared.config.id);
                let (at, event) = (self.shared.clock.now(), AuditEvent::Enrolled);
                log(&AuditRecord { at, event, who, addr: Some(addr), detail });
                let (_, nodes) = self.shared.consensus.settled_members();
                EnrollReply::Issued {
                    cluster: self.shared.config.cluster.clone(),
                    certificate,
                    issuer: issuer.cert().to_vec(),
                    metads: nodes.into_iter().map(|(_, addr)| addr).take(TOKEN_METADS_MAX).collect(),
                    steps: trust::steps(&**self.shared.consensus.state()),
                }
            }
            Err(error) => {
                tracing::error!(%addr, %error, "a certificate cannot be signed");
                EnrollReply::Busy
            }
        }
    }

    fn addr_of(&self, id: MetadId) -> Option<SocketAddr> {
        let (_, nodes) = self.shared.consensus.settled_members();
        nodes.into_iter().find(|(node, _)| *node == id).map(|(_, addr)| addr)
    }
}
