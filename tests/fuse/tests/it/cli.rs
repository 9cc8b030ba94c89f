//! Bad input: one clear line that says what to do, an exit code that is not 0, and nothing damaged.

use super::tokens::{surf_says, token};
use kit::bins::bin;
use kit::command::run;
use kit::{Setup, Surf, sh, until};
use std::fs::{self, File};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Refusals come at once, but the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program that must refuse its arguments in one line, which begins with its name and has these words.
fn refused(program: &str, arguments: &[&str], words: &[&str]) {
    let output = run(Command::new(bin(program)).args(arguments), LIMIT);
    let said: Vec<&str> = output.text.lines().filter(|line| !is_log(line)).collect();
    let shown = format!("{program} {arguments:?} said: {}", output.text);
    assert!(output.status.code().is_some_and(|code| code != 0), "{:?}: {shown}", output.status);
    let [line] = said.as_slice() else { panic!("not one line: {shown}") };
    assert!(line.starts_with(&format!("{program}: ")), "{shown}");
    for word in words {
        assert!(line.contains(word), "{word:?} is missing: {shown}");
    }
}

/// Returns whether this is a line of a daemon's log: it begins with the time.
fn is_log(line: &str) -> bool {
    line.as_bytes().first().is_some_and(u8::is_ascii_digit) && line.contains("Z ")
}

/// Asserts that the mount still does its work.
fn assert_works(surf: &Surf) {
    sh(&surf.path(), LIMIT, "echo content > works && sync works && test \"$(cat works)\" = content && rm works");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temp directories have plain names")
}

/// Writes a file below the test's scratch folder.
fn file(surf: &Surf, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = surf.scratch().join(name);
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn an_unknown_flag_is_named_by_every_program() {
    for program in ["surfmount", "metad", "blockd", "surf"] {
        let output = run(Command::new(bin(program)).args(["--no-such-flag", "/nowhere"]), LIMIT);
        assert_eq!(output.status.code(), Some(2), "{program}");
        assert!(output.text.contains("--no-such-flag") && output.text.contains("Usage"), "{}", output.text);
    }
}

#[test]
fn a_mount_needs_a_free_directory_and_data_of_its_own() {
    let surf = Surf::start(Setup::Embedded);
    let (mounted, data) = (surf.path(), surf.data_dir());
    let (other, fresh) = (surf.scratch().join("mnt"), surf.scratch().join("data"));
    let plain = file(&surf, "plain", "");
    refused("surfmount", &["--data-dir", text(&fresh), text(&plain)], &["plain", "not a directory", "name one"]);
    refused("surfmount", &["--data-dir", text(&fresh), text(&plain.join("below"))], &["plain/below", "choose"]);
    refused("surfmount", &["--data-dir", text(&fresh), text(&mounted)], &["is mounted there", "unmount it first"]);
    refused(
        "surfmount",
        &["--data-dir", text(&data), text(&other)],
        &["another process uses this data directory", "unmount"],
    );
    refused("surfmount", &["--data-dir", text(&plain), text(&other)], &["plain", "choose another", "--data-dir"]);
    refused("surfmount", &["--data-dir", text(&plain.join("x")), text(&other)], &["plain/x", "--data-dir"]);
    refused("surfmount", &["--data-dir", text(&other.join("data")), text(&other)], &["below the mount point"]);
    refused("surfmount", &["-o", "sofft", text(&other)], &["sofft", "unknown option"]);
    refused("surfmount", &["--daemon", "--data-dir", text(&data), text(&other)], &["another process uses"]);
    assert!(!fresh.exists(), "nothing was begun");
    assert_works(&surf);
}

#[test]
fn data_on_a_read_only_place_are_refused_and_the_place_goes_on() {
    let mut surf = Surf::start(Setup::Embedded);
    sh(&surf.path(), LIMIT, "mkdir had && echo kept > file");
    surf.unmount();
    surf.mount(&["-o", "ro"]);
    let other = surf.scratch().join("mnt");
    for data in ["fresh", "had"] {
        let data = surf.path().join(data);
        refused("surfmount", &["--data-dir", text(&data), text(&other)], &["ead-only", "choose another", "--data-dir"]);
    }
    sh(&surf.path(), LIMIT, "test \"$(cat file)\" = kept && test -z \"$(ls -A had)\"");
}

#[test]
fn a_missing_mount_point_is_made_with_its_parents() {
    let mut surf = Surf::start(Setup::Embedded);
    sh(&surf.path(), LIMIT, "echo kept > file");
    surf.unmount();
    let mount = surf.path().join("a/b");
    let output =
        run(Command::new(bin("surfmount")).arg("--daemon").arg("--data-dir").arg(surf.data_dir()).arg(&mount), LIMIT);
    assert!(output.status.success() && output.text.contains(text(&mount)), "{}", output.text);
    sh(&mount, LIMIT, "test \"$(cat file)\" = kept");
    sh(&surf.scratch(), LIMIT, &format!("umount {}", mount.display()));
    until_unlocked(&surf.data_dir());
    surf.mount(&[]);
    assert_works(&surf);
}

/// Waits until a mount in the background has ended: it locks its data until then.
fn until_unlocked(data_dir: &Path) {
    let lock = fs::File::open(data_dir.join("surf.lock")).unwrap();
    kit::until("the process in the background ends", LIMIT, || lock.try_lock().ok());
}

#[test]
fn a_damaged_embedded_cluster_is_reported_and_left_as_it_is() {
    let mut surf = Surf::start(Setup::Embedded);
    sh(&surf.path(), LIMIT, "echo kept > file");
    surf.unmount();
    let (data, mount) = (surf.data_dir(), surf.path());
    for name in ["cluster.toml", "ca.pem", "client.pem"] {
        let path = data.join(name);
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() / 2], b"\x00\xff\xfe", b""] {
            fs::write(&path, damaged).unwrap();
            refused("surfmount", &["--data-dir", text(&data), text(&mount)], &[name]);
            assert_eq!(fs::read(&path).unwrap(), damaged, "{name} is left for whoever restores it");
        }
        fs::write(&path, whole).unwrap();
    }
    surf.mount(&[]);
    sh(&surf.path(), LIMIT, "test \"$(cat file)\" = kept");
}

