// linear: y[t][o] = sum_i weight[o][i] * x[t][i] + bias[o]
//
// x [rows, cols] f32, weight [out, cols] in any format (one slice of its rows), bias [out] f32, y [rows, out] f32.
// Grid: (ceil(slice rows / 16), ceil(rows / TOKENS)) workgroups of 128, see dot.
// Composed as prelude + quant/<format> + weight_one + rows_{vec4,ragged} + dot + this.

struct Params {
    // Word of `inputs` with the actual number of rows of x.
    rows_at: u32,
    cols: u32,
    // Units of eight columns per weight row.
    units: u32,
    // Rows of the weight in this slice, and the first one's output feature.
    slice_rows: u32,
    slice_start: u32,
    // Layout of the slice: words per row, start of the tail plane, its words per row.
    row_words: u32,
    tail_at: u32,
    tail_words: u32,
    out_width: u32,
    has_bias: u32,
}

@group(0) @binding(3) var<storage, read> weight: array<u32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

fn store(row: u32, weight_row: u32, value: f32) {
    if (row < inputs[params.rows_at] && weight_row < params.slice_rows) {
        let feature = params.slice_start + weight_row;
        var sum = value;
        if (params.has_bias != 0u) {
            sum += bias[feature];
        }
        y[row * params.out_width + feature] = sum;
    }
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let count = inputs[params.rows_at];
    let first = group.y * TOKENS;
    if (first >= count) {
        return;
    }
    let first_row = group.x * GROUP_ROWS;
    let rows = min(dot_rows(first_row, thread), vec4<u32>(params.slice_rows - 1u));
    let last = vec4<u32>(count - 1u);
    let near = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), last) * params.cols;
    let far = min(vec4<u32>(first) + vec4<u32>(4u, 5u, 6u, 7u), last) * params.cols;
    let sums = dot_chains(rows, thread, near, far);
    if (TOKENS == 1u) {
        publish_single(sums, thread);
        workgroupBarrier();
        if (thread < GROUP_ROWS) {
            store(first, first_row + thread, dot_sum(thread / DOT_ROWS, thread % DOT_ROWS));
        }
    } else {
        for (var lane_row = 0u; lane_row < DOT_ROWS; lane_row++) {
            workgroupBarrier();
            publish(sums, lane_row, thread);
            workgroupBarrier();
            let tile_row = thread / DOT_ROWS;
            if (tile_row < TOKENS) {
                let weight_row = first_row + lane_row * DOT_ROWS + thread % DOT_ROWS;
                store(first + tile_row, weight_row, dot_sum(tile_row, thread % DOT_ROWS));
            }
        }
    }
}
