#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzzing::raft::metad_snapshot(data);
});
