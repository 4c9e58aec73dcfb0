// moe_linear: y[t][k][o] = sum_i weight[e][o][i] * x[i] + bias[e][o] with e = experts[t][k]
//
// x [T, cols] (shared by the chosen experts) or [T, top_k * cols], experts [T, top_k] u32, weight [experts, out, cols]
// in any format (one slice of its experts * out rows), bias [experts, out] f32, y [T, top_k * out] f32.
// A (token, k) is called a pair below. Two entries with the same arithmetic, bit for bit:
//   main     grid (ceil(out / 16), pairs), TOKENS = 1: each pair reads its expert's rows; for few tokens.
//   grouped  grid (ceil(out / 16), experts), TOKENS = 8: each expert looks for its pairs and reads its
//            rows once per eight of them.
// Composed as prelude + quant/<format> + weight_one + rows_{vec4,ragged} + dot + this.

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

@group(0) @binding(3) var<storage, read> weight: array<u32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> experts: array<u32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

// Pairs looked at in one go by `grouped`.
const CHUNK = 1024u;

var<workgroup> shared_expert: u32;
var<workgroup> found: array<u32, 1024>;
var<workgroup> found_count: atomic<u32>;
var<workgroup> shared_count: u32;

fn x_base(pair: u32) -> u32 {
    return select(pair / params.top_k, pair, params.row_per_pair != 0u) * params.cols;
}

// Whether any row of this workgroup of expert `expert` lies in this slice.
fn in_slice(expert: u32, first_row: u32) -> bool {
    let start = expert * params.out + first_row;
    return start < params.slice_start + params.slice_rows && start + GROUP_ROWS > params.slice_start;
}

// This lane's rows as rows of the slice; those outside stand in for their nearest neighbour and are not stored.
fn slice_rows_of(expert: u32, first_row: u32, thread: u32) -> vec4<u32> {
    let own = min(dot_rows(first_row, thread), vec4<u32>(params.out - 1u));
    let stacked = max(own + expert * params.out, vec4<u32>(params.slice_start)) - params.slice_start;
    return min(stacked, vec4<u32>(params.slice_rows - 1u));
}

fn store(pair: u32, expert: u32, row: u32, value: f32) {
    let stacked = expert * params.out + row;
    let held = stacked >= params.slice_start && stacked < params.slice_start + params.slice_rows;
    if (row < params.out && held) {
        var sum = value;
        if (params.has_bias != 0u) {
            sum += bias[stacked];
        }
        y[pair * params.out + row] = sum;
    }
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let pair = group.y;
    if (pair >= inputs[TOKEN_COUNT] * params.top_k) {
        return;
    }
    if (thread == 0u) {
        shared_expert = experts[pair];
    }
    let expert = workgroupUniformLoad(&shared_expert);
    let first_row = group.x * GROUP_ROWS;
    if (!in_slice(expert, first_row)) {
        return;
    }
    let base = vec4<u32>(x_base(pair));
    let sums = dot_chains(slice_rows_of(expert, first_row, thread), thread, base, base);
    publish_single(sums, thread);
    workgroupBarrier();
    if (thread < GROUP_ROWS) {
        store(pair, expert, first_row + thread, dot_sum(thread / DOT_ROWS, thread % DOT_ROWS));
    }
}

@compute @workgroup_size(128)
fn grouped(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let expert = group.y;
    let first_row = group.x * GROUP_ROWS;
    if (!in_slice(expert, first_row)) {
        return;
    }
    let rows = slice_rows_of(expert, first_row, thread);
    let pairs = inputs[TOKEN_COUNT] * params.top_k;
    for (var chunk = 0u; chunk < pairs; chunk += CHUNK) {
        if (thread == 0u) {
            atomicStore(&found_count, 0u);
        }
        workgroupBarrier();
        // The order of `found` varies from run to run; no result depends on it, since pairs do not meet in any sum.
        let end = min(chunk + CHUNK, pairs);
        for (var pair = chunk + thread; pair < end; pair += DOT_THREADS) {
            if (experts[pair] == expert) {
                found[atomicAdd(&found_count, 1u)] = pair;
            }
        }
        workgroupBarrier();
        if (thread == 0u) {
            shared_count = atomicLoad(&found_count);
        }
        let count = workgroupUniformLoad(&shared_count);
        for (var first = 0u; first < count; first += TOKENS) {
            let last = count - 1u;
            let near = vec4<u32>(
                x_base(found[first]),
                x_base(found[min(first + 1u, last)]),
                x_base(found[min(first + 2u, last)]),
                x_base(found[min(first + 3u, last)]),
            );
            let far = vec4<u32>(
                x_base(found[min(first + 4u, last)]),
                x_base(found[min(first + 5u, last)]),
                x_base(found[min(first + 6u, last)]),
                x_base(found[min(first + 7u, last)]),
            );
            let sums = dot_chains(rows, thread, near, far);
            for (var lane_row = 0u; lane_row < DOT_ROWS; lane_row++) {
                workgroupBarrier();
                publish(sums, lane_row, thread);
                workgroupBarrier();
                let tile_row = thread / DOT_ROWS;
                if (tile_row < TOKENS && first + tile_row < count) {
                    let row = first_row + lane_row * DOT_ROWS + thread % DOT_ROWS;
                    store(found[first + tile_row], expert, row, dot_sum(tile_row, thread % DOT_ROWS));
                }
            }
        }
        // The next chunk overwrites `found`, which a slower lane may still read.
        workgroupBarrier();
    }
}
