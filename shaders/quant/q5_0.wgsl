// quant/q5_0: d * ((nibble | fifth bit << 4) - 16); 5 words per block of 32: the fifth bits (bit e of the word belongs
// to element e), then 4 words of nibbles; d (f16) in the tail plane.
// Unit: one word of nibbles; low nibbles are columns 4j.. of the block, high nibbles columns 16 + 4j...

fn read_q5_0(row: u32, index: u32) -> Unit {
    let block = index / 4u;
    let element = index % 4u * 4u;
    let at = row * row_words() + block * 5u;
    let fifth = vec4<u32>(load_word(at)) >> (vec4<u32>(element) + vec4<u32>(0u, 1u, 2u, 3u));
    let bytes = bytes_of(load_word(at + 1u + index % 4u));
    let d = tail_half(row, block);
    let low_bits = (bytes & vec4<u32>(15u)) | ((fifth & vec4<u32>(1u)) << vec4<u32>(4u));
    let high_bits = (bytes >> vec4<u32>(4u)) | (((fifth >> vec4<u32>(16u)) & vec4<u32>(1u)) << vec4<u32>(4u));
    let low = d * (vec4<f32>(low_bits) - 16.0);
    let high = d * (vec4<f32>(high_bits) - 16.0);
    let column = block * 32u + element;
    return Unit(low, high, column, column + 16u);
}
