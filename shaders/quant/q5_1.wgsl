// quant/q5_1: d * (nibble | fifth bit << 4) + m; 6 words per block of 32: d and m (f16), the fifth bits (bit e of the
// word belongs to element e), then 4 words of nibbles.
// Unit: one word of nibbles; low nibbles are columns 4j.. of the block, high nibbles columns 16 + 4j...

fn read_q5_1(row: u32, index: u32) -> Unit {
    let block = index / 4u;
    let element = index % 4u * 4u;
    let at = row * row_words() + block * 6u;
    let scale = unpack2x16float(load_word(at));
    let fifth = vec4<u32>(load_word(at + 1u)) >> (vec4<u32>(element) + vec4<u32>(0u, 1u, 2u, 3u));
    let bytes = bytes_of(load_word(at + 2u + index % 4u));
    let d = vec4<f32>(scale.x);
    let m = vec4<f32>(scale.y);
    let low_bits = (bytes & vec4<u32>(15u)) | ((fifth & vec4<u32>(1u)) << vec4<u32>(4u));
    let high_bits = (bytes >> vec4<u32>(4u)) | (((fifth >> vec4<u32>(16u)) & vec4<u32>(1u)) << vec4<u32>(4u));
    let column = block * 32u + element;
    return Unit(fma(d, vec4<f32>(low_bits), m), fma(d, vec4<f32>(high_bits), m), column, column + 16u);
}
