// score_eights: q . k of one position, for heads of a multiple of eight elements; needs `key_words`.
//
// The even elements' sum and the odd elements' sum, each ascending, then their sum.

fn add_products(words: vec4<u32>, index: u32, sum: vec2<f32>) -> vec2<f32> {
    let low = query[index * 2u];
    let high = query[index * 2u + 1u];
    var s = fma(low.xy, unpack2x16float(words.x), sum);
    s = fma(low.zw, unpack2x16float(words.y), s);
    s = fma(high.xy, unpack2x16float(words.z), s);
    return fma(high.zw, unpack2x16float(words.w), s);
}

// The position whose slot starts at word `base`; `head` is the element where the kv head starts.
fn score(base: u32, head: u32) -> f32 {
    let count = HEAD_DIM / 8u;
    let last = count - 1u;
    var sum = vec2<f32>();
    for (var i = 0u; i < count; i += 4u) {
        let a = key_words(base, head, i);
        let b = key_words(base, head, min(i + 1u, last));
        let c = key_words(base, head, min(i + 2u, last));
        let d = key_words(base, head, min(i + 3u, last));
        sum = add_products(a, i, sum);
        if (i + 1u < count) {
            sum = add_products(b, i + 1u, sum);
        }
        if (i + 2u < count) {
            sum = add_products(c, i + 2u, sum);
        }
        if (i + 3u < count) {
            sum = add_products(d, i + 3u, sum);
        }
    }
    return (sum.x + sum.y) * params.scale;
}
