//! Broken and malicious GGUF files: each hand-made one is refused by the rule it breaks, at the place it breaks it;
//! any mutation of a good one is refused or read, and nothing takes memory out of proportion to the file.

#![allow(unsafe_code, reason = "counting allocations takes a global allocator")]

#[path = "../fuzz/exercise.rs"]
mod exercise;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use exercise::exercise;
use proptest::prelude::*;
use worker_orcd::gguf::{Gguf, GgufWriter};
use worker_orcd_core::DType;

/// The system's allocator, counting per thread, so that tests beside each other do not disturb the count.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let now = NOW.get() + bytes;
    NOW.set(now);
    PEAK.set(PEAK.get().max(now));
}

// SAFETY: every call goes to `System` unchanged, which keeps the contract; the counters are plain thread-local cells
// without destructors, so that counting allocates nothing and works at any time in a thread's life.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller upholds `alloc`'s contract, which is `System`'s too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller got `pointer` from `alloc` above, hence from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes `work` held at once beyond what this thread held before.
fn peak_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    PEAK.set(before);
    let result = work();
    (result, usize::try_from(PEAK.get() - before).unwrap_or(0))
}

fn allowance(file_length: usize) -> usize {
    4 * file_length + (1 << 20)
}

fn open(bytes: Vec<u8>) -> Result<Gguf, String> {
    let length = bytes.len();
    let (result, peak) = peak_bytes(|| Gguf::from_bytes("bad.gguf", bytes));
    assert!(peak <= allowance(length), "{peak} bytes held for a file of {length}");
    result.map_err(|error| error.to_string())
}

const U8: u32 = 0;
const U16: u32 = 2;
const U32: u32 = 4;
const I32: u32 = 5;
const BOOL: u32 = 7;
const STR: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;

const F32: u32 = 0;
const Q4_K: u32 = 12;
const MXFP4: u32 = 39;

fn string(bytes: &[u8]) -> Vec<u8> {
    string_of_length(bytes.len() as u64, bytes)
}

fn string_of_length(length: u64, bytes: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), bytes].concat()
}

fn entry(key: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(key), &kind.to_le_bytes()[..], value].concat()
}

fn number(key: &str, value: u32) -> Vec<u8> {
    entry(key.as_bytes(), U32, &value.to_le_bytes())
}

fn array(key: &str, element: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    entry(key.as_bytes(), ARRAY, &[&element.to_le_bytes()[..], &count.to_le_bytes(), elements].concat())
}

