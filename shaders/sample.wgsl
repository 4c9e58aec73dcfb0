// sample: one token per output row, by the integer arithmetic of the host's sampler (core's `sampling`)
//
// logits [R, vocab] f32, scratch [R, vocab] u32, tokens [R, 1] u32; the rows' prepared parameters are in `inputs`, twelve
// words each. Grid: (R) workgroups of 256. Lane l looks after the ids l, l + 256, ... in every pass; the scratch holds
// first the penalised logits, as sample_scan left them, then the weights, each written and read by the same lane.
//
// The only float arithmetic is the penalty's product and `(max - l) * scale`, one subtraction and one product; all three
// are correctly rounded on every device, so the token equals the host's. From the weight on everything is an integer, sums
// are exact in 64 bits (two words, low first) and therefore independent of their order.
//
// top-k, top-p and the draw ask the same question: in some order of the ids, where does a running sum reach a target?
// `find_cut` answers it by a radix search: eight bits of the rank per pass, then eight bits of the id.
// Composed as prelude + sample_logits + this.

struct Params {
    vocab: u32,
    // Width of a penalty list, 0 = none, and the word of `inputs` where the lists start.
    penalty_width: u32,
    penalty_at: u32,
    // Word of `inputs` where the rows' parameters start.
    sampling_at: u32,
    // Workgroups sample_scan has per row.
    chunks: u32,
}

@group(0) @binding(4) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(5) var<storage, read_write> maxima: array<vec4<u32>>;

const ROW_WORDS = 12u;
// What `find_cut` sums, in which order.
const BY_LOGIT = 0u;
const BY_WEIGHT = 1u;
const BY_ID = 2u;

// Coefficients of the polynomial for 2^-f, in units of 2^-32.
const COEFFICIENTS = array<u32, 7>(
    2977044470u, 1031764842u, 238386455u, 41300355u, 5704530u, 633126u, 46516u,
);

var<workgroup> bins_low: array<atomic<u32>, 256>;
var<workgroup> bins_high: array<atomic<u32>, 256>;
// Found bin and what is left of the target inside it; then a broadcast sum.
var<workgroup> found: vec4<u32>;

struct Row {
    base: u32,
    scale: f32,
    // Survivors are the weights from this one on, ties up to this id.
    cut_weight: u32,
    cut_weight_id: u32,
}

fn add64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn subtract64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn reaches64(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y > b.y || (a.y == b.y && a.x >= b.x);
}

// The 64-bit product of two words, from four products of halves.
fn multiply(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let mid = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let cross = (a & 0xffffu) * (b >> 16u) + (mid & 0xffffu);
    let high = (a >> 16u) * (b >> 16u) + (mid >> 16u) + (cross >> 16u);
    return vec2<u32>((cross << 16u) | (low & 0xffffu), high);
}

// floor(2^31 * 2^-y) up to two units; exactly 2^31 at 0, 0 from 32 on.
fn exp_weight(y: f32) -> u32 {
    if (!(y < 32.0)) {
        return 0u;
    }
    let fixed = u32(y * 67108864.0);
    let fraction = fixed << 6u;
    var coefficients = COEFFICIENTS;
    var tail = 0u;
    for (var i = 7u; i > 0u; i--) {
        tail = coefficients[i - 1u] - multiply(tail, fraction).y;
    }
    return (0x80000000u - (multiply(tail, fraction).y >> 1u)) >> (fixed >> 26u);
}

fn logit(row: Row, id: u32) -> f32 {
    return logit_at(row.base + id);
}

// Weight of an id, 0 when a cut has removed it; valid after `weigh`.
fn weight_of(row: Row, id: u32) -> u32 {
    let weight = scratch[row.base + id];
    let removed = weight < row.cut_weight || (weight == row.cut_weight && id > row.cut_weight_id);
    return select(weight, 0u, removed);
}

// Four ids a lane looks after, asked for together: a loop would wait for each. Beyond the end the first stands in.
fn four_ids(first: u32) -> vec4<u32> {
    let ids = vec4<u32>(first) + vec4<u32>(0u, LANES, 2u * LANES, 3u * LANES);
    return select(vec4<u32>(first), ids, ids < vec4<u32>(params.vocab));
}

// Which of those are there.
fn there(first: u32) -> vec4<bool> {
    return vec4<u32>(first) + vec4<u32>(0u, LANES, 2u * LANES, 3u * LANES) < vec4<u32>(params.vocab);
}

fn weigh_one(row: Row, id: u32, value: f32, largest: f32, min_weight: u32, cut: vec2<u32>) {
    let key = ordered_key(bitcast<u32>(value));
    let weight = exp_weight((largest - value) * row.scale);
    let removed = key < cut.x || (key == cut.x && id > cut.y) || weight < min_weight;
    scratch[row.base + id] = select(weight, 0u, removed);
}

