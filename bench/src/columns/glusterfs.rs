//! GlusterFS: one management daemon, a volume of three bricks on it, replica 3, default settings. Clients speak to the
//! bricks themselves, each a process of its own, so the one management daemon is not in the way of the data.

use super::NAMESPACES;
use crate::mounts::{Mount, Serving};
use crate::process::{ADDRESS, Node, START_LIMIT, output, wait_for};
use crate::side::{Files, Side};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// Programs, and their packages.
pub(super) const PROGRAMS: [(&str, &str); 6] = [
    ("glusterd", "glusterfs-server"),
    ("gluster", "glusterfs-server"),
    ("glusterfs", "glusterfs-client"),
    NAMESPACES[0],
    NAMESPACES[1],
    NAMESPACES[2],
];

const BRICKS: usize = 3;
const VOLUME: &str = "bench";

/// Mounts our directories over the daemon's own places, within the node alone.
const SCRIPT: &str = "\
mkdir -p state log /var/lib/glusterd /var/log/glusterfs
mount --bind state /var/lib/glusterd
mount --bind log /var/log/glusterfs
mount -t tmpfs tmpfs /run
mkdir -p /run/gluster
glusterd --no-daemon --volfile glusterd.vol --log-file log/glusterd.log --pid-file /run/glusterd.pid >glusterd.out 2>&1 &";

fn configure(dir: &Path) -> Result<()> {
    let options = [
        "working-directory /var/lib/glusterd",
        "transport-type socket",
        "transport.socket.keepalive-time 10",
        "transport.socket.keepalive-interval 2",
        "transport.socket.read-fail-log off",
        "ping-timeout 0",
        "event-threads 1",
    ];
    let options: String = options.iter().map(|option| format!("    option {option}\n")).collect();
    let path = dir.join("glusterd.vol");
    fs::write(&path, format!("volume management\n    type mgmt/glusterd\n{options}end-volume\n"))
        .with_context(|| path.display().to_string())
}

fn gluster(node: &Node, arguments: &[&str]) -> Result<String> {
    output(node.inside("gluster").arg("--mode=script").args(arguments))
}

pub(super) fn set_up(files: Files) -> Result<Side> {
    let dir = files.0.clone();
    configure(&dir)?;
    let node = Node::start("GlusterFS", &dir, SCRIPT)?;
    let version = output(node.inside("glusterd").arg("--version"))?;
    wait_for("glusterd serves", START_LIMIT, || Ok(gluster(&node, &["pool", "list"]).is_ok()))?;
    let bricks: Vec<String> = (0..BRICKS).map(|number| format!("{ADDRESS}:{}/brick-{number}", dir.display())).collect();
    let count = BRICKS.to_string();
    let mut create = vec!["volume", "create", VOLUME, "replica", &count];
    create.extend(bricks.iter().map(String::as_str));
    // Without `force`, bricks on the root file system or on one machine are refused.
    create.push("force");
    gluster(&node, &create)?;
    gluster(&node, &["volume", "start", VOLUME])?;
    let (network, path) = (node.network(), Mount::path_below(&dir));
    let (at, log) = (path.clone(), dir.join("client.log"));
    let command = move || {
        let mut command = network.command("glusterfs");
        command.arg("--no-daemon").arg("--log-file").arg(&log);
        command.args([format!("--volfile-server={ADDRESS}"), format!("--volfile-id={VOLUME}")]).arg(&at);
        command
    };
    let mount = Mount::new("glusterfs", &dir, Serving::Once(Box::new(command)))?;
    wait_for("three copies of a file in GlusterFS", START_LIMIT, || Ok(has_all_copies(&dir, &path)))?;
    let what = format!("{}, replica {BRICKS}", version.lines().next().unwrap_or_default());
    Side::mounted("glusterfs", what, files, Some(node), mount)
}

/// Reports whether a file that is written now is in each brick: then the mount has found them all.
fn has_all_copies(dir: &Path, mount: &Path) -> bool {
    let probe = mount.join("probe");
    let written = fs::write(&probe, "probe").is_ok();
    let copies = (0..BRICKS).filter(|number| dir.join(format!("brick-{number}/probe")).exists()).count();
    written && fs::remove_file(&probe).is_ok() && copies == BRICKS
}
