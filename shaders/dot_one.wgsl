// dot_one: inner products with one row of x, a weight row per 32 lanes; bits as dot gives.
//
// Lane l runs one chain of multiply-adds over the units l, l + 32, ... of its row, ascending; then the 32 sums are added in
// lane order. A matrix of a few thousand rows is soon read by a GPU, and what counts is the wait for it: hence many lanes,
// each with four units on their way before it needs the first.
//
// Needs `read_unit` from quant/, `prepare_input` and `load_input` from input_*, `params.units`.

// Units a lane asks for at a time: 4, or how many it has if those are fewer.
override AHEAD: u32 = 4u;

const ONE_LANES = 32u;
// Sets of lanes per workgroup of 256, which is how many weight rows it has.
const ONE_SETS = 8u;
// One spare word per set keeps the summing lanes off each other's memory banks.
const ONE_STRIDE = 33u;

// Two rows of sets: a workgroup may run two chains per lane.
var<workgroup> lane_chains: array<f32, 528>;

// Units l, l + 32, l + 64 and l + 96 behind some place in a row; beyond the end, the row's last.
struct Four {
    a: Unit,
    b: Unit,
    c: Unit,
    d: Unit,
}

fn read_four(row: u32, index: u32) -> Four {
    let last = params.units - 1u;
    let first = read_unit(row, min(index, last));
    var four = Four(first, first, first, first);
    if (AHEAD > 1u) {
        four.b = read_unit(row, min(index + ONE_LANES, last));
    }
    if (AHEAD > 2u) {
        four.c = read_unit(row, min(index + 2u * ONE_LANES, last));
    }
    if (AHEAD > 3u) {
        four.d = read_unit(row, min(index + 3u * ONE_LANES, last));
    }
    return four;
}

fn chain_one(unit: Unit, base: u32, sum: f32) -> f32 {
    let x_low = load_input(base, unit.low_column);
    let x_high = load_input(base, unit.high_column);
    var s = fma(unit.low.x, x_low.x, sum);
    s = fma(unit.low.y, x_low.y, s);
    s = fma(unit.low.z, x_low.z, s);
    s = fma(unit.low.w, x_low.w, s);
    s = fma(unit.high.x, x_high.x, s);
    s = fma(unit.high.y, x_high.y, s);
    s = fma(unit.high.z, x_high.z, s);
    return fma(unit.high.w, x_high.w, s);
}

// The chain of one lane over its units of weight row `row`, whose first four are `first`, against the row of x that starts
// at element `base`.
fn lane_chain(first: Four, row: u32, lane: u32, base: u32) -> f32 {
    var sum = 0.0;
    var four = first;
    for (var index = lane; index < params.units; index += 4u * ONE_LANES) {
        sum = chain_one(four.a, base, sum);
        if (AHEAD > 1u && index + ONE_LANES < params.units) {
            sum = chain_one(four.b, base, sum);
        }
        if (AHEAD > 2u && index + 2u * ONE_LANES < params.units) {
            sum = chain_one(four.c, base, sum);
        }
        if (AHEAD > 3u && index + 3u * ONE_LANES < params.units) {
            sum = chain_one(four.d, base, sum);
        }
        if (AHEAD > 3u && index + 4u * ONE_LANES < params.units) {
            four = read_four(row, index + 4u * ONE_LANES);
        }
    }
    return sum;
}

// Shows the workgroup one lane's chain; `plane` is 0 or 1. The barrier behind it is the caller's.
fn publish_chain(plane: u32, thread: u32, sum: f32) {
    lane_chains[(plane * ONE_SETS + thread / ONE_LANES) * ONE_STRIDE + thread % ONE_LANES] = sum;
}

fn four_chains(at: u32) -> vec4<f32> {
    return vec4<f32>(lane_chains[at], lane_chains[at + 1u], lane_chains[at + 2u], lane_chains[at + 3u]);
}

// The finished sum of one set of lanes, in lane order.
fn finished(plane: u32, own_set: u32) -> f32 {
    let at = (plane * ONE_SETS + own_set) * ONE_STRIDE;
    var sum = add_in_order(0.0, four_chains(at));
    sum = add_in_order(sum, four_chains(at + 4u));
    sum = add_in_order(sum, four_chains(at + 8u));
    sum = add_in_order(sum, four_chains(at + 12u));
    sum = add_in_order(sum, four_chains(at + 16u));
    sum = add_in_order(sum, four_chains(at + 20u));
    sum = add_in_order(sum, four_chains(at + 24u));
    return add_in_order(sum, four_chains(at + 28u));
}
