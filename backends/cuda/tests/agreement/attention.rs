//! Every kernel of attention gives the bits of every other: whole prompts, chunks, single tokens fused with rotation and
//! cache, however tiles are spread over CTAs.

use worker_orcd_core::{
    Backend, DType, KvElement, KvGroup, KvLayer, KvLayout, Op, PlanId, ProgramBuilder, RopeStyle, StepInputs,
    StepOutputs, ValueId, WeightId, WeightSpec,
};

use super::{Open, VOCABULARY, loaded, output_bits, program, some_tokens};

const BLOCK: usize = 4;
const LAYER: KvLayer = KvLayer { group: 0, index: 0 };

/// A layer's attention as the models record it.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// Elements of a head that are rotated.
    rotated: usize,
    style: RopeStyle,
    window: Option<usize>,
    sinks: bool,
    /// Whether a product reads the result, so that it is left as activation records.
    product: bool,
    multiprocessors: u32,
}

const PLAIN: Shape = Shape {
    heads: 6,
    num_kv_heads: 2,
    head_dim: 64,
    rotated: 64,
    style: RopeStyle::HalfSplit,
    window: None,
    sinks: false,
    product: false,
    multiprocessors: 132,
};

/// A backend with the weights and room for `tokens` positions of one sequence.
fn prepared(open: Open<'_>, shape: &Shape, tokens: usize) -> (Box<dyn Backend>, Vec<WeightSpec>) {
    let (q, kv) = (shape.heads * shape.head_dim, shape.num_kv_heads * shape.head_dim);
    let specs = vec![
        WeightSpec::matrix("q", DType::F16, VOCABULARY, q),
        WeightSpec::matrix("k", DType::F16, VOCABULARY, kv),
        WeightSpec::matrix("v", DType::F16, VOCABULARY, kv),
        WeightSpec::vector("angles", tokens, shape.rotated),
        WeightSpec::vector("sinks", 1, shape.heads),
        WeightSpec::matrix("o", DType::Q8_0, 40, q),
    ];
    let mut backend = loaded(open, shape.multiprocessors, &specs);
    let blocks = tokens.div_ceil(BLOCK);
    let group = KvGroup {
        layers: 1,
        num_kv_heads: shape.num_kv_heads,
        head_dim: shape.head_dim,
        num_blocks: blocks,
        max_blocks_per_sequence: blocks,
    };
    let layout = KvLayout { block_size: BLOCK, element: KvElement::F16, groups: vec![group] };
    backend.create_kv(&layout).unwrap();
    (backend, specs)
}

fn record(builder: &mut ProgramBuilder<'_>, shape: &Shape) -> ValueId {
    let [q, _] = rotated(builder, shape);
    mixed(builder, shape, q)
}

/// Queries and keys, rotated; the cache holds the keys.
fn rotated(builder: &mut ProgramBuilder<'_>, shape: &Shape) -> [ValueId; 2] {
    let (heads, num_kv_heads, head_dim) = (shape.heads, shape.num_kv_heads, shape.head_dim);
    let [q, k, v] = [0, 1, 2].map(|id| builder.embed(format!("x{id}"), WeightId(id)).unwrap());
    let q = builder.rope("q", q, WeightId(3), (heads, head_dim), shape.style).unwrap();
    let k = builder.rope("k", k, WeightId(3), (num_kv_heads, head_dim), shape.style).unwrap();
    builder.kv_write("kv", k, v, LAYER).unwrap();
    [q, k]
}

fn mixed(builder: &mut ProgramBuilder<'_>, shape: &Shape, q: ValueId) -> ValueId {
    let &Shape { heads, num_kv_heads, head_dim, window, .. } = shape;
    let sinks = shape.sinks.then_some(WeightId(4));
    let op = Op::Attention { q, layer: LAYER, heads, num_kv_heads, head_dim, scale: 3.0, window, sinks };
    let mixed = builder.attention("mix", op).unwrap();
    if shape.product { builder.linear("o", mixed, WeightId(5), None).unwrap() } else { mixed }
}

fn compile(backend: &mut dyn Backend, specs: &[WeightSpec], shape: &Shape, steps: &[usize]) -> Vec<PlanId> {
    let programs: Vec<_> =
        steps.iter().map(|&tokens| program(specs, tokens, |builder| record(builder, shape))).collect();
    backend.compile(&programs).unwrap()
}

/// Bits of the step that takes `tokens` at `positions`.
fn step(backend: &mut dyn Backend, plan: PlanId, tokens: &[u32], positions: &[u32], all: usize) -> Vec<u32> {
    submit(backend, plan, tokens, positions, all);
    output_bits(backend)
}

/// Starts the step that takes `tokens` at `positions`.
fn submit(backend: &mut dyn Backend, plan: PlanId, tokens: &[u32], positions: &[u32], all: usize) {
    // Blocks lie backwards, so that no position is its own slot.
    let blocks = all.div_ceil(BLOCK) as u32;
    let table: Vec<u32> = (0..blocks).rev().collect();
    let slot = |&position: &u32| table[position as usize / BLOCK] * BLOCK as u32 + position % BLOCK as u32;
    let slots: Vec<u32> = positions.iter().map(slot).collect();
    let inputs = StepInputs {
        tokens,
        positions,
        sequences: &vec![0; tokens.len()],
        slots: &[&slots],
        block_tables: &[&table],
        out_rows: &[0],
        sampling: &[],
        penalty_tokens: &[],
    };
    backend.submit(plan, &inputs).unwrap();
}