/// Copies a daemon's configuration with a change.
fn changed(surf: &Surf, name: &str, change: impl Fn(&str) -> String) -> PathBuf {
    let program = name.split('-').next().unwrap();
    let whole = fs::read_to_string(surf.cluster_dir().join(name).join(format!("{program}.toml"))).unwrap();
    file(surf, "changed.toml", change(&whole))
}

#[test]
fn a_daemon_refuses_a_configuration_that_it_does_not_understand() {
    let surf = Surf::start(Setup::Cluster);
    for (program, name) in [("metad", "metad-1"), ("blockd", "blockd-1")] {
        let config = |path: &Path, words: &[&str]| {
            refused(program, &["--config", text(path)], words);
            refused(program, &["--check-config", "--config", text(path)], words);
        };
        config(&changed(&surf, name, |whole| format!("lisen = \"127.0.0.1:1\"\n{whole}")), &["line 1", "lisen"]);
        config(&changed(&surf, name, |whole| whole.replace("listen = \"", "listen = \"no")), &["listen", "line"]);
        config(&changed(&surf, name, |whole| format!("[{whole}")), &["changed.toml", "line"]);
        config(&changed(&surf, name, |_| String::new()), &["missing"]);
        config(&file(&surf, "changed.toml", b"\x00\xff\xfe\x80"), &["changed.toml", "cannot be read"]);
        config(&file(&surf, "changed.toml", b"\x00\x01\x02"), &["changed.toml", "line 1"]);
        config(&surf.scratch().join("absent.toml"), &["absent.toml", "--config"]);
        config(&surf.scratch(), &["scratch", "--config"]);
    }
    assert_works(&surf);
}

/// Its disk may be full. Without this, the first line of the log ended the program.
#[test]
fn daemons_whose_log_cannot_be_written_do_their_work() {
    let surf = Surf::start(Setup::Cluster);
    for (program, name) in [("metad", "metad-1"), ("blockd", "blockd-1")] {
        surf.kill_9(name);
        let config = surf.cluster_dir().join(name).join(format!("{program}.toml"));
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(bin(program));
        let mut daemon = command.arg("--config").arg(config).stdout(full()).stderr(full()).spawn().unwrap();
        let address = surf.daemon(name).address;
        until(&format!("{name} serves"), LIMIT, || UdpSocket::bind(&address).is_err().then_some(()));
        assert_works(&surf);
        assert!(daemon.try_wait().unwrap().is_none(), "{name} has ended");
        daemon.kill().and_then(|()| daemon.wait()).unwrap();
        surf.dev(&["start", name]);
    }
}

