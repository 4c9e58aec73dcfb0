// quant/q5_k: d * sc * (nibble | fifth bit << 4) - dmin * mn; 44 words per block of 256: d and dmin (f16), 12 bytes of
// six-bit (sc, mn) pairs, 32 bytes of fifth bits, 128 bytes of nibbles. Byte 32c + l holds elements 64c + l (low nibble,
// pair 2c) and 64c + 32 + l (high, 2c + 1); their fifth bits are bits 2c and 2c + 1 of byte l.
// Unit: one word of nibbles.

// Six-bit (scale, minimum) pair j of twelve bytes.
fn scale_pair_q5_k(words: vec3<u32>, j: u32) -> vec2<f32> {
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

fn read_q5_k(row: u32, index: u32) -> Unit {
    let block = index / 32u;
    let word = index % 32u;
    let at = row * row_words() + block * 44u;
    let c = word / 8u;
    let scale = unpack2x16float(load_word(at));
    let fifth = bytes_of(load_word(at + 4u + word % 8u)) >> vec4<u32>(2u * c);
    let bytes = bytes_of(load_word(at + 12u + word));
    let words = vec3<u32>(load_word(at + 1u), load_word(at + 2u), load_word(at + 3u));
    let low_pair = scale * scale_pair_q5_k(words, 2u * c);
    let high_pair = scale * scale_pair_q5_k(words, 2u * c + 1u);
    let low_bits = (bytes & vec4<u32>(15u)) | ((fifth & vec4<u32>(1u)) << vec4<u32>(4u));
    let high_bits = (bytes >> vec4<u32>(4u)) | ((fifth & vec4<u32>(2u)) << vec4<u32>(3u));
    let low = fma(vec4<f32>(low_pair.x), vec4<f32>(low_bits), vec4<f32>(-low_pair.y));
    let high = fma(vec4<f32>(high_pair.x), vec4<f32>(high_bits), vec4<f32>(-high_pair.y));
    let column = block * 256u + 64u * c + word % 8u * 4u;
    return Unit(low, high, column, column + 32u);
}
