// attention_walk: one query head over the cached positions of its sequence, for the shaders that attend
//
// Tiles of 64 positions aligned to absolute positions, in four strands: strand s has the tiles s, s + 4, ... of the whole
// sequence and a softmax of its own that is kept up to date. 64 lanes walk a strand: lane j scores the j-th position of
// a tile, then owns the element pairs j, j + 64, ... of the output. In the end the sink, if there is one, and the four
// strands are joined in that order. So the order of every sum depends on the position, window and HEAD_DIM alone: not on
// the step's other tokens, on which physical blocks hold the positions, or on how many strands are walked at once.
//
// What a loop would ask for one by one is asked for eight at a time.
//
// Needs `score` and `value_pair` (cache_* or attention_one), `sinks`, `out`, `query` filled, and the fields of attention's
// `Params`. A base of OWN stands for the token's own position where its key and value are not yet in the pools.

// Elements per head, at most 512.
override HEAD_DIM: u32 = 64u;

// Strands walked at once, 1 or 4: a workgroup has 64 lanes for each.
override AT_ONCE: u32 = 1u;

const TILE = 64u;
const STRANDS = 4u;
const NONE = -3.0e38;
const OWN = 0xffffffffu;

var<workgroup> query: array<vec4<f32>, 128>;
var<workgroup> slots: array<u32, 256>;
var<workgroup> scores: array<f32, 256>;
var<workgroup> weights: array<f32, 256>;
var<workgroup> strand_bests: array<f32, 4>;
var<workgroup> strand_totals: array<f32, 4>;
// Element pairs of the strands, one after the other.
var<workgroup> strand_sums: array<vec2<f32>, 1024>;

// What the token sees, and where.
struct View {
    position: u32,
    // First visible position.
    first: u32,
    // Word of `inputs` where the sequence's block table starts.
    table: u32,
    // Element of a slot where the kv head starts.
    kv_head: u32,
    // Whether the token's own position is read as OWN.
    own: bool,
    // Strands 0 to this have positions, or may have; the others have none.
    strands: u32,
}

fn view_of(token: u32, head: u32, own: bool) -> View {
    let position = inputs[params.positions_at + token];
    let first = select(0u, position - min(position, params.window - 1u), params.window != NO_SLOT);
    let table = params.tables_at + inputs[params.sequences_at + token] * params.table_width;
    let run = STRANDS * TILE;
    let strands = select(STRANDS, position % run / TILE + 1u, first / run == position / run);
    return View(position, first, table, head / params.heads_per_kv_head * HEAD_DIM, own, strands);
}

// Running softmax of one strand; the four sums are the element pairs `lane`, `lane + 64`, ... .
struct Running {
    best: f32,
    total: f32,
    sum0: vec2<f32>,
    sum1: vec2<f32>,
    sum2: vec2<f32>,
    sum3: vec2<f32>,
}

// First word of a position's slot in the pools.
fn base_of(view: View, at: u32) -> u32 {
    if (view.own && at == view.position) {
        return OWN;
    }
    let block = inputs[view.table + at / params.block_size];
    return (block * params.block_size + at % params.block_size) * params.slot_words;
}

fn highest_of_eight(at: u32) -> f32 {
    let low = max(max(scores[at], scores[at + 1u]), max(scores[at + 2u], scores[at + 3u]));
    return max(low, max(max(scores[at + 4u], scores[at + 5u]), max(scores[at + 6u], scores[at + 7u])));
}

fn highest_of_tile(at: u32) -> f32 {
    let a = max(highest_of_eight(at), highest_of_eight(at + 8u));
    let b = max(highest_of_eight(at + 16u), highest_of_eight(at + 24u));
    let c = max(highest_of_eight(at + 32u), highest_of_eight(at + 40u));
    let d = max(highest_of_eight(at + 48u), highest_of_eight(at + 56u));
    return max(max(a, b), max(c, d));
}

// An element pair of a position's value, zero where it weighs nothing: no infinity of a position that is not visible counts.
fn weighable(at: u32, view: View, pair: u32) -> vec2<f32> {
    return select(value_pair(slots[at], view.kv_head, pair), vec2<f32>(), weights[at] == 0.0);
}

// Adds eight positions' values, weighted, to one element pair.
fn add_eight(at: u32, view: View, pair: u32, sum: vec2<f32>) -> vec2<f32> {
    let a = weighable(at, view, pair);
    let b = weighable(at + 1u, view, pair);
    let c = weighable(at + 2u, view, pair);
    let d = weighable(at + 3u, view, pair);
    let e = weighable(at + 4u, view, pair);
    let f = weighable(at + 5u, view, pair);
    let g = weighable(at + 6u, view, pair);
    let h = weighable(at + 7u, view, pair);
    var s = fma(vec2<f32>(weights[at]), a, sum);
    s = fma(vec2<f32>(weights[at + 1u]), b, s);
    s = fma(vec2<f32>(weights[at + 2u]), c, s);
    s = fma(vec2<f32>(weights[at + 3u]), d, s);
    s = fma(vec2<f32>(weights[at + 4u]), e, s);
    s = fma(vec2<f32>(weights[at + 5u]), f, s);
    s = fma(vec2<f32>(weights[at + 6u]), g, s);
    return fma(vec2<f32>(weights[at + 7u]), h, s);
}

fn four_weights(at: u32) -> vec4<f32> {
    return vec4<f32>(weights[at], weights[at + 1u], weights[at + 2u], weights[at + 3u]);
}

