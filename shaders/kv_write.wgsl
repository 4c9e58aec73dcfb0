// kv_write: cache[slots[t]] = f16(k[t]), f16(v[t]), rounded to nearest even; padding tokens are skipped
//
// k, v [T, width] f32 read as bits, pools [slots, ceil(width / 2)] u32 with two elements per word.
// Grid: (ceil(words / 64), T) workgroups of 64; one invocation per packed word, so no two write the same word even
// when the width is odd. Composed as prelude + half + this.

struct Params {
    // Word of `inputs` where the group's slots start.
    slots_at: u32,
    width: u32,
    // Packed words per slot.
    words: u32,
}

@group(0) @binding(2) var<storage, read_write> k: array<u32>;
@group(0) @binding(3) var<storage, read_write> v: array<u32>;
@group(0) @binding(4) var<storage, read_write> k_pool: array<u32>;
@group(0) @binding(5) var<storage, read_write> v_pool: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.y >= inputs[TOKEN_COUNT] || id.x >= params.words) {
        return;
    }
    let slot = inputs[params.slots_at + id.y];
    if (slot == NO_SLOT) {
        return;
    }
    let column = id.x * 2u;
    let from_at = id.y * params.width + column;
    let to = slot * params.words + id.x;
    var k_word = half_bits(k[from_at]);
    var v_word = half_bits(v[from_at]);
    if (column + 1u < params.width) {
        k_word |= half_bits(k[from_at + 1u]) << 16u;
        v_word |= half_bits(v[from_at + 1u]) << 16u;
    }
    k_pool[to] = k_word;
    v_pool[to] = v_word;
}
