// quant/bf16: columns 8u .. 8u + 8 of unit u are four words of two; rows are padded with zeros to whole units.

fn pair_of(word: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2<u32>(word << 16u, word & 0xffff0000u));
}

fn read_bf16(row: u32, index: u32) -> Unit {
    let at = row * row_words() + index * 4u;
    let low = vec4<f32>(pair_of(load_word(at)), pair_of(load_word(at + 1u)));
    let high = vec4<f32>(pair_of(load_word(at + 2u)), pair_of(load_word(at + 3u)));
    return Unit(low, high, index * 8u, index * 8u + 4u);
}
