//! Certificates of mounts and daemons: revoked, renewed under load, and renewed after they have ended.

use crate::healing::{Load, check_all, until_state};
use crate::tokens::{surf_says, token};
use kit::bins::bin;
use kit::chance::seed;
use kit::command::run;
use kit::{Setup, Surf, sh, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs `surf ARGS` as an operator, which must succeed.
fn operate(surf: &Surf, args: &[&str]) -> String {
    let (text, code) = surf.operate(args);
    assert_eq!(code, 0, "surf {args:?} said: {text}");
    text
}

/// Has a new client come by token, and makes mounts from now on take its bundle. Returns the bundle's file.
fn enroll(surf: &Surf) -> PathBuf {
    let token = token(surf, &["--role", "client"]);
    let bundle = surf.bundle();
    fs::remove_file(&bundle).unwrap();
    surf_says(&["client", "enroll", &token, "--out", bundle.to_str().unwrap()]);
    bundle
}

/// What `surf cert show` says of a file.
fn shown(file: &Path) -> serde_json::Value {
    serde_json::from_str(&surf_says(&["cert", "show", "--json", file.to_str().unwrap()])).unwrap()
}

#[test]
fn a_revoked_mount_is_served_nothing_more_and_others_get_its_locks() {
    let surf = Surf::start(Setup::Cluster);
    sh(&surf.path(), LIMIT, "echo first > file && touch locked && sync file");
    let bundle = enroll(&surf);
    let name = shown(&bundle)["name"].as_str().unwrap().to_owned();
    let stolen = surf.mount_again(&[]);
    sh(&stolen.path(), LIMIT, "echo second > file && sync file");
    let holder = fs::File::open(stolen.path().join("locked")).unwrap();
    holder.lock().unwrap();
    until("the other mount has the lock", LIMIT, || {
        let mut free = Command::new("flock");
        let tried = run(free.args(["-n", "locked", "true"]).current_dir(surf.path()), LIMIT);
        (!tried.status.success()).then_some(())
    });
    let revoked = Instant::now();
    let text = operate(&surf, &["cert", "revoke", &name, "--reason", "stolen"]);
    assert!(text.contains("are refused"), "{text}");
    // Its connections are closed, and nothing is served to it any more. What it has cached ends with its leases.
    until("the stolen machine reads nothing new", LIMIT, || {
        let mut reads = Command::new("ls");
        let tried = run(reads.arg("-la").arg(stolen.path()), LIMIT);
        (!tried.status.success()).then_some(())
    });
    sh(
        &surf.path(),
        LIMIT,
        "flock -w 20 locked true && test \"$(cat file)\" = second && echo third > file && sync file",
    );
    assert!(revoked.elapsed() < Duration::from_secs(30), "others waited for {:?}", revoked.elapsed());
    // Another mount with that bundle does not come up, and says why.
    let other = surf.scratch().join("other");
    fs::create_dir(&other).unwrap();
    let mut again = Command::new(bin("surfmount"));
    again.arg("--cluster").arg(&bundle).arg("--cache-dir").arg(surf.scratch().join("cache")).arg(&other);
    let tried = run(&mut again, LIMIT);
    assert!(!tried.status.success() && tried.text.contains("was revoked"), "{}", tried.text);
    let listed: serde_json::Value = serde_json::from_str(&operate(&surf, &["cert", "list", "--json"])).unwrap();
    assert_eq!(listed["issued"][0]["state"], "revoked");
    assert_eq!(listed["revoked"][0]["reason"], "stolen");
    let audit: serde_json::Value =
        serde_json::from_str(&operate(&surf, &["audit", "--json", "--since", "1h"])).unwrap();
    let events = |event: &str| audit.as_array().unwrap().iter().filter(|line| line["event"] == event).count();
    assert!(events("enrolled") == 1 && events("revoked") == 2 && events("refused") >= 1, "{audit}");
    drop(holder);
}

#[test]
fn a_mount_works_through_several_lives_of_its_certificate() {
    const LIVES: usize = 4;
    let surf = Surf::start(Setup::Cluster);
    operate(&surf, &["cluster", "set", "--cert-life", "4s"]);
    let bundle = enroll(&surf);
    let mount = surf.mount_again(&[]);
    // Another mount renews the same certificate, at the same moments, in the same file.
    let twin = surf.mount_again(&[]);
    let load = Load::start(&mount.path(), seed());
    let mut seen = vec![shown(&bundle)["ends"].to_string()];
    until("it has had several certificates", LIMIT * 2, || {
        let ends = shown(&bundle)["ends"].to_string();
        if seen.last() != Some(&ends) {
            seen.push(ends);
        }
        (seen.len() > LIVES).then_some(())
    });
    let files = load.end();
    assert!(files.len() > 20, "{} files", files.len());
    check_all(&surf, &files);
    // The same mount goes on.
    sh(&mount.path(), LIMIT, "echo more > more && sync more && test \"$(cat more)\" = more");
    sh(&twin.path(), LIMIT, "echo twin > twin && sync twin && test \"$(cat more)\" = more");
    until("nothing is left beside the bundle", LIMIT, || {
        let mut beside = fs::read_dir(bundle.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
        (!beside.any(|name| name.to_string_lossy().ends_with(".partial"))).then_some(())
    });
}

#[test]
fn everything_starts_again_after_three_lives_in_which_all_was_off() {
    const LIFE: Duration = Duration::from_secs(4);
    let mut surf = Surf::start(Setup::Cluster);
    operate(&surf, &["cluster", "set", "--cert-life", "4s"]);
    // A block daemon and a client whose certificates end.
    surf.kill_9("blockd-3");
    let home = surf.scratch().join("enrolled");
    let given = token(&surf, &["--role", "blockd", "--name", "blockd-3"]);
    surf_says(&["node", "enroll", &given, "--out", home.to_str().unwrap()]);
    let own = surf.cluster_dir().join("blockd-3/identity.pem");
    fs::copy(home.join("blockd.pem"), &own).unwrap();
    surf.dev(&["start", "blockd-3"]);
    until_state(&surf, "blockd-3", "up");
    surf.unmount();
    let lasting = fs::read(surf.bundle()).unwrap();
    let bundle = enroll(&surf);
    surf.mount(&[]);
    sh(&surf.path(), LIMIT, "echo kept > file && sync file");
    surf.unmount();
    surf.dev(&["down"]);
    // `surf dev` asks with the bundle that it has made.
    let ending = fs::read(&bundle).unwrap();
    fs::write(&bundle, lasting).unwrap();
    // The longest time of all: nobody is there to renew anything.
    std::thread::sleep(LIFE * 3);
    surf.dev(&["up"]);
    fs::write(&bundle, ending).unwrap();
    let ended = shown(&bundle)["ends"].to_string();
    surf.mount(&[]);
    assert_ne!(shown(&bundle)["ends"].to_string(), ended, "the mount has had it renewed");
    sh(&surf.path(), LIMIT, "test \"$(cat file)\" = kept && echo new > new && sync new");
    until_state(&surf, "blockd-3", "up");
}