/// Returns the three parts of an identity: the CA's certificate, its own certificate, its key.
fn parts(identity: &str) -> [&str; 3] {
    let starts: Vec<usize> = identity.match_indices("-----BEGIN").map(|(at, _)| at).collect();
    let [ca, own, key] = starts[..] else { panic!("not three parts: {starts:?}") };
    [&identity[ca..own], &identity[own..key], &identity[key..]]
}

/// Returns the lines of the identity in a bundle.
fn identity_in(bundle: &str) -> &str {
    &bundle[bundle.find("-----BEGIN").unwrap()..bundle.rfind("\"\"\"").unwrap()]
}

/// Changes one letter in the middle of a part of an identity: it is still PEM, and wrong.
fn altered(part: &str) -> String {
    let at = part.len() / 2;
    let letter = if part.as_bytes()[at] == b'A' { "B" } else { "A" };
    format!("{}{letter}{}", &part[..at], &part[at + 1..])
}

/// Makes the files of a cluster with these addresses.
fn other_cluster(surf: &Surf, metads: &[String]) -> PathBuf {
    let out = surf.scratch().join("other");
    let made = ["cluster", "init", "--name", "other", "--replicas", "1", "--blockd", "127.0.0.1:9", "--metad"];
    let output = run(Command::new(bin("surf")).args(made).arg(metads.join(",")).arg("--out").arg(&out), LIMIT);
    assert!(output.status.success(), "{}", output.text);
    out
}

#[test]
fn a_daemon_refuses_an_identity_that_is_damaged_or_of_another_role() {
    let surf = Surf::start(Setup::Cluster);
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    let identity_of = |name: &str| read(surf.cluster_dir().join(name).join("identity.pem"));
    let other = other_cluster(&surf, &["127.0.0.1:9".to_owned()]);
    for (program, name, second) in [("metad", "metad-1", "metad-2"), ("blockd", "blockd-1", "blockd-2")] {
        let pem = surf.scratch().join("given.pem");
        let own = surf.cluster_dir().join(name).join("identity.pem");
        let config = changed(&surf, name, |whole| whole.replace(text(&own), text(&pem)));
        let with = |identity: &str, words: &[&str]| {
            fs::write(&pem, identity).unwrap();
            refused(program, &["--check-config", "--config", text(&config)], words);
            refused(program, &["--config", text(&config)], words);
        };
        let role = if program == "metad" { "blockd" } else { "metad" };
        with(&identity_of(&format!("{role}-1")), &["role", role, "check `identity`"]);
        for file in ["client.bundle", "admin.bundle"] {
            let bundle = read(surf.cluster_dir().join(file));
            with(identity_in(&bundle), &["role", &file[..file.len() - 7], "check `identity`"]);
        }
        let (whole, second) = (identity_of(name), identity_of(second));
        let [ca, certificate, key] = parts(&whole);
        let foreign = read(other.join(name).join(format!("{program}.pem")));
        let [foreign_ca, ..] = parts(&foreign);
        with("", &["given.pem", "restore"]);
        with("-----BEGIN CERTIFICATE-----\nAAAA\n", &["given.pem", "restore"]);
        with(&whole[..whole.len() / 2], &["given.pem", "restore"]);
        with(&format!("{ca}{certificate}{}", parts(&second)[2]), &["given.pem", "key", "restore"]);
        with(&format!("{foreign_ca}{certificate}{key}"), &["given.pem", "CA", "restore"]);
        with(&format!("{ca}{}{key}", altered(certificate)), &["given.pem", "restore"]);
        with(&format!("{}{certificate}{key}", altered(ca)), &["given.pem", "restore"]);
        with(&format!("{ca}{certificate}{}", altered(key)), &["given.pem", "restore"]);
        fs::write(&pem, b"\x00\xff\xfe").unwrap();
        refused(program, &["--config", text(&config)], &["given.pem", "cannot be read"]);
    }
    assert_works(&surf);
}

