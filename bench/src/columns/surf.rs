//! Surf: with a cluster of one node within the mount, and on six daemons.

use super::Build;
use crate::mounts::{Mount, Serving};
use crate::process::{Node, output};
use crate::side::{Files, Side};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

fn version(surfmount: &Path) -> Result<String> {
    let said = output(Command::new(surfmount).arg("--version"))?;
    Ok(format!("Surf {}", said.trim().rsplit(' ').next().unwrap_or_default()))
}

pub(super) fn embedded(name: &str, files: Files, build: &Build) -> Result<Side> {
    let surfmount = build.program("surfmount")?;
    let what = format!("{}, one node within the mount", version(&surfmount)?);
    let (data, path): (PathBuf, PathBuf) = (files.0.join("data"), Mount::path_below(&files.0));
    let command = move || {
        let mut command = Command::new(&surfmount);
        command.arg("--data-dir").arg(&data).arg(&path);
        command
    };
    let mount = Mount::new(name, &files.0, Serving::Once(Box::new(command)))?;
    Side::mounted(name, what, files, None, mount)
}

pub(super) fn cluster(name: &str, files: Files, build: &Build) -> Result<Side> {
    let (surf, surfmount) = (build.program("surf")?, build.program("surfmount")?);
    let what = format!("{}, 3 metads, 3 blockds, 3 replicas", version(&surfmount)?);
    let script = format!("{} dev up --dir cluster --metad 3 --blockd 3 --replicas 3", surf.display());
    let node = Node::start("the cluster of Surf", &files.0, &script)?;
    let network = node.network();
    let (bundle, path) = (files.0.join("cluster/client.bundle"), Mount::path_below(&files.0));
    let cache = files.0.join("cache");
    let command = move || {
        let mut command = network.command(&surfmount);
        command.arg("--cluster").arg(&bundle).arg("--cache-dir").arg(&cache).arg(&path);
        command
    };
    let mount = Mount::new(name, &files.0, Serving::Once(Box::new(command)))?;
    Side::mounted(name, what, files, Some(node), mount)
}
