//! Certificates that are refused though their signatures and times are right: the list of a cluster, as its metads give it
//! to block daemons, and the form in which a daemon looks certificates up in it.

use crate::attr::Timestamp;
use crate::cert::{AuthorityId, Certificate, KeyId};
use crate::codec::{self, bounded};
use crate::limits::REVOKED_MAX;
use crate::subject::{Role, Subject};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// What is refused.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Revoked {
    /// The certificates of a name that were issued up to this time. One that is issued later counts: the name may have
    /// been given to another machine, or to the same one anew.
    Name {
        /// Their role.
        role: Role,
        /// Their name.
        name: String,
        /// Up to when.
        until: Timestamp,
    },
    /// All certificates for a key.
    Key(KeyId),
    /// All certificates that an issuer has signed or will sign.
    Issuer(KeyId),
}

/// For people.
impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { role, name, .. } => write!(f, "{role} {name}"),
            Self::Key(key) => write!(f, "key {key}"),
            Self::Issuer(key) => write!(f, "issuer {key}"),
        }
    }
}

/// All that is refused.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Revocations {
    /// Grows with each change; 0 before the first one.
    pub version: u64,
    /// What is refused, at most [`REVOKED_MAX`].
    #[serde(deserialize_with = "bounded::<_, _, REVOKED_MAX>")]
    pub list: Vec<Revoked>,
}

impl Revocations {
    /// Returns what distinguishes this list from others.
    #[must_use]
    pub fn mark(&self) -> ListMark {
        ListMark { version: self.version, hash: *blake3::hash(&codec::encode(&self.list)).as_bytes() }
    }
}

/// Which list somebody has. The version alone does not tell: a metad that was taken over may have given another list of the
/// same version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ListMark {
    /// Its version.
    pub version: u64,
    /// BLAKE3 hash of what is on it, in its order.
    pub hash: [u8; 32],
}

/// A list in which a certificate is found in a few steps, however long the list is.
#[derive(Debug, Default)]
struct Lookup {
    mark: ListMark,
    names: HashMap<Role, HashMap<String, Timestamp>>,
    keys: HashSet<KeyId>,
    issuers: HashSet<KeyId>,
}

impl Lookup {
    fn of(revocations: &Revocations) -> Self {
        let mut lookup = Self { mark: revocations.mark(), ..Self::default() };
        for revoked in &revocations.list {
            match revoked {
                Revoked::Name { role, name, until } => {
                    let known = lookup.names.entry(*role).or_default().entry(name.clone()).or_default();
                    *known = (*known).max(*until);
                }
                Revoked::Key(key) => {
                    lookup.keys.insert(*key);
                }
                Revoked::Issuer(key) => {
                    lookup.issuers.insert(*key);
                }
            }
        }
        lookup
    }
}

/// The list that this node knows, and the CAs that it trusts. The verifiers of its endpoint share it.
#[derive(Debug)]
pub struct Refusals(RwLock<Lookup>, RwLock<Option<Vec<AuthorityId>>>);

/// Nothing is refused.
impl Default for Refusals {
    fn default() -> Self {
        Self(RwLock::new(Lookup::of(&Revocations::default())), RwLock::default())
    }
}

impl Refusals {
    /// Replaces the known list if this one is newer. Returns whether it is.
    pub fn learn(&self, revocations: &Revocations) -> bool {
        let lookup = Lookup::of(revocations);
        let mut known = self.0.write();
        let is_newer = revocations.version > known.mark.version;
        if is_newer {
            *known = lookup;
        }
        is_newer
    }

    /// Replaces the known list, whatever the versions: the leader has just sent this one, and the leader's list is the right
    /// one. Returns whether it differs.
    pub fn adopt(&self, revocations: &Revocations) -> bool {
        let lookup = Lookup::of(revocations);
        let mut known = self.0.write();
        let is_other = lookup.mark != known.mark;
        *known = lookup;
        is_other
    }

    /// Returns whether whatever this issuer signs is refused.
    #[must_use]
    pub fn refuse_issuer(&self, issuer: &KeyId) -> bool {
        self.0.read().issuers.contains(issuer)
    }