#[test]
fn a_daemon_refuses_a_port_and_a_directory_that_are_not_its_own() {
    let surf = Surf::start(Setup::Cluster);
    let others = other_cluster(&surf, &["127.0.0.1:9".to_owned()]);
    for program in ["metad", "blockd"] {
        let (one, two) = (format!("{program}-1"), format!("{program}-2"));
        let of_one = surf.cluster_dir().join(&one).join(format!("{program}.toml"));
        let of_two = surf.cluster_dir().join(&two).join(format!("{program}.toml"));
        let (first, second) = (surf.daemon(&one), surf.daemon(&two));
        let in_use = ["--config", text(&of_two), "--listen", "127.0.0.1:0", "--data-dir", text(&first.data_dir)];
        refused(program, &in_use, &["another", program, "data", "stop that one"]);
        surf.dev(&["stop", &one]);
        refused(program, &in_use, &["belongs to", "data_dir"]);

        // The stopped daemon releases its socket when its process is gone.
        let held = UdpSocket::bind(&first.address).unwrap();
        refused(program, &["--config", text(&of_one)], &[&first.address, "another program uses it"]);
        drop(held);

        let other = others.join(&one).join(format!("{program}.pem"));
        let own = surf.cluster_dir().join(&one).join("identity.pem");
        let issuer = |of: &Path| text(&of.with_file_name("issuer.pem")).to_owned();
        let foreign = changed(&surf, &one, |whole| {
            whole.replace(text(&own), text(&other)).replace(&issuer(&own), &issuer(&other))
        });
        refused(program, &["--config", text(&foreign)], &["belongs to", "data_dir"]);
        let plain = file(&surf, "plain", "");
        let on_plain = ["--config", text(&of_one), "--data-dir", text(&plain)];
        refused(program, &on_plain, &["plain", "cannot be used", "data_dir"]);

        let owner = first.data_dir.join(if program == "metad" { "IDENTITY" } else { "blockd.id" });
        let whole = fs::read(&owner).unwrap();
        for damaged in [&b"garbage"[..], b"\x00\xff\xfe", b""] {
            fs::write(&owner, damaged).unwrap();
            refused(program, &["--config", text(&of_one)], &[text(&owner), "restore it"]);
            assert_eq!(fs::read(&owner).unwrap(), damaged);
        }
        fs::write(&owner, whole).unwrap();
        surf.dev(&["start", &one]);
        assert!(second.data_dir.exists());
        assert_works(&surf);
    }
}

#[test]
fn a_mount_refuses_a_bundle_that_does_not_lead_into_the_cluster() {
    let surf = Surf::start(Setup::Cluster);
    let mount = surf.scratch().join("mnt");
    let cache = surf.scratch().join("cache");
    let with = |bundle: &Path, words: &[&str]| {
        refused("surfmount", &["--cluster", text(bundle), "--cache-dir", text(&cache), text(&mount)], words);
    };
    let whole = fs::read_to_string(surf.bundle()).unwrap();
    with(&surf.scratch().join("absent.bundle"), &["absent.bundle", "a bundle that `surf` made"]);
    with(Path::new("no-such-cluster"), &["/etc/surf/no-such-cluster.bundle", "a bundle that `surf` made"]);
    with(&file(&surf, "empty.bundle", ""), &["empty.bundle", "restore it"]);
    with(&file(&surf, "cut.bundle", &whole[..whole.len() / 2]), &["cut.bundle", "restore it"]);
    with(&file(&surf, "typo.bundle", whole.replace("metads", "metadz")), &["typo.bundle", "metadz"]);
    with(&file(&surf, "raw.bundle", b"\x00\xff\xfe"), &["raw.bundle", "a bundle that `surf` made"]);

    // This bundle has another identity, and is otherwise right.
    let identity = |name: &str| fs::read_to_string(surf.cluster_dir().join(name).join("identity.pem")).unwrap();
    let with_identity = |identity: &str, words: &[&str]| {
        with(&file(&surf, "changed.bundle", whole.replace(identity_in(&whole), identity)), words);
    };
    with_identity(&identity("metad-1"), &["changed.bundle", "role metad", "client.bundle"]);
    with_identity(&identity("blockd-1"), &["changed.bundle", "role blockd", "client.bundle"]);
    with(&surf.cluster_dir().join("admin.bundle"), &["role admin", "client.bundle"]);
    let [ca, certificate, key] = parts(identity_in(&whole));
    with_identity(&format!("{ca}{certificate}{}", altered(key)), &["changed.bundle", "restore"]);
    with_identity(&format!("{ca}{certificate}{}", parts(&identity("metad-1"))[2]), &["changed.bundle", "restore"]);

    // This bundle is another cluster's, with the addresses of this cluster's daemons.
    let daemons = surf.daemons().into_iter();
    let metads: Vec<String> = daemons.filter(|d| d.name.starts_with("metad")).map(|d| d.address).collect();
    let other = other_cluster(&surf, &metads);
    with(&other.join("client.bundle"), &["belongs to another cluster", "use the bundle"]);
    let status = ["status", "--wait-s", "1", "--bundle"];
    let bundle = other.join("admin.bundle");
    refused("surf", &[&status[..], &[text(&bundle)]].concat(), &["belongs to another cluster", "use the bundle"]);
    assert_works(&surf);
}

