//! What a step must do at least, from its program alone: the bytes of weights and cache it touches, and its arithmetic.
//!
//! Each weight counts once a step, however many tokens share it; of experts those count that the tokens are expected to
//! choose when all are equally likely. Of the cache, every position counts once that a query of its sequence sees, and
//! once more when it is written. Activations do not count: they stay in caches.

use std::ops::AddAssign;

use worker_orcd_core::{KvElement, Node, Op, Program, RowSet, WeightId, WeightSpec};

/// Bytes and operations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Work {
    /// Of weights.
    pub(super) weight_bytes: f64,
    /// Of keys and values, read and written.
    pub(super) cache_bytes: f64,
    /// Multiplications and additions, of products and attention.
    pub(super) operations: f64,
}

impl Work {
    /// Bytes of both kinds.
    pub(super) fn bytes(&self) -> f64 {
        self.weight_bytes + self.cache_bytes
    }

    /// One of `count` equal parts.
    pub(super) fn part_of(self, count: usize) -> Self {
        let count = count.max(1) as f64;
        Self {
            weight_bytes: self.weight_bytes / count,
            cache_bytes: self.cache_bytes / count,
            operations: self.operations / count,
        }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.weight_bytes += other.weight_bytes;
        self.cache_bytes += other.cache_bytes;
        self.operations += other.operations;
    }
}

impl std::iter::Sum for Work {
    fn sum<I: Iterator<Item = Self>>(works: I) -> Self {
        works.fold(Self::default(), |mut sum, work| {
            sum += work;
            sum
        })
    }
}

/// The tokens of a step: every sequence brings as many consecutive ones from the same position on.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepTokens {
    /// Sequences.
    pub(super) sequences: usize,
    /// Tokens of each.
    pub(super) per_sequence: usize,
    /// Position of the first token of each; so many are cached already.
    pub(super) start: usize,
    /// Output rows.
    pub(super) rows: usize,
}

impl StepTokens {
    /// One token of each of `sequences`, with `depth` before it.
    pub(super) const fn decode(sequences: usize, depth: usize) -> Self {
        Self { sequences, per_sequence: 1, start: depth, rows: sequences }
    }

    const fn all(&self) -> usize {
        self.sequences * self.per_sequence
    }

    /// Positions that the step's queries of one sequence see together.
    fn visible(&self, window: Option<usize>) -> usize {
        let all = self.start + self.per_sequence;
        window.map_or(all, |window| all.min((window - 1).saturating_add(self.per_sequence)))
    }

    /// Pairs of a query and a position it sees, of one sequence.
    fn pairs(&self, window: Option<usize>) -> f64 {
        let seen = |position: usize| window.map_or(position + 1, |window| window.min(position + 1)) as f64;
        (self.start..self.start + self.per_sequence).map(seen).sum()
    }
}

/// How many of `experts` are chosen at least once when each of `tokens` chooses `top_k`, all equally likely.
pub(super) fn distinct_experts(experts: usize, top_k: usize, tokens: usize) -> f64 {
    let missed_by_one = 1.0 - top_k as f64 / experts.max(1) as f64;
    experts as f64 * (1.0 - missed_by_one.powf(tokens as f64))
}

/// A program over its weights, with a cache of one element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workload<'a> {
    /// What is run.
    pub(super) program: &'a Program,
    /// Its weights.
    pub(super) specs: &'a [WeightSpec],
    /// How the cache stores.
    pub(super) element: KvElement,
}

