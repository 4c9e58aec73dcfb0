// quant/f32: columns 8u .. 8u + 8 of unit u are eight words; rows are padded with zeros to whole units.

fn read_f32(row: u32, index: u32) -> Unit {
    let at = row * row_words() + index * 8u;
    let low = vec4<u32>(load_word(at), load_word(at + 1u), load_word(at + 2u), load_word(at + 3u));
    let high = vec4<u32>(load_word(at + 4u), load_word(at + 5u), load_word(at + 6u), load_word(at + 7u));
    return Unit(bitcast<vec4<f32>>(low), bitcast<vec4<f32>>(high), index * 8u, index * 8u + 4u);
}
