//! The members as they have shown themselves: their certificates tell whom a revocation concerns, not their numbers.

use crate::Shared;
use futures::future::join_all;
use std::net::SocketAddr;
use std::time::Duration;
use wire::cert::{Certificate, KeyId};
use wire::ids::MetadId;
use wire::message::cert::CertList;
use wire::revoked::Refusals;
use wire::tls::{Role, Subject};

/// How long a member may take to show its certificate.
const MEET_LIMIT: Duration = Duration::from_secs(1);

/// A member, and what it has shown last.
pub struct Met {
    /// Its number.
    pub id: MetadId,
    /// Where it is, as the membership says.
    pub addr: SocketAddr,
    /// Whom its certificate is for, and what else it says; `None` if this node was never connected to it.
    pub shown: Option<(Subject, Certificate)>,
}

impl Met {
    /// Returns whom its certificate is for, or would be if it had the usual name.
    #[must_use]
    pub fn holder(&self) -> Subject {
        self.shown.as_ref().map_or_else(|| usual_holder(self.id), |(subject, _)| subject.clone())
    }

    /// Returns whether any certificate that it may have would be refused; `None` if it is not known which it has.
    #[must_use]
    pub fn would_be_refused(&self, known: &CertList, refusals: &Refusals) -> Option<bool> {
        let subject = self.holder();
        let shown = self.shown.as_ref().is_some_and(|(subject, shown)| refusals.refuse(subject, shown));
        let mut records = known.issued.iter().filter(|info| info.subject == subject).peekable();
        let is_known = self.shown.is_some() || records.peek().is_some();
        let is_refused = |key, issuer, issued| {
            let certificate = Certificate { key, issuer, issued, ..Certificate::default() };
            refusals.refuse(&subject, &certificate)
        };
        // Of several issuers, it may show what any has signed.
        let recorded =
            records.any(|info| info.issuers.iter().any(|issuer| is_refused(info.key, Some(*issuer), info.term.issued)));
        if shown || recorded || (!is_known && refusals.refuse(&subject, &Certificate::default())) {
            return Some(true);
        }
        is_known.then_some(false)
    }
}

/// A metad that leaves, and whether what it leaves can be told from what the others have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leaver {
    /// Nobody else has a certificate of its name. It has shown this key, if any.
    Alone(Subject, Option<KeyId>),
    /// This other member has a certificate of its name, or may have: it has shown none.
    Beside(Subject, MetadId),
}

/// Finds the certificate of a metad that leaves. A number that somebody names is no certificate yet: as long as the metad
/// has not shown it, each other member has to show that it has another one. Where another member has taken its address, what
/// is shown there is not its own.
#[must_use]
pub fn leaver(members: Vec<Met>, id: MetadId) -> Leaver {
    let (mut leaving, others): (Vec<Met>, Vec<Met>) = members.into_iter().partition(|member| member.id == id);
    // One that was removed before is known by its number.
    let leaving = leaving.pop().filter(|leaving| others.iter().all(|other| other.addr != leaving.addr));
    let shown = leaving.and_then(|leaving| leaving.shown);
    let holder = shown.as_ref().map_or_else(|| usual_holder(id), |(subject, _)| subject.clone());
    let may_share = |other: &&Met| other.holder().name == holder.name || (shown.is_none() && other.shown.is_none());
    match others.iter().find(may_share) {
        Some(other) => Leaver::Beside(holder, other.id),
        None => Leaver::Alone(holder, shown.map(|(_, certificate)| certificate.key)),
    }
}

/// Returns whom a metad's certificate is for, unless it was given another name.
fn usual_holder(id: MetadId) -> Subject {
    Subject::new(Role::Metad, &format!("metad-{id}"))
}

