// rows_vec4: reads x four columns at a time; for rows whose width is a multiple of four.

@group(0) @binding(2) var<storage, read_write> x: array<vec4<f32>>;

// Columns `column` .. `column + 4` of the row of x that starts at element `base`.
fn load_x(base: u32, column: u32) -> vec4<f32> {
    return x[(base + column) / 4u];
}
