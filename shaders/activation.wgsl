// activation: swiglu of one element, for the shaders that apply it; needs `clamped`, `alpha` and `limit` in `params`.

// g * sigmoid(slope * g); the clamp keeps exp finite where the result has long vanished.
fn gated(g: f32, slope: f32) -> f32 {
    return g / (1.0 + exp(clamp(-slope * g, -87.0, 87.0)));
}

fn activated(gate: f32, up: f32) -> f32 {
    if (params.clamped == 0u) {
        return gated(gate, 1.0) * up;
    }
    // Comparisons, not min and clamp: a NaN must stay one.
    let g = select(gate, params.limit, gate > params.limit);
    let below = select(up, params.limit, up > params.limit);
    let u = select(below, -params.limit, below < -params.limit);
    return (u + 1.0) * gated(g, params.alpha);
}
