//! Broken and malicious GGUF files: each hand-made one is refused by the rule it breaks, at the place it breaks it;
//! any mutation of a good one is refused or read, and nothing takes memory out of proportion to the file.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "gguf_hostile/cases.rs"]
mod cases;
#[path = "gguf_hostile/counting.rs"]
mod counting;
#[path = "../fuzz/exercise.rs"]
mod exercise;

use cases::{BOOL, F32, STR, U8, array, entry, file, header, number, one_entry, one_tensor, string, tensor};
use counting::peak_bytes;
use exercise::exercise;
use proptest::prelude::*;
use worker_orcd::gguf::{Gguf, GgufWriter};
use worker_orcd_core::DType;

fn allowance(file_length: usize) -> usize {
    4 * file_length + (1 << 20)
}

fn open(bytes: Vec<u8>) -> Result<Gguf, String> {
    let length = bytes.len();
    let (result, peak) = peak_bytes(|| Gguf::from_bytes("bad.gguf", bytes));
    assert!(peak <= allowance(length), "{peak} bytes held for a file of {length}");
    result.map_err(|error| error.to_string())
}

#[test]
fn every_hand_made_bad_file_is_refused_by_its_rule() {
    let cases = cases::all();
    assert!(cases.len() >= 80, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for (about, bytes, expected) in &cases {
        match open(bytes.clone()) {
            Ok(_) => wrong.push(format!("{about}: accepted, must say {expected:?}")),
            Err(text) if !text.starts_with("bad.gguf: ") || !text.contains(expected) => {
                wrong.push(format!("{about}: must say {expected:?}, says {text:?}"));
            }
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn unusual_good_files_are_read() {
    let gap = file(&[], &[tensor(b"w", &[4], F32, 64), tensor(b"v", &[4], F32, 0)], 80);
    let file_of_gaps = open(gap).unwrap();
    assert_eq!(file_of_gaps.tensors()[0].name(), "w", "file order is kept");
    let mut trailing = file(&[number("a", 1)], &[tensor(b"w", &[4], F32, 0)], 16);
    trailing.extend([0xaa; 99]);
    open(trailing).unwrap();
    let mut padding = file(&[], &[tensor(b"w", &[4], F32, 0)], 0);
    padding[24 + 34..].fill(0xff);
    padding.extend([0; 16]);
    open(padding).unwrap();
    open(header(2, 0, 0)).unwrap();
    open(header(3, 0, 0)).unwrap();
    open(one_entry(array("k", STR, 0, &[]))).unwrap();
    open(one_entry(entry(&vec![b'k'; 65_535], BOOL, &[1]))).unwrap();
    open(one_tensor(tensor(&[b'n'; 63], &[1, 1, 1, 1], F32, 0))).unwrap();
    for alignment in [8, 16, 64, 65_536] {
        let mut bytes = file(&[number("general.alignment", alignment)], &[tensor(b"w", &[4], F32, 0)], 0);
        bytes.resize(24 + 33 + 33 + 65_536 + 16, 0);
        let aligned = open(bytes).unwrap();
        assert_eq!(aligned.alignment(), alignment);
        let header_end: u64 = 24 + 33 + 33;
        assert_eq!(aligned.tensors()[0].offset(), header_end.next_multiple_of(u64::from(alignment)));
    }
    // A key of another length that only starts alike is no duplicate.
    open(file(&[number("a", 1), number("aa", 1), number("A", 1)], &[], 0)).unwrap();
}

#[test]
fn errors_repeat_only_the_start_of_a_long_key() {
    let text = open(one_entry(entry(&vec![b'k'; 60_000], BOOL, &[9]))).unwrap_err();
    assert!(text.len() < 300, "{} bytes", text.len());
}

#[test]
fn the_densest_headers_stay_within_the_allowance() {
    let entries: Vec<Vec<u8>> = (0..65_536).map(|at| entry(format!("{at:x}").as_bytes(), U8, &[0])).collect();
    let file_of_entries = open(file(&entries, &[], 0)).unwrap();
    assert_eq!(file_of_entries.metadata().count(), 65_536);

    let tensors: Vec<Vec<u8>> =
        (0..65_536).map(|at| tensor(format!("{at:x}").as_bytes(), &[1], F32, at * 32)).collect();
    let bytes = file(&[], &tensors, 65_536 * 32);
    assert_eq!(open(bytes.clone()).unwrap().tensors().len(), 65_536);
    // The same without data, refused only after all of the header has been read.
    open(bytes[..bytes.len() - 65_535 * 32].to_vec()).unwrap_err();

    let words = string(b"").repeat(1 << 20);
    let array_file = open(one_entry(array("k", STR, 1 << 20, &words))).unwrap();
    assert_eq!(array_file.get_str_array("k").unwrap().unwrap().count(), 1 << 20);
}

/// A small file with one of everything.
fn small_file() -> Vec<u8> {
    let mut writer = GgufWriter::to("small.gguf");
    writer.key("general.architecture", "gpt-oss").unwrap().key("general.file_type", &38_u32).unwrap();
    writer.key("a.u8", &1_u8).unwrap().key("a.i16", &-2_i16).unwrap().key("a.u64", &u64::MAX).unwrap();
    writer.key("a.f32", &0.5_f32).unwrap().key("a.f64", &1e300_f64).unwrap().key("a.flag", &true).unwrap();
    writer.key("t.tokens", ["a", "bc", "ü", ""].as_slice()).unwrap();
    writer.key("t.scores", [0.0_f32, -1.0, f32::NAN, 2.0].as_slice()).unwrap();
    writer
        .key("t.types", [1_i32, 3, 6, -1].as_slice())
        .unwrap()
        .key("t.flags", [true, false].as_slice())
        .unwrap();
    writer.tensor("norm", &[5], DType::F32).unwrap().tensor("experts", &[32, 3, 2], DType::MXFP4).unwrap();
    writer.tensor("half", &[3, 1, 1, 2], DType::F16).unwrap();
    let mut data = writer.begin(Vec::new()).unwrap();
    data.write("norm", &[0x3f; 20]).unwrap();
    data.write("experts", &[0x71; 6 * 17]).unwrap();
    data.write("half", &[0x3c; 12]).unwrap();
    data.finish().unwrap()
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let bytes = small_file();
    let good = exercise(bytes.clone()).unwrap();
    let end = good.tensors().iter().map(|tensor| tensor.offset() + tensor.bytes).max().unwrap() as usize;
    assert!(end < bytes.len(), "the last tensor is padded");
    for length in 0..end {
        let text = open(bytes[..length].to_vec()).expect_err("a cut file was read");
        assert!(text.starts_with("bad.gguf: "), "{text}");
    }
    // The padding after the last tensor may be missing.
    for length in end..bytes.len() {
        open(bytes[..length].to_vec()).unwrap();
    }
}

#[test]
fn every_byte_of_the_header_may_take_any_value() {
    let bytes = small_file();
    let start = exercise(bytes.clone()).unwrap().tensors()[0].offset() as usize;
    for at in 0..start {
        for value in [0, 1, 2, 7, 8, 9, 13, 31, 0x7f, 0x80, 0xfe, 0xff] {
            let mut mutated = bytes.clone();
            mutated[at] = value;
            let _ = exercise(mutated);
        }
    }
}

/// Overwrites the 8 bytes at `at`.
fn put(bytes: &mut [u8], at: usize, value: u64) {
    for (slot, byte) in bytes.iter_mut().skip(at).zip(value.to_le_bytes()) {
        *slot = byte;
    }
}

fn interesting() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..300_u64,
        (0..64_u32, -3..4_i64).prop_map(|(bit, delta)| (1_u64 << bit).wrapping_add_signed(delta)),
        (0..300_u64).prop_map(|delta| u64::MAX - delta),
        (2..300_u64).prop_map(|divisor| u64::MAX / divisor + 1),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16_384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_are_refused_or_read(
        edits in prop::collection::vec((0..700_usize, interesting()), 1..6),
        cut in prop::option::weighted(0.2, 0..900_usize),
    ) {
        let mut bytes = small_file();
        for (at, value) in edits {
            put(&mut bytes, at, value);
        }
        bytes.truncate(cut.unwrap_or(usize::MAX));
        let _ = open(bytes.clone());
        let _ = exercise(bytes);
    }

    #[test]
    fn shuffled_pieces_are_refused_or_read(pieces in prop::collection::vec((0..700_usize, 1..80_usize), 0..12)) {
        let whole = small_file();
        let mut bytes = whole[..24].to_vec();
        for (start, length) in pieces {
            bytes.extend(whole.iter().skip(start).take(length));
        }
        let _ = exercise(bytes);
    }

    #[test]
    fn random_bytes_after_the_magic_are_refused_or_read(
        tensors in 0..4_u64,
        entries in 0..4_u64,
        tail in prop::collection::vec(prop_oneof![4 => 0..14_u8, 1 => any::<u8>()], 0..400),
    ) {
        let _ = exercise([header(3, tensors, entries), tail].concat());
    }
}
