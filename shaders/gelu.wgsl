// gelu: y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
//
// x, y [rows, width] f32. Grid: (ceil(width / 256), rows) workgroups of 256.

struct Params {
    // Word of `inputs` with the actual number of rows.
    rows_at: u32,
    width: u32,
}

@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const SQRT_2_OVER_PI = 0.7978845608028654;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.y >= inputs[params.rows_at] || id.x >= params.width) {
        return;
    }
    let at = id.y * params.width + id.x;
    let value = x[at];
    let inner = SQRT_2_OVER_PI * fma(0.044715 * value * value, value, value);
    // 0.5 (1 + tanh(z)) = 1 / (1 + exp(-2z)): no cancellation for negative z. Beyond 40 the result is x or 0 anyway.
    y[at] = value / (1.0 + exp(clamp(-2.0 * inner, -80.0, 80.0)));
}
