// quant/q2_k: d * (s & 15) * q - dmin * (s >> 4); 21 words per block of 256: 16 bytes of sub-scales s, 64 bytes of
// two-bit q, then d and dmin (f16). Byte 32n + l of q holds elements 128n + 32j + l, j = 0..3 at bit 2j; their
// sub-scale is 8n + 2j + l / 16.
// Unit: two of the four j of one word of q.

fn read_q2_k(row: u32, index: u32) -> Unit {
    let block = index / 32u;
    let word = index % 32u / 2u;
    let j = index % 2u * 2u;
    let at = row * row_words() + block * 21u;
    let n = word / 8u;
    let l = word % 8u * 4u;
    let q = bytes_of(load_word(at + 4u + word)) >> vec4<u32>(2u * j);
    let scale = unpack2x16float(load_word(at + 20u));
    let sub = 8u * n + 2u * j + l / 16u;
    // `sub` is 0 or 1 modulo 4, so both sub-scales lie in one word.
    let subs = load_word(at + sub / 4u);
    let s_low = byte_of(subs, sub % 4u);
    let s_high = byte_of(subs, sub % 4u + 2u);
    let q_low = vec4<f32>(q & vec4<u32>(3u));
    let q_high = vec4<f32>((q >> vec4<u32>(2u)) & vec4<u32>(3u));
    let low = fma(vec4<f32>(scale.x * f32(s_low & 15u)), q_low, vec4<f32>(-scale.y * f32(s_low >> 4u)));
    let high = fma(vec4<f32>(scale.x * f32(s_high & 15u)), q_high, vec4<f32>(-scale.y * f32(s_high >> 4u)));
    let column = block * 256u + 128u * n + 32u * j + l;
    return Unit(low, high, column, column + 32u);
}
