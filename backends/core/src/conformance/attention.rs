//! Cases of the cache: kv_write and attention over shuffled pages, chunks, windows and sinks.

use super::recipe::{Data, Recipe};
use super::{Case, StepData};
use crate::backend::BackendError;
use crate::kv::{KvElement, KvGroup, KvLayer, KvLayout};
use crate::op::Op;
use crate::program::ValueId;
use crate::rng::Rng;
use crate::step::{NO_BLOCK, NO_SLOT, StepShape};
use crate::weight::{WeightId, WeightSpec};

/// Sequences of every schedule.
const SEQUENCES: usize = 3;
/// Distinct tokens.
const VOCAB: usize = 23;

/// Chunks of one step, as (sequence, tokens).
type Chunks = &'static [(usize, usize)];

/// Prefill and decode of three sequences; 0 and 2 are the same text, cut differently.
pub(super) const MIXED: &[Chunks] =
    &[&[(0, 5), (1, 17)], &[(0, 1), (1, 1)], &[(1, 20), (0, 3), (2, 42)], &[(2, 1), (1, 1), (0, 1)]];
/// One sequence that crosses many pages, then decodes.
const LONG: &[Chunks] = &[&[(0, 257)], &[(0, 31)], &[(0, 1)]];
/// Decode from the first token on.
const SINGLES: &[Chunks] = &[&[(0, 1)], &[(0, 1)], &[(0, 1)], &[(0, 1)], &[(0, 1)]];

/// A block allocator as an engine has it: pages in shuffled order, pages behind a window given back.
pub(super) struct Pager {
    pub(super) layout: KvLayout,
    windows: Vec<Option<usize>>,
    free: Vec<Vec<u32>>,
    tables: Vec<Vec<u32>>,
    lengths: [usize; SEQUENCES],
    /// Which text a sequence holds.
    streams: [u64; SEQUENCES],
}

impl Pager {
    /// One group per window, each of `layers` layers.
    pub(super) fn new(
        windows: &[Option<usize>],
        layers: usize,
        (num_kv_heads, head_dim): (usize, usize),
        block_size: usize,
        rng: &mut Rng,
    ) -> Self {
        let max_blocks_per_sequence = 300_usize.div_ceil(block_size);
        let num_blocks = max_blocks_per_sequence + 2 * 96_usize.div_ceil(block_size);
        let group = KvGroup { layers, num_kv_heads, head_dim, num_blocks, max_blocks_per_sequence };
        let shuffled = |_| {
            let mut blocks: Vec<u32> = (0..num_blocks as u32).collect();
            rng.shuffle(&mut blocks);
            blocks
        };
        Self {
            free: windows.iter().map(shuffled).collect(),
            tables: vec![vec![NO_BLOCK; SEQUENCES * max_blocks_per_sequence]; windows.len()],
            layout: KvLayout { block_size, element: KvElement::F16, groups: vec![group; windows.len()] },
            windows: windows.to_vec(),
            lengths: [0; SEQUENCES],
            streams: [0, 1, 0],
        }
    }

    /// Inputs and row keys of the next step; every sequence's last token is an output row.
    pub(super) fn step(&mut self, chunks: Chunks, vocab: usize) -> (StepData, Vec<u64>) {
        let groups = self.layout.groups.len();
        let mut data = StepData { slots: vec![vec![]; groups], ..StepData::default() };
        let mut row_keys = vec![];
        for &(sequence, count) in chunks {
            for _ in 0..count {
                let position = self.lengths[sequence];
                let key = self.streams[sequence] << 32 | position as u64;
                data.tokens.push(Rng::seeded(key).below(vocab) as u32);
                data.positions.push(position as u32);
                data.sequences.push(sequence as u32);
                row_keys.push(key);
                for (group, slots) in data.slots.iter_mut().enumerate() {
                    slots.push(self.slot(group, sequence, position));
                }
                self.lengths[sequence] += 1;
            }
            data.out_rows.push(data.tokens.len() as u32 - 1);
        }
        data.block_tables.clone_from(&self.tables);
        self.release();
        (data, row_keys)
    }

    fn slot(&mut self, group: usize, sequence: usize, position: usize) -> u32 {
        let block_size = self.layout.block_size;
        let width = self.layout.groups[group].max_blocks_per_sequence;
        let entry = &mut self.tables[group][sequence * width + position / block_size];
        if *entry == NO_BLOCK {
            *entry = self.free[group].pop().unwrap_or(NO_BLOCK);
        }
        *entry * block_size as u32 + (position % block_size) as u32
    }