impl Workload<'_> {
    /// Of a whole step.
    pub(super) fn step(&self, tokens: &StepTokens) -> Work {
        self.program.nodes().iter().map(|node| self.node(node, tokens)).sum()
    }

    /// Of one node. What works on output rows does nothing in a step without any.
    pub(super) fn node(&self, node: &Node, tokens: &StepTokens) -> Work {
        let writes_rows =
            node.outputs.first().is_some_and(|&id| self.program.value(id).rows == RowSet::Outputs);
        let rows = if writes_rows { tokens.rows } else { tokens.all() };
        if rows == 0 {
            return Work::default();
        }
        let weights = |weight_bytes: f64| Work { weight_bytes, ..Work::default() };
        match node.op {
            Op::Embed { table } => weights(self.row_bytes(table) * tokens.all() as f64),
            // Sequences at the same positions share the rows.
            Op::PositionEmbed { table } | Op::Rope { table, .. } => {
                weights(self.row_bytes(table) * tokens.per_sequence as f64)
            }
            Op::Linear { weight, .. } => {
                let operations = self.specs.get(weight.0 as usize).map_or(0, WeightSpec::elements) * 2 * rows;
                Work { operations: operations as f64, ..weights(self.all_bytes(&node.op)) }
            }
            Op::MoeLinear { experts, weight, .. } => {
                let spec = self.specs.get(weight.0 as usize);
                let (count, elements) = spec.map_or((1, 0), |spec| (spec.experts, spec.rows * spec.cols));
                let top_k = self.program.value(experts).width;
                let touched = distinct_experts(count, top_k, rows) / count.max(1) as f64;
                let operations = (2 * elements * top_k * rows) as f64;
                Work { operations, ..weights(self.all_bytes(&node.op) * touched) }
            }
            Op::KvWrite { k, .. } => {
                let width = 2 * self.program.value(k).width * self.element.bytes();
                Work { cache_bytes: (width * rows) as f64, ..Work::default() }
            }
            Op::Attention { heads, num_kv_heads, head_dim, window, .. } => {
                let position = 2 * num_kv_heads * head_dim * self.element.bytes();
                let pairs = tokens.pairs(window) * tokens.sequences as f64;
                Work {
                    cache_bytes: (position * tokens.visible(window) * tokens.sequences) as f64,
                    operations: pairs * (4 * heads * head_dim) as f64,
                    ..weights(self.all_bytes(&node.op))
                }
            }
            Op::RmsNorm { .. } | Op::LayerNorm { .. } => weights(self.all_bytes(&node.op)),
            Op::Add { .. }
            | Op::SwiGlu { .. }
            | Op::Gelu { .. }
            | Op::Router { .. }
            | Op::MoeCombine { .. }
            | Op::GatherRows { .. }
            | Op::Sample { .. } => Work::default(),
        }
    }

    fn row_bytes(&self, id: WeightId) -> f64 {
        self.specs.get(id.0 as usize).and_then(WeightSpec::row_bytes).unwrap_or(0) as f64
    }

    /// Of every weight the operation names, whole.
    fn all_bytes(&self, op: &Op) -> f64 {
        let bytes = |id: WeightId| self.specs.get(id.0 as usize).and_then(WeightSpec::bytes).unwrap_or(0);
        op.weights().into_iter().map(bytes).sum::<usize>() as f64
    }
}

#[cfg(test)]
mod tests {
    use worker_orcd_core::{DType, KvLayer, ProgramBuilder, StepShape};

    use super::*;
    use crate::commands::forge;
    use crate::gguf::Gguf;
    use crate::model::{Model, ModelOptions, Recorder, StepHead};

    const SHAPE: StepShape = StepShape { tokens: 8, rows: 8, sequences: 8 };

    /// A model of a published size, without its weights.
    fn full_size(preset: &str) -> Model {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(preset);
        forge::outline(preset, &path).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        Model::new(&gguf, ModelOptions::default()).unwrap()
    }