#[test]
fn the_helper_of_mount_mounts_in_the_background_as_fstab_asks() {
    let mut surf = Surf::start(Setup::Embedded);
    surf.unmount();
    let helper = kit::bins::workspace().join("packaging/mount.surf");
    let (data, mount) = (surf.data_dir(), surf.path());
    let programs = bin("surfmount").parent().unwrap().to_owned();
    let call = |options: &str| {
        let mut command = Command::new(&helper);
        command.env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
        run(command.arg("embedded").arg(&mount).args(["-n", "-o", options]), LIMIT)
    };
    let output = call(&format!("defaults,_netdev,sofft,data_dir={}", data.display()));
    assert!(!output.status.success() && output.text.contains("sofft"), "{}", output.text);
    let output = call(&format!("defaults,_netdev,data_dir={}", data.display()));
    assert!(output.status.success(), "{}", output.text);
    assert_works(&surf);
    // mount(8) calls the helper for a remount, too.
    let remount = |how: &str| {
        let output = call(&format!("rw,remount,{how},data_dir={}", data.display()));
        assert!(output.status.success(), "{}", output.text);
    };
    remount("ro");
    sh(&mount, LIMIT, "! touch refused 2> /dev/null && test ! -e refused");
    remount("rw");
    assert_works(&surf);
    // The process in the background stores what is written, and ends; a mount that follows at once waits for that.
    sh(&surf.scratch(), LIMIT, &format!("umount {}", mount.display()));
    let output = call(&format!("strictatime,nodiratime,nosuid,data_dir={}", data.display()));
    assert!(output.status.success(), "{}", output.text);
    assert_works(&surf);
    // The kernel replaces all flags, and fstab does not have those that surfmount sets by itself.
    remount("rw");
    sh(&surf.scratch(), LIMIT, &format!("grep ' {} ' /proc/self/mountinfo | grep nosuid", mount.display()));
    sh(&surf.scratch(), LIMIT, &format!("umount {}", mount.display()));
    until_unlocked(&data);
    surf.mount(&[]);
    assert_works(&surf);
}

#[test]
fn a_development_cluster_is_not_made_twice_and_knows_its_daemons() {
    let surf = Surf::start(Setup::Cluster);
    let dir = surf.cluster_dir();
    let before: Vec<u32> = surf.daemons().iter().map(|daemon| daemon.pid).collect();
    let (empty, damaged) = (surf.scratch().join("empty"), surf.scratch().join("damaged"));
    fs::create_dir(&empty).unwrap();
    fs::create_dir(&damaged).unwrap();
    fs::write(damaged.join("cluster.json"), "garbage").unwrap();
    refused("surf", &["dev", "up", "--dir", text(&dir)], &["a cluster runs here already", "surf dev down"]);
    refused("surf", &["dev", "stop", "metad-9", "--dir", text(&dir)], &["metad-9", "there are metad-1, metad-2"]);
    for command in ["down", "status"] {
        let in_dir = |dir: &Path, words: &[&str]| refused("surf", &["dev", command, "--dir", text(dir)], words);
        in_dir(&empty, &["empty", "surf dev up"]);
        in_dir(&empty.join("absent"), &["absent", "surf dev up"]);
        in_dir(&damaged, &["cluster.json", "restore it"]);
    }
    refused("surf", &["dev", "up", "--dir", text(&damaged)], &["cluster.json", "restore it"]);
    refused("surf", &["dev", "up", "--dir", text(&file(&surf, "plain", ""))], &["--dir", "plain", "cannot be made"]);
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0, "nothing is left where there is no cluster");
    refused("surf", &["dev", "up", "--metad", "0", "--dir", text(&surf.scratch().join("none"))], &["at least one"]);
    refused("surf", &["dev", "up", "--replicas", "4", "--dir", text(&surf.scratch().join("few"))], &["--replicas"]);
    let absent = surf.scratch().join("absent.bundle");
    refused("surf", &["cluster", "status", "--bundle", text(&absent)], &["absent.bundle", "a bundle that `surf` made"]);
    refused("surf", &["cluster", "status", "--bundle", text(&surf.bundle())], &["role client", "admin.bundle"]);
    let after: Vec<u32> = surf.daemons().iter().map(|daemon| daemon.pid).collect();
    assert_eq!(before, after);
    assert_works(&surf);
}