/// Bits of `all` tokens, `chunk` at a time.
fn in_chunks(open: Open<'_>, shape: &Shape, all: usize, chunk: usize) -> Vec<u32> {
    let (mut backend, specs) = prepared(open, shape, all);
    let plan = compile(backend.as_mut(), &specs, shape, &[chunk])[0];
    let positions: Vec<u32> = (0..all as u32).collect();
    let steps = some_tokens(all);
    let steps = steps.chunks(chunk).zip(positions.chunks(chunk));
    steps.flat_map(|(tokens, positions)| step(backend.as_mut(), plan, tokens, positions, all)).collect()
}

/// Tokens of a step below, the last of them padding.
const TOKENS: usize = 19;

/// Queries and what attention makes of them, rotated and stored in one launch and, as the rotated keys are put out too, in
/// three.
pub(crate) fn rotations_agree_fused_and_apart_in_every_bit(open: Open<'_>, _: &[usize]) {
    let shapes = [
        Shape { heads: 5, num_kv_heads: 1, rotated: 48, ..PLAIN },
        Shape { heads: 18, num_kv_heads: 6, head_dim: 96, rotated: 96, ..PLAIN },
        Shape { style: RopeStyle::Interleaved, rotated: 32, ..PLAIN },
        Shape { heads: 64, num_kv_heads: 8, ..PLAIN },
        // Heads of no whole parts stay apart.
        Shape { heads: 4, head_dim: 32, rotated: 20, ..PLAIN },
    ];
    for shape in shapes {
        let [fused, apart] = [false, true].map(|apart| {
            let (mut backend, specs) = prepared(open, &shape, TOKENS);
            let outputs = |builder: &mut ProgramBuilder<'_>| {
                let [q, k] = rotated(builder, &shape);
                builder.output(q);
                if apart {
                    builder.output(k);
                }
                mixed(builder, &shape, q)
            };
            let plan = backend.compile(&[program(&specs, TOKENS, outputs)]).unwrap()[0];
            let (tokens, positions) = (some_tokens(TOKENS - 1), (0..TOKENS as u32 - 1).collect::<Vec<_>>());
            submit(backend.as_mut(), plan, &tokens, &positions, TOKENS);
            let mut outputs = StepOutputs::default();
            backend.wait(&mut outputs).unwrap();
            let last = outputs.values.len() - 1;
            assert_eq!(last, if apart { 2 } else { 1 });
            [0, last].map(|index| outputs.f32(index).iter().map(|value| value.to_bits()).collect::<Vec<_>>())
        });
        assert!(fused[0] == apart[0], "{shape:?}: queries");
        assert!(fused[1] == apart[1], "{shape:?}: what the cache holds");
    }
}

/// Whole prompts and chunks of them.
pub(crate) fn attention_shapes_agree_in_every_bit(open: Open<'_>, _: &[usize]) {
    for (head_dim, window) in [(32, None), (64, Some(70)), (80, None), (128, Some(1))] {
        let shape = Shape { head_dim, rotated: head_dim, window, ..PLAIN };
        let singles = in_chunks(open, &shape, 150, 1);
        for chunk in [100, 65] {
            assert!(in_chunks(open, &shape, 150, chunk) == singles, "{shape:?}, {chunk} at a time");
        }
    }
}

/// Positions of the prompt below, and how many at a time.
const ALL: usize = 600;
const CHUNK: usize = 150;

/// Single steps at chosen positions behind a prompt: one tile, a tile's ends, as many as teams, more than one CTA's, and
/// on a device so small that CTAs go round.
pub(crate) fn single_steps_deep_in_a_context_have_the_prompts_bits(open: Open<'_>, _: &[usize]) {
    let shapes = [
        Shape { heads: 16, sinks: true, product: true, ..PLAIN },
        Shape { multiprocessors: 2, rotated: 32, ..PLAIN },
        Shape {
            heads: 4,
            num_kv_heads: 4,
            head_dim: 96,
            rotated: 96,
            product: true,
            multiprocessors: 4,
            ..PLAIN
        },
        Shape {
            heads: 20,
            num_kv_heads: 1,
            head_dim: 128,
            rotated: 128,
            style: RopeStyle::Interleaved,
            ..PLAIN
        },
        Shape { head_dim: 80, rotated: 80, window: Some(100), sinks: true, multiprocessors: 1, ..PLAIN },
        Shape { head_dim: 32, rotated: 32, multiprocessors: 1, ..PLAIN },
    ];
    for shape in shapes {
        let (mut backend, specs) = prepared(open, &shape, ALL);
        let plans = compile(backend.as_mut(), &specs, &shape, &[CHUNK, 1]);
        let (tokens, positions) = (some_tokens(ALL), (0..ALL as u32).collect::<Vec<_>>());
        let steps = tokens.chunks(CHUNK).zip(positions.chunks(CHUNK));
        let whole: Vec<u32> = steps
            .flat_map(|(tokens, positions)| step(backend.as_mut(), plans[0], tokens, positions, ALL))
            .collect();
        let width = whole.len() / ALL;
        for at in [0, 1, 63, 64, 130, 255, 256, 470, 599] {
            let single = step(backend.as_mut(), plans[1], &tokens[at..=at], &positions[at..=at], ALL);
            assert!(single == whole[at * width..(at + 1) * width], "{shape:?}, position {at}");
        }
    }
}
