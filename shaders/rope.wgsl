// rope: rotates the first n elements of each head by the angles of the token's position; the rest passes through
//
//   half split:  (x[i], x[i + n/2]), interleaved: (x[2i], x[2i + 1]);  (a, b) -> (a cos - b sin, b cos + a sin)
// x, y [T, heads * head_dim] f32, angles [positions, n] f32: n/2 cosines then n/2 sines.
// Grid: (ceil(width / 256), T) workgroups of 256; one invocation per element of y.
// Composed as prelude + rotation + this.

struct Params {
    // Word of `inputs` where the positions start.
    positions_at: u32,
    width: u32,
    head_dim: u32,
    rotated: u32,
    // 1: neighbours are a pair; 0: halves are.
    interleaved: u32,
}

@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read> angles: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.y >= inputs[TOKEN_COUNT] || id.x >= params.width) {
        return;
    }
    let at = id.y * params.width + id.x;
    let element = id.x % params.head_dim;
    if (element >= params.rotated) {
        y[at] = x[at];
        return;
    }
    let turn = turn_of(element);
    let row = inputs[params.positions_at + id.y] * params.rotated;
    let cosine = angles[row + turn.index];
    let sine = angles[row + params.rotated / 2u + turn.index];
    let partner = select(at + turn.distance, at - turn.distance, turn.second);
    y[at] = turned(x[at], x[partner], cosine, sine, turn.second);
}
