// quant/unit: what the readers of every storage format share.
//
// A unit is eight columns of one weight row, as two runs of four: the smallest piece one lane decodes. Formats that
// keep two elements per byte give the low nibbles as one run and the high nibbles as the other. A reader gives
//   fn read_<format>(row: u32, index: u32) -> Unit
// for row `row` of the slice and unit `index` of that row; where the slice lies, weight_* tell it. What they call
// `read_first` and `read_second` are the readers of the formats a shader is composed with.
// A slice is a plane of whole words, `row_words()` per row, and for formats whose block is not a whole number of
// words a second plane of block scales at word `tail_start()`, `tail_words()` per row.
// Where a product is followed by a sum a reader says fma: no compiler may choose, so every shader decodes the same bits.

struct Unit {
    low: vec4<f32>,
    high: vec4<f32>,
    low_column: u32,
    high_column: u32,
}

// The four bytes of a word, first byte first.
fn bytes_of(word: u32) -> vec4<u32> {
    return (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
}

// The same, as two's complement.
fn signed_bytes_of(word: u32) -> vec4<i32> {
    return vec4<i32>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u);
}

// One byte of a word.
fn byte_of(word: u32, index: u32) -> u32 {
    return (word >> (index * 8u)) & 0xffu;
}

// The f16 scale of block `block` in the tail plane.
fn tail_half(row: u32, block: u32) -> f32 {
    let both = unpack2x16float(load_word(tail_start() + row * tail_words() + block / 2u));
    return select(both.x, both.y, block % 2u == 1u);
}
