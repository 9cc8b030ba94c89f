//! `client.bundle`: everything a client or operator needs to find and enter a cluster, in one file.

use crate::Error;
use crate::ids::ClusterId;
use crate::tls::{Identity, Role, write_private};
use serde::{Deserialize, Serialize};
use std::fs;
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

    /// Replaces the identity in a file by a renewed one, unless the file has another one by now, or a later one.
    ///
    /// # Errors
    /// [`Error::Identity`] when the file cannot be read or written.
    pub fn renew(path: &Path, renewed: &Identity) -> Result<(), Error> {
        let bundle = Self::load(path)?;
        let before = bundle.identity.certificate().clone();
        let identity = bundle.identity.clone().or_later(renewed.clone());
        if *identity.certificate() == before { Ok(()) } else { Self { identity, ..bundle }.save(path) }
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
        let file = File {
            format: FORMAT,
            cluster: self.cluster.clone(),
            cluster_id: self.identity.cluster_id().to_string(),
            metads: self.metads.clone(),
            identity: self.identity.to_pem(),
        };
        let text = toml::to_string(&file)
            .map_err(|error| Error::Identity { file: path.display().to_string(), reason: error.to_string() })?;
        write_private(path, &text)
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
}
