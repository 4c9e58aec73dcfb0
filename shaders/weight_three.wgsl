// weight_three: how the readers of quant/ see up to three matrices of one format and width: by `segment`.
//
// Callers set `segment` in branches of their own, so that a compiler which inlines knows the binding in each.

@group(0) @binding(4) var<storage, read> weight0: array<u32>;
@group(0) @binding(5) var<storage, read> weight1: array<u32>;
@group(0) @binding(6) var<storage, read> weight2: array<u32>;

var<private> segment: u32;

fn load_word(at: u32) -> u32 {
    if (segment == 0u) {
        return weight0[at];
    }
    if (segment == 1u) {
        return weight1[at];
    }
    return weight2[at];
}

fn tail_start() -> u32 {
    if (segment == 0u) {
        return params.tail_at.x;
    }
    if (segment == 1u) {
        return params.tail_at.y;
    }
    return params.tail_at.z;
}
