// gather_rows: y[r] = x[out_rows[r]]
//
// x [T, width], y [R, width], copied as bits. Grid: (ceil(width / 256), R) workgroups of 256.

struct Params {
    // Word of `inputs` where the token indices of the output rows start.
    out_rows_at: u32,
    width: u32,
}

@group(0) @binding(2) var<storage, read_write> x: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.y >= inputs[ROW_COUNT] || id.x >= params.width) {
        return;
    }
    y[id.y * params.width + id.x] = x[inputs[params.out_rows_at + id.y] * params.width + id.x];
}
