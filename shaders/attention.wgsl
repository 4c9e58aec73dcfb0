// attention: out[t][h] = sum_p softmax_p(scale * q[t][h] . k[p][g]) v[p][g], g = h / (heads / kv heads),
//            over p <= position and position - p < window; a sink is one more logit whose probability is dropped
//
// q, out [T, heads * HEAD_DIM] f32, pools [slots, ceil(kv heads * HEAD_DIM / 2)] u32 with two f16 per word.
// Grid: (heads, T) workgroups of 64 * AT_ONCE, see attention_walk.
// Composed as prelude + attention_walk + {score_eights + cache_eights, cache_ragged} + this.

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

@group(0) @binding(2) var<storage, read_write> q: array<f32>;
@group(0) @binding(5) var<storage, read> sinks: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

fn element_or_zero(base: u32, element: u32) -> f32 {
    var value = 0.0;
    if (element < HEAD_DIM) {
        value = q[base + element];
    }
    return value;
}

@compute @workgroup_size(AT_ONCE * TILE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = group.x;
    let token = group.y;
    if (token >= inputs[TOKEN_COUNT]) {
        return;
    }
    let base = (token * params.heads + head) * HEAD_DIM;
    for (var element = thread * 4u; element < HEAD_DIM; element += AT_ONCE * TILE * 4u) {
        query[element / 4u] = vec4<f32>(
            q[base + element],
            element_or_zero(base, element + 1u),
            element_or_zero(base, element + 2u),
            element_or_zero(base, element + 3u),
        );
    }
    workgroupBarrier();
    let view = view_of(token, head, false);
    walk(view, thread);
    finish_head(view, head, base, thread);
}
