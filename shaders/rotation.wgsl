// rotation: rope of one element, for the shaders that apply it
//
// Needs `rotated` (elements per head that turn) and `interleaved` (1: neighbours are a pair; 0: halves are) in `params`.

// How an element turns: its angle, how far its partner is behind or in front of it, and which of the pair it is.
struct Turn {
    index: u32,
    distance: u32,
    second: bool,
}

// Of element `element` of a head, below `rotated`.
fn turn_of(element: u32) -> Turn {
    let half_width = params.rotated / 2u;
    if (params.interleaved != 0u) {
        return Turn(element / 2u, 1u, element % 2u == 1u);
    }
    return Turn(element % half_width, half_width, element >= half_width);
}

// (a, b) -> (a cos - b sin, b cos + a sin), the half of it that `own` is; the same bits wherever it is compiled.
fn turned(own: f32, partner: f32, cosine: f32, sine: f32, second: bool) -> f32 {
    if (second) {
        return fma(own, cosine, partner * sine);
    }
    return fma(own, cosine, -(partner * sine));
}
