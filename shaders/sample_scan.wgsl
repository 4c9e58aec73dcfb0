// sample_scan: penalises the logits of each output row, and finds the largest of every 4096
//
// logits [R, vocab] f32, scratch [R, vocab] u32, the penalised logits if there is a penalty, maxima [R, chunks]: key, lowest
// id, 1 when a logit is NaN or +inf. Grid: (chunks, R) workgroups of 256; one workgroup would take longer to look at a
// row than the product that makes it.
// Composed as prelude + sample_logits + this.

struct Params {
    // As sample.
    vocab: u32,
    penalty_width: u32,
    penalty_at: u32,
    sampling_at: u32,
    // Workgroups per row.
    chunks: u32,
}

@group(0) @binding(4) var<storage, read_write> maxima: array<vec4<u32>>;

const CHUNK = 4096u;
// Words of one row's parameters; the penalty's factors are the second and third.
const ROW_WORDS = 12u;

// Copies the ids from `start` to `end` into the scratch, those the row lists penalised once.
fn penalise(row: u32, start: u32, end: u32, lane: u32) {
    let base = row * params.vocab;
    for (var id = start + lane; id < end; id += LANES) {
        scratch[base + id] = bitcast<u32>(logits[base + id]);
    }
    storageBarrier();
    let at = params.sampling_at + row * ROW_WORDS;
    let factors = vec2<f32>(bitcast<f32>(inputs[at + 1u]), bitcast<f32>(inputs[at + 2u]));
    for (var i = lane; i < params.penalty_width; i += LANES) {
        let id = inputs[params.penalty_at + row * params.penalty_width + i];
        if (id >= start && id < end) {
            let raw = logits[base + id];
            scratch[base + id] = bitcast<u32>(raw * select(factors.x, factors.y, raw > 0.0));
        }
    }
    storageBarrier();
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y;
    if (row >= inputs[ROW_COUNT]) {
        return;
    }
    let start = group.x * CHUNK;
    let end = min(start + CHUNK, params.vocab);
    if (params.penalty_width > 0u) {
        penalise(row, start, end, lane);
    }
    var best = vec4<u32>();
    for (var id = start + lane; id < end; id += LANES) {
        let bits = bitcast<u32>(logit_at(row * params.vocab + id));
        let unusable = (bits & 0x7fffffffu) > 0x7f800000u || bits == 0x7f800000u;
        best = better(best, vec4<u32>(ordered_key(bits), id, select(0u, 1u, unusable), 0u));
    }
    best = best_of_lanes(lane, best);
    if (lane == 0u) {
        maxima[row * params.chunks + group.x] = best;
    }
}