    fn bytes(model: &Model, tokens: StepTokens) -> Work {
        let program = model.record(SHAPE, StepHead::Logits).unwrap();
        Workload { program: &program, specs: model.specs(), element: KvElement::F16 }.step(&tokens)
    }

    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() <= expected * 1e-3
    }

    #[test]
    fn expected_experts_are_those_of_independent_uniform_choices() {
        let of_32 = |tokens| distinct_experts(32, 4, tokens);
        assert!((of_32(1) - 4.0).abs() < 1e-9);
        // 32 (1 - (1 - 4/32)^n), as published for this model.
        for (tokens, expected) in [(4, 13.2), (8, 21.0), (16, 28.2), (32, 31.55), (64, 31.99)] {
            assert!((of_32(tokens) - expected).abs() < 0.06, "{tokens}: {}", of_32(tokens));
        }
        assert!((distinct_experts(4, 4, 1) - 4.0).abs() < 1e-9, "all of them");
    }

    #[test]
    fn attention_reads_what_its_queries_see() {
        let specs = [WeightSpec::matrix("table", DType::F32, 4, 32)];
        let mut b = ProgramBuilder::new("attention", SHAPE, &specs);
        let q = b.embed("q", WeightId(0)).unwrap();
        let (layer, window) = (KvLayer { group: 0, index: 0 }, Some(10));
        let op = Op::Attention {
            q,
            layer,
            heads: 4,
            num_kv_heads: 2,
            head_dim: 8,
            scale: 1.0,
            window,
            sinks: None,
        };
        b.attention("mix", op).unwrap();
        let program = b.finish();
        let workload = Workload { program: &program, specs: &specs, element: KvElement::F16 };
        let attention = |tokens: StepTokens| workload.node(&program.nodes()[1], &tokens);
        // Keys and values of 2 heads of 8 halves.
        let position = 64.0;
        assert!((attention(StepTokens::decode(1, 4)).cache_bytes - 5.0 * position).abs() < 1e-9);
        assert!((attention(StepTokens::decode(1, 9)).cache_bytes - 10.0 * position).abs() < 1e-9);
        assert!((attention(StepTokens::decode(3, 99)).cache_bytes - 30.0 * position).abs() < 1e-9);
        let chunk = StepTokens { sequences: 1, per_sequence: 4, start: 8, rows: 0 };
        let work = attention(chunk);
        assert!((work.cache_bytes - 12.0 * position).abs() < 1e-9, "{work:?}");
        // Queries at 8, 9, 10, 11 see 9, 10, 10, 10; each pair takes a product and a sum for score and value.
        assert!((work.operations - 39.0 * 4.0 * 32.0).abs() < 1e-9, "{work:?}");
    }

    /// The bytes of a step at full size, against figures worked out by hand from the published shapes.
    #[test]
    fn full_size_models_move_the_published_bytes() {
        let gpt_oss = full_size("gpt-oss-20b");
        let one = bytes(&gpt_oss, StepTokens::decode(1, 64));
        let (attention, experts, head) = (676.8e6, 1_269.0e6, 615.3e6);
        let router_biases_norms = 13.5e6;
        assert!(near(one.weight_bytes, attention + experts + head + router_biases_norms), "{one:?}");
        // 2 KiB for each of 65 positions and 24 layers, and as much for the position written.
        assert!(near(one.cache_bytes, 2048.0 * 24.0 * 66.0), "{one:?}");
        let deep = bytes(&gpt_oss, StepTokens::decode(1, 3500));
        assert!(near(deep.cache_bytes, 2048.0 * 12.0 * (3501.0 + 128.0 + 2.0)), "{deep:?}");
        let all = bytes(&gpt_oss, StepTokens::decode(64, 1024));
        assert!(near(all.weight_bytes, 11.48e9), "{all:?}");
        let tied = bytes(&full_size("qwen2.5-0.5b"), StepTokens::decode(1, 64));
        assert!(near(tied.weight_bytes, 391.86e6), "the whole file: {tied:?}");
        let phi = bytes(&full_size("phi-3-mini"), StepTokens::decode(1, 3500));
        assert!(near(phi.weight_bytes, 2_392.5e6 - 55.4e6), "all but the embedding: {phi:?}");
        assert!(near(phi.cache_bytes, 12_288.0 * 32.0 * (2047.0 + 1.0)), "{phi:?}");
    }

    /// The files that plots are made of say of each figure what its step moves, and the limit that follows.
    #[test]
    fn committed_figures_have_the_bytes_and_limits_of_their_models() {
        for preset in ["gpt-oss-20b", "phi-3-mini", "qwen2.5-0.5b"] {
            let path = format!("{}/bench/{preset}.json", env!("CARGO_MANIFEST_DIR"));
            let figures: serde_json::Value =
                serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            let model = full_size(preset);
            let bandwidth = figures["bandwidth"]["copy_gigabytes_per_second"].as_f64().unwrap() * 1e9;
            for figure in figures["results"].as_array().unwrap() {
                let number = |name: &str| figure[name].as_f64().unwrap();
                let (batch, depth) = (number("batch") as usize, number("mean_depth").round() as usize);
                let work = bytes(&model, StepTokens::decode(batch, depth));
                assert!(near(work.weight_bytes, number("weight_bytes")), "{preset}: {figure}");
                assert!(near(work.cache_bytes, number("cache_bytes")), "{preset}: {figure}");
                let limit = batch as f64 * bandwidth / work.bytes();
                assert!(near(limit, number("limit_tokens_per_second")), "{preset}: {figure}");
                let fraction = number("tokens_per_second") / limit;
                assert!(near(fraction, number("fraction_of_limit")), "{preset}: {figure}");
            }
        }
    }
}
