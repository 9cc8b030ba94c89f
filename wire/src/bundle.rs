//! `client.bundle`: everything a client or operator needs to find and enter a cluster, in one file.

use crate::Error;
use crate::durable;
use crate::ids::ClusterId;
use crate::key_files::write_private;
use crate::tls::{Identity, Role};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// Version of the file's form.
const FORMAT: u32 = 1;

/// A cluster's address and a way in.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The cluster's name, for people.
    pub cluster: String,
    /// Addresses of metads; one that answers leads to the others.
    pub metads: Vec<SocketAddr>,
    /// Certificate and key.
    pub identity: Identity,
}

/// The file: TOML, so that a person can read where it leads.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    cluster: String,
    cluster_id: String,
    metads: Vec<SocketAddr>,
    identity: String,
}

/// The fields that files of every format have.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// [`Error::Identity`] naming the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Identity { file: path.display().to_string(), reason };
        let text = fs::read_to_string(path)
            .map_err(|error| wrong(format!("cannot be read ({error}): name a bundle that `surf` made")))?;
        // The format comes first: a file of another format may have other keys, which are not typing errors.
        if let Ok(Format { format }) = toml::from_str(&text)
            && format != FORMAT
        {
            return Err(wrong(format!("has format {format}, this program reads {FORMAT}: upgrade the older one")));
        }
        let file: File = toml::from_str(&text).map_err(|error| {
            wrong(format!(
                "is no bundle ({}): restore it, or name one that `surf` made",
                error.message().replace('\n', " ")
            ))
        })?;
        let identity = Identity::from_pem(path, &file.identity)?;
        let named: ClusterId = file
            .cluster_id
            .parse()
            .map_err(|error: Error| wrong(format!("its `cluster_id` is wrong ({error}): restore the file")))?;
        if named != identity.cluster_id() {
            return Err(wrong("its identity belongs to another cluster than it names: restore the file".to_owned()));
        }
        if file.metads.is_empty() {
            return Err(wrong("names no metad: add an address to `metads`".to_owned()));
        }
        Ok(Self { cluster: file.cluster, metads: file.metads, identity })
    }

    /// Replaces the identity in a file by a renewed one, unless the file has another one by now, or a later one: several
    /// mounts may use it. The file keeps its mode and owner.
    ///
    /// # Errors
    /// [`Error::Identity`] when the file cannot be read or written.
    pub fn renew(path: &Path, renewed: &Identity) -> Result<(), Error> {
        let rewritten = durable::rewrite(path, |path| {
            let bundle = Self::load(path)?;
            let before = bundle.identity.to_pem();
            let identity = bundle.identity.clone().or_later(renewed.clone());
            let is_same = identity.to_pem() == before;
            let text = if is_same { None } else { Some(Self { identity, ..bundle }.to_text(path)?.into_bytes()) };
            Ok::<_, Unwritten>(text)
        });
        rewritten.map_err(|failed| match failed {
            Unwritten::Unusable(error) => error,
            Unwritten::Local(error) => {
                let reason = format!("cannot be replaced by its renewal: {error}");
                Error::Identity { file: path.display().to_string(), reason }
            }
        })
    }

    /// Checks that the bundle was made for this role. A node would refuse it as well, but later and less clearly.
    ///
    /// # Errors
    /// [`Error::Identity`] naming the file, which is `path`, and the one to use.
    pub fn require(&self, path: &Path, role: Role) -> Result<(), Error> {
        let actual = self.identity.subject().role;
        if actual == role {
            return Ok(());
        }
        let reason = format!("has the role {actual}, where {role} is needed: use the cluster's {role}.bundle");
        Err(Error::Identity { file: path.display().to_string(), reason })
    }

    /// Writes a bundle, readable by its owner alone.
    ///
    /// # Errors
    /// [`Error::Identity`] when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        write_private(path, &self.to_text(path)?)
    }

    fn to_text(&self, path: &Path) -> Result<String, Error> {
        let file = File {
            format: FORMAT,
            cluster: self.cluster.clone(),
            cluster_id: self.identity.cluster_id().to_string(),
            metads: self.metads.clone(),
            identity: self.identity.to_pem(),
        };
        toml::to_string(&file)
            .map_err(|error| Error::Identity { file: path.display().to_string(), reason: error.to_string() })
    }
}

/// Why a file was not rewritten.
enum Unwritten {
    /// What is in it is of no use.
    Unusable(Error),
    /// The local filesystem refuses.
    Local(io::Error),
}

impl From<Error> for Unwritten {
    fn from(error: Error) -> Self {
        Self::Unusable(error)
    }
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Self {
        Self::Local(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{ClusterCa, Subject};

    #[test]
    fn a_damaged_bundle_is_refused_with_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.bundle");
        let identity = ClusterCa::create("test").unwrap().issue(&Subject::new(Role::Client, "c")).unwrap();
        let bundle = Bundle { cluster: "test".to_owned(), metads: vec!["127.0.0.1:1".parse().unwrap()], identity };
        bundle.save(&path).unwrap();
        assert_eq!(Bundle::load(&path).unwrap().metads, bundle.metads);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("format = 1", "format = 2\nnew = 1")).unwrap();
        assert!(Bundle::load(&path).unwrap_err().to_string().contains("has format 2"));
        for damaged in [text[..text.len() / 2].to_owned(), text.replace("metads", "metadz"), String::new()] {
            fs::write(&path, damaged).unwrap();
            assert!(Bundle::load(&path).unwrap_err().to_string().contains("client.bundle"));
        }
    }

    #[test]
    fn mounts_that_renew_one_bundle_at_once_leave_the_later_identity_for_those_who_could_read_the_earlier_one() {
        use crate::attr::Timestamp;
        use crate::cert::Term;
        use crate::issuer::{IssuerKey, NewKey, SigningRequest};
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::create("test").unwrap();
        let issuer = IssuerKey::create(&ca, "i", &[Role::Client]).unwrap();
        let (key, der) =
            (NewKey::generate().unwrap(), ca.issue(&Subject::new(Role::Admin, "a")).unwrap().ca().to_vec());
        let identity = |ends: i64| {
            let request = SigningRequest::decode(&key.request().unwrap()).unwrap();
            let term = Term { issued: Timestamp::now(), ends: Some(Timestamp { secs: ends, nanos: 0 }) };
            let cert = issuer.sign(&request, &Subject::new(Role::Client, "c"), &term).unwrap();
            key.identity(&der, &cert, issuer.cert()).unwrap()
        };
        let now = Timestamp::now().secs;
        let (path, link) = (dir.path().join("real.bundle"), dir.path().join("client.bundle"));
        let metads = vec!["127.0.0.1:1".parse().unwrap()];
        Bundle { cluster: "test".to_owned(), metads, identity: identity(now + 100) }.save(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        std::thread::scope(|scope| {
            for more in 1..=8 {
                let renewed = identity(now + 100 + more);
                let link = &link;
                scope.spawn(move || Bundle::renew(link, &renewed).unwrap());
            }
        });
        let found = Bundle::load(&link).unwrap().identity.certificate().ends.secs;
        assert_eq!(found, now + 108);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside them");
        let other = ca.issue(&Subject::new(Role::Client, "other")).unwrap();
        Bundle::renew(&link, &other).unwrap();
        assert_eq!(Bundle::load(&link).unwrap().identity.certificate().ends.secs, found, "it is somebody else's");
    }
}
