//! Making the files of a new development cluster: CA, identities, configurations, bundles.

use super::cluster::{ClusterFile, Daemon, DevDir, Kind};
use crate::cmd::node::ISSUED;
use anyhow::{Context, Result, bail};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::Path;
use wire::bundle::Bundle;
use wire::issuer::IssuerKey;
use wire::tls::{ClusterCa, Role, Subject};

/// Shape of a new cluster.
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
            let issuer = home.join("issuer.pem");
            IssuerKey::create(ca, &daemon.name, &ISSUED)?.save(&issuer)?;
            table.insert("issuer".to_owned(), text(&issuer));
            table.insert("id".to_owned(), i64::try_from(own + 1)?.into());
            table.insert("cluster".to_owned(), cluster.into());
            table.insert("replicas".to_owned(), i64::from(shape.replicas).into());
            table.insert("initial".to_owned(), initial.into());
            // A cluster for trying things out starts sooner, and takes a quarter of the disk.
            table.insert("log_file_mib".to_owned(), 4.into());
            table.insert("reserve_mib".to_owned(), 16.into());
        }
        Kind::Blockd => {
            let metads: Vec<String> = metads.iter().map(SocketAddr::to_string).collect();
            table.insert("metads".to_owned(), metads.into());
        }
    }
    let written = fs::write(&daemon.config, toml::to_string(&table)?);
    written.with_context(|| daemon.config.display().to_string())
}

/// Lower ports are often taken by services.
const PORT_MIN: u16 = 10_240;
/// Most ports that are tried.
const PORT_TRIES: usize = 1_000;

/// Finds ports that are free now. They lie outside the range from which the kernel picks ports: otherwise another
/// program could get the port of a daemon that is just being restarted. All are held until the last is found, so that
/// they differ.
fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let ports = ports_outside(&range);
    let probes = (0..count).map(|_| free_port(&ports)).collect::<Result<Vec<_>>>()?;
    Ok(probes.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>()?)
}

/// Returns the larger of the two ranges below and above the ephemeral ports, which are given as in
/// `ip_local_port_range` (`ip(7)`).
fn ports_outside(ephemeral: &str) -> RangeInclusive<u16> {
    let mut numbers = ephemeral.split_whitespace().map(str::parse);
    let (first, last): (u16, u16) = match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => (first, last),
        // The default of Linux.
        _ => (32_768, 60_999),
    };
    let (below, above) = (PORT_MIN..=first.saturating_sub(1), last.saturating_add(1).max(PORT_MIN)..=u16::MAX);
    if below.len() >= above.len() { below } else { above }
}

/// Binds a free port, so that nobody else takes it.
fn free_port(ports: &RangeInclusive<u16>) -> Result<UdpSocket> {
    // If the kernel assigns nearly all ports, there may be no other: then any port will do.
    let tried = (0..PORT_TRIES.min(ports.len() * 2)).map(|_| rand::random_range(ports.clone()));
    let held = tried.chain([0]).find_map(|port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok());
    held.context("no free port on 127.0.0.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_get_ports_that_the_kernel_does_not_assign() {
        assert_eq!(ports_outside("32768\t60999\n"), PORT_MIN..=32_767);
        assert_eq!(ports_outside("1024 40000"), 40_001..=u16::MAX);
        assert_eq!(ports_outside("what is this"), PORT_MIN..=32_767);
        assert_eq!(ports_outside("1024 65535").len(), 1);
        let addresses = free_addresses(20).unwrap();
        let ports: std::collections::BTreeSet<u16> = addresses.iter().map(SocketAddr::port).collect();
        assert_eq!(ports.len(), 20);
    }
}
