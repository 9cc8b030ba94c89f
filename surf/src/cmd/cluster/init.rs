//! `surf cluster init`: the CA of a new cluster, and one directory per node to be copied there.

use crate::cmd::node::{ETC, Node, make_dir};
use crate::output::say;
use anyhow::{Result, bail};
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use wire::bundle::Bundle;
use wire::tls::{ClusterCa, Role, Subject};

/// Make the CA, and the first configurations, identities and bundles.
#[derive(Args)]
pub(super) struct Init {
    /// New directory for all of it. Keep it safe: whoever has ca.pem is the cluster.
    #[arg(long)]
    out: PathBuf,
    /// Name of the cluster, for people.
    #[arg(long)]
    name: String,
    /// Address of each metad, several times or separated by commas: 1, 3 or 5 of them.
    #[arg(long, required = true, value_delimiter = ',', value_name = "ADDRESS")]
    metad: Vec<SocketAddr>,
    /// Address of each block daemon, likewise.
    #[arg(long, required = true, value_delimiter = ',', value_name = "ADDRESS")]
    blockd: Vec<SocketAddr>,
    /// Replicas of each block, 1 to 5.
    #[arg(long, default_value_t = 3)]
    replicas: u8,
}

impl Init {
    pub(super) fn run(&self) -> Result<()> {
        if self.out.join("ca.pem").exists() {
            bail!("{}: there is a CA already; choose another directory", self.out.display());
        }
        if usize::from(self.replicas) > self.blockd.len() || !(1..=5).contains(&self.replicas) {
            bail!("--replicas is {}: it must be 1 to 5, and at most the number of blockds", self.replicas);
        }
        make_dir(&self.out)?;
        let ca = ClusterCa::create(&self.name)?;
        for (number, addr) in (1..).zip(&self.metad) {
            self.write_node(&ca, Role::Metad, number, *addr)?;
        }
        for (number, addr) in (1..).zip(&self.blockd) {
            self.write_node(&ca, Role::Blockd, number, *addr)?;
        }
        for role in [Role::Client, Role::Admin] {
            let identity = ca.issue(&Subject::new(role, &role.to_string()))?;
            let bundle = Bundle { cluster: self.name.clone(), metads: self.metad.clone(), identity };
            bundle.save(&self.out.join(format!("{role}.bundle")))?;
        }
        // Last: a directory with a CA is complete.
        ca.save(&self.out.join("ca.pem"))?;
        say!("copy the content of each directory in {} to {ETC} on its node, and start it", self.out.display());
        Ok(())
    }

    fn write_node(&self, ca: &ClusterCa, role: Role, number: usize, addr: SocketAddr) -> Result<()> {
        let node = Node { role, number: u64::try_from(number)?, addr };
        let mut keys = toml::Table::new();
        if role == Role::Metad {
            let initial: toml::Table =
                (1..).zip(&self.metad).map(|(id, addr): (u32, _)| (id.to_string(), addr.to_string().into())).collect();
            keys.insert("cluster".to_owned(), self.name.clone().into());
            keys.insert("replicas".to_owned(), i64::from(self.replicas).into());
            keys.insert("initial".to_owned(), initial.into());
        } else {
            let metads: Vec<String> = self.metad.iter().map(SocketAddr::to_string).collect();
            keys.insert("metads".to_owned(), metads.into());
        }
        node.write(&self.out.join(node.name()), ca, keys, "")
    }
}
