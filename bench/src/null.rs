//! The null file system: the cost of FUSE itself.
//!
//! A file system over fuser that stores everything in memory and answers each request at once, in the thread that read
//! it from the kernel. It asks the kernel for the same settings as surfmount and answers the same requests, so no file
//! system over fuser can be faster in a row.
//!
//! It runs as a process of its own, as surfmount does: the change of processes is part of the cost, and a process that
//! serves a mount which it uses itself may wait for itself when it ends.

mod content;
mod serve;
mod tree;

use crate::mounts;
use crate::signals;
use anyhow::{Context, Result, anyhow};
use fuser::{Config, MountOption, Session, SessionACL};
use parking_lot::Mutex;
use serve::{NullFs, READAHEAD_BYTES};
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use tree::Tree;

/// Same as surfmount's.
const EVENT_LOOPS: usize = 2;

fn kernel_config() -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("null".to_owned()),
        MountOption::CUSTOM("subtype=surf-null".to_owned()),
        MountOption::DefaultPermissions,
    ];
    if crate::sys::is_root() {
        config.mount_options.extend([MountOption::Suid, MountOption::Dev]);
        config.acl = SessionACL::All;
    }
    config.n_threads = Some(EVENT_LOOPS);
    config.clone_fd = true;
    config
}

/// Mounts, and returns once it is unmounted from outside, or by a signal.
fn mount_once(tree: &Arc<Mutex<Tree>>, path: &Path) -> Result<()> {
    let session = Session::new(NullFs::new(tree.clone()), path, &kernel_config())
        .with_context(|| format!("{} cannot be mounted on", path.display()))?;
    let serving = std::thread::spawn(move || session.run());
    mounts::set_readahead(path, READAHEAD_BYTES);
    let ended = signals::while_waiting(|| serving.is_finished(), || mounts::unmount(path));
    let served = serving.join().map_err(|_| anyhow!("an event loop panicked"))?;
    // When it unmounts, the kernel does not forget inodes one by one.
    tree.lock().forget_all();
    ended?;
    served.context("the kernel's connection ended")
}

/// Serves the null file system at `path` until it is unmounted. With `again`, mounts once for each line of standard
/// input until that ends, and retains all files in between, as a remount does.
pub(crate) fn run(path: &Path, again: bool) -> Result<()> {
    signals::handle()?;
    let tree = Arc::new(Mutex::new(Tree::new(crate::sys::owner())));
    if !again {
        return mount_once(&tree, path);
    }
    for line in std::io::stdin().lock().lines() {
        line.context("standard input")?;
        mount_once(&tree, path)?;
    }
    Ok(())
}
