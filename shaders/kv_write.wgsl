// kv_write: cache[slots[t]] = f16(k[t]), f16(v[t]), rounded to nearest even; padding tokens are skipped
//
// k, v [T, width] f32 read as bits, pools [slots, ceil(width / 2)] u32 with two elements per word.
// Grid: (ceil(words / 64), T) workgroups of 64; one invocation per packed word, so no two write the same word even
// when the width is odd. Integer arithmetic: the bits are the same on every device.

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

// Bits of the binary16 nearest to the binary32 with these bits, ties to even; NaN stays NaN.
fn half_bits(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return sign | 0x7e00u | ((magnitude >> 13u) & 0x3ffu);
    }
    // From 65520 on (halfway to 2^16) the nearest is infinity.
    if (magnitude >= 0x477ff000u) {
        return sign | 0x7c00u;
    }
    // Below 2^-14 the result is subnormal: the significand shifted down to units of 2^-24.
    if (magnitude < 0x38800000u) {
        let exponent = magnitude >> 23u;
        // At most half of 2^-24: zero.
        if (magnitude <= 0x33000000u) {
            return sign;
        }
        let significand = (magnitude & 0x7fffffu) | 0x800000u;
        let shift = 126u - exponent;
        let kept = significand >> shift;
        let rest = significand & ((1u << shift) - 1u);
        let halfway = 1u << (shift - 1u);
        let up = rest > halfway || (rest == halfway && (kept & 1u) == 1u);
        return sign | (kept + select(0u, 1u, up));
    }
    let rebased = magnitude - 0x38000000u;
    return sign | ((rebased + 0xfffu + ((rebased >> 13u) & 1u)) >> 13u);
}

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