    /// Returns the version of the list.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.read().mark.version
    }

    /// Returns what distinguishes the list from others.
    #[must_use]
    pub fn mark(&self) -> ListMark {
        self.0.read().mark
    }

    /// Refuses from now on what is below no other CAs than these.
    pub fn trust_only(&self, authorities: Vec<AuthorityId>) {
        *self.1.write() = Some(authorities);
    }

    /// Returns whether certificates below this CA are refused, because it is not trusted any more.
    #[must_use]
    pub fn distrust(&self, authority: &AuthorityId) -> bool {
        self.1.read().as_ref().is_some_and(|trusted| !trusted.contains(authority))
    }

    /// Returns whether this certificate is refused.
    #[must_use]
    pub fn refuse(&self, subject: &Subject, certificate: &Certificate) -> bool {
        let known = self.0.read();
        self.distrust(&certificate.authority)
            || known.keys.contains(&certificate.key)
            || certificate.issuer.is_some_and(|issuer| known.issuers.contains(&issuer))
            || known
                .names
                .get(&subject.role)
                .and_then(|names| names.get(&subject.name))
                .is_some_and(|until| certificate.issued <= *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    fn certificate(key: u8, issued: i64) -> Certificate {
        let issuer = Some(KeyId([9; 32]));
        Certificate { key: KeyId([key; 32]), issuer, issued: at(issued), ..Certificate::default() }
    }

    #[test]
    fn a_certificate_is_refused_by_name_up_to_a_time_and_by_key_and_issuer_at_any_time() {
        let refusals = Refusals::default();
        let client = |name| Subject::new(Role::Client, name);
        assert!(!refusals.refuse(&client("a"), &certificate(1, 0)));
        let name = |until| Revoked::Name { role: Role::Client, name: "a".to_owned(), until: at(until) };
        assert!(refusals.learn(&Revocations { version: 1, list: vec![name(10), name(5)] }));
        assert!(refusals.refuse(&client("a"), &certificate(1, 10)));
        assert!(!refusals.refuse(&client("a"), &certificate(1, 11)), "it was issued anew");
        assert!(!refusals.refuse(&Subject::new(Role::Blockd, "a"), &certificate(1, 1)));
        assert!(!refusals.refuse(&client("b"), &certificate(1, 1)));
        assert!(refusals.learn(&Revocations { version: 2, list: vec![Revoked::Key(KeyId([1; 32]))] }));
        assert!(
            refusals.refuse(&client("b"), &certificate(1, 99)) && !refusals.refuse(&client("a"), &certificate(2, 1))
        );
        assert!(refusals.learn(&Revocations { version: 3, list: vec![Revoked::Issuer(KeyId([9; 32]))] }));
        assert!(refusals.refuse(&client("a"), &certificate(2, 1)));
        let own = Certificate { issuer: None, ..certificate(9, 1) };
        assert!(!refusals.refuse(&client("a"), &own), "the CA has signed it");
    }

    #[test]
    fn what_the_leader_says_takes_the_place_of_any_list_however_high_its_version_was() {
        let refusals = Refusals::default();
        let all = |version, key| Revocations { version, list: vec![Revoked::Key(KeyId([key; 32]))] };
        assert!(refusals.learn(&all(u64::MAX, 1)));
        assert!(!refusals.learn(&all(5, 2)), "it is older");
        assert!(refusals.adopt(&all(5, 2)) && !refusals.adopt(&all(5, 2)));
        let client = Subject::new(Role::Client, "a");
        assert!(refusals.refuse(&client, &certificate(2, 0)) && !refusals.refuse(&client, &certificate(1, 0)));
        assert!(refusals.learn(&all(6, 3)) && refusals.version() == 6);
        // Another list of the same version.
        assert!(refusals.adopt(&all(6, 4)) && !refusals.adopt(&all(6, 4)));
        assert!(refusals.mark() == all(6, 4).mark() && refusals.mark() != all(6, 3).mark());
        assert_eq!(Refusals::default().mark(), Revocations::default().mark());
    }

    #[test]
    fn an_older_list_does_not_take_the_place_of_a_newer_one() {
        let refusals = Refusals::default();
        let list = vec![Revoked::Key(KeyId([1; 32]))];
        assert!(refusals.learn(&Revocations { version: 7, list }));
        for version in [0, 6, 7] {
            assert!(!refusals.learn(&Revocations { version, list: Vec::new() }));
        }
        assert!(refusals.refuse(&Subject::new(Role::Client, "a"), &certificate(1, 0)) && refusals.version() == 7);
    }
}
