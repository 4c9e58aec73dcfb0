// quant/q6_k: d * s * ((nibble | two high bits << 4) - 32); 52 words per block of 256: 128 bytes of nibbles, 64 bytes of
// high bits, 16 signed bytes of sub-scales s; d (f16) in the tail plane. Byte 64n + 32h + l of the nibbles holds elements
// 128n + 32g + l with g = h (low nibble) and g = h + 2 (high); their high bits are bits 2g, 2g + 1 of byte 32n + l, their
// sub-scale is 8n + 2g + l / 16.
// Unit: one word of nibbles.

fn sub_scale_q6_k(at: u32, i: u32) -> f32 {
    return f32(bitcast<i32>(load_word(at + 48u + i / 4u) << (24u - 8u * (i % 4u))) >> 24u);
}

fn read_q6_k(row: u32, index: u32) -> Unit {
    let block = index / 32u;
    let word = index % 32u;
    let at = row * row_words() + block * 52u;
    let n = word / 16u;
    let h = word / 8u % 2u;
    let l = word % 8u * 4u;
    let bytes = bytes_of(load_word(at + word));
    let top = bytes_of(load_word(at + 32u + 8u * n + word % 8u)) >> vec4<u32>(2u * h);
    let d = tail_half(row, block);
    let sub = 8u * n + 2u * h + l / 16u;
    let q_low = (bytes & vec4<u32>(15u)) | ((top & vec4<u32>(3u)) << vec4<u32>(4u));
    let q_high = (bytes >> vec4<u32>(4u)) | (top & vec4<u32>(48u));
    let low = d * sub_scale_q6_k(at, sub) * (vec4<f32>(q_low) - 32.0);
    let high = d * sub_scale_q6_k(at, sub + 4u) * (vec4<f32>(q_high) - 32.0);
    let column = block * 256u + 128u * n + 32u * h + l;
    return Unit(low, high, column, column + 64u);
}
