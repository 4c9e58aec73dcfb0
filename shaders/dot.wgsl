// dot: the inner products `Linear` and `MoeLinear` share, so that both sum in the same order.
//
// 32 lanes share four weight rows. Lane l decodes the units l, l + 32, ... of each (a unit is eight columns, see quant/)
// and runs one chain of multiply-adds per weight row and row of x over them, ascending; then the 32 sums are added in lane
// order. That order belongs to the row's shape alone: no chain can tell how many others a lane runs.
//
// Needs `read_unit` from quant/, `load_x` from rows_*, `params.units`.

// Rows of x per workgroup: 1, 4 or 8. A workgroup of 128 has 16 weight rows.
override TOKENS: u32 = 1u;

const DOT_LANES = 32u;
const DOT_THREADS = 128u;
// Weight rows per lane, and sets of lanes.
const DOT_ROWS = 4u;
const GROUP_ROWS = 16u;
// One spare word per row keeps the summing lanes off each other's memory banks.
const DOT_STRIDE = 33u;

// [rows of x, or lane rows when there is one][sets of lanes][DOT_STRIDE]
var<workgroup> partial_sums: array<f32, 1056>;

// A lane's chains: one vector per row of x, one component per weight row.
struct Chains {
    a0: vec4<f32>,
    a1: vec4<f32>,
    a2: vec4<f32>,
    a3: vec4<f32>,
    a4: vec4<f32>,
    a5: vec4<f32>,
    a6: vec4<f32>,
    a7: vec4<f32>,
}

// The four weight rows of this lane; the workgroup's first is `first_row`.
fn dot_rows(first_row: u32, thread: u32) -> vec4<u32> {
    return vec4<u32>(first_row + thread / DOT_LANES) + vec4<u32>(0u, 4u, 8u, 12u);
}

// Four chains: column i of `low` and `high` holds the i-th weight of each of the four rows.
fn chain4(low: mat4x4<f32>, high: mat4x4<f32>, columns: vec2<u32>, base: u32, sum: vec4<f32>) -> vec4<f32> {
    let x_low = load_x(base, columns.x);
    let x_high = load_x(base, columns.y);
    var s = fma(low[0], vec4<f32>(x_low.x), sum);
    s = fma(low[1], vec4<f32>(x_low.y), s);
    s = fma(low[2], vec4<f32>(x_low.z), s);
    s = fma(low[3], vec4<f32>(x_low.w), s);
    s = fma(high[0], vec4<f32>(x_high.x), s);
    s = fma(high[1], vec4<f32>(x_high.y), s);
    s = fma(high[2], vec4<f32>(x_high.z), s);
    return fma(high[3], vec4<f32>(x_high.w), s);
}

// The chains of weight rows `rows` against the rows of x that start at the eight elements `near`, `far`.
fn dot_chains(rows: vec4<u32>, thread: u32, near: vec4<u32>, far: vec4<u32>) -> Chains {
    var sums = Chains();
    for (var index = thread % DOT_LANES; index < params.units; index += DOT_LANES) {
        let unit0 = read_unit(rows.x, index);
        let unit1 = read_unit(rows.y, index);
        let unit2 = read_unit(rows.z, index);
        let unit3 = read_unit(rows.w, index);
        let low = transpose(mat4x4<f32>(unit0.low, unit1.low, unit2.low, unit3.low));
        let high = transpose(mat4x4<f32>(unit0.high, unit1.high, unit2.high, unit3.high));
        let columns = vec2<u32>(unit0.low_column, unit0.high_column);
        sums.a0 = chain4(low, high, columns, near.x, sums.a0);
        if (TOKENS > 1u) {
            sums.a1 = chain4(low, high, columns, near.y, sums.a1);
            sums.a2 = chain4(low, high, columns, near.z, sums.a2);
            sums.a3 = chain4(low, high, columns, near.w, sums.a3);
        }
        if (TOKENS > 4u) {
            sums.a4 = chain4(low, high, columns, far.x, sums.a4);
            sums.a5 = chain4(low, high, columns, far.y, sums.a5);
            sums.a6 = chain4(low, high, columns, far.z, sums.a6);
            sums.a7 = chain4(low, high, columns, far.w, sums.a7);
        }
    }
    return sums;
}

// Shows the workgroup this lane's chains of one of its weight rows, for every row of x. Barriers around it are the
// caller's.
fn publish(sums: Chains, lane_row: u32, thread: u32) {
    let at = thread / DOT_LANES * DOT_STRIDE + thread % DOT_LANES;
    let next = DOT_ROWS * DOT_STRIDE;
    partial_sums[at] = sums.a0[lane_row];
    partial_sums[at + next] = sums.a1[lane_row];
    partial_sums[at + 2u * next] = sums.a2[lane_row];
    partial_sums[at + 3u * next] = sums.a3[lane_row];
    if (TOKENS > 4u) {
        partial_sums[at + 4u * next] = sums.a4[lane_row];
        partial_sums[at + 5u * next] = sums.a5[lane_row];
        partial_sums[at + 6u * next] = sums.a6[lane_row];
        partial_sums[at + 7u * next] = sums.a7[lane_row];
    }
}

// The same for all four weight rows at once, for the only row of x.
fn publish_single(sums: Chains, thread: u32) {
    let at = thread / DOT_LANES * DOT_STRIDE + thread % DOT_LANES;
    let next = DOT_ROWS * DOT_STRIDE;
    partial_sums[at] = sums.a0.x;
    partial_sums[at + next] = sums.a0.y;
    partial_sums[at + 2u * next] = sums.a0.z;
    partial_sums[at + 3u * next] = sums.a0.w;
}

fn four_partial_sums(at: u32) -> vec4<f32> {
    return vec4<f32>(partial_sums[at], partial_sums[at + 1u], partial_sums[at + 2u], partial_sums[at + 3u]);
}

// The finished sum of entry `major` (a row of x, or a lane row when there is one) and set of lanes `minor`, in lane order.
fn dot_sum(major: u32, minor: u32) -> f32 {
    let at = (major * DOT_ROWS + minor) * DOT_STRIDE;
    var sum = add_in_order(0.0, four_partial_sums(at));
    sum = add_in_order(sum, four_partial_sums(at + 4u));
    sum = add_in_order(sum, four_partial_sums(at + 8u));
    sum = add_in_order(sum, four_partial_sums(at + 12u));
    sum = add_in_order(sum, four_partial_sums(at + 16u));
    sum = add_in_order(sum, four_partial_sums(at + 20u));
    sum = add_in_order(sum, four_partial_sums(at + 24u));
    return add_in_order(sum, four_partial_sums(at + 28u));
}
