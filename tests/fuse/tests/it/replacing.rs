//! `surf metad replace`, on real daemons with a mount on top.

use super::recovery::{Load, STEP_LIMIT, loaded, operate, renumber, text};
use kit::{Setup, Surf, until};
use std::fs;

#[test]
fn a_lost_metad_is_replaced_by_one_command_that_goes_on_wherever_it_was_interrupted() {
    let surf = Surf::start(Setup::Cluster);
    let load_dir = surf.path().join("load");
    let load = Load::start(&load_dir);
    load.goes_on();
    surf.kill_9("metad-3");
    let (lost, home) = (surf.daemon("metad-3"), surf.cluster_dir().join("metad-3"));
    let (ca, made) = (surf.cluster_dir().join("ca.pem"), surf.scratch().join("metad-4"));
    let args = ["--address", &lost.address, "--ca", text(&ca), "--out", text(&made)];
    // With no time to wait, it takes a single step.
    let replace = |old: &str| surf.operate(&[&["metad", "replace", old, "--timeout", "0"][..], &args].concat());

    let (said, code) = replace("7");
    assert!(code == 1 && said.contains("metad-7"), "{said}");
    let (said, code) = replace("3");
    assert!(code == 1 && said.contains("start metad-4 there"), "{said}");
    let config = fs::read_to_string(made.join("metad.toml")).expect("it was made");
    assert!(config.contains("id = 4\n") && config.contains(&lost.address) && !config.contains("initial"), "{config}");

    // The machine of the lost one gets a new disk.
    renumber(&surf, "metad-3", 4);
    fs::copy(made.join("metad.pem"), home.join("identity.pem")).expect("it can be copied");
    surf.dev(&["start", "metad-3"]);
    let mut steps = String::new();
    until("it is replaced", STEP_LIMIT, || {
        let (said, code) = replace("3");
        steps += &said;
        (code == 0).then_some(())
    });
    assert!(steps.contains("metad-4 becomes a learner") && steps.contains("never start it with its data"), "{steps}");
    assert_eq!(replace("3").1, 0, "nothing is left to do");
    let status: serde_json::Value =
        serde_json::from_str(&operate(&surf, &["cluster", "status", "--json"])).expect("it is JSON");
    let metads = status["metads"].as_array().expect("it has metads");
    let voters: Vec<u64> =
        metads.iter().filter(|one| one["voter"] == true).filter_map(|one| one["id"].as_u64()).collect();
    assert_eq!((metads.len(), voters), (3, vec![1, 2, 4]));

    // The new one counts.
    load.goes_on();
    surf.kill_9("metad-1");
    load.goes_on();
    load.end();
    assert!(!loaded(&load_dir).is_empty());

    surf.kill_9("metad-2");
    let (said, code) =
        surf.operate(&["metad", "replace", "1", "--address", "127.0.0.1:9", "--id", "9", "--wait-s", "3"]);
    assert!(code == 1 && said.contains("--force-single"), "without a majority, it says what to do: {said}");
    surf.dev(&["start", "metad-1"]);
    surf.dev(&["start", "metad-2"]);
    until("a majority is there", STEP_LIMIT, || (surf.operate(&["cluster", "status"]).1 == 0).then_some(()));
}
