#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzzing::messages::blockd_revoked(data);
});
