// quant/q8_0: d * q; 8 words of signed bytes per block of 32, d (f16) in the tail plane.
// Unit: two words, columns 8j .. 8j + 8 of the block.

fn read_q8_0(row: u32, index: u32) -> Unit {
    let at = row * row_words() + index * 2u;
    let d = tail_half(row, index / 4u);
    let low = d * vec4<f32>(signed_bytes_of(load_word(at)));
    let high = d * vec4<f32>(signed_bytes_of(load_word(at + 1u)));
    return Unit(low, high, index * 8u, index * 8u + 4u);
}