    /// Gives back the pages no later token of their sequence can see.
    fn release(&mut self) {
        for (group, window) in self.windows.iter().enumerate() {
            let Some(window) = window else { continue };
            let width = self.layout.groups[group].max_blocks_per_sequence;
            for (sequence, length) in self.lengths.iter().enumerate() {
                let dead = (length + 1).saturating_sub(*window) / self.layout.block_size;
                for entry in &mut self.tables[group][sequence * width..][..dead] {
                    if *entry != NO_BLOCK {
                        self.free[group].insert(0, *entry);
                        *entry = NO_BLOCK;
                    }
                }
            }
        }
    }
}

/// What varies between attention cases.
#[derive(Clone, Copy)]
struct Attention {
    heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    window: Option<usize>,
    sink: Option<f32>,
    /// Multiplies the usual `1 / sqrt(head_dim)`: large values make the softmax a maximum.
    sharpness: f32,
    schedule: &'static [Chunks],
}

impl Attention {
    const fn of(heads: usize, num_kv_heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            num_kv_heads,
            head_dim,
            block_size: 16,
            window: None,
            sink: None,
            sharpness: 1.0,
            schedule: MIXED,
        }
    }

    fn name(&self) -> String {
        let Self { heads, num_kv_heads, head_dim, block_size, .. } = self;
        let tokens: usize = self.schedule.iter().flat_map(|chunks| chunks.iter()).map(|chunk| chunk.1).sum();
        let mut name = format!(
            "attention(heads={heads}/{num_kv_heads},head_dim={head_dim},block={block_size},tokens={tokens}"
        );
        for (label, value) in [
            (",window=", self.window.map(|window| window as f32)),
            (",sink=", self.sink),
            (",sharp=", (self.sharpness > 1.0).then_some(self.sharpness)),
        ] {
            if let Some(value) = value {
                name = name + label + &value.to_string();
            }
        }
        name + ")"
    }

    fn case(self) -> Result<Case, BackendError> {
        let mut recipe = Recipe::new(self.name());
        let heads = (self.num_kv_heads, self.head_dim);
        let mut pager = Pager::new(&[self.window], 1, heads, self.block_size, &mut recipe.rng);
        let q = recipe.activations("q", VOCAB, self.heads * self.head_dim, Data::Normal);
        let k = recipe.activations("k", VOCAB, self.num_kv_heads * self.head_dim, Data::Normal);
        let v = recipe.activations("v", VOCAB, self.num_kv_heads * self.head_dim, Data::Normal);
        let sinks = self.sink.map(|sink| {
            // The first head keeps the wanted sink, the others spread around it.
            let values = (0..self.heads).map(|head| sink - head as f32 * 0.25).collect();
            recipe.values(WeightSpec::vector("sinks", 1, self.heads), values)
        });
        recipe.kv = Some(pager.layout.clone());
        for chunks in self.schedule {
            let (inputs, row_keys) = pager.step(chunks, VOCAB);
            let tokens = inputs.tokens.len();
            // Prefill steps are padded, decode steps are exact.
            let tokens = if tokens <= SEQUENCES { tokens } else { tokens.next_multiple_of(32) };
            let shape = StepShape { tokens, rows: SEQUENCES, sequences: SEQUENCES };
            recipe.step(shape, inputs, row_keys, |builder| {
                let (q, k, v) = (builder.embed("q", q)?, builder.embed("k", k)?, builder.embed("v", v)?);
                builder.kv_write("kv_write", k, v, LAYER)?;
                Ok(vec![builder.attention("attention", self.op(q, sinks))?])
            })?;
        }
        Ok(recipe.finish(1e-9, "f32 exponentials and sums; keys and values are the same halves"))
    }

    fn op(&self, q: ValueId, sinks: Option<WeightId>) -> Op {
        let &Self { heads, num_kv_heads, head_dim, window, .. } = self;
        let scale = self.sharpness / (head_dim as f32).sqrt();
        Op::Attention { q, layer: LAYER, heads, num_kv_heads, head_dim, scale, window, sinks }
    }
}

const LAYER: KvLayer = KvLayer { group: 0, index: 0 };

