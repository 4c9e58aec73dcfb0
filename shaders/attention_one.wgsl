// attention_one: rope of q and k, kv_write and attention for one token; bits as those give
//
// q, out [heads * HEAD_DIM], k, v [kv heads * HEAD_DIM] f32 before rotation, angles as rope has them, pools as attention has
// them. HEAD_DIM is a multiple of eight.
// Grid: (heads) workgroups of 256, see attention_walk: AT_ONCE is 4. Each rotates its own query and its kv head's key, which
// it keeps for itself, rounded as the pool has them; the first of the heads that share a kv head writes that to the
// pools, where no workgroup of this dispatch reads it.
// Composed as prelude + half + rotation + attention_walk + score_eights + this.

struct Params {
    // As attention.
    positions_at: u32,
    sequences_at: u32,
    tables_at: u32,
    table_width: u32,
    block_size: u32,
    heads: u32,
    heads_per_kv_head: u32,
    slot_words: u32,
    window: u32,
    has_sinks: u32,
    scale: f32,
    // Word of `inputs` where the group's slots start.
    slots_at: u32,
    // As rope; nothing turns when `rotated` is 0.
    rotated: u32,
    interleaved: u32,
}

@group(0) @binding(2) var<storage, read_write> q: array<f32>;
@group(0) @binding(3) var<storage, read_write> k_pool: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> v_pool: array<u32>;
@group(0) @binding(5) var<storage, read> sinks: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;
@group(0) @binding(7) var<storage, read_write> k: array<f32>;
@group(0) @binding(8) var<storage, read_write> v: array<f32>;
@group(0) @binding(9) var<storage, read> angles: array<f32>;

// Key and value of the token's own position, as the pools have them.
var<workgroup> own_keys: array<vec4<u32>, 64>;
var<workgroup> own_values: array<u32, 256>;

fn key_words(base: u32, head: u32, i: u32) -> vec4<u32> {
    let own = base == OWN;
    let words = k_pool[select(base, 0u, own) / 4u + head / 8u + i];
    return select(words, own_keys[i], vec4<bool>(own));
}

fn value_pair(base: u32, head: u32, pair: u32) -> vec2<f32> {
    let own = base == OWN;
    let word = v_pool[select(base, 0u, own) + head / 2u + pair];
    return unpack2x16float(select(word, own_values[pair], own));
}

fn cosine_of(turn: Turn) -> f32 {
    return angles[inputs[params.positions_at] * params.rotated + turn.index];
}

fn sine_of(turn: Turn) -> f32 {
    return angles[inputs[params.positions_at] * params.rotated + params.rotated / 2u + turn.index];
}

// Element `element` of the head that starts at element `head`, turned.
fn turned_query(head: u32, element: u32) -> f32 {
    let at = head + element;
    if (element >= params.rotated) {
        return q[at];
    }
    let turn = turn_of(element);
    let partner = select(at + turn.distance, at - turn.distance, turn.second);
    return turned(q[at], q[partner], cosine_of(turn), sine_of(turn), turn.second);
}

fn turned_key(head: u32, element: u32) -> f32 {
    let at = head + element;
    if (element >= params.rotated) {
        return k[at];
    }
    let turn = turn_of(element);
    let partner = select(at + turn.distance, at - turn.distance, turn.second);
    return turned(k[at], k[partner], cosine_of(turn), sine_of(turn), turn.second);
}

// Two elements of the key as one word.
fn key_word(head: u32, element: u32) -> u32 {
    let low = half_bits(bitcast<u32>(turned_key(head, element)));
    return low | (half_bits(bitcast<u32>(turned_key(head, element + 1u))) << 16u);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if (inputs[TOKEN_COUNT] == 0u) {
        return;
    }
    let head = group.x;
    let base = head * HEAD_DIM;
    let kv_head = head / params.heads_per_kv_head * HEAD_DIM;
    let slot = inputs[params.slots_at];
    let writes = head % params.heads_per_kv_head == 0u && slot != NO_SLOT;
    let element = thread * 4u;
    if (element < HEAD_DIM) {
        query[thread] = vec4<f32>(
            turned_query(base, element),
            turned_query(base, element + 1u),
            turned_query(base, element + 2u),
            turned_query(base, element + 3u),
        );
    }
    // Other lanes than those above, as far as there are any.
    let eight = thread - 128u;
    if (thread >= 128u && eight < HEAD_DIM / 8u) {
        let words = vec4<u32>(
            key_word(kv_head, eight * 8u),
            key_word(kv_head, eight * 8u + 2u),
            key_word(kv_head, eight * 8u + 4u),
            key_word(kv_head, eight * 8u + 6u),
        );
        own_keys[eight] = words;
        if (writes) {
            k_pool[(slot * params.slot_words) / 4u + kv_head / 8u + eight] = words;
        }
    }
    if (thread < HEAD_DIM / 2u) {
        let at = kv_head + thread * 2u;
        let word = half_bits(bitcast<u32>(v[at])) | (half_bits(bitcast<u32>(v[at + 1u])) << 16u);
        own_values[thread] = word;
        if (writes) {
            v_pool[slot * params.slot_words + kv_head / 2u + thread] = word;
        }
    }
    workgroupBarrier();
    let view = view_of(0u, head, true);
    walk(view, thread);
    finish_head(view, head, base, thread);
}
