#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xent_fuzz::compare::run(data));
