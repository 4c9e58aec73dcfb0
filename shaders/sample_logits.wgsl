// sample_logits: what sample and sample_scan share: the row of logits as it is chosen from, and its order.

@group(0) @binding(2) var<storage, read_write> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> scratch: array<u32>;

const LANES = 256u;

var<workgroup> lane_bests: array<vec4<u32>, 256>;
var<workgroup> run_bests: array<vec4<u32>, 16>;

// Orders f32 bits as integers; both zeros are equal.
fn ordered_key(bits: u32) -> u32 {
    if ((bits & 0x7fffffffu) == 0u) {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

// The logit at element `at`, penalised if there is a penalty.
fn logit_at(at: u32) -> f32 {
    if (params.penalty_width > 0u) {
        return bitcast<f32>(scratch[at]);
    }
    return logits[at];
}

// The better of two of (key, id, 1 when a logit is NaN or +inf): larger key, then lower id.
fn better(a: vec4<u32>, b: vec4<u32>) -> vec4<u32> {
    let second = b.x > a.x || (b.x == a.x && b.y < a.y);
    return vec4<u32>(select(a.xy, b.xy, second), a.z | b.z, 0u);
}

// The best of the 256 lanes, on lane 0: sixteen runs of sixteen, then those. Uniform control flow.
fn best_of_lanes(lane: u32, own: vec4<u32>) -> vec4<u32> {
    lane_bests[lane] = own;
    workgroupBarrier();
    var best = own;
    if (lane < 16u) {
        best = lane_bests[lane];
        for (var i = 1u; i < 16u; i++) {
            best = better(best, lane_bests[lane + 16u * i]);
        }
        run_bests[lane] = best;
    }
    workgroupBarrier();
    if (lane == 0u) {
        for (var i = 1u; i < 16u; i++) {
            best = better(best, run_bests[i]);
        }
    }
    return best;
}
