//! A running Surf under test: an embedded mount, or real daemons with a mount on top.

use crate::bins::bin;
use crate::command::run;
use crate::fault::{files_below, is_alive, kill_9};
use crate::mounts::{abort, abort_below, is_mounted};
use crate::proxy::Proxy;
use crate::turn::{Share, Turn};
use crate::wait::until;
use crate::watchdog::Watchdog;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a daemon or a mount may take to start or to stop.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// Which kind of Surf a test runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setup {
    /// `surfmount DIR`: one metad and one blockd inside the mount's process.
    Embedded,
    /// Three metads, three blockds, three replicas, as processes.
    Cluster,
}

/// A process of the cluster, as `cluster.json` describes it.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// Name, such as `metad-1`.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// Data directory.
    pub data_dir: PathBuf,
    /// Address.
    pub address: String,
}

/// A running Surf with one mount. Dropping it unmounts, stops every process and removes every file.
pub struct Surf {
    setup: Setup,
    mount: Option<Child>,
    /// What is in the environment of the processes that are started from now on.
    env: Mutex<Vec<(&'static str, OsString)>>,
    /// The proxy through which all datagrams go, if there is one.
    proxy: Option<Proxy>,
    _watchdog: Watchdog,
    dir: TempDir,
    _turn: Turn,
}

impl Surf {
    /// Starts a cluster whose traffic goes through a [`Proxy`] with this seed, and mounts it with these arguments.
    /// Others may run at the same time. The proxy knows daemons by their names, and mounts by those of their mount
    /// points: `mnt`, and [`Another::name`].
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start_behind_proxy(seed: u64, args: &[&str]) -> Self {
        let mut surf = Self::prepare(Share::Part, Setup::Cluster);
        surf.dev(&["up", "--metad", "3", "--blockd", "3", "--no-start"]);
        let daemons: Vec<_> = surf
            .daemons()
            .into_iter()
            .map(|daemon| (daemon.name, daemon.address.parse().expect("cluster.json has addresses")))
            .collect();
        let proxy = Proxy::start(&daemons, seed).expect("loopback has free ports");
        for (name, address) in &daemons {
            surf.lead_through(&proxy.front(name).to_string(), &address.to_string());
        }
        surf.proxy = Some(proxy);
        surf.dev(&["up"]);
        surf.mount(args);
        surf
    }

    /// Replaces a daemon's address by that of its front wherever others read it.
    fn lead_through(&self, front: &str, own: &str) {
        let files = files_below(&self.cluster_dir());
        let ends = |path: &Path, end: &str| path.extension().is_some_and(|found| found == end);
        for path in files.iter().filter(|path| ends(path, "toml") || ends(path, "bundle")) {
            let text = fs::read_to_string(path).expect("a configuration can be read");
            let listen = format!("listen = \"{own}\"");
            let led: Vec<String> = text
                .lines()
                .map(|line| if line == listen { line.to_owned() } else { line.replace(own, front) })
                .collect();
            let is_its_own = text.lines().any(|line| line == listen);
            let advertised = is_its_own && path.ends_with("blockd.toml");
            let advertise = if advertised { format!("advertise = \"{front}\"\n") } else { String::new() };
            fs::write(path, advertise + &led.join("\n") + "\n").expect("a configuration can be written");
        }
    }

    /// Returns the proxy between mounts and daemons.
    ///
    /// # Panics
    /// When this was not started behind a proxy.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("it was started behind a proxy")
    }

    pub(crate) fn prepare(share: Share, setup: Setup) -> Self {
        let turn = Turn::take(share);
        let dir = tempfile::Builder::new().prefix("surf-test-").tempdir().expect("a temp directory can be made");
        // pjdfstest and others work as unprivileged users below the mount point.
        sys_chmod(dir.path(), 0o755);
        let watchdog = Watchdog::new(&format!(
            "'{surf}' dev down --dir '{dir}/cluster'; awk '$5 ~ \"^{dir}/\" {{print $5}}' /proc/self/mountinfo | tac | xargs -r -n1 umount -l; pkill -KILL -f '^[^ ]*surfmount .*{dir}/mnt'; rm -rf --one-file-system '{dir}'",
            surf = bin("surf").display(),
            dir = dir.path().display(),
        ));
        let surf =
            Self { setup, mount: None, env: Mutex::default(), proxy: None, _watchdog: watchdog, dir, _turn: turn };
        fs::create_dir(surf.path()).expect("the mount point can be made");
        surf
    }

