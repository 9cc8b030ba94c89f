//! The directory of a metad that takes another one's place: which number it has, and its files.

use super::plan::Metads;
use crate::cmd::node::Node;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use wire::ids::MetadId;
use wire::tls::{ClusterCa, Role};

/// What is read of a configuration.
#[derive(Deserialize)]
struct Known {
    id: u64,
    listen: SocketAddr,
}

/// Where the files are, or are to be made.
pub(super) struct Place<'a> {
    /// The CA of the cluster.
    pub ca: &'a Path,
    /// The directory; `None` for `metad-N` beside the CA.
    pub out: Option<&'a Path>,
}

/// The new metad's number and directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chosen {
    /// Its number.
    pub new: MetadId,
    /// Its directory.
    pub home: PathBuf,
    /// An earlier run has made the files.
    pub is_made: bool,
}

impl Place<'_> {
    /// Finds what an earlier run has made in place of `old`, or chooses a number and a directory. The number is `id`, or
    /// the next one that no metad has had, and no directory beside the CA has.
    pub(super) fn choose(
        &self,
        metads: &Metads<'_>,
        (old, id): (MetadId, Option<u64>),
        addr: SocketAddr,
    ) -> Result<Chosen> {
        let beside = self.ca.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let numbered = numbered(beside)?;
        let homes = numbered.iter().map(|(_, home)| home.as_path());
        let homes: Vec<&Path> = self.out.map_or_else(|| homes.collect(), |out| vec![out]);
        // One that was removed again is not asked back: its number would be refused.
        let suits = |made: &u64| id.map_or_else(|| !metads.had(MetadId(*made)), |id| id == *made);
        for home in homes {
            if let Some(made) = made_for(home, old, addr)?.filter(suits) {
                return Ok(Chosen { new: MetadId(made), home: home.to_owned(), is_made: true });
            }
        }
        let used = metads.used().chain(numbered.iter().map(|(id, _)| *id)).chain([old.0]);
        let number = id.unwrap_or(used.max().unwrap_or(0) + 1);
        let name = Node { role: Role::Metad, number, addr }.name();
        let home = self.out.map_or_else(|| beside.join(name), Path::to_owned);
        if home.join("metad.toml").exists() {
            bail!("{}: there is the configuration of another node; name another directory with --out", home.display());
        }
        Ok(Chosen { new: MetadId(number), home, is_made: false })
    }

    /// Makes the files.
    pub(super) fn make(&self, cluster: &str, old: MetadId, chosen: &Chosen, addr: SocketAddr) -> Result<()> {
        let mut keys = toml::Table::new();
        keys.insert("cluster".to_owned(), cluster.into());
        let node = Node { role: Role::Metad, number: chosen.new.0, addr };
        node.write(&chosen.home, &ClusterCa::load(self.ca)?, keys, &comment(old))
    }
}

/// The first line of a configuration, by which a later run finds it again.
fn comment(old: MetadId) -> String {
    format!("# In place of metad-{old}.\n")
}

/// Returns the number of the node whose configuration an earlier run has made in this directory, for the same purpose.
fn made_for(home: &Path, old: MetadId, addr: SocketAddr) -> Result<Option<u64>> {
    let path = home.join("metad.toml");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    if !text.starts_with(&comment(old)) {
        return Ok(None);
    }
    let known: Known = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok((known.listen == addr).then_some(known.id))
}

/// Returns the directories `metad-N` in a directory, with their numbers, in order.
fn numbered(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let read = || -> std::io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("metad-"));
            found.extend(name.and_then(|number| number.parse().ok()).map(|number| (number, path.clone())));
        }
        found.sort();
        Ok(found)
    };
    read().with_context(|| dir.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::super::plan::Member;
    use super::*;
    use wire::tls::Identity;

    fn addr(number: u16) -> SocketAddr {
        ([10, 0, 0, 1], 7000 + number).into()
    }

    #[test]
    fn files_are_made_once_and_no_number_is_used_twice() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        ClusterCa::create("c").unwrap().save(&ca).unwrap();
        fs::create_dir(dir.path().join("metad-5")).unwrap();
        let members: Vec<Member> = (1..=3).map(|number| (MetadId(number.into()), addr(number), true, 0)).collect();
        let place = Place { ca: &ca, out: None };
        let prepare_among = |ever: &[MetadId], old, id, addr| {
            let metads = Metads { members: &members, ever, applied: 0 };
            let chosen = place.choose(&metads, (MetadId(old), id), addr).unwrap();
            if !chosen.is_made {
                place.make("c", MetadId(old), &chosen, addr).unwrap();
            }
            (chosen.new, chosen.home)
        };
        let prepare = |old, id, addr| prepare_among(&[], old, id, addr);
        let (id, home) = prepare(3, None, addr(8));
        assert_eq!((id, &home), (MetadId(6), &dir.path().join("metad-6")), "a metad-5 may have been removed");
        let identity = Identity::load(&home.join("metad.pem")).unwrap();
        assert_eq!((identity.subject().role, identity.subject().name.as_str()), (Role::Metad, "metad-6"));
        let text = fs::read_to_string(home.join("metad.toml")).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(table["id"].as_integer(), Some(6));
        assert_eq!(table["listen"].as_str(), Some(addr(8).to_string().as_str()));
        assert!(!table.contains_key("initial"), "it does not found a cluster");
        assert_eq!(prepare(3, None, addr(8)), (id, home.clone()), "again");
        assert_eq!(fs::read_to_string(home.join("metad.toml")).unwrap(), text);
        assert_eq!(Identity::load(&home.join("metad.pem")).unwrap().to_pem(), identity.to_pem());
        assert_eq!(prepare(3, Some(6), addr(8)).0, MetadId(6));
        assert_eq!(prepare(2, None, addr(8)).0, MetadId(7), "in place of another one");
        assert_eq!(prepare(3, None, addr(9)).0, MetadId(8), "elsewhere");
        assert_eq!(prepare(3, Some(12), addr(8)).0, MetadId(12));
        let ever = [1, 2, 3, 6, 12, 20].map(MetadId);
        assert_eq!(prepare_among(&ever, 3, None, addr(7)).0, MetadId(21), "a metad-20 was removed");
        assert_eq!(prepare_among(&ever, 3, None, addr(8)).0, MetadId(22), "so was the one that was made for this");
    }

    #[test]
    fn files_of_another_node_are_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, out) = (dir.path().join("ca.pem"), dir.path().join("out"));
        ClusterCa::create("c").unwrap().save(&ca).unwrap();
        let members: Vec<Member> = vec![(MetadId(1), addr(1), true, 0)];
        let place = Place { ca: &ca, out: Some(&out) };
        let metads = Metads { members: &members, ever: &[], applied: 0 };
        let choose = |old| place.choose(&metads, (MetadId(old), None), addr(8));
        let chosen = choose(1).unwrap();
        assert_eq!(chosen, Chosen { new: MetadId(2), home: out.clone(), is_made: false });
        assert!(!out.exists(), "nothing is made before it is asked for");
        place.make("c", MetadId(1), &chosen, addr(8)).unwrap();
        assert_eq!(choose(1).unwrap(), Chosen { is_made: true, ..chosen });
        let text = fs::read_to_string(out.join("metad.toml")).unwrap();
        assert!(choose(2).unwrap_err().to_string().contains("--out"));
        assert_eq!(fs::read_to_string(out.join("metad.toml")).unwrap(), text);
    }
}
