// moe_linear_one: moe_linear for few tokens, each (token, k) reading its own expert's rows
//
// x [T, cols] (shared by the chosen experts) or [T, top_k * cols], experts [T, top_k] u32, weight [experts, out, cols]
// in any format (one slice of its experts * out rows), bias [experts, out] f32, y [T, top_k * out] f32.
// Grid: (ceil(out / 8), T * top_k) workgroups of 256, see dot_one.
// Composed as prelude + quant/<format> + weight_one + rows_{vec4,ragged} + input_plain + dot_one + this.

struct Params {
    cols: u32,
    // Units of eight columns per weight row.
    units: u32,
    // Rows of the whole [experts * out] stack in this slice, and its first row.
    slice_rows: u32,
    slice_start: u32,
    // Layout of the slice: words per row, start of the tail plane, its words per row.
    row_words: u32,
    tail_at: u32,
    tail_words: u32,
    out: u32,
    top_k: u32,
    // 1: every pair has its own row of x; 0: the pairs of a token share one.
    row_per_pair: u32,
    has_bias: u32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> experts: array<u32>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>;

var<workgroup> shared_expert: u32;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let pair = group.y;
    if (pair >= inputs[TOKEN_COUNT] * params.top_k) {
        return;
    }
    if (thread == 0u) {
        shared_expert = experts[pair];
    }
    let stack = workgroupUniformLoad(&shared_expert) * params.out;
    let first_row = group.x * ONE_SETS;
    let start = stack + first_row;
    if (start >= params.slice_start + params.slice_rows || start + ONE_SETS <= params.slice_start) {
        return;
    }
    let own = min(first_row + thread / ONE_LANES, params.out - 1u);
    // Rows outside the slice stand in for their nearest neighbour and are not stored.
    let row = min(max(stack + own, params.slice_start) - params.slice_start, params.slice_rows - 1u);
    let lane = thread % ONE_LANES;
    let base = select(pair / params.top_k, pair, params.row_per_pair != 0u) * params.cols;
    prepare_input(thread);
    publish_chain(0u, thread, lane_chain(read_four(row, lane), row, lane, base));
    workgroupBarrier();
    let feature = first_row + thread;
    let stacked = stack + feature;
    let held = stacked >= params.slice_start && stacked < params.slice_start + params.slice_rows;
    if (thread < ONE_SETS && feature < params.out && held) {
        var sum = finished(0u, thread);
        if (params.has_bias != 0u) {
            sum += bias[stacked];
        }
        y[pair * params.out + feature] = sum;
    }
}
