#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| leafblk_fuzz::ring::run(data));
