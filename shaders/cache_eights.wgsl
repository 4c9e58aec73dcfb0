// cache_eights: the pools as attention reads them, for heads of a multiple of eight elements; with score_eights.

@group(0) @binding(3) var<storage, read> k_pool: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> v_pool: array<u32>;

// The i-th eight elements of the head that starts at element `head` of the slot that starts at word `base`.
fn key_words(base: u32, head: u32, i: u32) -> vec4<u32> {
    return k_pool[base / 4u + head / 8u + i];
}

// Elements `2 * pair` and the next of the same.
fn value_pair(base: u32, head: u32, pair: u32) -> vec2<f32> {
    return unpack2x16float(v_pool[base + head / 2u + pair]);
}