// Turns the scratch into weights: of the logits from key `cut.x` on, ties up to id `cut.y`, that reach `min_weight`.
fn weigh(row: Row, lane: u32, largest: f32, min_weight: u32, cut: vec2<u32>) {
    for (var first = lane; first < params.vocab; first += 4u * LANES) {
        let ids = four_ids(first);
        let values = vec4<f32>(logit(row, ids.x), logit(row, ids.y), logit(row, ids.z), logit(row, ids.w));
        // An id that stands in is weighed again, to the same weight.
        weigh_one(row, ids.x, values.x, largest, min_weight, cut);
        weigh_one(row, ids.y, values.y, largest, min_weight, cut);
        weigh_one(row, ids.z, values.z, largest, min_weight, cut);
        weigh_one(row, ids.w, values.w, largest, min_weight, cut);
    }
}

// Adds to a bin; its low word's overflow is seen by exactly one of the lanes that add.
fn add_to_bin(digit: u32, sum: vec2<u32>) {
    let before = atomicAdd(&bins_low[digit], sum.x);
    let high = sum.y + select(0u, 1u, before + sum.x < before);
    if (high != 0u) {
        atomicAdd(&bins_high[digit], high);
    }
}

// Rank (x) and summand (y) of an id.
fn ranked(row: Row, id: u32, mode: u32) -> vec2<u32> {
    if (mode == BY_LOGIT) {
        return vec2<u32>(ordered_key(bitcast<u32>(logit(row, id))), 1u);
    }
    let weight = weight_of(row, id);
    return vec2<u32>(select(weight, 0u, mode == BY_ID), weight);
}

// Walks the bins from the last to the first until their sum reaches `target`.
fn choose_bin(target_sum: vec2<u32>) {
    var rest = target_sum;
    var chosen = 0u;
    for (var i = 0u; i < 256u; i++) {
        let bin = 255u - i;
        let sum = vec2<u32>(atomicLoad(&bins_low[bin]), atomicLoad(&bins_high[bin]));
        if (sum.x != 0u || sum.y != 0u) {
            chosen = bin;
            if (reaches64(sum, rest)) {
                break;
            }
            rest = subtract64(rest, sum);
        }
    }
    found = vec4<u32>(chosen, rest, 0u);
}

// What a lane is about to add to a bin.
struct Held {
    digit: u32,
    sum: vec2<u32>,
}

// Takes an element, if it belongs to what the search has found so far. Neighbours often share a digit: they are summed
// here before they queue for the bin.
fn hold(before: Held, element: vec2<u32>, id: u32, round: u32, rank: u32, distance: u32) -> Held {
    var digit = 0u;
    var belongs = true;
    if (round < 4u) {
        let shift = 24u - 8u * round;
        digit = (element.x >> shift) & 0xffu;
        // Two shifts: one of 32 bits would do nothing.
        belongs = ((element.x ^ rank) >> shift) >> 8u == 0u;
    } else {
        let shift = 16u - 8u * (round - 4u);
        let own = 0xffffffu - id;
        digit = (own >> shift) & 0xffu;
        belongs = element.x == rank && ((own ^ distance) >> shift) >> 8u == 0u;
    }
    if (!belongs || element.y == 0u) {
        return before;
    }
    var after = before;
    if (digit != before.digit) {
        add_to_bin(before.digit, before.sum);
        after = Held(digit, vec2<u32>());
    }
    after.sum = add64(after.sum, vec2<u32>(element.y, 0u));
    return after;
}

// Rank (x) and id (y) of the element at which the sum over descending rank, ties by ascending id, reaches `target_sum`.
// Uniform control flow; every lane gets the answer.
fn find_cut(row: Row, lane: u32, mode: u32, target_sum: vec2<u32>) -> vec2<u32> {
    var rest = target_sum;
    var rank = 0u;
    // Ids are searched as their distance from 2^24 - 1, so that the lower id is the larger digit.
    var distance = 0u;
    for (var round = select(0u, 4u, mode == BY_ID); round < 7u; round++) {
        atomicStore(&bins_low[lane], 0u);
        atomicStore(&bins_high[lane], 0u);
        workgroupBarrier();
        var held = Held(0u, vec2<u32>());
        for (var first = lane; first < params.vocab; first += 4u * LANES) {
            let ids = four_ids(first);
            let counts = there(first);
            let a = ranked(row, ids.x, mode);
            let b = ranked(row, ids.y, mode);
            let c = ranked(row, ids.z, mode);
            let d = ranked(row, ids.w, mode);
            held = hold(held, a, ids.x, round, rank, distance);
            if (counts.y) {
                held = hold(held, b, ids.y, round, rank, distance);
            }
            if (counts.z) {
                held = hold(held, c, ids.z, round, rank, distance);
            }
            if (counts.w) {
                held = hold(held, d, ids.w, round, rank, distance);
            }
        }
        add_to_bin(held.digit, held.sum);
        workgroupBarrier();
        if (lane == 0u) {
            choose_bin(rest);
        }
        let answer = workgroupUniformLoad(&found);
        rest = answer.yz;
        if (round < 4u) {
            rank |= answer.x << (24u - 8u * round);
        } else {
            distance |= answer.x << (16u - 8u * (round - 4u));
        }
    }
    return vec2<u32>(rank, 0xffffffu - distance);
}

