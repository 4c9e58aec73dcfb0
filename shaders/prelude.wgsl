// prelude: what every shader sees; put in front of each by plain concatenation.
//
// Bindings every operation has:
//   0  uniform `params`: the operation's own `Params`, fixed when the plan is compiled
//   1  storage `inputs`: the packed inputs of this step (tokens, positions, block tables, ...), read-only
// The first words of `inputs` are the actual counts; a grid is sized for the plan's bounds and leaves early beyond them.
// Reductions have an order fixed by the row's shape, so that a row's result never depends on the rows beside it.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> inputs: array<u32>;

// Words of `inputs`.
const TOKEN_COUNT = 0u;
const ROW_COUNT = 1u;

const NO_SLOT = 0xffffffffu;
const NO_TOKEN = 0xffffffffu;

// Lanes of the workgroups that reduce one row.
const ROW_LANES = 256u;

var<workgroup> lane_sums: array<f32, 256>;
var<workgroup> group_sums: array<f32, 16>;

// `sum` plus four values, one after the other.
fn add_in_order(sum: f32, values: vec4<f32>) -> f32 {
    return (((sum + values.x) + values.y) + values.z) + values.w;
}

fn four_lane_sums(at: u32) -> vec4<f32> {
    return vec4<f32>(lane_sums[at], lane_sums[at + 1u], lane_sums[at + 2u], lane_sums[at + 3u]);
}

fn four_group_sums(at: u32) -> vec4<f32> {
    return vec4<f32>(group_sums[at], group_sums[at + 1u], group_sums[at + 2u], group_sums[at + 3u]);
}

// Sum of `value` over the 256 lanes of a workgroup, on every lane: sixteen runs of sixteen, each in lane order. Written
// out, because a loop waits for each word before it asks for the next.
// Must be called in uniform control flow.
fn workgroup_sum(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    lane_sums[lane] = value;
    workgroupBarrier();
    if (lane < 16u) {
        let at = lane * 16u;
        var sum = add_in_order(0.0, four_lane_sums(at));
        sum = add_in_order(sum, four_lane_sums(at + 4u));
        sum = add_in_order(sum, four_lane_sums(at + 8u));
        group_sums[lane] = add_in_order(sum, four_lane_sums(at + 12u));
    }
    workgroupBarrier();
    var total = add_in_order(0.0, four_group_sums(0u));
    total = add_in_order(total, four_group_sums(4u));
    total = add_in_order(total, four_group_sums(8u));
    return add_in_order(total, four_group_sums(12u));
}
