// quant/f32: columns 8u .. 8u + 8 of unit u are eight words; rows are padded with zeros to whole units.

fn read_unit(row: u32, index: u32) -> Unit {
    let at = row * params.row_words + index * 8u;
    let low = vec4<u32>(weight[at], weight[at + 1u], weight[at + 2u], weight[at + 3u]);
    let high = vec4<u32>(weight[at + 4u], weight[at + 5u], weight[at + 6u], weight[at + 7u]);
    return Unit(bitcast<vec4<f32>>(low), bitcast<vec4<f32>>(high), index * 8u, index * 8u + 4u);
}
