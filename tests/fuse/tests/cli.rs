//! Bad input: one clear line that says what to do, an exit code that is not 0, and nothing damaged.
#![allow(missing_docs)]

use kit::bins::bin;
use kit::command::run;
use kit::{Setup, Surf, sh};
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What is refused is refused at once; a loaded machine takes its time.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program that must refuse, in one line that begins with its name and holds these words.
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

/// A line of a daemon's log: it begins with the time.
fn is_log(line: &str) -> bool {
    line.as_bytes().first().is_some_and(u8::is_ascii_digit) && line.contains("Z ")
}

/// Whether the mount still does its work.
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
    refused("surfmount", &["--data-dir", text(&fresh), text(&plain)], &["plain", "not a directory"]);
    refused("surfmount", &["--data-dir", text(&fresh), text(&plain.join("below"))], &["cannot be used"]);
    refused("surfmount", &["--data-dir", text(&fresh), text(&mounted)], &["is mounted there", "unmount it first"]);
    refused("surfmount", &["--data-dir", text(&data), text(&other)], &["another process uses this data directory"]);
    refused("surfmount", &["--data-dir", text(&plain), text(&other)], &["plain"]);
    refused("surfmount", &["--data-dir", text(&other.join("data")), text(&other)], &["below the mount point"]);
    refused("surfmount", &["-o", "sofft", text(&other)], &["sofft", "unknown option"]);
    refused("surfmount", &["--daemon", "--data-dir", text(&data), text(&other)], &["another process uses"]);
    assert!(!fresh.exists(), "nothing was begun");
    assert_works(&surf);
}

#[test]
fn a_damaged_embedded_cluster_is_told_and_left_as_it_is() {
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
        config(&file(&surf, "changed.toml", b"\x00\xff\xfe\x80"), &["changed.toml"]);
        config(&surf.scratch().join("absent.toml"), &["absent.toml"]);
        let other = if program == "metad" { "blockd-1" } else { "metad-1" };
        let identity = |whole: &str| whole.replace(&format!("{name}/identity"), &format!("{other}/identity"));
        config(&changed(&surf, name, identity), &["role"]);
        let pem = file(&surf, "broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
        let own = surf.cluster_dir().join(name).join("identity.pem");
        config(&changed(&surf, name, |whole| whole.replace(text(&own), text(&pem))), &["broken.pem"]);
    }
    assert_works(&surf);
}

#[test]
fn a_daemon_refuses_a_port_and_a_directory_that_are_not_its_own() {
    let surf = Surf::start(Setup::Cluster);
    for program in ["metad", "blockd"] {
        let (one, two) = (format!("{program}-1"), format!("{program}-2"));
        let of_one = surf.cluster_dir().join(&one).join(format!("{program}.toml"));
        let of_two = surf.cluster_dir().join(&two).join(format!("{program}.toml"));
        let (first, second) = (surf.daemon(&one), surf.daemon(&two));
        let in_use = ["--config", text(&of_two), "--listen", "127.0.0.1:0", "--data-dir", text(&first.data_dir)];
        refused(program, &in_use, &["another", program, "data"]);
        surf.dev(&["stop", &one]);
        refused(program, &in_use, &["belongs to", "data_dir"]);

        // The daemon that was stopped lets go of its socket when its process is gone.
        let held = UdpSocket::bind(&first.address).unwrap();
        refused(program, &["--config", text(&of_one)], &[&first.address, "another program uses it"]);
        drop(held);

        let owner = first.data_dir.join(if program == "metad" { "IDENTITY" } else { "blockd.id" });
        let whole = fs::read(&owner).unwrap();
        fs::write(&owner, "garbage").unwrap();
        refused(program, &["--config", text(&of_one)], &["restore it"]);
        assert_eq!(fs::read(&owner).unwrap(), b"garbage");
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
    let with = |bundle: &Path, words: &[&str]| {
        refused("surfmount", &["--cluster", text(bundle), text(&mount)], words);
    };
    let whole = fs::read_to_string(surf.bundle()).unwrap();
    with(&surf.scratch().join("absent.bundle"), &["absent.bundle"]);
    with(&file(&surf, "empty.bundle", ""), &["empty.bundle"]);
    with(&file(&surf, "cut.bundle", &whole[..whole.len() / 2]), &["cut.bundle"]);
    with(&file(&surf, "typo.bundle", whole.replace("metads", "metadz")), &["typo.bundle", "metadz"]);
    with(&file(&surf, "raw.bundle", b"\x00\xff\xfe"), &["raw.bundle"]);

    // An identity of another role, in a bundle that is otherwise right.
    let pem = |name: &str| fs::read_to_string(surf.cluster_dir().join(name).join("identity.pem")).unwrap();
    let (start, end) = (whole.find("-----BEGIN").unwrap(), whole.rfind("\"\"\"").unwrap());
    for name in ["metad-1", "blockd-1"] {
        let wrong = format!("{}{}{}", &whole[..start], pem(name), &whole[end..]);
        with(&file(&surf, "role.bundle", wrong), &["role"]);
    }

    // Another cluster's, led to this one's daemons.
    let out = surf.scratch().join("other");
    let made = ["cluster", "init", "--name", "other", "--replicas", "1", "--blockd", "127.0.0.1:9"];
    let metads: Vec<String> =
        surf.daemons().into_iter().filter(|d| d.name.starts_with("metad")).map(|d| d.address).collect();
    let output =
        run(Command::new(bin("surf")).args(made).args(["--metad", &metads.join(","), "--out"]).arg(&out), LIMIT);
    assert!(output.status.success(), "{}", output.text);
    with(&out.join("client.bundle"), &["cluster"]);
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
    // The process in the background stores what is written, and ends.
    sh(&surf.scratch(), LIMIT, &format!("umount {}", mount.display()));
    let find = format!("surfmount .*{}", mount.display());
    kit::until("the process in the background ends", LIMIT, || {
        (!run(Command::new("pgrep").args(["-f", &find]), LIMIT).status.success()).then_some(())
    });
    surf.mount(&[]);
    assert_works(&surf);
}

#[test]
fn a_development_cluster_is_not_made_twice_and_knows_its_daemons() {
    let surf = Surf::start(Setup::Cluster);
    let dir = surf.cluster_dir();
    let before: Vec<u32> = surf.daemons().iter().map(|daemon| daemon.pid).collect();
    refused("surf", &["dev", "stop", "metad-9", "--dir", text(&dir)], &["metad-9"]);
    refused("surf", &["dev", "down", "--dir", text(&surf.scratch())], &["scratch"]);
    refused("surf", &["dev", "up", "--metad", "0", "--dir", text(&surf.scratch().join("none"))], &["at least one"]);
    refused("surf", &["dev", "up", "--replicas", "4", "--dir", text(&surf.scratch().join("few"))], &["--replicas"]);
    refused("surf", &["cluster", "status", "--bundle", text(&surf.scratch().join("no"))], &["no"]);
    refused("surf", &["cluster", "status", "--bundle", text(&surf.bundle())], &["role"]);
    let after: Vec<u32> = surf.daemons().iter().map(|daemon| daemon.pid).collect();
    assert_eq!(before, after);
    assert_works(&surf);
}
