// attention: out[t][h] = sum_p softmax_p(scale * q[t][h] . k[p][g]) v[p][g], g = h / (heads / kv heads),
//            over p <= position and position - p < window; a sink is one more logit whose probability is dropped
//
// q, out [T, heads * HEAD_DIM] f32, pools [slots, ceil(kv heads * HEAD_DIM / 2)] u32 with two f16 per word.
// Grid: (heads, T) workgroups of 64. Online softmax over tiles of 64 positions, tiles aligned to absolute positions:
// lane j scores the j-th position of the tile, then owns the element pairs j, j + 64, ... of the output.
// The order of every sum depends on the position, window and HEAD_DIM alone: not on the step's other tokens, nor on
// which physical blocks hold the positions.

struct Params {
    positions_at: u32,
    // Word of `inputs` with each token's row of the block table.
    sequences_at: u32,
    // Word of `inputs` where the group's block table starts, and its row width.
    tables_at: u32,
    table_width: u32,
    block_size: u32,
    heads: u32,
    heads_per_kv_head: u32,
    // Packed words per slot.
    slot_words: u32,
    // Visible positions; 0xffffffff = all.
    window: u32,
    has_sinks: u32,
    scale: f32,
}

// Elements per head, at most 512.
override HEAD_DIM: u32 = 64u;

const TILE = 64u;
const NONE = -3.0e38;

@group(0) @binding(2) var<storage, read_write> q: array<f32>;
@group(0) @binding(3) var<storage, read> k_pool: array<u32>;
@group(0) @binding(4) var<storage, read> v_pool: array<u32>;
@group(0) @binding(5) var<storage, read> sinks: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

var<workgroup> query: array<f32, 512>;
var<workgroup> slots: array<u32, 64>;
var<workgroup> scores: array<f32, 64>;
var<workgroup> weights: array<f32, 64>;

// The f16 at element `at` of a pool whose word is given.
fn half_of(word: u32, at: u32) -> f32 {
    let both = unpack2x16float(word);
    return select(both.x, both.y, at % 2u == 1u);
}

// Elements `2 * pair` and the next of the head that starts at element `head` of slot word `base`; the second is zero
// beyond an odd head's end.
fn k_pair(base: u32, head: u32, pair: u32) -> vec2<f32> {
    let at = head + pair * 2u;
    if (HEAD_DIM % 2u == 0u) {
        return unpack2x16float(k_pool[base + at / 2u]);
    }
    var both = vec2<f32>(half_of(k_pool[base + at / 2u], at), 0.0);
    if (pair * 2u + 1u < HEAD_DIM) {
        both.y = half_of(k_pool[base + (at + 1u) / 2u], at + 1u);
    }
    return both;
}

fn v_pair(base: u32, head: u32, pair: u32) -> vec2<f32> {
    let at = head + pair * 2u;
    if (HEAD_DIM % 2u == 0u) {
        return unpack2x16float(v_pool[base + at / 2u]);
    }
    var both = vec2<f32>(half_of(v_pool[base + at / 2u], at), 0.0);
    if (pair * 2u + 1u < HEAD_DIM) {
        both.y = half_of(v_pool[base + (at + 1u) / 2u], at + 1u);
    }
    return both;
}

// q . k of one position, the query taken from workgroup memory.
fn score(base: u32, head: u32) -> f32 {
    var sum = vec2<f32>();
    for (var pair = 0u; pair < (HEAD_DIM + 1u) / 2u; pair++) {
        sum = fma(vec2<f32>(query[pair * 2u], query[pair * 2u + 1u]), k_pair(base, head, pair), sum);
    }
    return (sum.x + sum.y) * params.scale;
}

fn store_pair(base: u32, pair: u32, value: vec2<f32>) {
    if (pair * 2u < HEAD_DIM) {
        out[base + pair * 2u] = value.x;
    }
    if (pair * 2u + 1u < HEAD_DIM) {
        out[base + pair * 2u + 1u] = value.y;
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.x;
    let token = group.y;
    if (token >= inputs[TOKEN_COUNT]) {
        return;
    }
    let pairs = (HEAD_DIM + 1u) / 2u;
    let base = (token * params.heads + head) * HEAD_DIM;
    for (var element = lane; element < pairs * 2u; element += TILE) {
        var value = 0.0;
        if (element < HEAD_DIM) {
            value = q[base + element];
        }
        query[element] = value;
    }
    let position = inputs[params.positions_at + token];
    let table = params.tables_at + inputs[params.sequences_at + token] * params.table_width;
    let first = select(0u, position - min(position, params.window - 1u), params.window != NO_SLOT);
    let kv_head = head / params.heads_per_kv_head * HEAD_DIM;
    var best = NONE;
    var total = 0.0;
    if (params.has_sinks != 0u) {
        best = sinks[head];
        total = 1.0;
    }
    var sum0 = vec2<f32>();
    var sum1 = vec2<f32>();
    var sum2 = vec2<f32>();
    var sum3 = vec2<f32>();
    workgroupBarrier();
    for (var tile = first / TILE * TILE; tile <= position; tile += TILE) {
        let at = tile + lane;
        let visible = at >= first && at <= position;
        var own = NONE;
        var slot = 0u;
        if (visible) {
            slot = inputs[table + at / params.block_size] * params.block_size + at % params.block_size;
            own = score(slot * params.slot_words, kv_head);
        }
        scores[lane] = own;
        slots[lane] = slot * params.slot_words;
        workgroupBarrier();
        var highest = best;
        for (var j = 0u; j < TILE; j++) {
            highest = max(highest, scores[j]);
        }
        weights[lane] = select(0.0, exp(own - highest), visible);
        let shrink = exp(best - highest);
        best = highest;
        workgroupBarrier();
        total *= shrink;
        sum0 *= shrink;
        sum1 *= shrink;
        sum2 *= shrink;
        sum3 *= shrink;
        let start = max(first, tile) - tile;
        let end = min(position - tile, TILE - 1u);
        for (var j = start; j <= end; j++) {
            let weight = vec2<f32>(weights[j]);
            total += weight.x;
            if (lane < pairs) {
                sum0 = fma(weight, v_pair(slots[j], kv_head, lane), sum0);
            }
            if (HEAD_DIM > 128u && lane + 64u < pairs) {
                sum1 = fma(weight, v_pair(slots[j], kv_head, lane + 64u), sum1);
            }
            if (HEAD_DIM > 256u && lane + 128u < pairs) {
                sum2 = fma(weight, v_pair(slots[j], kv_head, lane + 128u), sum2);
            }
            if (HEAD_DIM > 384u && lane + 192u < pairs) {
                sum3 = fma(weight, v_pair(slots[j], kv_head, lane + 192u), sum3);
            }
        }
        // The next tile overwrites `slots`, which a slower lane may still read.
        workgroupBarrier();
    }
    store_pair(base, lane, sum0 / total);
    store_pair(base, lane + 64u, sum1 / total);
    store_pair(base, lane + 128u, sum2 / total);
    store_pair(base, lane + 192u, sum3 / total);
}