// Sum of all surviving weights, on every lane. Uniform control flow.
fn total_weight(row: Row, lane: u32) -> vec2<u32> {
    var sum = vec2<u32>();
    for (var first = lane; first < params.vocab; first += 4u * LANES) {
        let ids = four_ids(first);
        let weights = vec4<u32>(
            weight_of(row, ids.x),
            weight_of(row, ids.y),
            weight_of(row, ids.z),
            weight_of(row, ids.w),
        );
        let counted = select(vec4<u32>(), weights, there(first));
        sum = add64(sum, vec2<u32>(counted.x, 0u));
        sum = add64(sum, vec2<u32>(counted.y, 0u));
        sum = add64(sum, vec2<u32>(counted.z, 0u));
        sum = add64(sum, vec2<u32>(counted.w, 0u));
    }
    atomicStore(&bins_low[lane], sum.x);
    atomicStore(&bins_high[lane], sum.y);
    workgroupBarrier();
    if (lane == 0u) {
        var total = vec2<u32>();
        for (var i = 0u; i < LANES; i++) {
            total = add64(total, vec2<u32>(atomicLoad(&bins_low[i]), atomicLoad(&bins_high[i])));
        }
        found = vec4<u32>(total, 0u, 0u);
    }
    return workgroupUniformLoad(&found).xy;
}

// Key (x) and lowest id (y) of the row's largest logit, z = 1 when a logit is NaN or +inf. Uniform control flow.
fn find_max(index: u32, lane: u32) -> vec4<u32> {
    var best = vec4<u32>();
    for (var chunk = lane; chunk < params.chunks; chunk += LANES) {
        best = better(best, maxima[index * params.chunks + chunk]);
    }
    best = best_of_lanes(lane, best);
    if (lane == 0u) {
        found = best;
    }
    return workgroupUniformLoad(&found);
}

// ceil(total * top_p / 2^32)
fn share64(total: vec2<u32>, top_p: u32) -> vec2<u32> {
    let low = multiply(total.x, top_p);
    let carry = low.y + select(0u, 1u, low.x != 0u);
    return add64(multiply(total.y, top_p), vec2<u32>(carry, select(0u, 1u, carry < low.y)));
}

// (a * b) >> 64
fn high64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let mid = add64(multiply(a.y, b.x), vec2<u32>(multiply(a.x, b.x).y, 0u));
    let cross = add64(multiply(a.x, b.y), vec2<u32>(mid.x, 0u));
    return add64(multiply(a.y, b.y), add64(vec2<u32>(mid.y, 0u), vec2<u32>(cross.y, 0u)));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = group.x;
    if (index >= inputs[ROW_COUNT]) {
        return;
    }
    let at = params.sampling_at + index * ROW_WORDS;
    let base = index * params.vocab;
    var row = Row(base, bitcast<f32>(inputs[at]), 0u, NO_TOKEN);
    let best = find_max(index, lane);
    // Nothing above -inf, whose key this is.
    let none = best.z != 0u || best.x <= 0x007fffffu;
    if (none || inputs[at] == 0u) {
        if (lane == 0u) {
            tokens[index] = select(best.y, NO_TOKEN, none);
        }
        return;
    }
    let largest = logit(row, best.y);
    let top_k = inputs[at + 4u];
    var top_cut = vec2<u32>(0u, NO_TOKEN);
    if (top_k < params.vocab) {
        top_cut = find_cut(row, lane, BY_LOGIT, vec2<u32>(top_k, 0u));
    }
    // Every lane has read the largest logit before its place is overwritten.
    storageBarrier();
    weigh(row, lane, largest, inputs[at + 3u], top_cut);
    if (inputs[at + 6u] == 0u) {
        let needed = share64(total_weight(row, lane), inputs[at + 5u]);
        let cut = find_cut(row, lane, BY_WEIGHT, needed);
        row.cut_weight = cut.x;
        row.cut_weight_id = cut.y;
    }
    let random = vec2<u32>(inputs[at + 7u], inputs[at + 8u]);
    let drawn = add64(high64(random, total_weight(row, lane)), vec2<u32>(1u, 0u));
    let token = find_cut(row, lane, BY_ID, drawn).y;
    if (lane == 0u) {
        tokens[index] = token;
    }
}
