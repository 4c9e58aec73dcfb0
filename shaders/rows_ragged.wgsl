// rows_ragged: reads x one column at a time, zero beyond the row's end; for rows of any width.

@group(0) @binding(2) var<storage, read_write> x: array<f32>;

fn load_one(base: u32, column: u32) -> f32 {
    var value = 0.0;
    if (column < params.cols) {
        value = x[base + column];
    }
    return value;
}

// Columns `column` .. `column + 4` of the row of x that starts at element `base`.
fn load_x(base: u32, column: u32) -> vec4<f32> {
    return vec4<f32>(
        load_one(base, column),
        load_one(base, column + 1u),
        load_one(base, column + 2u),
        load_one(base, column + 3u),
    );
}
