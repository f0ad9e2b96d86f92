#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| leafblk_fuzz::slot_leaf::run(data));
