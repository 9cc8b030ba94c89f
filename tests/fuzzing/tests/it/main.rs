//! Each target for about a second by the clock, with another seed in each run; `FUZZ_SECONDS` lengthens that, and
//! `FUZZ_SEED` repeats a run. First come the inputs that have found a fault.

mod inputs;

use fuzzing::{TARGETS, corpus, runner, target};
use std::path::Path;
use std::time::Duration;

/// More memory than a target needs for inputs of some KiB, wherever the lengths in them lead.
const PEAK_MIB_MAX: u64 = 512;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a target with all known inputs, and with others until the time is over.
fn check(name: &str) {
    let target = target(name).expect("a test names a target");
    let faults = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    let seed = number("FUZZ_SEED").unwrap_or_else(rand::random);
    let known = corpus::inputs(name).into_iter().chain(corpus::regressions(name));
    let outcome = known.map(|(_, input)| runner::attempt(target, &input, &faults)).collect::<Result<Vec<bool>, _>>();
    let limit = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(1));
    let outcome = outcome.and_then(|_| runner::run(target, seed, limit, &faults));
    let run = outcome.unwrap_or_else(|fault| {
        panic!("FUZZ_SEED={seed}: {}\nmove {} to tests/fuzzing/regressions/{name}", fault.said, fault.input.display())
    });
    println!("{name}: {run:?}");
    let peak = runner::peak_mib().unwrap_or(0);
    assert!(peak <= PEAK_MIB_MAX, "FUZZ_SEED={seed}: {peak} MiB of memory were used");
}

macro_rules! tests {
    ($($target:ident $test:ident;)*) => {
        $(#[test] fn $test() { check(stringify!($target)) })*

        #[test]
        fn every_target_has_a_test() {
            let tested = [$(stringify!($target)),*];
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), tested);
        }
    };
}

tests! {
    wire_frame any_header_of_a_frame_is_read_or_refused;
    wire_meta any_message_of_or_to_metad_is_read_or_refused;
    wire_block any_message_of_or_to_blockd_is_read_or_refused;
    wire_admin any_message_of_or_to_an_operator_is_read_or_refused;
    wire_check any_message_of_a_check_is_read_or_refused;
    wire_event any_event_is_read_or_refused;
    wire_op any_operation_is_read_or_refused;
    backup any_backup_file_is_read_or_refused;
    metad_batch any_batch_is_applied_or_refused_and_leaves_a_sound_state;
    metad_replicas any_log_leads_three_replicas_to_one_state_and_the_same_answers;
    metad_heartbeat any_heartbeat_is_noted_or_refused;
    trust any_list_of_cas_is_read_or_refused;
    certificate any_certificate_is_read_or_refused;
    identity any_identity_is_read_or_refused;
    issuer any_issuer_is_read_or_refused;
    bundle any_bundle_is_read_or_refused;
    metad_owner any_owner_of_a_metads_directory_is_known_or_refused;
    blockd_owner any_owner_of_a_blockds_directory_is_known_or_refused;
    client_owner any_owner_of_a_mounts_directory_is_known_or_refused;
    raft_entry any_entry_of_the_log_is_read_or_refused;
    raft_message any_message_of_raft_is_read_or_refused;
    metad_snapshot any_snapshot_is_loaded_or_refused;
    block_record any_header_of_a_record_is_read_or_passed_over;
    block_segment any_segment_is_recovered_or_refused;
    block_hint any_hint_is_used_or_ignored;
    blockd_revoked any_list_of_what_is_revoked_is_read_or_refused;
    journal_segment any_segment_of_a_journal_is_read_or_refused;
    journal_picture any_picture_of_a_journal_is_read_or_refused;
    journal_id any_number_of_a_journal_is_read_or_refused;
    cached_block any_cached_block_is_good_or_dropped;
    metad_config any_configuration_of_a_metad_is_read_or_refused_in_one_line;
    blockd_config any_configuration_of_a_blockd_is_read_or_refused_in_one_line;
}
