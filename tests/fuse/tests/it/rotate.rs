//! A new CA takes the place of the old one, and operators come back who have lost everything, as docs/operations.md says.

use crate::healing::{Load, check_all, until_state};
use crate::tokens::{surf_says, token};
use kit::bins::bin;
use kit::chance::seed;
use kit::command::run;
use kit::{Setup, Surf, sh, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn operate(surf: &Surf, args: &[&str]) -> String {
    let (text, code) = surf.operate(args);
    assert_eq!(code, 0, "surf {args:?} said: {text}");
    text
}

/// Puts an issuer of this CA in the place of that of each metad, while they run.
fn give_issuers(surf: &Surf, ca: &Path) {
    for number in 1..=3 {
        let name = format!("metad-{number}");
        let issuer = surf.scratch().join(format!("{name}-issuer.pem"));
        surf_says(&["cluster", "issuer", text(&issuer), "--ca", text(ca)]);
        fs::copy(&issuer, surf.cluster_dir().join(&name).join("issuer.pem")).unwrap();
    }
}

/// What `surf cert rotate-ca --status` says.
fn status(surf: &Surf, bundle: &Path) -> Option<serde_json::Value> {
    let (said, code) = surf.operate(&["cert", "rotate-ca", "--status", "--json", "--bundle", text(bundle)]);
    if code == 0 { serde_json::from_str(&said).ok() } else { None }
}

/// Waits until all metads sign with the CA that is last in a status, and nobody is left who has no certificate of it.
fn until_moved(surf: &Surf, bundle: &Path) {
    until("all have moved", LIMIT * 3, || {
        let status = status(surf, bundle)?;
        let issuers = status["issuers"].as_array()?;
        let all_sign = issuers.len() == 3 && issuers.iter().all(|one| one["authority"] == status["authorities"][1]);
        (all_sign && status["old"] == serde_json::json!([])).then_some(())
    });
}

/// Mounts with a bundle, which fails, and returns what is said.
fn does_not_mount(surf: &Surf, bundle: &Path) -> String {
    let dir = surf.scratch().join("refused");
    fs::create_dir_all(&dir).unwrap();
    let mut mount = Command::new(bin("surfmount"));
    mount.arg("--cluster").arg(bundle).arg("--cache-dir").arg(surf.scratch().join("cache")).arg(&dir);
    let tried = run(&mut mount, LIMIT);
    assert!(!tried.status.success(), "{}", tried.text);
    tried.text
}

#[test]
fn the_ca_is_replaced_under_load_and_a_machine_that_was_off_all_the_time_is_told_to_enroll() {
    let mut surf = Surf::start(Setup::Cluster);
    let (admin, off) = (surf.cluster_dir().join("admin.bundle"), surf.scratch().join("off.bundle"));
    fs::copy(surf.bundle(), &off).unwrap();
    let load = Load::start(&surf.path(), seed());
    let dir: PathBuf = surf.scratch().join("new-ca");
    let said = operate(&surf, &["cert", "rotate-ca", "--new", text(&dir)]);
    assert!(said.contains("is trusted beside the one in use"), "{said}");
    // Again, as after a failure.
    assert!(operate(&surf, &["cert", "rotate-ca", "--new", text(&dir)]).contains("so already"));
    let (early, code) = surf.operate(&["cert", "rotate-ca", "--finish"]);
    assert!(code != 0 && early.contains("operator's bundle of the new CA"), "{early}");
    let new_admin = dir.join("admin.bundle");
    let (early, code) = surf.operate(&["cert", "rotate-ca", "--finish", "--bundle", text(&new_admin)]);
    assert!(code != 0 && early.contains("issuer of the older CA"), "{early}");
    give_issuers(&surf, &dir.join("ca.pem"));
    until_moved(&surf, &new_admin);
    let said = operate(&surf, &["cert", "rotate-ca", "--finish", "--bundle", text(&new_admin)]);
    assert!(said.contains("has taken the place"), "{said}");
    fs::copy(&new_admin, &admin).unwrap();
    let files = load.end();
    assert!(files.len() > 20, "{} files", files.len());
    check_all(&surf, &files);
    // Daemons start again with what they have.
    for name in ["blockd-1", "metad-2"] {
        surf.dev(&["stop", name]);
        surf.dev(&["start", name]);
    }
    until_state(&surf, "blockd-1", "up");
    sh(&surf.path(), LIMIT, "echo more > more && sync more");
    surf.unmount();
    surf.mount(&[]);
    sh(&surf.path(), LIMIT, "test \"$(cat more)\" = more");
    let told = does_not_mount(&surf, &off);
    assert!(told.contains("another CA of this one") && told.contains("by a token"), "{told}");
    let given = token(&surf, &["--role", "client"]);
    let bundle = surf.bundle();
    fs::remove_file(&bundle).unwrap();
    surf_says(&["client", "enroll", &given, "--out", text(&bundle)]);
    let again = surf.mount_again(&[]);
    sh(&again.path(), LIMIT, "test \"$(cat more)\" = more");
}

/// The recipe "The last operator's bundle is lost".
#[test]
fn an_operator_who_has_lost_the_last_bundle_comes_back_with_the_ca_and_locks_the_lost_one_out() {
    let surf = Surf::start(Setup::Cluster);
    let (admin, made) = (surf.cluster_dir().join("admin.bundle"), surf.scratch().join("new.bundle"));
    let ca = surf.cluster_dir().join("ca.pem");
    let metad = surf.daemon("metad-1").address;
    surf_says(&[
        "cert",
        "issue",
        text(&made),
        "--ca",
        text(&ca),
        "--role",
        "admin",
        "--name",
        "admin-2",
        "--metad",
        &metad,
    ]);
    surf_says(&["cert", "revoke", "--bundle", text(&made), "--role", "admin", "admin"]);
    let (refused, code) = surf.operate(&["cert", "list"]);
    assert!(code != 0 && refused.contains("was revoked"), "{refused}");
    fs::copy(&made, &admin).unwrap();
    operate(&surf, &["cert", "list"]);
}

/// The recipe "The CA and all operators are lost".
#[test]
fn a_cluster_that_has_lost_its_ca_and_all_operators_goes_on_with_its_data_under_a_ca_made_for_it() {
    let mut surf = Surf::start(Setup::Cluster);
    sh(&surf.path(), LIMIT, "echo kept > file && sync file");
    surf.unmount();
    let addresses: Vec<String> = (1..=3).map(|n| surf.daemon(&format!("metad-{n}")).address).collect();
    surf.dev(&["down"]);
    fs::remove_file(surf.cluster_dir().join("ca.pem")).unwrap();
    let (ca, home) = (surf.scratch().join("ca.pem"), surf.cluster_dir());
    surf_says(&["cert", "make-ca", text(&ca), "--like", text(&home.join("metad-1/identity.pem"))]);
    for role in ["metad", "blockd"] {
        for number in 1..=3 {
            let name = format!("{role}-{number}");
            let own = home.join(&name).join("identity.pem");
            fs::remove_file(&own).unwrap();
            surf_says(&["cert", "issue", text(&own), "--ca", text(&ca), "--role", role, "--name", &name]);
            let issuer = home.join(&name).join("issuer.pem");
            if role == "metad" {
                fs::remove_file(&issuer).unwrap();
                surf_says(&["cluster", "issuer", text(&issuer), "--ca", text(&ca)]);
            }
        }
    }
    for role in ["admin", "client"] {
        let bundle = home.join(format!("{role}.bundle"));
        fs::remove_file(&bundle).unwrap();
        let metads = addresses.join(",");
        surf_says(&[
            "cert",
            "issue",
            text(&bundle),
            "--ca",
            text(&ca),
            "--role",
            role,
            "--name",
            role,
            "--metad",
            &metads,
        ]);
    }
    surf.dev(&["up"]);
    surf.mount(&[]);
    sh(&surf.path(), LIMIT, "test \"$(cat file)\" = kept && echo new > new && sync new");
    operate(&surf, &["cert", "list"]);
}