impl Shared {
    /// Returns all members, this node among them, with what they have shown. Waits a moment for those that are not connected.
    pub async fn members_met(&self) -> Vec<Met> {
        let meeting = self.consensus.members().into_iter().map(|member| async move {
            let shown = if member.id == self.config.id {
                let own = self.endpoint.identity();
                Some((own.subject().clone(), own.certificate().clone()))
            } else {
                self.endpoint.peer(member.addr, Role::Metad).certificate(MEET_LIMIT).await
            };
            Met { id: member.id, addr: member.addr, shown }
        });
        join_all(meeting).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::attr::Timestamp;
    use wire::cert::{AuthorityId, Term};
    use wire::message::cert::IssuedInfo;
    use wire::revoked::{Revocations, Revoked};

    fn addr(of: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, of], 6610))
    }

    fn key(number: u8) -> KeyId {
        KeyId([number; 32])
    }

    fn refusing(revoked: Revoked) -> Refusals {
        let refusals = Refusals::default();
        refusals.learn(&Revocations { version: 1, list: vec![revoked] });
        refusals
    }

    fn certificate(of: u8, issuer: u8) -> Certificate {
        Certificate { key: key(of), issuer: Some(key(issuer)), ..Certificate::default() }
    }

    #[test]
    fn the_name_of_a_metad_that_leaves_is_not_revoked_where_one_that_stays_may_have_it() {
        let met = |id, name: Option<&str>| {
            let shown = name.map(|name| (Subject::new(Role::Metad, name), certificate(id, 9)));
            Met { id: MetadId(u64::from(id)), addr: addr(id), shown }
        };
        let of = |name| Subject::new(Role::Metad, name);
        let gone = MetadId(2);
        let all = |second, third| vec![met(1, Some("metad-1")), met(2, second), met(3, third)];
        let shown = Leaver::Alone(of("metad-2"), Some(key(2)));
        assert_eq!(leaver(all(Some("metad-2"), Some("metad-3")), gone), shown);
        assert_eq!(leaver(all(Some("metad-2"), None), gone), shown, "a third one is away");
        assert_eq!(leaver(all(Some("x"), Some("metad-2")), gone), Leaver::Alone(of("x"), Some(key(2))));
        // It is away, and so is not known to have the usual name.
        assert_eq!(leaver(all(None, Some("metad-3")), gone), Leaver::Alone(of("metad-2"), None));
        assert_eq!(leaver(all(None, Some("metad-2")), gone), Leaver::Beside(of("metad-2"), MetadId(3)));
        assert_eq!(leaver(all(None, None), gone), Leaver::Beside(of("metad-2"), MetadId(3)));
        // It was removed before.
        let left = || vec![met(1, Some("metad-1")), met(3, None)];
        assert_eq!(leaver(left(), gone), Leaver::Beside(of("metad-2"), MetadId(3)));
    }

    #[test]
    fn what_is_shown_at_an_address_that_another_member_has_taken_is_not_the_certificate_of_the_one_that_leaves() {
        let shows = || Some((Subject::new(Role::Metad, "metad-4"), certificate(4, 9)));
        let members = || {
            let first =
                Met { id: MetadId(1), addr: addr(1), shown: Some((usual_holder(MetadId(1)), certificate(1, 9))) };
            let lost = Met { id: MetadId(3), addr: addr(4), shown: shows() };
            vec![first, lost, Met { id: MetadId(4), addr: addr(4), shown: shows() }]
        };
        let lost = Leaver::Alone(usual_holder(MetadId(3)), None);
        assert_eq!(leaver(members(), MetadId(3)), lost);
        // It cannot be told whose it is.
        assert_eq!(leaver(members(), MetadId(4)), Leaver::Beside(usual_holder(MetadId(4)), MetadId(3)));
    }

    #[test]
    fn a_member_is_judged_by_the_certificate_that_it_shows_and_by_all_that_it_may_have() {
        let subject = Subject::new(Role::Metad, "metad-2");
        let nothing = CertList { issued: Vec::new(), revoked: Vec::new(), life_ms: 1, left_out: 0 };
        let shows = |shown| Met { id: MetadId(2), addr: addr(2), shown: Some((subject.clone(), shown)) };
        let judged = |met: &Met, known: &CertList, revoked| met.would_be_refused(known, &refusing(revoked));
        let met = shows(certificate(1, 9));
        assert_eq!(judged(&met, &nothing, Revoked::Issuer(key(9))), Some(true), "by its issuer");
        assert_eq!(judged(&met, &nothing, Revoked::Key(key(1))), Some(true), "by its key");
        assert_eq!(judged(&met, &nothing, Revoked::Issuer(key(8))), Some(false));
        let info = IssuedInfo {
            subject: subject.clone(),
            key: key(1),
            issuers: vec![key(8), key(7)],
            authority: AuthorityId::default(),
            by: MetadId(1),
            term: Term { issued: Timestamp::default(), ends: None },
            addr: ([10, 0, 0, 1], 1).into(),
            revoked: None,
        };
        let known = CertList { issued: vec![info], ..nothing.clone() };
        for issuer in [7, 8, 9] {
            assert_eq!(judged(&met, &known, Revoked::Issuer(key(issuer))), Some(true), "issuer {issuer}");
        }
        let unseen = Met { id: MetadId(2), addr: addr(2), shown: None };
        assert_eq!(judged(&unseen, &known, Revoked::Issuer(key(8))), Some(true));
        assert_eq!(judged(&unseen, &known, Revoked::Issuer(key(1))), Some(false));
        assert_eq!(judged(&unseen, &nothing, Revoked::Issuer(key(8))), None, "nobody knows");
        let by_name = Revoked::Name { role: Role::Metad, name: "metad-2".to_owned(), until: Timestamp::default() };
        assert_eq!(judged(&unseen, &nothing, by_name), Some(true));
    }
}