    /// The mount point.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A folder outside of the mount, removed with everything else.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        let scratch = self.dir.path().join("scratch");
        fs::create_dir_all(&scratch).expect("a scratch folder can be made");
        scratch
    }

    /// Folder of the daemons.
    #[must_use]
    pub fn cluster_dir(&self) -> PathBuf {
        self.dir.path().join("cluster")
    }

    /// Path of the client bundle.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.cluster_dir().join("client.bundle")
    }

    /// Folder of the embedded cluster's data.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Cache directory of the mounts.
    #[must_use]
    pub fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Process id of the mount.
    ///
    /// # Panics
    /// When it is not mounted.
    #[must_use]
    pub fn mount_pid(&self) -> u32 {
        self.mount.as_ref().expect("it is mounted").id()
    }

    /// Starts the daemons (`surf dev up`).
    ///
    /// # Panics
    /// When they do not serve.
    pub fn up(&self, metads: u32, blockds: u32) {
        self.dev(&["up", "--metad", &metads.to_string(), "--blockd", &blockds.to_string()]);
    }

    /// Puts this into the environment of the processes that are started from now on.
    pub fn set_env(&self, name: &'static str, value: impl Into<OsString>) {
        self.env.lock().unwrap_or_else(PoisonError::into_inner).push((name, value.into()));
    }

    fn env(&self) -> Vec<(&'static str, OsString)> {
        self.env.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs `surf dev ARGS --dir DIR`.
    ///
    /// # Panics
    /// When it fails.
    pub fn dev(&self, args: &[&str]) {
        let mut command = Command::new(bin("surf"));
        command.arg("dev").args(args).arg("--dir").arg(self.cluster_dir()).envs(self.env());
        let output = run(&mut command, START_LIMIT * 2);
        assert!(output.status.success(), "surf dev {args:?}: {}\n{}", output.text, self.logs());
    }

    /// Returns the last lines of every daemon's log, for the message of a failed test.
    fn logs(&self) -> String {
        let script = format!(
            "tail -n 15 {}/*/*.log {}/*.log 2>/dev/null",
            self.cluster_dir().display(),
            self.dir.path().display()
        );
        run(Command::new("sh").args(["-c", &script]), Duration::from_secs(10)).text
    }

    /// Returns the daemons, as `cluster.json` lists them now.
    ///
    /// # Panics
    /// When the file is not as documented.
    #[must_use]
    pub fn daemons(&self) -> Vec<Daemon> {
        let text = fs::read_to_string(self.cluster_dir().join("cluster.json")).expect("cluster.json is there");
        let json: serde_json::Value = serde_json::from_str(&text).expect("cluster.json is JSON");
        let daemons = json["daemons"].as_array().expect("cluster.json lists daemons");
        let word = |daemon: &serde_json::Value, key: &str| daemon[key].as_str().unwrap_or_default().to_owned();
        daemons
            .iter()
            .map(|daemon| Daemon {
                name: word(daemon, "name"),
                pid: daemon["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a daemon has a pid"),
                data_dir: word(daemon, "data_dir").into(),
                address: word(daemon, "address"),
            })
            .collect()
    }

    /// Returns the daemon of that name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn daemon(&self, name: &str) -> Daemon {
        self.daemons().into_iter().find(|daemon| daemon.name == name).expect("the daemon is listed")
    }

    /// Returns the name of the metad that leads.
    ///
    /// # Panics
    /// When none does within a minute.
    #[must_use]
    pub fn leader(&self) -> String {
        until("a leader", START_LIMIT, || {
            let mut command = Command::new(bin("surf"));
            command.args(["dev", "status", "--json", "--dir"]).arg(self.cluster_dir());
            let output = run(&mut command, START_LIMIT);
            let json: serde_json::Value = serde_json::from_str(&output.text).ok()?;
            json["leader"].as_str().map(str::to_owned)
        })
    }

    /// Kills a daemon at once.
    ///
    /// # Panics
    /// When it is not there.
    pub fn kill_9(&self, name: &str) {
        let pid = self.daemon(name).pid;
        kill_9(pid);
        until("a killed daemon is gone", START_LIMIT, || (!is_alive(pid)).then_some(()));
    }

    /// Mounts it with further arguments.
    ///
    /// # Panics
    /// When it is not mounted within a minute.
    pub fn mount(&mut self, args: &[&str]) {
        assert!(self.mount.is_none(), "it is mounted already");
        self.mount = Some(self.start_mount(&self.path(), args));
    }

    /// Mounts the cluster once more, in a process of its own, as another machine would.
    ///
    /// # Panics
    /// When an embedded cluster is mounted already, or it is not mounted within a minute.
    #[must_use]
    pub fn mount_again(&self, args: &[&str]) -> Another {
        assert!(self.setup == Setup::Cluster || self.mount.is_none(), "an embedded cluster has one mount");
        let count = fs::read_dir(self.dir.path()).expect("the folder can be listed").count();
        let path = self.dir.path().join(format!("mnt-{count}"));
        fs::create_dir(&path).expect("the mount point can be made");
        let child = self.start_mount(&path, args);
        Another { child, path }
    }

    /// Mounts again at the mount point of a mount that was killed.
    ///
    /// # Panics
    /// When it is not mounted within a minute.
    pub fn mount_killed(&self, another: &mut Another, args: &[&str]) {
        assert!(!is_mounted(&another.path), "it is mounted");
        another.child = self.start_mount(&another.path, args);
    }

    fn start_mount(&self, path: &Path, args: &[&str]) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("mount.log"))
            .expect("a log can be made");
        let mut command = Command::new(bin("surfmount"));
        match self.setup {
            Setup::Embedded => command.arg("--data-dir").arg(self.data_dir()),
            Setup::Cluster => command.arg("--cluster").arg(self.bundle()).arg("--cache-dir").arg(self.cache_dir()),
        };
        command.args(args).arg(path).envs(self.env()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().expect("surfmount starts");
        let started = Instant::now();
        while !is_mounted(path) {
            let ended = child.try_wait().expect("a child can be waited for");
            if ended.is_some() || started.elapsed() > START_LIMIT {
                let _ = child.kill();
                let _ = child.wait();
                panic!("surfmount did not mount ({ended:?})\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(proxy) = &self.proxy {
            // The process talks to the cluster before it is mounted, by the socket that it uses afterwards.
            let sockets = proxy.name_process(child.id(), &name_of(path));
            assert!(sockets > 0, "surfmount has no socket");
        }
        child
    }

    /// Unmounts as `surfmount` does on SIGTERM, and waits until it has ended.
    ///
    /// # Panics
    /// When it ends with an error, or not at all.
    pub fn unmount(&mut self) {
        let mut child = self.mount.take().expect("it is mounted");
        // SAFETY: kill takes no pointers; the child has not been waited for, so its pid is still its own.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if started.elapsed() > START_LIMIT {
                abort(&self.path());
                let _ = child.kill();
                let _ = child.wait();
                panic!("surfmount does not end on SIGTERM\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "surfmount ended with {status}\n{}", self.logs());
        assert!(!is_mounted(&self.path()), "surfmount ended and left its mount");
    }

    /// Kills the mount at once, as a crash would, and clears the dead mount point away.
    ///
    /// # Panics
    /// When it is not mounted.
    pub fn kill_mount(&mut self) {
        let mut child = self.mount.take().expect("it is mounted");
        child.kill().expect("a child can be killed");
        // This comes first: a thread of the mount may wait in the kernel, and only the end of the connection wakes
        // it.
        abort(&self.path());
        child.wait().expect("a child can be waited for");
    }
}

impl Drop for Surf {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        // Processes that wait for a cut link end sooner when it is healed.
        if let Some(proxy) = &self.proxy {
            proxy.heal();
        }
        if let Some(mut child) = self.mount.take() {
            end(&mut child, &self.path());
        }
        // A test may have mounted elsewhere, too.
        abort_below(self.dir.path());
        if self.cluster_dir().exists() {
            let mut down = Command::new(bin("surf"));
            down.args(["dev", "down", "--dir"]).arg(self.cluster_dir());
            let output = run(&mut down, START_LIMIT);
            if !output.status.success() {
                eprintln!("surf dev down: {}", output.text);
            }
        }
    }
}

/// A further mount of a cluster. Dropping it unmounts.
pub struct Another {
    child: Child,
    path: PathBuf,
}

impl Another {
    /// The mount point.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Its name among the links of a [`Proxy`].
    #[must_use]
    pub fn name(&self) -> String {
        name_of(&self.path)
    }

    /// Kills the mount at once, as a crash would.
    ///
    /// # Panics
    /// When it is not there.
    pub fn kill_9(mut self) {
        self.child.kill().expect("a child can be killed");
    }

    /// Kills the mount at once and clears the dead mount point away, for [`Surf::mount_killed`].
    ///
    /// # Panics
    /// When it is not there.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        abort(&self.path);
        self.child.wait().expect("a child can be waited for");
    }

    /// Returns how its process ended, if it has.
    ///
    /// # Panics
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }
}

fn name_of(mount_point: &Path) -> String {
    mount_point.file_name().expect("a mount point has a name").to_string_lossy().into_owned()
}

impl Drop for Another {
    fn drop(&mut self) {
        end(&mut self.child, &self.path);
    }
}

/// Ends a mount in order if that does not take too long, and kills it otherwise.
fn end(child: &mut Child, path: &Path) {
    // SAFETY: kill takes no pointers; the child has not been waited for, so its pid is still its own.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    let started = Instant::now();
    // After a failure nobody needs an orderly end, and threads may wait until the mount is gone.
    let limit = Duration::from_secs(if std::thread::panicking() { 2 } else { 15 });
    while child.try_wait().ok().flatten().is_none() && started.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(20));
    }
    abort(path);
    let _ = child.kill();
    let _ = child.wait();
}

fn sys_chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a fresh directory can be changed");
}
