// quant/q4_1: d * nibble + m; 5 words per block of 32: d and m (f16), then 4 words of nibbles.
// Unit: one word of nibbles; low nibbles are columns 4j.. of the block, high nibbles columns 16 + 4j...

fn read_q4_1(row: u32, index: u32) -> Unit {
    let block = index / 4u;
    let column = block * 32u + index % 4u * 4u;
    let at = row * row_words() + block * 5u;
    let scale = unpack2x16float(load_word(at));
    let bytes = bytes_of(load_word(at + 1u + index % 4u));
    let d = vec4<f32>(scale.x);
    let m = vec4<f32>(scale.y);
    let low = fma(d, vec4<f32>(bytes & vec4<u32>(15u)), m);
    let high = fma(d, vec4<f32>(bytes >> vec4<u32>(4u)), m);
    return Unit(low, high, column, column + 16u);
}
