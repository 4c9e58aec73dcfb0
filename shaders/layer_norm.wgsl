// layer_norm: y = (x - mean) / sqrt(var + eps) * weight + bias, population variance about the mean found first
//
// x, y [rows, width] f32, weight and bias [width] f32.
// Grid: (rows) workgroups of 256. Lane l sums the columns l, l + 256, ...; then workgroup_sum.

struct Params {
    // Word of `inputs` with the actual number of rows.
    rows_at: u32,
    width: u32,
    eps: f32,
}

@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (group.x >= inputs[params.rows_at]) {
        return;
    }
    let base = group.x * params.width;
    var sum = 0.0;
    for (var column = lane; column < params.width; column += ROW_LANES) {
        sum += x[base + column];
    }
    let mean = workgroup_sum(lane, sum) / f32(params.width);
    var squares = 0.0;
    for (var column = lane; column < params.width; column += ROW_LANES) {
        let distance = x[base + column] - mean;
        squares = fma(distance, distance, squares);
    }
    let variance = workgroup_sum(lane, squares) / f32(params.width);
    let scale = 1.0 / sqrt(variance + params.eps);
    for (var column = lane; column < params.width; column += ROW_LANES) {
        y[base + column] = fma((x[base + column] - mean) * scale, weight[column], bias[column]);
    }
}
