//! The hand-made bad files, and the pieces they are put together from.
//!
//! Raw bytes rather than the writer: a writer that can write bad files would be a bad writer.

pub(crate) const U8: u32 = 0;
pub(crate) const U16: u32 = 2;
pub(crate) const U32: u32 = 4;
pub(crate) const I32: u32 = 5;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STR: u32 = 8;
pub(crate) const ARRAY: u32 = 9;
pub(crate) const U64: u32 = 10;

pub(crate) const F32: u32 = 0;
pub(crate) const Q4_K: u32 = 12;
pub(crate) const MXFP4: u32 = 39;

pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    string_of_length(bytes.len() as u64, bytes)
}

fn string_of_length(length: u64, bytes: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), bytes].concat()
}

pub(crate) fn entry(key: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(key), &kind.to_le_bytes()[..], value].concat()
}

pub(crate) fn number(key: &str, value: u32) -> Vec<u8> {
    entry(key.as_bytes(), U32, &value.to_le_bytes())
}

pub(crate) fn array(key: &str, element: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    entry(key.as_bytes(), ARRAY, &[&element.to_le_bytes()[..], &count.to_le_bytes(), elements].concat())
}

pub(crate) fn tensor(name: &[u8], dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    let rank = (dims.len() as u32).to_le_bytes();
    [&string(name), &rank[..], &dims_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

pub(crate) fn header(version: u32, tensors: u64, entries: u64) -> Vec<u8> {
    [b"GGUF", &version.to_le_bytes()[..], &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
}

/// A file of these entries and tensors, padded to 32, then `data` zero bytes.
pub(crate) fn file(entries: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut bytes = header(3, tensors.len() as u64, entries.len() as u64);
    bytes.extend(entries.iter().chain(tensors).flatten());
    if !tensors.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    }
    bytes
}

pub(crate) fn one_entry(entry: Vec<u8>) -> Vec<u8> {
    file(&[entry], &[], 0)
}

pub(crate) fn one_tensor(tensor: Vec<u8>) -> Vec<u8> {
    file(&[], &[tensor], 4096)
}

/// What the file is about, its bytes, and what the error must say after the file's name.
pub(crate) type Case = (&'static str, Vec<u8>, &'static str);

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    [
        header_cases(),
        key_cases(),
        value_cases(),
        alignment_cases(),
        name_cases(),
        shape_cases(),
        type_cases(),
        placement_cases(),
        overlap_cases(),
        cut_and_split_cases(),
    ]
    .concat()
}

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
            one_entry(entry(&vec![b'a'; 65_536], U8, &[0])),
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

fn name_cases() -> Vec<Case> {
    let long_name = |length: usize| one_tensor(tensor(&vec![b'n'; length], &[1], F32, 0));
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
            "duplicate name",
            file(&[], &[tensor(b"w", &[2], F32, 0), tensor(b"w", &[2], F32, 32)], 64),
            "tensor \"w\": duplicate tensor name",
        ),
    ]
}

fn shape_cases() -> Vec<Case> {
    let shape = |dims: &[u64]| one_tensor(tensor(b"w", dims, F32, 0));
    let max = i64::MAX as u64;
    vec![
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
    ]
}

fn type_cases() -> Vec<Case> {
    let kind = |id: u32| one_tensor(tensor(b"w", &[256], id, 0));
    vec![
        ("type 4", kind(4), "tensor type 4 (removed from the format) is not supported"),
        ("type 5", kind(5), "tensor type 5 (removed"),
        ("type 31", kind(31), "tensor type 31 (removed"),
        ("type 32", kind(32), "tensor type 32 (removed"),
        ("type 33", kind(33), "tensor type 33 (removed"),
        ("type 36", kind(36), "tensor type 36 (removed"),
        ("type 37", kind(37), "tensor type 37 (removed"),
        ("type 38", kind(38), "tensor type 38 (removed"),
        ("type 23", kind(23), "tensor type 23 (IQ4_XS) is not supported"),
        ("type 9", kind(9), "tensor type 9 (Q8_1) is not supported"),
        ("type 43", kind(43), "tensor type 43 is not supported"),
        ("type u32::MAX", kind(u32::MAX), "tensor \"w\" at byte 45: tensor type 4294967295 is not supported"),
    ]
}

fn placement_cases() -> Vec<Case> {
    let at = |offset: u64| one_tensor(tensor(b"w", &[1024], F32, offset));
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
    ]
}

fn overlap_cases() -> Vec<Case> {
    let pair = |first: u64, second: u64| {
        file(&[], &[tensor(b"v", &[16], F32, first), tensor(b"w", &[16], F32, second)], 4096)
    };
    vec![
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
    ]
}

fn cut_and_split_cases() -> Vec<Case> {
    vec![
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
