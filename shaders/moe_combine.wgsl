// moe_combine: y[t] = sum_k weights[t][k] * x[t][k], k ascending
//
// x [T, top_k * width] f32, weights [T, top_k] f32, y [T, width] f32.
// Grid: (ceil(width / 256), T) workgroups of 256.

struct Params {
    width: u32,
    top_k: u32,
}

@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.y >= inputs[TOKEN_COUNT] || id.x >= params.width) {
        return;
    }
    var sum = 0.0;
    for (var k = 0u; k < params.top_k; k++) {
        let pair = id.y * params.top_k + k;
        sum = fma(weights[pair], x[pair * params.width + id.x], sum);
    }
    y[id.y * params.width + id.x] = sum;
}
