//! Any bytes at all: the reader refuses them or lets itself be used, but never panics, hangs or takes memory out of
//! proportion.
#![no_main]

#[path = "../exercise.rs"]
mod exercise;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = exercise::exercise(bytes.to_vec());
});
