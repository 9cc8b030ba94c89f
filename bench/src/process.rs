//! Processes that the bench starts, and that always end with it.
//!
//! A [`Service`] is one process. A [`Node`] is a shell in namespaces of its own (processes, mounts, network), with
//! everything that it starts. When the shell ends, the kernel kills the rest, including detached daemons. The shell
//! ends when its standard input does, so also when the bench is killed.

use crate::signals::{self, POLL};
use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to start.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a process may take to end before it is killed: a mount first stores what was written.
const END_LIMIT: Duration = Duration::from_secs(60);
/// How long an administrative command may take.
const COMMAND_LIMIT_S: &str = "60";
/// Address of a node's services, on its own loopback interface: some refuse 127.0.0.1.
pub(crate) const ADDRESS: &str = "10.77.0.1";
/// Lines of a log that an error shows.
const LAST_LINES: usize = 8;

/// Polls until `condition` holds.
pub(crate) fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !condition()? {
        signals::check()?;
        ensure!(started.elapsed() < limit, "not within {} s: {what}", limit.as_secs());
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// The end of a log.
fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// Runs a short command to its end, and returns its output.
pub(crate) fn output(command: &Command) -> Result<String> {
    let mut bounded = Command::new("timeout");
    bounded.args(["-k", "5", COMMAND_LIMIT_S]).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            bounded.env(key, value);
        }
    }
    let output = bounded.stdin(Stdio::null()).output().context("timeout")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed ({}): {}", output.status, text.trim());
    Ok(text)
}

/// A process that serves something. Dropping it kills its process group.
pub(crate) struct Service {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Service {
    /// Starts it, with a pipe as its input, and its output in a log.
    pub(crate) fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| log.display().to_string())?;
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file).current_dir("/").process_group(0);
        sys::die_with_parent(&mut command);
        let child = command.spawn().with_context(|| format!("{name}: {command:?} cannot be started"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its input.
    pub(crate) fn stdin(&mut self) -> Option<&mut std::process::ChildStdin> {
        self.child.stdin.as_mut()
    }

    /// Fails, with the end of its log, if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().with_context(|| self.name.clone())? {
            bail!("{} has ended ({status}):\n{}", self.name, last_words(&self.log));
        }
        Ok(())
    }

    /// Waits until it has ended, and kills it when that takes too long. Ignores signals, because it is part of ending.
    pub(crate) fn wait(&mut self) {
        let started = Instant::now();
        while started.elapsed() < END_LIMIT {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL);
        }
        eprintln!("{} does not end: killed", self.name);
    }

    /// Closes its input, and waits until it has ended.
    pub(crate) fn close(&mut self) {
        drop(self.child.stdin.take());
        self.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A process that was waited for must not be killed: its number may be another's by then.
        if matches!(self.child.try_wait(), Ok(None)) {
            sys::kill_group(sys::pid(&self.child));
            let _ = self.child.wait();
        }
    }
}

/// Namespaces with services in them, all ended when this is dropped.
pub(crate) struct Node {
    shell: Service,
}

impl Node {
    /// Runs `script` as the first process of new namespaces, below `dir`. Returns when the script has come to its end,
    /// which it must with services running in the background.
    pub(crate) fn start(name: &str, dir: &Path, script: &str) -> Result<Self> {
        let (ready, log) = (dir.join("ready"), dir.join("node.log"));
        let text = format!(
            "set -eu\ncd {dir}\nip link set lo up\nip address add {ADDRESS}/32 dev lo\n{script}\n\
             touch {ready}\nread -r _ || true\n",
            dir = dir.display(),
            ready = ready.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["bash", "-c", &text]);
        let mut shell = Service::start(name, command, &log)?;
        wait_for(&format!("{name} starts"), START_LIMIT, || shell.check().map(|()| ready.exists()))?;
        Ok(Self { shell })
    }

    /// The way into the node's network.
    pub(crate) fn network(&self) -> Network {
        Network(format!("--net=/proc/{}/ns/net", sys::pid(&self.shell.child)))
    }

    /// A command within all of the node's namespaces.
    pub(crate) fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let of = format!("/proc/{}/ns", sys::pid(&self.shell.child));
        let mut command = Command::new("nsenter");
        command.args([format!("--net={of}/net"), format!("--mount={of}/mnt"), format!("--pid={of}/pid_for_children")]);
        command.arg(program);
        command
    }
}

/// The way into a node's network. It is useless once the node has ended.
pub(crate) struct Network(String);

impl Network {
    /// A command that uses the network, and mounts where the bench sees it.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(&self.0).arg(program);
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shell.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_ends_is_reported_with_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out of order >&2; exit 3"]);
        let mut service = Service::start("it", command, &dir.path().join("log")).unwrap();
        let error = wait_for("its end", START_LIMIT, || service.check().map(|()| false)).unwrap_err().to_string();
        assert!(error.contains("it has ended") && error.contains("out of order"), "{error}");
    }

    #[test]
    fn what_a_service_has_started_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (pid_file, log) = (dir.path().join("pid"), dir.path().join("log"));
        let mut command = Command::new("bash");
        command.args(["-c", &format!("sleep 600 & echo $! > {}; wait", pid_file.display())]);
        let service = Service::start("it", command, &log).unwrap();
        let pid = || fs::read_to_string(&pid_file).unwrap_or_default().trim().to_owned();
        wait_for("its child", START_LIMIT, || Ok(!pid().is_empty())).unwrap();
        drop(service);
        let gone = || fs::read_to_string(format!("/proc/{}/cmdline", pid())).unwrap_or_default().is_empty();
        wait_for("the child's end", START_LIMIT, || Ok(gone())).unwrap();
    }

    /// Reports whether a process with this word in its command line runs.
    fn runs(word: &str) -> bool {
        let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let mut lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        lines.any(|line| line.split(|byte| *byte == 0).any(|found| found == word.as_bytes()))
    }

    #[test]
    fn what_a_node_has_started_ends_with_it_though_it_detached_itself() {
        if !sys::is_root() || crate::packages::find("ip").is_none() {
            eprintln!("left out: it takes root and the package iproute2");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let time = format!("600.{}", std::process::id());
        let node = Node::start("it", dir.path(), &format!("setsid -f sleep {time}")).unwrap();
        wait_for("the daemon", START_LIMIT, || Ok(runs(&time))).unwrap();
        let printed = output(node.network().command("ip").args(["-brief", "address"])).unwrap();
        assert!(printed.contains(ADDRESS) && printed.lines().count() == 1, "{printed}");
        drop(node);
        assert!(!runs(&time));
    }

    #[test]
    fn a_node_whose_script_fails_is_reported_with_its_output() {
        if !sys::is_root() || crate::packages::find("ip").is_none() {
            eprintln!("left out: it takes root and the package iproute2");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let error = Node::start("it", dir.path(), "echo no such luck; false").err().unwrap().to_string();
        assert!(error.contains("no such luck"), "{error}");
    }
}
