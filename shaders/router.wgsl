// router: the top_k largest logits, descending, ties to the lowest index, and the softmax over those alone
//
// logits [T, experts] f32, ids [T, top_k] u32, weights [T, top_k] f32.
// Grid: (T) workgroups of 64. Each round finds the best logit behind the last one picked in the order
// (logit descending, index ascending), so nothing is marked as taken.

struct Params {
    experts: u32,
    top_k: u32,
}

@group(0) @binding(2) var<storage, read_write> logits: array<u32>;
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;

const LANES = 64u;

var<workgroup> lane_keys: array<u32, 64>;
var<workgroup> lane_ids: array<u32, 64>;

// Orders f32 bits as integers: larger float, larger key; both zeros are equal.
fn key_of(bits: u32) -> u32 {
    if ((bits & 0x7fffffffu) == 0u) {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (group.x >= inputs[TOKEN_COUNT]) {
        return;
    }
    let base = group.x * params.experts;
    let out_base = group.x * params.top_k;
    var last_key = 0xffffffffu;
    var last_id = 0u;
    var top = 0.0;
    var total = 0.0;
    for (var round = 0u; round < params.top_k; round++) {
        var key = 0u;
        var id = 0u;
        for (var expert = lane; expert < params.experts; expert += LANES) {
            let candidate = key_of(logits[base + expert]);
            let behind = candidate < last_key || (candidate == last_key && expert > last_id);
            if (behind && candidate > key) {
                key = candidate;
                id = expert;
            }
        }
        lane_keys[lane] = key;
        lane_ids[lane] = id;
        workgroupBarrier();
        for (var other = 0u; other < LANES; other++) {
            let better = lane_keys[other] > key || (lane_keys[other] == key && lane_ids[other] < id);
            if (better) {
                key = lane_keys[other];
                id = lane_ids[other];
            }
        }
        last_key = key;
        last_id = id;
        // Every lane walks the same picks, so every lane knows the softmax.
        let logit = bitcast<f32>(logits[base + id]);
        if (round == 0u) {
            top = logit;
        }
        let weight = exp(logit - top);
        total += weight;
        if (lane == 0u) {
            ids[out_base + round] = id;
        }
        workgroupBarrier();
    }
    // Only the lane that wrote the ids reads them back: no barrier orders storage here.
    if (lane == 0u) {
        for (var k = 0u; k < params.top_k; k++) {
            let logit = bitcast<f32>(logits[base + ids[out_base + k]]);
            weights[out_base + k] = exp(logit - top) / total;
        }
    }
}