#[test]
fn a_newcomer_is_told_why_its_token_is_of_no_use_and_what_to_do() {
    let surf = Surf::start(Setup::Cluster);
    let admin = surf.cluster_dir().join("admin.bundle");
    let (out, node) = (surf.scratch().join("laptop.bundle"), surf.scratch().join("node"));
    let as_client = |token: &str, words: &[&str]| {
        refused("surf", &["client", "enroll", token, "--out", text(&out)], words);
        assert!(!out.exists());
    };
    let create = |more: &[&str], words: &[&str]| {
        refused("surf", &[&["token", "create", "--bundle", text(&admin)], more].concat(), words);
    };
    as_client("nonsense", &["no token", "surf token create"]);
    let good = token(&surf, &["--role", "client"]);
    as_client(&good[..good.len() - 3], &["damaged", "copy it whole"]);
    refused("surf", &["node", "enroll", &good, "--out", text(&node)], &["for a client", "surf client enroll"]);
    let blockd = token(&surf, &["--role", "blockd", "--name", "blockd-9"]);
    as_client(&blockd, &["for a blockd", "surf node enroll"]);

    // Somebody else could have made it.
    let pending = surf.scratch().join("laptop.bundle.key");
    fs::write(&pending, "a key that others know").unwrap();
    as_client(&good, &["laptop.bundle.key", "others may read", "remove it"]);
    fs::remove_file(&pending).unwrap();
    surf_says(&["client", "enroll", &good, "--out", text(&out)]);
    refused("surf", &["client", "enroll", &good, "--out", text(&out)], &["is there already", "--out"]);
    fs::remove_file(&out).unwrap();
    as_client(&good, &["used up", "surf token create", "--uses"]);
    fs::remove_file(&pending).unwrap();

    let listed = surf_says(&["token", "list", "--bundle", text(&admin), "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let valid = listed.as_array().unwrap().iter().find(|one| one["state"] == "valid").unwrap();
    assert_eq!((&valid["role"], &valid["name"]), (&"blockd".into(), &"blockd-9".into()));
    let id = valid["id"].as_str().unwrap();
    let files = ["--out", text(&node), "--listen", "127.0.0.1:7999"];
    surf_says(&[&["node", "enroll", &blockd], &files[..]].concat());
    let config = node.join("blockd.toml");
    let checked = run(Command::new(bin("blockd")).arg("--check-config").arg("--config").arg(&config), LIMIT);
    assert!(checked.status.success(), "{}", checked.text);
    surf_says(&["token", "revoke", id, "--bundle", text(&admin)]);
    fs::remove_dir_all(&node).unwrap();
    refused("surf", &["node", "enroll", &blockd, "--out", text(&node)], &["was revoked", "surf token create"]);

    create(&["--role", "metad"], &["--name", "metad-4"]);
    create(&["--role", "client", "--confine", "home"], &["absolute path"]);
    create(&["--role", "client", "--uses", "1001"], &["1 to 1000"]);
    create(&["--role", "client", "--valid", "8d"], &["7 days"]);
    let ca = surf.cluster_dir().join("ca.pem");
    refused("surf", &["cluster", "issuer", text(&ca), "--ca", text(&ca)], &["ca.pem", "choose another name"]);
    assert_works(&surf);
}
