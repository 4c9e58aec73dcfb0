// input_normed: the row of x a product of one token reads, after the RMS norm in front of it; bits as rms_norm gives.
//
// Every workgroup finds the scale for itself, which costs less than a dispatch that all of them wait for. Needs rows_vec4,
// and `cols` and `eps` in `params`.

@group(0) @binding(3) var<storage, read> norm_weight: array<vec4<f32>>;

var<private> input_scale: f32;

// One column, zero beyond the end of the row: a zero leaves a sum of squares alone.
fn column_or_zero(column: u32) -> f32 {
    let at = min(column, params.cols - 1u);
    return select(0.0, x[at / 4u][at % 4u], column < params.cols);
}

// Every lane of a workgroup of 256 calls it once, in uniform control flow, before `load_input`. Lane l sums the squares of
// the columns l, l + 256, ..., four of them loaded at a time.
fn prepare_input(thread: u32) {
    var squares = 0.0;
    for (var column = thread; column < params.cols; column += 4u * ROW_LANES) {
        let a = column_or_zero(column);
        let b = column_or_zero(column + ROW_LANES);
        let c = column_or_zero(column + 2u * ROW_LANES);
        let d = column_or_zero(column + 3u * ROW_LANES);
        squares = fma(a, a, squares);
        squares = fma(b, b, squares);
        squares = fma(c, c, squares);
        squares = fma(d, d, squares);
    }
    let mean = workgroup_sum(thread, squares) / f32(params.cols);
    input_scale = 1.0 / sqrt(mean + params.eps);
}

// Columns `column` .. `column + 4` of the normed row; there is one row, at element 0.
fn load_input(base: u32, column: u32) -> vec4<f32> {
    return load_x(base, column) * input_scale * norm_weight[column / 4u];
}
