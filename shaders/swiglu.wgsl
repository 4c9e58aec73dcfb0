// swiglu: y = silu(gate) * up, or clamped: g = min(gate, limit), u = clamp(up, -limit, limit),
//         y = (u + 1) * g * sigmoid(alpha * g)
//
// gate, up, y [rows, width] f32. Grid: (ceil(width / 256), rows) workgroups of 256.
// Composed as prelude + activation + this.

struct Params {
    // Word of `inputs` with the actual number of rows.
    rows_at: u32,
    width: u32,
    // 1: the clamped form.
    clamped: u32,
    alpha: f32,
    limit: f32,
}

@group(0) @binding(2) var<storage, read_write> gate: array<f32>;
@group(0) @binding(3) var<storage, read_write> up: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.y >= inputs[params.rows_at] || id.x >= params.width) {
        return;
    }
    let at = id.y * params.width + id.x;
    y[at] = activated(gate[at], up[at]);
}
