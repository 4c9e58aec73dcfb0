// quant/q4_k: d * sc * nibble - dmin * mn; 36 words per block of 256: d and dmin (f16), 12 bytes of six-bit (sc, mn)
// pairs, 128 bytes of nibbles. Byte 32c + l holds elements 64c + l (low nibble, pair 2c) and 64c + 32 + l (high, 2c + 1).
// Unit: one word of nibbles.

// Six-bit (scale, minimum) pair j of twelve bytes.
fn scale_pair_q4_k(words: vec3<u32>, j: u32) -> vec2<f32> {
    let i = j % 4u;
    let first = byte_of(words.x, i);
    let second = byte_of(words.y, i);
    let third = byte_of(words.z, i);
    if (j < 4u) {
        return vec2<f32>(f32(first & 63u), f32(second & 63u));
    }
    let scale = (third & 15u) | ((first >> 6u) << 4u);
    let minimum = (third >> 4u) | ((second >> 6u) << 4u);
    return vec2<f32>(f32(scale), f32(minimum));
}

fn read_q4_k(row: u32, index: u32) -> Unit {
    let block = index / 32u;
    let word = index % 32u;
    let at = row * row_words() + block * 36u;
    let c = word / 8u;
    let scale = unpack2x16float(load_word(at));
    let bytes = bytes_of(load_word(at + 4u + word));
    let words = vec3<u32>(load_word(at + 1u), load_word(at + 2u), load_word(at + 3u));
    let low_pair = scale * scale_pair_q4_k(words, 2u * c);
    let high_pair = scale * scale_pair_q4_k(words, 2u * c + 1u);
    let low = fma(vec4<f32>(low_pair.x), vec4<f32>(bytes & vec4<u32>(15u)), vec4<f32>(-low_pair.y));
    let high = fma(vec4<f32>(high_pair.x), vec4<f32>(bytes >> vec4<u32>(4u)), vec4<f32>(-high_pair.y));
    let column = block * 256u + 64u * c + word % 8u * 4u;
    return Unit(low, high, column, column + 32u);
}
