#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzzing::identities::issuer(data);
});
