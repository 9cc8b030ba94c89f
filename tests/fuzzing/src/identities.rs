//! Certificates, identities, bundles, and the files that name the owner of a directory.
//!
//! Keys are random, and a corpus must not change with each run. So four identities of one cluster lie in
//! `identities/`, one of which has moved to a new CA, and an issuer of another; they are of no use anywhere else.

use crate::corpus::root;
use crate::memory;
use blockd::ownership::Ownership;
use client::LocalDir;
use metad::files::DataDir;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use wire::bundle::Bundle;
use wire::cert::Term;
use wire::ids::MetadId;
use wire::issuer::IssuerKey;
use wire::tls::{ClusterCa, Identity, Role, Subject};
use wire::trust::Trust;

/// The roles of which there is an identity.
const ROLES: [Role; 3] = [Role::Metad, Role::Blockd, Role::Client];
/// The mount of [`client_owner`].
const MOUNT: &str = "/mnt";
/// The file of an identity that has moved to a new CA.
const MOVED: &str = "moved.pem";
/// The file of an issuer.
const ISSUER: &str = "issuer.pem";

static IDENTITIES: LazyLock<[Identity; 3]> = LazyLock::new(|| {
    let folder = root().join("identities");
    let path = |role: Role| folder.join(format!("{role}.pem"));
    if !folder.exists() {
        fs::create_dir(&folder).expect("a directory can be made");
        let ca = ClusterCa::create("fuzzing").expect("a CA can be made");
        for role in ROLES {
            let identity = ca.issue(&Subject::new(role, &format!("{role}-1"))).expect("an identity can be made");
            identity.save(&path(role)).expect("a file can be written");
            if role == Role::Client {
                moved(&ca, &identity).save(&folder.join(MOVED)).expect("a file can be written");
            }
        }
    }
    ROLES.map(|role| Identity::load(&path(role)).expect("the identities of the corpus are good"))
});

/// Returns this identity with a certificate of a new CA, beside that of the one that is there.
fn moved(ca: &ClusterCa, identity: &Identity) -> Identity {
    let new = ClusterCa::succeeding("fuzzing", identity.cluster_id()).expect("a CA can be made");
    let authorities = [ca, &new].map(|ca| ca.cert().expect("it has one")).to_vec();
    let trust = Trust { version: 1, authorities, ..Trust::original(identity.cluster_id()) };
    let issuer = IssuerKey::create(&new, "fuzzing", &ROLES).expect("an issuer can be made");
    let (shown, subject) = (identity.certificate(), identity.subject());
    let certificate = issuer.renew(shown, subject, &Term::lasting()).expect("it can be renewed");
    let trusting = identity.trusting(&trust).expect("the CAs are of its cluster");
    trusting.renewed(&certificate, issuer.cert()).expect("it fits")
}

/// Returns the file of an issuer.
fn issuer_pem() -> Vec<u8> {
    // The files are made together.
    LazyLock::force(&IDENTITIES);
    let path = root().join("identities").join(ISSUER);
    if !path.exists() {
        let ca = ClusterCa::create("fuzzing").expect("a CA can be made");
        let issuer = IssuerKey::create(&ca, "fuzzing", &ROLES).expect("an issuer can be made");
        issuer.save(&path).expect("a file can be written");
    }
    fs::read(path).expect("the file can be read")
}

/// Returns the last section of the file of the identity that has moved.
fn moved_besides() -> Vec<u8> {
    // The files are made together.
    LazyLock::force(&IDENTITIES);
    let text = fs::read(root().join("identities").join(MOVED)).expect("the file can be read");
    let parts = pem::parse_many(text).expect("an identity is PEM");
    parts.last().expect("it has sections").contents().to_vec()
}

/// Returns the identity of this role.
///
/// # Panics
/// For a role without one, and when the file cannot be read.
#[must_use]
pub fn of(role: Role) -> &'static Identity {
    IDENTITIES.iter().find(|identity| identity.subject().role == role).expect("there is one")
}

/// Returns the bundle of a client.
#[must_use]
pub fn client_bundle() -> Bundle {
    let metads = vec![([10, 0, 0, 1], 7101).into(), ([10, 0, 0, 2], 7101).into()];
    Bundle { cluster: "fuzzing".to_owned(), metads, identity: of(Role::Client).clone() }
}

