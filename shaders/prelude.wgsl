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

// Sum of `value` over the 256 lanes of a workgroup, on every lane: sixteen runs of sixteen, each in lane order.
// Must be called in uniform control flow.
fn workgroup_sum(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    lane_sums[lane] = value;
    workgroupBarrier();
    if (lane < 16u) {
        var sum = 0.0;
        for (var i = 0u; i < 16u; i++) {
            sum += lane_sums[lane * 16u + i];
        }
        group_sums[lane] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < 16u; i++) {
        total += group_sums[i];
    }
    return total;
}
