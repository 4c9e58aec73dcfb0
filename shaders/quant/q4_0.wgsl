// quant/q4_0: d * (nibble - 8); 4 words of nibbles per block of 32, d (f16) in the tail plane.
// Unit: one word; low nibbles are columns 4j.. of the block, high nibbles columns 16 + 4j...

fn read_q4_0(row: u32, index: u32) -> Unit {
    let block = index / 4u;
    let column = block * 32u + index % 4u * 4u;
    let bytes = bytes_of(load_word(row * row_words() + index));
    let d = tail_half(row, block);
    let low = d * (vec4<f32>(bytes & vec4<u32>(15u)) - 8.0);
    let high = d * (vec4<f32>(bytes >> vec4<u32>(4u)) - 8.0);
    return Unit(low, high, column, column + 16u);
}
