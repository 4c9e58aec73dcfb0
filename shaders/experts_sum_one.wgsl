// experts_sum_one: moe_linear, moe_combine and the residual for one token:
//                  y[o] = residual[o] + sum_k weights[k] * (weight[e][o] . x[k] + bias[e][o]), e = experts[k], k ascending
//
// x [top_k * cols] f32, weight [experts, out, cols] in any format (whole), bias [experts, out], experts [top_k] u32,
// weights [top_k], residual, y [out] f32.
// Grid: (ceil(out / rows per workgroup)) workgroups of 256 with floor(8 / top_k) rows each, a set of lanes per row and
// choice, see dot_one.
// Composed as prelude + quant/<format> + weight_one + rows_{vec4,ragged} + input_plain + dot_one + this.

struct Params {
    cols: u32,
    // Units of eight columns per weight row, words per row of both planes, start of the tail plane.
    units: u32,
    row_words: u32,
    tail_at: u32,
    tail_words: u32,
    // Rows of one expert's matrix.
    out: u32,
    // At most eight.
    top_k: u32,
    has_bias: u32,
    has_residual: u32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> experts: array<u32>;
@group(0) @binding(7) var<storage, read_write> weights: array<f32>;
@group(0) @binding(8) var<storage, read_write> y: array<f32>;
@group(0) @binding(9) var<storage, read_write> residual: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if (inputs[TOKEN_COUNT] == 0u) {
        return;
    }
    let rows_here = ONE_SETS / params.top_k;
    let first_row = group.x * rows_here;
    let own_set = thread / ONE_LANES;
    let lane = thread % ONE_LANES;
    // Sets beyond the last whole row repeat some choice of the last row; nobody reads their sums.
    let choice = own_set % params.top_k;
    let row = experts[choice] * params.out + min(first_row + own_set / params.top_k, params.out - 1u);
    prepare_input(thread);
    publish_chain(0u, thread, lane_chain(read_four(row, lane), row, lane, choice * params.cols));
    workgroupBarrier();
    let feature = first_row + thread;
    if (thread < rows_here && feature < params.out) {
        var sum = 0.0;
        for (var k = 0u; k < params.top_k; k++) {
            var value = finished(0u, thread * params.top_k + k);
            if (params.has_bias != 0u) {
                value += bias[experts[k] * params.out + feature];
            }
            sum = fma(weights[k], value, sum);
        }
        if (params.has_residual != 0u) {
            sum = residual[feature] + sum;
        }
        y[feature] = sum;
    }
}
