//! The files with which a new node starts: its identity and its configuration.

use anyhow::{Context, Result};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use wire::durable;
use wire::issuer::IssuerKey;
use wire::tls::{ClusterCa, Role, Subject};

/// Where configurations expect to be copied to.
pub const ETC: &str = "/etc/surf";
/// What the issuer of a metad signs.
pub const ISSUED: [Role; 3] = [Role::Client, Role::Blockd, Role::Metad];

/// A node to come.
pub struct Node {
    /// `Metad` or `Blockd`.
    pub role: Role,
    /// Its number among those of its role.
    pub number: u64,
    /// Where others reach it.
    pub addr: SocketAddr,
}

impl Node {
    /// Returns its name, such as `metad-1`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.role, self.number)
    }

    /// Writes its files into a directory, which is made: first the identity and a metad's issuer, last the configuration,
    /// with a comment above it. `keys` are those that depend on the rest of the cluster.
    pub fn write(&self, home: &Path, ca: &ClusterCa, keys: toml::Table, comment: &str) -> Result<()> {
        let role = self.role;
        make_dir(home)?;
        ca.issue(&Subject::new(role, &self.name()))?.save(&home.join(format!("{role}.pem")))?;
        let mut keys = keys;
        if role == Role::Metad {
            let path = home.join("issuer.pem");
            IssuerKey::create(ca, &self.name(), &ISSUED)?.save(&path)?;
            keys.insert("issuer".to_owned(), format!("{ETC}/issuer.pem").into());
        }
        self.write_config(home, &format!("{ETC}/{role}.pem"), keys, comment)
    }

    /// Writes the configuration alone, for a node whose identity is in this file.
    pub fn write_config(&self, home: &Path, identity: &str, keys: toml::Table, comment: &str) -> Result<()> {
        let role = self.role;
        let mut table = keys;
        table.insert("listen".to_owned(), self.addr.to_string().into());
        table.insert("data_dir".to_owned(), format!("/var/lib/surf/{role}").into());
        table.insert("identity".to_owned(), identity.into());
        if role == Role::Metad {
            table.insert("id".to_owned(), i64::try_from(self.number)?.into());
        }
        let path = home.join(format!("{role}.toml"));
        // Whole or not at all: a part of it would be taken for the operator's.
        let text = comment.to_owned() + &toml::to_string(&table)?;
        durable::replace_public(&path, text.as_bytes()).with_context(|| path.display().to_string())
    }
}

/// Makes a directory, unless it exists.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("{}: cannot be made", path.display()))
}
