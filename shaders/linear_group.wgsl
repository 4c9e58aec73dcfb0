// linear_group: two or three linears of one row of x at once, of one format or two
//
// x [cols] f32, weight0..2 [out, cols] (whole matrices), bias0..2, y0..2 [out] f32.
// Grid: workgroups of 256 with eight rows each, see dot_one; those of the first matrix, then the second's, then the third's.
// Composed as prelude + quant/<formats> + weight_three + rows_{vec4,ragged} + input_{plain,normed} + dot_one + this.

struct Params {
    // By matrix: rows, first workgroup (beyond the grid for a matrix that is not there), words per row, start of the tail
    // plane, its words per row.
    rows: vec4<u32>,
    first_group: vec4<u32>,
    row_words: vec4<u32>,
    tail_at: vec4<u32>,
    tail_words: vec4<u32>,
    // Bit by matrix.
    has_bias: u32,
    // Word of `inputs` with the actual number of rows of x.
    rows_at: u32,
    cols: u32,
    // Units of eight columns per weight row.
    units: u32,
    // Of the norm in front, if there is one.
    eps: f32,
}

@group(0) @binding(7) var<storage, read> bias0: array<f32>;
@group(0) @binding(8) var<storage, read> bias1: array<f32>;
@group(0) @binding(9) var<storage, read> bias2: array<f32>;
@group(0) @binding(10) var<storage, read_write> y0: array<f32>;
@group(0) @binding(11) var<storage, read_write> y1: array<f32>;
@group(0) @binding(12) var<storage, read_write> y2: array<f32>;

fn store(matrix: u32, feature: u32, value: f32) {
    var sum = value;
    let biased = ((params.has_bias >> matrix) & 1u) != 0u;
    if (matrix == 0u) {
        if (biased) {
            sum += bias0[feature];
        }
        y0[feature] = sum;
    } else if (matrix == 1u) {
        if (biased) {
            sum += bias1[feature];
        }
        y1[feature] = sum;
    } else {
        if (biased) {
            sum += bias2[feature];
        }
        y2[feature] = sum;
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if (inputs[params.rows_at] == 0u) {
        return;
    }
    let matrix = select(0u, 1u, group.x >= params.first_group.y) + select(0u, 1u, group.x >= params.first_group.z);
    let first_row = (group.x - params.first_group[matrix]) * ONE_SETS;
    let rows = params.rows[matrix];
    let row = min(first_row + thread / ONE_LANES, rows - 1u);
    let lane = thread % ONE_LANES;
    var first: Four;
    if (matrix == 0u) {
        segment = 0u;
        first = read_four(row, lane);
    } else if (matrix == 1u) {
        segment = 1u;
        first = read_four(row, lane);
    } else {
        segment = 2u;
        first = read_four(row, lane);
    }
    prepare_input(thread);
    if (matrix == 0u) {
        segment = 0u;
        publish_chain(0u, thread, lane_chain(first, row, lane, 0u));
    } else if (matrix == 1u) {
        segment = 1u;
        publish_chain(0u, thread, lane_chain(first, row, lane, 0u));
    } else {
        segment = 2u;
        publish_chain(0u, thread, lane_chain(first, row, lane, 0u));
    }
    workgroupBarrier();
    if (thread < ONE_SETS && first_row + thread < rows) {
        store(matrix, first_row + thread, finished(0u, thread));
    }
}
