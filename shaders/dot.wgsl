// dot: the inner product `Linear` and `MoeLinear` share, so that both sum in the same order.
//
// 32 lanes share one weight row. Lane l decodes the units l, l + 32, ... (a unit is eight columns, see quant/) and
// multiplies them with up to eight rows of x; each of four partial sums per lane runs over ascending units. The order
// does not depend on TOKENS, so a row of x gives the same bits alone and in a tile of eight.
//
// Needs from the operation: `weight`, `params.units`, and from rows_*.wgsl `load_x`.

// Rows of x per workgroup: 1, 4 or 8.
override TOKENS: u32 = 1u;

const DOT_LANES = 32u;
const DOT_ROWS = 4u;
const DOT_THREADS = 128u;
// One spare word per row keeps the summing lanes off each other's memory banks.
const DOT_STRIDE = 33u;

var<workgroup> partial_sums: array<f32, 1056>;

fn four(sum: vec4<f32>) -> f32 {
    return (sum.x + sum.y) + (sum.z + sum.w);
}

fn step_dot(unit: Unit, base: u32, sum: vec4<f32>) -> vec4<f32> {
    return fma(unit.high, load_x(base, unit.high_column), fma(unit.low, load_x(base, unit.low_column), sum));
}

// Leaves the partial sums of weight row `row` against the rows of x that start at the eight elements `near`, `far`
// in `partial_sums[(tile_row * 4 + thread / 32) * 33 + thread % 32]`.
fn dot_tile(row: u32, thread: u32, near: vec4<u32>, far: vec4<u32>) {
    var a0 = vec4<f32>();
    var a1 = vec4<f32>();
    var a2 = vec4<f32>();
    var a3 = vec4<f32>();
    var a4 = vec4<f32>();
    var a5 = vec4<f32>();
    var a6 = vec4<f32>();
    var a7 = vec4<f32>();
    for (var index = thread % DOT_LANES; index < params.units; index += DOT_LANES) {
        let unit = read_unit(row, index);
        a0 = step_dot(unit, near.x, a0);
        if (TOKENS > 1u) {
            a1 = step_dot(unit, near.y, a1);
            a2 = step_dot(unit, near.z, a2);
            a3 = step_dot(unit, near.w, a3);
        }
        if (TOKENS > 4u) {
            a4 = step_dot(unit, far.x, a4);
            a5 = step_dot(unit, far.y, a5);
            a6 = step_dot(unit, far.z, a6);
            a7 = step_dot(unit, far.w, a7);
        }
    }
    let at = thread / DOT_LANES * DOT_STRIDE + thread % DOT_LANES;
    let next = DOT_ROWS * DOT_STRIDE;
    partial_sums[at] = four(a0);
    if (TOKENS > 1u) {
        partial_sums[at + next] = four(a1);
        partial_sums[at + 2u * next] = four(a2);
        partial_sums[at + 3u * next] = four(a3);
    }
    if (TOKENS > 4u) {
        partial_sums[at + 4u * next] = four(a4);
        partial_sums[at + 5u * next] = four(a5);
        partial_sums[at + 6u * next] = four(a6);
        partial_sums[at + 7u * next] = four(a7);
    }
}

// The finished sum of one (row of x in the tile, weight row in the workgroup), in lane order.
fn dot_sum(tile_row: u32, weight_row: u32) -> f32 {
    let at = (tile_row * DOT_ROWS + weight_row) * DOT_STRIDE;
    var sum = 0.0;
    for (var lane = 0u; lane < DOT_LANES; lane++) {
        sum += partial_sums[at + lane];
    }
    return sum;
}
