#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzzing::apply::metad_heartbeat(data);
});
