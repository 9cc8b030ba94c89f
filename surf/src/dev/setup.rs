//! Making the files of a new development cluster: CA, identities, configurations, bundles.

use super::cluster::{ClusterFile, Daemon, DevDir, Kind};
use anyhow::{Context, Result, bail};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use wire::bundle::Bundle;
use wire::tls::{ClusterCa, Role, Subject};

/// What a new cluster is to consist of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Metadata daemons.
    pub metads: u8,
    /// Block daemons.
    pub blockds: u8,
    /// Replicas of each block.
    pub replicas: u8,
}

impl Shape {
    fn check(self) -> Result<()> {
        if self.metads == 0 || self.blockds == 0 {
            bail!("a cluster has at least one metad and one blockd");
        }
        if self.replicas == 0 || self.replicas > 5 || self.replicas > self.blockds {
            bail!("--replicas is {}: it must be 1 to 5, and at most the number of blockds", self.replicas);
        }
        Ok(())
    }
}

/// Makes everything that the daemons need; starts none.
pub fn create(dir: &DevDir, shape: Shape) -> Result<ClusterFile> {
    shape.check()?;
    let path = dir.path();
    let name = path.file_name().map_or_else(|| "dev".to_owned(), |name| name.to_string_lossy().into_owned());
    let ca = ClusterCa::create(&name)?;
    ca.save(&path.join("ca.pem"))?;
    let mut addresses = free_addresses(usize::from(shape.metads) + usize::from(shape.blockds))?.into_iter();
    let mut daemons = Vec::new();
    for (kind, count) in [(Kind::Metad, shape.metads), (Kind::Blockd, shape.blockds)] {
        for (number, address) in (1..=count).zip(&mut addresses) {
            daemons.push(daemon(path, kind, number, address));
        }
    }
    let metads: Vec<SocketAddr> =
        daemons.iter().filter(|daemon| daemon.kind == Kind::Metad).map(|daemon| daemon.address).collect();
    for daemon in &daemons {
        write_daemon(&ca, daemon, &name, &metads, shape)?;
    }
    let cluster = ClusterFile {
        cluster: name.clone(),
        replicas: shape.replicas,
        client_bundle: path.join("client.bundle"),
        admin_bundle: path.join("admin.bundle"),
        daemons,
    };
    for (role, file) in [(Role::Client, &cluster.client_bundle), (Role::Admin, &cluster.admin_bundle)] {
        let identity = ca.issue(&Subject::new(role, &role.to_string()))?;
        Bundle { cluster: name.clone(), metads: metads.clone(), identity }.save(file)?;
    }
    dir.save(&cluster)?;
    Ok(cluster)
}

fn daemon(dir: &Path, kind: Kind, number: u8, address: SocketAddr) -> Daemon {
    let name = format!("{}-{number}", kind.program());
    let home = dir.join(&name);
    Daemon {
        kind,
        pid: 0,
        address,
        data_dir: home.join("data"),
        config: home.join(format!("{}.toml", kind.program())),
        log: home.join(format!("{name}.log")),
        name,
    }
}

fn write_daemon(ca: &ClusterCa, daemon: &Daemon, cluster: &str, metads: &[SocketAddr], shape: Shape) -> Result<()> {
    let home = daemon.config.parent().context("a configuration lies in a directory")?;
    fs::create_dir_all(home).with_context(|| format!("{}: cannot be made", home.display()))?;
    let (role, identity) = match daemon.kind {
        Kind::Metad => (Role::Metad, home.join("identity.pem")),
        Kind::Blockd => (Role::Blockd, home.join("identity.pem")),
    };
    ca.issue(&Subject::new(role, &daemon.name))?.save(&identity)?;
    let text = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned());
    let mut table = toml::Table::new();
    table.insert("listen".to_owned(), daemon.address.to_string().into());
    table.insert("data_dir".to_owned(), text(&daemon.data_dir));
    table.insert("identity".to_owned(), text(&identity));
    match daemon.kind {
        Kind::Metad => {
            let ids = 1..=metads.len();
            let initial: toml::Table =
                ids.zip(metads).map(|(id, addr)| (id.to_string(), addr.to_string().into())).collect();
            let own = metads.iter().position(|addr| *addr == daemon.address).context("a metad is one of the metads")?;
            table.insert("id".to_owned(), i64::try_from(own + 1)?.into());
            table.insert("cluster".to_owned(), cluster.into());
            table.insert("replicas".to_owned(), i64::from(shape.replicas).into());
            table.insert("initial".to_owned(), initial.into());
        }
        Kind::Blockd => {
            let metads: Vec<String> = metads.iter().map(SocketAddr::to_string).collect();
            table.insert("metads".to_owned(), metads.into());
        }
    }
    let written = fs::write(&daemon.config, toml::to_string(&table)?);
    written.with_context(|| daemon.config.display().to_string())
}

/// Ports that nobody uses now. All are held until the last is known, so that they differ.
fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let probes: Vec<UdpSocket> = (0..count)
        .map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()
        .context("no free port on 127.0.0.1")?;
    Ok(probes.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>()?)
}
