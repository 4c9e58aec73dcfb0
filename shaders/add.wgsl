// add: y = a + b
//
// a, b, y [rows, width] f32. Grid: (ceil(width / 256), rows) workgroups of 256.

struct Params {
    // Word of `inputs` with the actual number of rows.
    rows_at: u32,
    width: u32,
}

@group(0) @binding(2) var<storage, read_write> a: array<f32>;
@group(0) @binding(3) var<storage, read_write> b: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.y >= inputs[params.rows_at] || id.x >= params.width) {
        return;
    }
    let at = id.y * params.width + id.x;
    y[at] = a[at] + b[at];
}
