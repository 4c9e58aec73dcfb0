// weight_three: how the readers of quant/ see up to three matrices of one width: by `segment`.
//
// Callers set `segment` in branches of their own, so that a compiler which inlines knows the binding in each. The matrices
// from OTHERS on have the second of the two formats it is composed with; where there is one format, it is both.

@group(0) @binding(4) var<storage, read> weight0: array<u32>;
@group(0) @binding(5) var<storage, read> weight1: array<u32>;
@group(0) @binding(6) var<storage, read> weight2: array<u32>;

override OTHERS: u32 = 3u;

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

// The component of the matrix: a constant, once `segment` is.
fn of_segment(values: vec4<u32>) -> u32 {
    if (segment == 0u) {
        return values.x;
    }
    if (segment == 1u) {
        return values.y;
    }
    return values.z;
}

fn row_words() -> u32 {
    return of_segment(params.row_words);
}

fn tail_start() -> u32 {
    return of_segment(params.tail_at);
}

fn tail_words() -> u32 {
    return of_segment(params.tail_words);
}

fn read_unit(row: u32, index: u32) -> Unit {
    if (segment >= OTHERS) {
        return read_second(row, index);
    }
    return read_first(row, index);
}