// Takes a tile's values; `from_at` is where its scores begin.
fn add_tile(view: View, tile: u32, from_at: u32, lane: u32, before: Running) -> Running {
    var after = before;
    let pairs = (HEAD_DIM + 1u) / 2u;
    // Whole eights; the positions among them that are not visible weigh nothing and stand for the token's own.
    let start = (max(view.first, tile) - tile) / 8u * 8u;
    let end = min(view.position - tile, TILE - 1u);
    for (var j = start; j <= end; j += 8u) {
        let at = from_at + j;
        after.total = add_in_order(add_in_order(after.total, four_weights(at)), four_weights(at + 4u));
        if (lane < pairs) {
            after.sum0 = add_eight(at, view, lane, after.sum0);
        }
        if (HEAD_DIM > 128u && lane + 64u < pairs) {
            after.sum1 = add_eight(at, view, lane + 64u, after.sum1);
        }
        if (HEAD_DIM > 256u && lane + 128u < pairs) {
            after.sum2 = add_eight(at, view, lane + 128u, after.sum2);
        }
        if (HEAD_DIM > 384u && lane + 192u < pairs) {
            after.sum3 = add_eight(at, view, lane + 192u, after.sum3);
        }
    }
    return after;
}

// Every tile of one strand. Uniform control flow.
fn walk_strand(view: View, strand: u32, thread: u32) -> Running {
    let lane = thread % TILE;
    let from_at = thread - lane;
    var running = Running(NONE, 0.0, vec2<f32>(), vec2<f32>(), vec2<f32>(), vec2<f32>());
    for (var run = view.first / (STRANDS * TILE) * (STRANDS * TILE); run <= view.position; run += STRANDS * TILE) {
        let tile = run + strand * TILE;
        let at = tile + lane;
        let visible = at >= view.first && at <= view.position;
        // Whether the strand has any visible position here.
        let seen = tile <= view.position && tile + TILE > view.first;
        var own = NONE;
        if (seen) {
            let base = base_of(view, select(view.position, at, visible));
            own = select(NONE, score(base, view.kv_head), visible);
            slots[thread] = base;
        }
        scores[thread] = own;
        workgroupBarrier();
        let total = running.total;
        var shrink = 1.0;
        if (seen) {
            let highest = max(running.best, highest_of_tile(from_at));
            // The score as it was stored: a compiler must not join its last product with the difference.
            weights[thread] = select(0.0, exp(scores[thread] - highest), visible);
            shrink = exp(running.best - highest);
            running.best = highest;
            running.total = 0.0;
            running.sum0 *= shrink;
            running.sum1 *= shrink;
            running.sum2 *= shrink;
            running.sum3 *= shrink;
        }
        workgroupBarrier();
        if (seen) {
            running = add_tile(view, tile, from_at, lane, running);
            running.total = fma(total, shrink, running.total);
        }
        // The next tile overwrites `slots` and `weights`, which a slower lane may still read.
        workgroupBarrier();
    }
    return running;
}

// Walks the strands and shows them to the workgroup. Uniform control flow.
fn walk(view: View, thread: u32) {
    let lane = thread % TILE;
    for (var first = 0u; first < view.strands; first += AT_ONCE) {
        let strand = first + thread / TILE;
        let running = walk_strand(view, strand, thread);
        if (lane == 0u) {
            strand_bests[strand] = running.best;
            strand_totals[strand] = running.total;
        }
        let at = strand * 256u + lane;
        strand_sums[at] = running.sum0;
        if (HEAD_DIM > 128u) {
            strand_sums[at + 64u] = running.sum1;
            strand_sums[at + 128u] = running.sum2;
            strand_sums[at + 192u] = running.sum3;
        }
    }
    workgroupBarrier();
}

// Joins the strands and writes the head, whose first element of `out` is `base`.
fn finish_head(view: View, head: u32, base: u32, thread: u32) {
    let has = vec4<bool>(true, view.strands > 1u, view.strands > 2u, view.strands > 3u);
    let held = vec4<f32>(strand_bests[0], strand_bests[1], strand_bests[2], strand_bests[3]);
    let bests = select(vec4<f32>(NONE), held, has);
    var best = max(max(bests.x, bests.y), max(bests.z, bests.w));
    var total = 0.0;
    if (params.has_sinks != 0u) {
        best = max(best, sinks[head]);
        total = exp(sinks[head] - best);
    }
    let factors = exp(bests - best);
    total = fma(strand_totals[0], factors.x, total);
    if (has.y) {
        total = fma(strand_totals[1], factors.y, total);
    }
    if (has.z) {
        total = fma(strand_totals[2], factors.z, total);
    }
    if (has.w) {
        total = fma(strand_totals[3], factors.w, total);
    }
    for (var pair = thread; pair < (HEAD_DIM + 1u) / 2u; pair += AT_ONCE * TILE) {
        var sum = strand_sums[pair] * factors.x;
        if (has.y) {
            sum = fma(strand_sums[pair + 256u], vec2<f32>(factors.y), sum);
        }
        if (has.z) {
            sum = fma(strand_sums[pair + 512u], vec2<f32>(factors.z), sum);
        }
        if (has.w) {
            sum = fma(strand_sums[pair + 768u], vec2<f32>(factors.w), sum);
        }
        let value = sum / total;
        out[base + pair * 2u] = value.x;
        if (pair * 2u + 1u < HEAD_DIM) {
            out[base + pair * 2u + 1u] = value.y;
        }
    }
}
