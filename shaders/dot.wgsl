// dot: the inner products `Linear` and `MoeLinear` share, so that both sum in the same order.
//
// 32 lanes share a weight row. Lane l decodes the units l, l + 32, ... (a unit is eight columns, see quant/) and runs one
// chain of multiply-adds over them, ascending; the 32 sums are added in lane order. That order belongs to the row's shape
// alone. What varies is only how many such chains a lane runs at once, which no chain can notice:
//   TOKENS = 1      one row of x, one weight row per lane: 4 weight rows per workgroup of 128
//   TOKENS = 4, 8   that many rows of x, four weight rows per lane: 16 weight rows per workgroup
//
// Needs from the operation: `weight`, `params.units`, and from rows_*.wgsl `load_x`.

// Rows of x per workgroup: 1, 4 or 8.
override TOKENS: u32 = 1u;

const DOT_LANES = 32u;
const DOT_THREADS = 128u;
// Weight rows a workgroup sums at a time.
const DOT_ROWS = 4u;
// One spare word per row keeps the summing lanes off each other's memory banks.
const DOT_STRIDE = 33u;

// [rows of x][DOT_ROWS][DOT_STRIDE]
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

// Passes of `publish` and `dot_sum`: weight rows per lane.
fn dot_passes() -> u32 {
    return select(4u, 1u, TOKENS == 1u);
}

// First weight row of a workgroup.
fn dot_first_row(group: u32) -> u32 {
    return group * DOT_ROWS * dot_passes();
}

// The four rows of this lane, pass by pass, starting at the workgroup's first.
fn dot_rows(first_row: u32, thread: u32) -> vec4<u32> {
    return vec4<u32>(first_row + thread / DOT_LANES) + vec4<u32>(0u, 4u, 8u, 12u);
}

fn chain(unit: Unit, base: u32, sum: f32) -> f32 {
    let low = load_x(base, unit.low_column);
    let high = load_x(base, unit.high_column);
    var s = fma(unit.low.x, low.x, sum);
    s = fma(unit.low.y, low.y, s);
    s = fma(unit.low.z, low.z, s);
    s = fma(unit.low.w, low.w, s);
    s = fma(unit.high.x, high.x, s);
    s = fma(unit.high.y, high.y, s);
    s = fma(unit.high.z, high.z, s);
    return fma(unit.high.w, high.w, s);
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
        if (TOKENS == 1u) {
            sums.a0.x = chain(unit0, near.x, sums.a0.x);
        } else {
            let unit1 = read_unit(rows.y, index);
            let unit2 = read_unit(rows.z, index);
            let unit3 = read_unit(rows.w, index);
            let low = transpose(mat4x4<f32>(unit0.low, unit1.low, unit2.low, unit3.low));
            let high = transpose(mat4x4<f32>(unit0.high, unit1.high, unit2.high, unit3.high));
            let columns = vec2<u32>(unit0.low_column, unit0.high_column);
            sums.a0 = chain4(low, high, columns, near.x, sums.a0);
            sums.a1 = chain4(low, high, columns, near.y, sums.a1);
            sums.a2 = chain4(low, high, columns, near.z, sums.a2);
            sums.a3 = chain4(low, high, columns, near.w, sums.a3);
            if (TOKENS > 4u) {
                sums.a4 = chain4(low, high, columns, far.x, sums.a4);
                sums.a5 = chain4(low, high, columns, far.y, sums.a5);
                sums.a6 = chain4(low, high, columns, far.z, sums.a6);
                sums.a7 = chain4(low, high, columns, far.w, sums.a7);
            }
        }
    }
    return sums;
}

// Shows this lane's chains of one pass to the workgroup; a barrier before and after.
fn publish(sums: Chains, pass_index: u32, thread: u32) {
    let at = thread / DOT_LANES * DOT_STRIDE + thread % DOT_LANES;
    let next = DOT_ROWS * DOT_STRIDE;
    partial_sums[at] = sums.a0[pass_index];
    if (TOKENS > 1u) {
        partial_sums[at + next] = sums.a1[pass_index];
        partial_sums[at + 2u * next] = sums.a2[pass_index];
        partial_sums[at + 3u * next] = sums.a3[pass_index];
    }
    if (TOKENS > 4u) {
        partial_sums[at + 4u * next] = sums.a4[pass_index];
        partial_sums[at + 5u * next] = sums.a5[pass_index];
        partial_sums[at + 6u * next] = sums.a6[pass_index];
        partial_sums[at + 7u * next] = sums.a7[pass_index];
    }
}

// The finished sum of a row of x (in the tile) and a weight row (in the pass), in lane order.
fn dot_sum(tile_row: u32, weight_row: u32) -> f32 {
    let at = (tile_row * DOT_ROWS + weight_row) * DOT_STRIDE;
    var sum = 0.0;
    for (var lane = 0u; lane < DOT_LANES; lane++) {
        sum += partial_sums[at + lane];
    }
    return sum;
}