pub(super) fn push_cases(cases: &mut Vec<Case>) -> Result<(), BackendError> {
    for (heads, num_kv_heads, head_dim) in [
        (4, 4, 64),
        (4, 2, 80),
        (8, 2, 96),
        (8, 1, 128),
        (14, 2, 64),
        (3, 3, 8),
        (7, 1, 48),
        (1, 1, 16),
        (32, 4, 64),
        (6, 2, 128),
    ] {
        cases.push(Attention::of(heads, num_kv_heads, head_dim).case()?);
    }
    let base = Attention::of(4, 2, 64);
    for window in [1, 4, 16, 17, 128] {
        cases.push(Attention { window: Some(window), ..base }.case()?);
    }
    for sink in [-10.0, 0.0, 10.0] {
        cases.push(Attention { sink: Some(sink), ..base }.case()?);
        cases.push(Attention { sink: Some(sink), window: Some(4), ..Attention::of(8, 1, 64) }.case()?);
    }
    cases.push(Attention { block_size: 32, ..base }.case()?);
    cases.push(Attention { block_size: 32, window: Some(40), ..base }.case()?);
    cases.push(Attention { block_size: 1, ..base }.case()?);
    cases.push(Attention { sharpness: 20.0, ..base }.case()?);
    cases.push(Attention { sharpness: 500.0, sink: Some(-10.0), ..base }.case()?);
    cases.push(Attention { schedule: LONG, ..base }.case()?);
    cases.push(Attention { schedule: LONG, window: Some(128), sink: Some(0.5), ..base }.case()?);
    cases.push(Attention { schedule: LONG, ..Attention::of(8, 1, 128) }.case()?);
    cases.push(Attention { schedule: SINGLES, ..base }.case()?);
    cases.push(Attention { schedule: SINGLES, window: Some(1), sink: Some(10.0), ..base }.case()?);
    for head_dim in [8, 64, 80] {
        cases.push(kv_write(head_dim)?);
    }
    Ok(())
}

/// Each token sees itself alone, so that the output is the stored value: the rounding to halves must be exact, padding
/// and other layers must be left alone.
fn kv_write(head_dim: usize) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("kv_write(head_dim={head_dim})"));
    let width = 2 * head_dim;
    let group = KvGroup { layers: 2, num_kv_heads: 2, head_dim, num_blocks: 5, max_blocks_per_sequence: 2 };
    recipe.kv = Some(KvLayout { block_size: 4, element: KvElement::F16, groups: vec![group] });
    let mut values = Data::Normal.values(4 * width, &mut recipe.rng);
    // Ties of the rounding, the largest half, a value just below overflow, halves that are subnormal.
    let edges = [2049.0, 2051.0, -4097.0, 1.000_488_3, 65504.0, 65519.0, 5.960_464_5e-8, 1.5e-7];
    values[..8].copy_from_slice(&edges);
    let ones = recipe.values(WeightSpec::matrix("q", crate::DType::F32, 4, width), vec![1.0; 4 * width]);
    let v = recipe.values(WeightSpec::matrix("v", crate::DType::F32, 4, width), values);
    let inputs = StepData {
        tokens: vec![0, 1, 2, 3],
        positions: vec![0, 5, 2, 0],
        sequences: vec![0, 0, 1, 0],
        // The last token writes nothing and sees what the first wrote.
        slots: vec![vec![16, 1, 14, NO_SLOT]],
        block_tables: vec![vec![4, 0, 3, NO_BLOCK]],
        ..StepData::default()
    };
    let shape = StepShape { tokens: 6, rows: 1, sequences: 2 };
    recipe.step(shape, inputs, vec![], |builder| {
        let (q, v) = (builder.embed("q", ones)?, builder.embed("v", v)?);
        let [first, second] = [0, 1].map(|index| KvLayer { group: 0, index });
        builder.kv_write("first", q, v, first)?;
        builder.kv_write("second", q, q, second)?;
        let attention = |layer| Op::Attention {
            q,
            layer,
            heads: 2,
            num_kv_heads: 2,
            head_dim,
            scale: 0.01,
            window: Some(1),
            sinks: None,
        };
        Ok(vec![
            builder.attention("attention.first", attention(first))?,
            builder.attention("attention.second", attention(second))?,
        ])
    })?;
    Ok(recipe.finish(0.0, "a softmax over one position is exactly 1, and the rounding is to nearest even"))
}