fn again(text: &str) -> bool {
    let origin = Path::new("identity");
    let identity = match Identity::from_pem(origin, text) {
        Ok(identity) => identity,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let same = Identity::from_pem(origin, &identity.to_pem()).expect("what was written can be read");
    assert_eq!((same.subject(), same.cluster_id()), (identity.subject(), identity.cluster_id()));
    assert_eq!(same.to_pem(), identity.to_pem());
    true
}

/// A certificate (DER), as the one of a peer: its signature is looked at before, but a holder of a key can have anything
/// signed that a careless operator signs. Read by way of an identity, with the CA and a key of the corpus.
pub fn certificate(data: &[u8]) -> bool {
    let mut parts = pem::parse_many(of(Role::Client).to_pem()).expect("an identity is PEM");
    parts[1] = pem::Pem::new("CERTIFICATE", data);
    again(&parts.iter().map(pem::encode).collect::<String>())
}

/// What an identity has besides its certificate, once another CA was brought in.
pub fn trust(data: &[u8]) -> bool {
    again(&[of(Role::Client).to_pem(), pem::encode(&pem::Pem::new("SURF TRUST", data))].concat())
}

/// A PEM file with an identity.
pub fn identity(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(again)
}

/// `issuer.pem` of a metad.
pub fn issuer(data: &[u8]) -> bool {
    let path = memory::dir().join("issuer");
    fs::write(&path, data).expect("a file can be written");
    let issuer = match IssuerKey::load(&path) {
        Ok(issuer) => issuer,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    issuer.save(&path).expect("a file can be written");
    let again = IssuerKey::load(&path).expect("what was written can be read");
    assert_eq!((again.cert(), again.key(), again.roles()), (issuer.cert(), issuer.key(), issuer.roles()));
    true
}

/// A bundle file.
pub fn bundle(data: &[u8]) -> bool {
    let path = memory::dir().join("bundle");
    fs::write(&path, data).expect("a file can be written");
    let Ok(bundle) = Bundle::load(&path) else { return false };
    bundle.save(&path).expect("a file can be written");
    let again = Bundle::load(&path).expect("what was written can be read");
    assert_eq!((again.cluster, again.metads), (bundle.cluster, bundle.metads));
    assert_eq!(again.identity.to_pem(), bundle.identity.to_pem());
    true
}

/// Returns whether a file is taken for that of the owner. Another one is refused, and stays as it is.
fn is_owner(path: &Path, data: &[u8], take: impl Fn() -> bool) -> bool {
    fs::write(path, data).expect("a file can be written");
    let is_taken = take();
    assert_eq!(fs::read(path).expect("the file can be read"), data);
    is_taken
}

/// The file that names the owner of a metad's data directory.
pub fn metad_owner(data: &[u8]) -> bool {
    let (dir, cluster) = (memory::empty_dir("metad"), of(Role::Metad).cluster_id());
    is_owner(&dir.join("IDENTITY"), data, || DataDir::take(&dir, cluster, MetadId(1)).is_ok())
}

/// The file that names the owner of a blockd's data directory.
pub fn blockd_owner(data: &[u8]) -> bool {
    let dir = memory::empty_dir("blockd");
    is_owner(&dir.join("blockd.id"), data, || Ownership::take(&dir, of(Role::Blockd)).is_ok())
}

/// The file that names the owner of a mount's own directory, in which there is something to be sent.
pub fn client_owner(data: &[u8]) -> bool {
    let (base, bundle) = (memory::empty_dir("client"), client_bundle());
    let path = LocalDir::open(&base, &bundle, MOUNT).expect("a new directory is the mount's").path().to_owned();
    fs::create_dir(path.join("journal")).expect("a directory can be made");
    fs::write(path.join("journal/00000000000000000001"), "").expect("a file can be written");
    is_owner(&path.join("owner"), data, || LocalDir::open(&base, &bundle, MOUNT).is_ok())
}

/// Good inputs.
pub mod samples {
    use super::{MOUNT, client_bundle, issuer_pem, memory, moved_besides, of};
    use crate::Samples;
    use blockd::ownership::Ownership;
    use client::LocalDir;
    use metad::files::DataDir;
    use std::fs;
    use std::path::Path;
    use wire::ids::{BlockdId, MetadId};
    use wire::tls::Role;

    fn file(path: &Path) -> Vec<u8> {
        fs::read(path).expect("the file can be read")
    }

    /// The certificate of a client.
    #[must_use]
    pub fn certificate() -> Samples {
        let parts = pem::parse_many(of(Role::Client).to_pem()).expect("an identity is PEM");
        vec![("client", parts[1].contents().to_vec())]
    }

    /// The identity of a client.
    #[must_use]
    pub fn identity() -> Samples {
        vec![("client", of(Role::Client).to_pem().into_bytes())]
    }

    /// What a client trusts that has moved to a new CA, while the older one is trusted as well.
    #[must_use]
    pub fn trust() -> Samples {
        vec![("moved", moved_besides())]
    }

    /// An issuer.
    #[must_use]
    pub fn issuer() -> Samples {
        vec![("issuer", issuer_pem())]
    }

    /// The bundle of a client.
    #[must_use]
    pub fn bundle() -> Samples {
        let path = memory::dir().join("bundle");
        client_bundle().save(&path).expect("a file can be written");
        vec![("client", file(&path))]
    }

    /// The owner of a metad's directory.
    #[must_use]
    pub fn metad_owner() -> Samples {
        let (dir, cluster) = (memory::empty_dir("metad"), of(Role::Metad).cluster_id());
        drop(DataDir::take(&dir, cluster, MetadId(1)).expect("the directory is new"));
        vec![("metad-1", file(&dir.join("IDENTITY")))]
    }

    /// The owner of a blockd's directory.
    #[must_use]
    pub fn blockd_owner() -> Samples {
        let dir = memory::empty_dir("blockd");
        let own = Ownership::take(&dir, of(Role::Blockd)).expect("the directory is new").id;
        let text = String::from_utf8(file(&dir.join("blockd.id"))).expect("it is text");
        // A daemon's id is chosen at random, and this one must stay the same.
        vec![("blockd-1", text.replace(&own.to_string(), &BlockdId([7; 16]).to_string()).into_bytes())]
    }

    /// The owner of a mount's directory.
    #[must_use]
    pub fn client_owner() -> Samples {
        let base = memory::empty_dir("client");
        let dir = LocalDir::open(&base, &client_bundle(), MOUNT).expect("the directory is new");
        vec![("client-1", file(&dir.path().join("owner")))]
    }
}
