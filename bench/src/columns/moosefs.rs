//! MooseFS: a master, three chunkservers, goal 3; default settings, except for places and addresses.

use super::NAMESPACES;
use crate::mounts::{Mount, Serving};
use crate::process::{ADDRESS, Node, START_LIMIT, output, wait_for};
use crate::side::{Files, Side};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Programs, and their packages.
pub(super) const PROGRAMS: [(&str, &str); 7] = [
    ("mfsmaster", "moosefs-master"),
    ("mfschunkserver", "moosefs-chunkserver"),
    ("mfsmount", "moosefs-client"),
    ("mfssetgoal", "moosefs-client"),
    NAMESPACES[0],
    NAMESPACES[1],
    NAMESPACES[2],
];

const CHUNKSERVERS: u16 = 3;
/// Port of the first chunkserver; the next ones count on.
const CHUNK_PORT: u16 = 9422;
/// Port at which the master serves mounts.
const MASTER_PORT: u16 = 9421;
const GOAL: &str = "3";
/// Metadata of an empty file system, as the package has it in `metadata.mfs.empty`.
const EMPTY_METADATA: &[u8] = b"MFSM NEW";

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| path.display().to_string())
}

fn configure(dir: &Path) -> Result<()> {
    let who = "WORKING_USER = root\nWORKING_GROUP = root\n";
    let shown = dir.display();
    fs::create_dir(dir.join("master"))?;
    write(&dir.join("master/metadata.mfs"), EMPTY_METADATA)?;
    write(&dir.join("exports.cfg"), b"* / rw,alldirs,maproot=0\n")?;
    write(&dir.join("topology.cfg"), b"")?;
    let master = format!(
        "{who}DATA_PATH = {shown}/master\nEXPORTS_FILENAME = {shown}/exports.cfg\n\
         TOPOLOGY_FILENAME = {shown}/topology.cfg\nMATOML_LISTEN_HOST = {ADDRESS}\nMATOCS_LISTEN_HOST = {ADDRESS}\n\
         MATOCL_LISTEN_HOST = {ADDRESS}\n"
    );
    write(&dir.join("master.cfg"), master.as_bytes())?;
    for number in 0..CHUNKSERVERS {
        for part in ["chunk", "disk"] {
            fs::create_dir(dir.join(format!("{part}-{number}")))?;
        }
        write(&dir.join(format!("disk-{number}.cfg")), format!("{shown}/disk-{number}\n").as_bytes())?;
        let port = CHUNK_PORT + number;
        let chunkserver = format!(
            "{who}DATA_PATH = {shown}/chunk-{number}\nHDD_CONF_FILENAME = {shown}/disk-{number}.cfg\n\
             MASTER_HOST = {ADDRESS}\nBIND_HOST = {ADDRESS}\nCSSERV_LISTEN_HOST = {ADDRESS}\n\
             CSSERV_LISTEN_PORT = {port}\n"
        );
        write(&dir.join(format!("chunk-{number}.cfg")), chunkserver.as_bytes())?;
    }
    Ok(())
}

/// Chunkservers that do not find the master at once try again after a while.
const SCRIPT: &str = "\
mfsmaster -f -c master.cfg start >master.log 2>&1 &
for number in 0 1 2; do mfschunkserver -f -c chunk-$number.cfg start >chunk-$number.log 2>&1 & done";

pub(super) fn set_up(files: Files) -> Result<Side> {
    configure(&files.0)?;
    let node = Node::start("MooseFS", &files.0, SCRIPT)?;
    // A mount that does not find the master gives up.
    let connect = format!("exec 3<>/dev/tcp/{ADDRESS}/{MASTER_PORT}");
    let listens = || Ok(output(node.network().command("bash").args(["-c", &connect])).is_ok());
    wait_for("the master of MooseFS listens", START_LIMIT, listens)?;
    let version = output(Command::new("mfsmaster").arg("-v"))?;
    let (network, path) = (node.network(), Mount::path_below(&files.0));
    let at = path.clone();
    let command = move || {
        let mut command = network.command("mfsmount");
        command.args(["-f", "-H", ADDRESS, "-P", &MASTER_PORT.to_string()]).arg(&at);
        command
    };
    let mount = Mount::new("moosefs", &files.0, Serving::Once(Box::new(command)))?;
    output(node.network().command("mfssetgoal").args(["-r", GOAL]).arg(&path))?;
    wait_for("three copies of a file in MooseFS", START_LIMIT, || Ok(has_all_copies(&node, &path)))?;
    let what = format!("MooseFS {}, goal {GOAL}", number(&version));
    Side::mounted("moosefs", what, files, Some(node), mount)
}

/// The number in `version: 3.0.117-1 ; build: 1341`.
fn number(said: &str) -> &str {
    said.split_whitespace().nth(1).unwrap_or("of unknown version")
}

/// Reports whether a file that is written now gets its three copies: then all chunkservers are there.
fn has_all_copies(node: &Node, mount: &Path) -> bool {
    let probe = mount.join("probe");
    if fs::write(&probe, "probe").is_err() {
        return false;
    }
    let printed = output(node.network().command("mfsfileinfo").arg(&probe)).unwrap_or_default();
    fs::remove_file(&probe).is_ok() && printed.contains("copy 3:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_number_alone() {
        assert_eq!(number("version: 3.0.117-1 ; build: 1341\n"), "3.0.117-1");
        assert_eq!(number(""), "of unknown version");
    }

    #[test]
    fn servers_have_places_and_ports_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        configure(dir.path()).unwrap();
        let ports = (0..CHUNKSERVERS).map(|number| {
            let text = fs::read_to_string(dir.path().join(format!("chunk-{number}.cfg"))).unwrap();
            assert!(text.contains(&format!("/chunk-{number}\n")) && text.contains(&format!("/disk-{number}.cfg\n")));
            text.lines().find(|line| line.starts_with("CSSERV_LISTEN_PORT")).unwrap().to_owned()
        });
        assert_eq!(ports.collect::<std::collections::HashSet<_>>().len(), usize::from(CHUNKSERVERS));
    }
}
