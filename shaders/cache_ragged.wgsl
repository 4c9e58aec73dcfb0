// cache_ragged: the pools as attention reads them, for heads of any number of elements, and q . k for those.

@group(0) @binding(3) var<storage, read> k_pool: array<u32>;
@group(0) @binding(4) var<storage, read> v_pool: array<u32>;

// The f16 at element `at` of a pool whose word is given.
fn half_of(word: u32, at: u32) -> f32 {
    let both = unpack2x16float(word);
    return select(both.x, both.y, at % 2u == 1u);
}

// Elements `2 * pair` and the next of the head that starts at element `head` of the slot that starts at word `base`; the
// second is zero beyond an odd head's end.
fn key_pair(base: u32, head: u32, pair: u32) -> vec2<f32> {
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

fn value_pair(base: u32, head: u32, pair: u32) -> vec2<f32> {
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

// In the order of score_eights.
fn score(base: u32, head: u32) -> f32 {
    var sum = vec2<f32>();
    for (var pair = 0u; pair < (HEAD_DIM + 1u) / 2u; pair++) {
        let four = query[pair / 2u];
        sum = fma(select(four.xy, four.zw, pair % 2u == 1u), key_pair(base, head, pair), sum);
    }
    return (sum.x + sum.y) * params.scale;
}
