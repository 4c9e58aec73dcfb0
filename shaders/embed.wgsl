// embed: y[t] = table[tokens[t]]
//
// table [vocab, cols] in any format (one slice of its rows), y [T, cols] f32.
// Grid: (ceil(units / 64), T) workgroups of 64; one invocation decodes one unit of eight columns.
// A token whose row lies in another slice is left to that slice's dispatch.
// Composed as prelude + quant/<format> + weight_one + this.

struct Params {
    // Word of `inputs` where the row numbers start: the tokens.
    ids_at: u32,
    cols: u32,
    // Units of eight columns per weight row.
    units: u32,
    // Rows of the table in this slice, and its first row.
    slice_rows: u32,
    slice_start: u32,
    // Layout of the slice: words per row, start of the tail plane, its words per row.
    row_words: u32,
    tail_at: u32,
    tail_words: u32,
}

@group(0) @binding(2) var<storage, read> weight: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

fn store_four(base: u32, column: u32, values: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        if (column + i < params.cols) {
            y[base + column + i] = values[i];
        }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(global_invocation_id) id: vec3<u32>) {
    let token = group.y;
    if (token >= inputs[TOKEN_COUNT] || id.x >= params.units) {
        return;
    }
    let row = inputs[params.ids_at + token];
    if (row < params.slice_start || row - params.slice_start >= params.slice_rows) {
        return;
    }
    let unit = read_unit(row - params.slice_start, id.x);
    store_four(token * params.cols, unit.low_column, unit.low);
    store_four(token * params.cols, unit.high_column, unit.high);
}
