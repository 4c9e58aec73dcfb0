// quant/f16: columns 8u .. 8u + 8 of unit u are four words of two; rows are padded with zeros to whole units.

fn read_f16(row: u32, index: u32) -> Unit {
    let at = row * row_words() + index * 4u;
    let low = vec4<f32>(unpack2x16float(load_word(at)), unpack2x16float(load_word(at + 1u)));
    let high = vec4<f32>(unpack2x16float(load_word(at + 2u)), unpack2x16float(load_word(at + 3u)));
    return Unit(low, high, index * 8u, index * 8u + 4u);
}
