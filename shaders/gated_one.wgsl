// gated_one: swiglu of two linears of one row of x: y[o] = swiglu(gate[o] . x + bias, up[o] . x + bias)
//
// Dense, or with experts: then y [top_k * out], and pair k reads the rows of expert experts[k].
// x [cols] f32, gate and up [out, cols] or [experts, out, cols] (whole), their biases [out] or [experts, out], y f32.
// Grid: (ceil(out / 8), 1 or top_k) workgroups of 256, see dot_one.
// Composed as prelude + quant/<formats> + weight_three + rows_{vec4,ragged} + input_{plain,normed} + dot_one + activation
// + this; the third matrix is not there.

struct Params {
    // By matrix: words per row, start of the tail plane, its words per row.
    row_words: vec4<u32>,
    tail_at: vec4<u32>,
    tail_words: vec4<u32>,
    cols: u32,
    // Units of eight columns per weight row.
    units: u32,
    // Rows of one matrix: of one expert's, if there are experts.
    out: u32,
    has_experts: u32,
    // Bit by matrix.
    has_bias: u32,
    // 1: the clamped form of swiglu.
    clamped: u32,
    alpha: f32,
    limit: f32,
    // Word of `inputs` with the actual number of rows of x.
    rows_at: u32,
    // Of the norm in front, if there is one.
    eps: f32,
}

@group(0) @binding(7) var<storage, read> gate_bias: array<f32>;
@group(0) @binding(8) var<storage, read> up_bias: array<f32>;
@group(0) @binding(9) var<storage, read_write> experts: array<u32>;
@group(0) @binding(10) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if (inputs[params.rows_at] == 0u) {
        return;
    }
    var stack = 0u;
    if (params.has_experts != 0u) {
        stack = experts[group.y] * params.out;
    }
    let first_row = group.x * ONE_SETS;
    let row = stack + min(first_row + thread / ONE_LANES, params.out - 1u);
    let lane = thread % ONE_LANES;
    segment = 0u;
    let first_gate = read_four(row, lane);
    segment = 1u;
    let first_up = read_four(row, lane);
    prepare_input(thread);
    segment = 0u;
    publish_chain(0u, thread, lane_chain(first_gate, row, lane, 0u));
    segment = 1u;
    publish_chain(1u, thread, lane_chain(first_up, row, lane, 0u));
    workgroupBarrier();
    if (thread < ONE_SETS && first_row + thread < params.out) {
        let feature = first_row + thread;
        var gate = finished(0u, thread);
        var up = finished(1u, thread);
        if ((params.has_bias & 1u) != 0u) {
            gate += gate_bias[stack + feature];
        }
        if ((params.has_bias & 2u) != 0u) {
            up += up_bias[stack + feature];
        }
        y[group.y * params.out + feature] = activated(gate, up);
    }
}
