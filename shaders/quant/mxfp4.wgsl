// quant/mxfp4: E2M1(nibble) * 2^(E - 127); 4 words of nibbles per block of 32, E (one byte) in the tail plane.
// Unit: one word; low nibbles are columns 4j.. of the block, high nibbles columns 16 + 4j...

// Sign, two exponent bits of bias 1, one mantissa bit: 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives.
fn e2m1(codes: vec4<u32>) -> vec4<f32> {
    let magnitude = codes & vec4<u32>(7u);
    // Normal codes become binary32 by rebasing the exponent from 1 to 127; 0 and 1 are 0 and a half.
    let normal = bitcast<vec4<f32>>((magnitude << vec4<u32>(22u)) + vec4<u32>(126u << 23u));
    let value = select(normal, vec4<f32>(magnitude) * 0.5, magnitude < vec4<u32>(2u));
    return select(value, -value, codes >= vec4<u32>(8u));
}

// 2^(E - 127); E = 0 is subnormal, which a device may flush to zero.
fn e8m0(exponent: u32) -> f32 {
    return bitcast<f32>(select(exponent << 23u, 0x00400000u, exponent == 0u));
}

fn read_mxfp4(row: u32, index: u32) -> Unit {
    let block = index / 4u;
    let column = block * 32u + index % 4u * 4u;
    let bytes = bytes_of(load_word(row * row_words() + index));
    let scales = load_word(tail_start() + row * tail_words() + block / 4u);
    let scale = e8m0(byte_of(scales, block % 4u));
    let low = e2m1(bytes & vec4<u32>(15u)) * scale;
    let high = e2m1(bytes >> vec4<u32>(4u)) * scale;
    return Unit(low, high, column, column + 16u);
}