fn tensor(name: &[u8], dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    let rank = (dims.len() as u32).to_le_bytes();
    [&string(name), &rank[..], &dims_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

fn header(version: u32, tensors: u64, entries: u64) -> Vec<u8> {
    [b"GGUF", &version.to_le_bytes()[..], &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
}

/// A file of these entries and tensors, padded to 32, then `data` zero bytes.
fn file(entries: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut bytes = header(3, tensors.len() as u64, entries.len() as u64);
    bytes.extend(entries.iter().chain(tensors).flatten());
    if !tensors.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    }
    bytes
}

fn one_entry(entry: Vec<u8>) -> Vec<u8> {
    file(&[entry], &[], 0)
}

fn one_tensor(tensor: Vec<u8>) -> Vec<u8> {
    file(&[], &[tensor], 4096)
}

/// What the file is about, its bytes, and what the error must say after the file's name.
type Case = (&'static str, Vec<u8>, &'static str);

fn header_cases() -> Vec<Case> {
    let with_room = |mut bytes: Vec<u8>| {
        bytes.resize(4096, 0);
        bytes
    };
    let swapped = [b"GGUF", &3_u32.to_be_bytes()[..], &[0; 16]].concat();
    vec![
        ("no bytes", vec![], "header at byte 0: 0 bytes are too few"),
        ("one byte", b"G".to_vec(), "1 bytes are too few"),
        ("the magic alone", b"GGUF".to_vec(), "header at byte 0: 4 bytes are too few"),
        ("23 bytes", header(3, 0, 0)[..23].to_vec(), "23 bytes are too few"),
        ("other magic", [b"FUGG", &header(3, 0, 0)[4..]].concat(), "magic must be \"GGUF\""),
        ("lower-case magic", [b"gguf", &header(3, 0, 0)[4..]].concat(), "magic must be"),
        ("reversed magic", [b"FUGG", &swapped[4..]].concat(), "magic must be"),
        ("another format, short", b"PK\x03\x04".to_vec(), "magic must be"),
        ("version 0", header(0, 0, 0), "header at byte 4: version must be 2 or 3, found 0"),
        ("version 1", header(1, 0, 0), "version must be 2 or 3, found 1"),
        ("version 4", header(4, 0, 0), "version must be 2 or 3, found 4"),
        ("version u32::MAX", header(u32::MAX, 0, 0), "version must be 2 or 3"),
        ("big-endian", swapped, "header at byte 4: big-endian files are not supported"),
        ("u64::MAX tensors", with_room(header(3, u64::MAX, 0)), "header at byte 8: number of tensors 1844"),
        ("tensors as a negative i64", with_room(header(3, 1 << 63, 0)), "number of tensors 9223"),
        ("tensor count that wraps", with_room(header(3, u64::MAX / 33 + 1, 0)), "number of tensors"),
        (
            "one tensor too many for the file",
            with_room(header(3, 124, 0)),
            "number of tensors 124 needs more",
        ),
        ("a tensor in no bytes", header(3, 1, 0), "number of tensors 1 needs more bytes than the 8 left"),
        (
            "u64::MAX entries",
            with_room(header(3, 0, u64::MAX)),
            "header at byte 16: number of metadata entries",
        ),
        ("entry count that wraps", with_room(header(3, 0, u64::MAX / 14 + 1)), "number of metadata entries"),
        (
            "entries and tensors too many together",
            with_room(header(3, 100, 60)),
            "number of metadata entries 60",
        ),
        ("an entry in no bytes", header(3, 0, 1), "metadata entries 1 needs more bytes than the 0 left"),
        ("65537 tensors", [header(3, 65_537, 0), vec![0; 65_537 * 33]].concat(), "limit of 65536"),
        ("65537 entries", [header(3, 0, 65_537), vec![0; 65_537 * 14]].concat(), "limit of 65536"),
    ]
}

fn key_cases() -> Vec<Case> {
    let raw_key = |length: u64, bytes: &[u8]| one_entry(string_of_length(length, bytes));
    vec![
        (
            "37 bytes with an empty key",
            one_entry(entry(b"", U8, &[0])),
            "metadata entries 1 needs more bytes than the 13 left",
        ),
        ("empty key", one_entry(entry(b"", U32, &[0; 4])), "key must not be empty"),
        ("key length u64::MAX", raw_key(u64::MAX, &[b'a'; 64]), "key length 18446744073709551615 needs more"),
        (
            "key one byte too long",
            raw_key(65, &[b'a'; 64]),
            "key length 65 needs more bytes than the 64 left",
        ),
        (
            "key of 65536 bytes",
            one_entry(entry(&[b'a'; 65_536], U8, &[0])),
            "key length 65536 is above the limit",
        ),
        ("key with NUL", one_entry(entry(b"a\0b", U8, &[0])), "found byte 0x00"),
        (
            "key with a newline",
            one_entry(entry(b"a\nb", U8, &[0])),
            "metadata entry 0 at byte 32: key may hold",
        ),
        ("key with a space", one_entry(entry(b"a b", U8, &[0])), "found byte 0x20"),
        ("key not UTF-8", one_entry(entry(b"\xff\xfe", U8, &[0])), "found byte 0xff"),
        ("key in Greek", one_entry(entry("κ".as_bytes(), U8, &[0])), "visible ASCII"),
        (
            "duplicate key",
            file(&[number("a", 1), number("b", 1), number("a", 2)], &[], 0),
            "key \"a\" at byte 66: duplicate key",
        ),
        (
            "duplicate key of other type",
            file(&[number("a", 1), entry(b"a", BOOL, &[1])], &[], 0),
            "key \"a\" at byte 49: duplicate key",
        ),
        ("type 13", one_entry(entry(b"k", 13, &[0; 8])), "key \"k\" at byte 33: value type 13 is unknown"),
        ("type u32::MAX", one_entry(entry(b"k", u32::MAX, &[0; 8])), "value type 4294967295 is unknown"),
        ("value cut off", one_entry(entry(b"k", U64, &[0; 7])), "file ends here: 8 bytes needed, 7 left"),
        (
            "bool of 2",
            one_entry(entry(b"k", BOOL, &[2])),
            "key \"k\" at byte 37: bool must be 0 or 1, found 2",
        ),
        ("bool of 255", one_entry(entry(b"k", BOOL, &[255])), "bool must be 0 or 1, found 255"),
        (
            "second entry missing",
            header(3, 0, 2).into_iter().chain(number("aaaaaaaaaaaa", 1)).collect(),
            "metadata entry 1",
        ),
    ]
}

fn value_cases() -> Vec<Case> {
    let text = |length: u64, bytes: &[u8]| one_entry(entry(b"k", STR, &string_of_length(length, bytes)));
    let long = vec![b'x'; (16 << 20) + 1];
    let long_token = vec![b'x'; (64 << 10) + 1];
    vec![
        ("string of u64::MAX bytes", text(u64::MAX, b"abc"), "string length 18446744073709551615 needs more"),
        ("string length that wraps with one", text(u64::MAX - 1, b"abc"), "string length"),
        ("string one byte too long", text(4, b"abc"), "string length 4 needs more bytes than the 3 left"),
        ("string of 1 TiB", text(1 << 40, b"abc"), "string length 1099511627776 needs more"),
        ("string above 16 MiB", text(long.len() as u64, &long), "string length 16777217 is above the limit"),
        ("string not UTF-8", text(3, b"a\xc3("), "key \"k\" at byte 45: string is not valid UTF-8"),
        ("string with a surrogate", text(3, b"\xed\xa0\x80"), "string is not valid UTF-8"),
        ("string without length", one_entry(entry(b"k", STR, &[0; 7])), "file ends here: 8 bytes needed"),
        ("element type 13", one_entry(array("k", 13, 1, &[0; 8])), "array element type 13 is unknown"),
        ("element type u32::MAX", one_entry(array("k", u32::MAX, 0, &[])), "array element type 4294967295"),
        ("nested array", one_entry(array("k", ARRAY, 1, &[0; 16])), "key \"k\" at byte 37: nested arrays"),
        (
            "array without element type",
            one_entry(entry(b"k", ARRAY, &[0; 3])),
            "file ends here: 4 bytes needed",
        ),
        ("array without count", one_entry(entry(b"k", ARRAY, &[0; 8])), "file ends here: 8 bytes needed"),
        ("u64::MAX elements", one_entry(array("k", U8, u64::MAX, &[0; 8])), "array length 1844674407"),
        (
            "count times width wraps to 8",
            one_entry(array("k", U64, (1 << 61) + 1, &[0; 8])),
            "array length 2305",
        ),
        (
            "string count times 8 wraps",
            one_entry(array("k", STR, (1 << 61) + 1, &[0; 8])),
            "array length 2305",
        ),
        (
            "one element too many",
            one_entry(array("k", U32, 3, &[0; 11])),
            "array length 3 needs more bytes than the 11",
        ),
        (
            "one string too many",
            one_entry(array("k", STR, 2, &[0; 15])),
            "array length 2 needs more bytes than the 15",
        ),
        (
            "strings longer than the file",
            one_entry(array("k", STR, 1, &string_of_length(9, b"a"))),
            "string length 9 needs more",
        ),
        (
            "2^24 + 1 elements",
            one_entry(array("k", U8, (1 << 24) + 1, &vec![0; (1 << 24) + 1])),
            "limit of 16777216",
        ),
        (
            "token above 64 KiB",
            one_entry(array("k", STR, 1, &string(&long_token))),
            "string length 65537 is above the limit",
        ),
        (
            "second token not UTF-8",
            one_entry(array("tokenizer.ggml.tokens", STR, 2, &[string(b"ok"), string(b"\x80")].concat())),
            "key \"tokenizer.ggml.tokens\" at byte 87: string 1 of the array is not valid UTF-8",
        ),
        ("bool array with a 2", one_entry(array("k", BOOL, 3, &[0, 1, 2])), "bool must be 0 or 1, found 2"),
    ]
}

fn alignment_cases() -> Vec<Case> {
    const KEY: &str = "general.alignment";
    let aligned = |value: u32| file(&[number(KEY, value)], &[tensor(b"w", &[2], F32, 0)], 4096);
    vec![
        ("alignment 0", aligned(0), "key \"general.alignment\" at byte 53: alignment must be a power of two"),
        ("alignment 1", aligned(1), "from 8 to 65536, found 1"),
        ("alignment 3", aligned(3), "found 3"),
        ("alignment 4", aligned(4), "found 4"),
        ("alignment 13", aligned(13), "found 13"),
        ("alignment 48", aligned(48), "found 48"),
        ("alignment 131072", aligned(131_072), "found 131072"),
        ("alignment 2^31", aligned(1 << 31), "found 2147483648"),
        ("alignment u32::MAX", aligned(u32::MAX), "found 4294967295"),
        ("alignment 13 without tensors", one_entry(number(KEY, 13)), "found 13"),
        (
            "alignment as i32",
            one_entry(entry(KEY.as_bytes(), I32, &32_i32.to_le_bytes())),
            "of type u32, found i32",
        ),
        (
            "alignment as u64",
            one_entry(entry(KEY.as_bytes(), U64, &32_u64.to_le_bytes())),
            "of type u32, found u64",
        ),
        (
            "alignment as u16",
            one_entry(entry(KEY.as_bytes(), U16, &32_u16.to_le_bytes())),
            "of type u32, found u16",
        ),
        (
            "alignment as string",
            one_entry(entry(KEY.as_bytes(), STR, &string(b"32"))),
            "of type u32, found string",
        ),
        ("alignment as array", one_entry(array(KEY, U32, 1, &32_u32.to_le_bytes())), "found array of u32"),
        (
            "data laid out for 8 in a file aligned to 32",
            file(&[], &[tensor(b"v", &[2], F32, 0), tensor(b"w", &[2], F32, 8)], 64),
            "tensor \"w\": data offset 8 is not a multiple of the alignment 32",
        ),
        (
            "data laid out for 32 in a file aligned to 64",
            file(&[number(KEY, 64)], &[tensor(b"v", &[2], F32, 0), tensor(b"w", &[2], F32, 32)], 128),
            "offset 32 is not a multiple of the alignment 64",
        ),
    ]
}

fn tensor_cases() -> Vec<Case> {
    let shape = |dims: &[u64]| one_tensor(tensor(b"w", dims, F32, 0));
    let kind = |id: u32| one_tensor(tensor(b"w", &[256], id, 0));
    let long_name = |length: usize| one_tensor(tensor(&vec![b'n'; length], &[1], F32, 0));
    let max = i64::MAX as u64;
    vec![
        (
            "empty name",
            one_tensor(tensor(b"", &[1], F32, 0)),
            "tensor entry 0 at byte 32: tensor name must not be empty",
        ),
        ("name of 64 bytes", long_name(64), "tensor name length 64 is above the limit of 63"),
        ("name of 1 MiB", long_name(1 << 20), "tensor name length 1048576 is above the limit"),
        (
            "name longer than the file",
            one_tensor(string_of_length(u64::MAX, &[b'n'; 40])),
            "tensor name length 1844",
        ),
        (
            "name not UTF-8",
            one_tensor(tensor(b"w\xff", &[1], F32, 0)),
            "tensor entry 0 at byte 32: string is not valid UTF-8",
        ),
        (
            "name with an escape",
            one_tensor(tensor(b"\x1b[31m", &[1], F32, 0)),
            "may not hold control characters",
        ),
        (
            "no dimensions",
            shape(&[]),
            "tensor \"w\" at byte 33: number of dimensions must be 1 to 4, found 0",
        ),
        ("five dimensions", shape(&[1; 5]), "number of dimensions must be 1 to 4, found 5"),
        (
            "u32::MAX dimensions",
            one_tensor([string(b"w"), u32::MAX.to_le_bytes().to_vec(), vec![1; 64]].concat()),
            "must be 1 to 4, found 4294967295",
        ),
        ("first dimension 0", shape(&[0]), "dimension 0 must be at least 1"),
        ("second dimension 0", shape(&[32, 0]), "dimension 1 must be at least 1"),
        ("fourth dimension 0", shape(&[1, 1, 1, 0]), "dimension 3 must be at least 1"),
        ("dimension -1", shape(&[u64::MAX]), "dimension 0 is 18446744073709551615, above 2^63 - 1"),
        ("dimension 2^63", shape(&[1, 1 << 63]), "dimension 1 is 9223372036854775808"),
        ("elements overflow u64", shape(&[1 << 32, 1 << 32]), "number of elements overflows"),
        ("elements wrap to 0", shape(&[1 << 62, 4]), "number of elements overflows"),
        ("two of 4 * i32::MAX", shape(&[0x1_ffff_fffc; 2]), "number of elements overflows"),
        ("elements above i64", shape(&[1 << 62, 2]), "number of elements overflows"),
        ("size overflows", shape(&[max / 2]), "size in bytes overflows"),
        (
            "size of a 64-bit tensor overflows",
            one_tensor(tensor(b"w", &[u64::MAX / 8], 27, 0)),
            "tensor type 27 (I64)",
        ),
        ("quant size overflows", one_tensor(tensor(b"w", &[max - 31, 1], 8, 0)), "size in bytes overflows"),
        (
            "row of 33 in MXFP4",
            one_tensor(tensor(b"w", &[33], MXFP4, 0)),
            "rows of 33 elements are not whole quant blocks of 32 (MXFP4)",
        ),
        (
            "row of 16 in MXFP4, total whole",
            one_tensor(tensor(b"w", &[16, 2], MXFP4, 0)),
            "rows of 16 elements",
        ),
        (
            "row of 128 in Q4_K, total whole",
            one_tensor(tensor(b"w", &[128, 2], Q4_K, 0)),
            "quant blocks of 256 (Q4_K)",
        ),
        ("row of 2880 in Q4_K", one_tensor(tensor(b"w", &[2880], Q4_K, 0)), "rows of 2880 elements"),
        ("type 4", kind(4), "tensor type 4 (removed from the format) is not supported"),
        ("type 5", kind(5), "tensor type 5 (removed"),
        ("type 31", kind(31), "tensor type 31 (removed"),
        ("type 33", kind(33), "tensor type 33 (removed"),
        ("type 36", kind(36), "tensor type 36 (removed"),
        ("type 38", kind(38), "tensor type 38 (removed"),
        ("type 23", kind(23), "tensor type 23 (IQ4_XS) is not supported"),
        ("type 9", kind(9), "tensor type 9 (Q8_1) is not supported"),
        ("type 43", kind(43), "tensor type 43 is not supported"),
        ("type u32::MAX", kind(u32::MAX), "tensor \"w\" at byte 45: tensor type 4294967295 is not supported"),
        (
            "duplicate name",
            file(&[], &[tensor(b"w", &[2], F32, 0), tensor(b"w", &[2], F32, 32)], 64),
            "tensor \"w\": duplicate tensor name",
        ),
    ]
}

fn placement_cases() -> Vec<Case> {
    let at = |offset: u64| one_tensor(tensor(b"w", &[1024], F32, offset));
    let pair = |first: u64, second: u64| {
        file(&[], &[tensor(b"v", &[16], F32, first), tensor(b"w", &[16], F32, second)], 4096)
    };
    vec![
        ("offset u64::MAX", at(u64::MAX), "data offset 18446744073709551615 is not a multiple"),
        ("offset that wraps when aligned", at(u64::MAX - 31), "reaches beyond the end of the file"),
        ("offset 2^63", at(1 << 63), "reaches beyond the end"),
        ("offset 1", at(1), "data offset 1 is not a multiple of the alignment 32"),
        ("offset 16", at(16), "data offset 16 is not a multiple"),
        (
            "data beyond the file by one row",
            at(32),
            "data of 4096 bytes at offset 32 reaches beyond the end of the file",
        ),
        (
            "data beyond the file by one byte",
            file(&[], &[tensor(b"w", &[4], F32, 0)], 15),
            "tensor \"w\": data of 16 bytes at offset 0 reaches beyond the end of the file (79 bytes)",
        ),
        ("no data at all", file(&[], &[tensor(b"w", &[4], F32, 0)], 0), "data of 16 bytes at offset 0"),
        (
            "2^60 bytes of data",
            one_tensor(tensor(b"w", &[1 << 58], F32, 0)),
            "data of 1152921504606846976 bytes",
        ),
        (
            "sizes whose sum wraps",
            {
                let dims = [0x1fff_ffff_ffff_fff8];
                file(&[], &[tensor(b"v", &dims, F32, 0), tensor(b"w", &dims, F32, 0x7fff_ffff_ffff_ffe0)], 64)
            },
            "tensor \"v\": data of 9223372036854775776 bytes",
        ),
        ("same place twice", pair(0, 0), "data overlaps that of tensor"),
        ("overlap by half", pair(0, 32), "tensor \"w\": data overlaps that of tensor \"v\""),
        ("overlap in reverse order", pair(32, 0), "tensor \"v\": data overlaps that of tensor \"w\""),
        (
            "one within another",
            {
                let big = tensor(b"big", &[256], F32, 0);
                file(&[], &[big, tensor(b"w", &[8], F32, 512)], 4096)
            },
            "tensor \"w\": data overlaps that of tensor \"big\"",
        ),
        (
            "header ends in the padding",
            {
                let mut bytes = file(&[], &[tensor(b"w", &[4], F32, 0)], 0);
                bytes.truncate(24 + 33);
                bytes
            },
            "reaches beyond the end",
        ),
        (
            "tensor entry cut off",
            {
                let mut bytes = file(&[], &[tensor(b"w", &[1, 1], F32, 0)], 0);
                bytes.truncate(24 + 33);
                bytes
            },
            "tensor \"w\" at byte 57: file ends here: 8 bytes needed, 0 left",
        ),
        (
            "split part in memory",
            one_entry(entry(b"split.count", U16, &2_u16.to_le_bytes())),
            "split into 2 files",
        ),
        ("split count that does not fit", one_entry(number("split.count", 70_000)), "70000 does not fit u16"),
        (
            "split count as string",
            one_entry(entry(b"split.count", STR, &string(b"2"))),
            "must be an integer, found string",
        ),
    ]
}

#[test]
fn every_hand_made_bad_file_is_refused_by_its_rule() {
    let cases =
        [header_cases(), key_cases(), value_cases(), alignment_cases(), tensor_cases(), placement_cases()]
            .concat();
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
    open(one_entry(entry(&[b'k'; 65_535], BOOL, &[1]))).unwrap();
    open(one_tensor(tensor(&[b'n'; 63], &[1, 1, 1, 1], F32, 0))).unwrap();
    for alignment in [8, 16, 64, 65_536] {
        let mut bytes = file(&[number("general.alignment", alignment)], &[tensor(b"w", &[4], F32, 0)], 0);
        bytes.resize(24 + 33 + 33 + 65_536 + 16, 0);
        assert_eq!(open(bytes).unwrap().alignment(), alignment);
    }
    // A key of another length that only starts alike is no duplicate.
    open(file(&[number("a", 1), number("aa", 1), number("A", 1)], &[], 0)).unwrap();
}

#[test]
fn errors_repeat_only_the_start_of_a_long_key() {
    let text = open(one_entry(entry(&[b'k'; 60_000], BOOL, &[9]))).unwrap_err();
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
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

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
