// linear_one: linear for one row of x, with the residual that may follow:
//             y[o] = residual[o] + (sum_i weight[o][i] * x[i] + bias[o])
//
// x [cols] f32, weight [out, cols] in any format (whole), bias, residual, y [out] f32.
// Grid: (ceil(out / 8)) workgroups of 256, see dot_one.
// Composed as prelude + quant/<format> + weight_one + rows_{vec4,ragged} + input_{plain,normed} + dot_one + this.

struct Params {
    // Word of `inputs` with the actual number of rows of x.
    rows_at: u32,
    cols: u32,
    // Units of eight columns per weight row.
    units: u32,
    out: u32,
    // Words per row, start of the tail plane, its words per row.
    row_words: u32,
    tail_at: u32,
    tail_words: u32,
    has_bias: u32,
    has_residual: u32,
    // Of the norm in front, if there is one.
    eps: f32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
@group(0) @binding(7) var<storage, read_write> residual: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if (inputs[params.rows_at] == 0u) {
        return;
    }
    let first_row = group.x * ONE_SETS;
    let row = min(first_row + thread / ONE_LANES, params.out - 1u);
    let lane = thread % ONE_LANES;
    let first = read_four(row, lane);
    prepare_input(thread);
    publish_chain(0u, thread, lane_chain(first, row, lane, 0u));
    workgroupBarrier();
    if (thread < ONE_SETS && first_row + thread < params.out) {
        let feature = first_row + thread;
        var sum = finished(0u, thread);
        if (params.has_bias != 0u) {
            sum += bias[feature];
        }
        if (params.has_residual != 0u) {
            sum = residual[feature] + sum;
        }
        y[feature] = sum;
    }
}
