// quant/q3_k: d * s * (low two bits - (third bit ? 0 : 4)); 27 words per block of 256: 32 bytes of third bits, 64 bytes
// of low bits, 12 bytes of six-bit sub-scales; d (f16) in the tail plane. Byte 32n + l of the low bits holds elements
// 128n + 32j + l, j = 0..3 at bit 2j; their third bit is bit 4n + j of byte l, their sub-scale i = 8n + 2j + l / 16.
// Unit: two of the four j of one word of low bits.

// Sub-scale i of the twelve bytes: four low bits in bytes 0..8 (nibbles), two high bits in bytes 8..12, minus 32. `nibbles`
// is the word with byte i % 8, `tops` the last word.
fn sub_scale_q3_k(nibbles: u32, tops: u32, i: u32) -> f32 {
    let both = byte_of(nibbles, i % 4u);
    let low = select(both & 15u, both >> 4u, i >= 8u);
    let high = (byte_of(tops, i % 4u) >> (2u * (i / 4u))) & 3u;
    return f32(i32(low | (high << 4u)) - 32);
}

fn read_q3_k(row: u32, index: u32) -> Unit {
    let block = index / 32u;
    let word = index % 32u / 2u;
    let j = index % 2u * 2u;
    let at = row * row_words() + block * 27u;
    let n = word / 8u;
    let l = word % 8u * 4u;
    let q = bytes_of(load_word(at + 8u + word)) >> vec4<u32>(2u * j);
    let third = bytes_of(load_word(at + word % 8u)) >> vec4<u32>(4u * n + j);
    let d = tail_half(row, block);
    let sub = 8u * n + 2u * j + l / 16u;
    // `sub` is 0 or 1 modulo 4, so both sub-scales lie in the same words.
    let nibbles = load_word(at + 24u + sub % 8u / 4u);
    let tops = load_word(at + 26u);
    let q_low = (q & vec4<u32>(3u)) | ((third & vec4<u32>(1u)) << vec4<u32>(2u));
    let q_high = ((q >> vec4<u32>(2u)) & vec4<u32>(3u)) | ((third & vec4<u32>(2u)) << vec4<u32>(1u));
    let low = d * sub_scale_q3_k(nibbles, tops, sub) * (vec4<f32>(q_low) - 4.0);
    let high = d * sub_scale_q3_k(nibbles, tops, sub + 2u) * (vec4<f32>(q_high) - 4.0);
    let column = block * 256u + 128u * n + 32u * j + l;
    return Unit(low, high, column, column + 32u);
}
