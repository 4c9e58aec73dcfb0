//! Every shape of a product kernel gives the bits of every other: alone, in batches of each size, swept, routed.
//!
//! The conformance table compares batches with singles too, but its steps are too small to reach the kernels for prefill.

use worker_orcd_core::{
    Backend, DType, PlanId, ProgramBuilder, StepInputs, SwiGluKind, ValueId, WeightId, WeightSpec,
};

use super::{Open, VOCABULARY, bits, loaded, program, some_tokens};

/// Bits of `tokens` in one step.
fn step(backend: &mut dyn Backend, plan: PlanId, tokens: &[u32]) -> Vec<u32> {
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let inputs = StepInputs {
        tokens,
        positions: &positions,
        sequences: &vec![0; tokens.len()],
        slots: &[],
        block_tables: &[],
        out_rows: &[0],
        sampling: &[],
        penalty_tokens: &[],
    };
    bits(backend, plan, &inputs)
}

/// Compares every way to run `record` with one token after the other.
fn agree(
    open: Open<'_>,
    name: &str,
    specs: &[WeightSpec],
    sizes: &[usize],
    record: impl Fn(&mut ProgramBuilder<'_>) -> ValueId + Copy,
) {
    let tokens = some_tokens(*sizes.iter().max().unwrap());
    // A small device sweeps, a large one splits; those with more shared memory keep more columns in it.
    let mut singles: Option<Vec<Vec<u32>>> = None;
    for multiprocessors in [5, 1, 2, 10_000] {
        let mut device = loaded(open, multiprocessors, specs);
        let device = device.as_mut();
        let programs: Vec<_> = [1].iter().chain(sizes).map(|&size| program(specs, size, record)).collect();
        let plans = device.compile(&programs).unwrap();
        let singles = singles
            .get_or_insert_with(|| tokens.iter().map(|&token| step(device, plans[0], &[token])).collect());
        for (&size, &plan) in sizes.iter().zip(&plans[1..]) {
            // Products of so many columns are cut alike on all but a device that is hard to fill.
            if size > 128 && matches!(multiprocessors, 2 | 5) {
                continue;
            }
            // One short of the plan, so that its last column is padding.
            let live = size.max(2) - 1;
            let together = step(device, plan, &tokens[..live]);
            let width = singles[0].len();
            assert_eq!(together.len(), live * width);
            for (token, row) in together.chunks(width).enumerate() {
                let place = format!("token {token} of {size}, {multiprocessors} multiprocessors");
                assert!(row == singles[token], "{name}: {place}");
            }
        }
    }
}

/// `wide`: more sizes of steps than the emulated machine has time for.
pub(crate) fn linear_shapes_agree_in_every_bit(open: Open<'_>, wide: &[usize]) {
    for dtype in DType::ALL {
        // Eleven blocks (super-blocks) make slices of one and two; 300 outputs end inside a tile.
        let cols = if dtype.block_elements() == 256 { 11 * 256 } else { 11 * 32 };
        let specs = [
            WeightSpec::matrix("table", DType::F16, VOCABULARY, cols),
            WeightSpec::matrix("weight", dtype, 300, cols),
        ];
        agree(
            open,
            dtype.name(),
            &specs,
            &[&[2, 5, 9, 16, 17, 33, 64, 70, 130][..], wide].concat(),
            |builder| {
                let x = builder.embed("x", WeightId(0)).unwrap();
                builder.linear("y", x, WeightId(1), None).unwrap()
            },
        );
    }
}

pub(crate) fn moe_linear_shapes_agree_in_every_bit(open: Open<'_>, wide: &[usize]) {
    for dtype in [DType::MXFP4, DType::Q8_0, DType::Q4_K, DType::BF16] {
        let cols = if dtype.block_elements() == 256 { 512 } else { 352 };
        let specs = [
            WeightSpec::matrix("table", DType::F16, VOCABULARY, cols),
            WeightSpec::matrix("router", DType::F32, 7, cols),
            WeightSpec::experts("up", dtype, 7, cols, cols),
            WeightSpec::experts("down", dtype, 7, 40, cols),
        ];
        agree(open, dtype.name(), &specs, &[&[2, 9, 17, 40, 140][..], wide].concat(), |builder| {
            let x = builder.embed("x", WeightId(0)).unwrap();
            let logits = builder.linear("logits", x, WeightId(1), None).unwrap();
            let (experts, _) = builder.router("router", logits, 4).unwrap();
            let up = builder.moe_linear("up", x, experts, WeightId(2), None).unwrap();
            builder.moe_linear("down", up, experts, WeightId(3), None).unwrap()
        });
    }
}

/// Routers: slices of nothing, one and two quads, and of more than a CTA holds; experts that end inside a row tile and in a
/// second group of tiles, with and without bias.
pub(crate) fn router_shapes_agree_in_every_bit(open: Open<'_>, wide: &[usize]) {
    for (cols, experts, top_k, bias) in
        [(100, 7, 4, None), (3300, 32, 4, Some(WeightId(3))), (164, 40, 6, None)]
    {
        let specs = [
            WeightSpec::matrix("table", DType::F16, VOCABULARY, cols),
            WeightSpec::matrix("router", DType::F32, experts, cols),
            WeightSpec::experts("experts", DType::F32, experts, 8, cols),
            WeightSpec::vector("router.bias", 1, experts),
        ];
        for chosen in [false, true] {
            let name = format!("{experts} experts of {cols}, chosen: {chosen}");
            agree(open, &name, &specs, &[&[2, 9, 17, 70][..], wide].concat(), |builder| {
                let x = builder.embed("x", WeightId(0)).unwrap();
                let logits = builder.linear("logits", x, WeightId(1), bias).unwrap();
                let (ids, weights) = builder.router("router", logits, top_k).unwrap();
                let products = builder.moe_linear("products", x, ids, WeightId(2), None).unwrap();
                let sum = builder.moe_combine("sum", products, weights).unwrap();
                if chosen { sum } else { logits }
            });
        }
    }
}

/// Routers behind a norm, which others read as floats and as records.
pub(crate) fn normed_router_shapes_agree_in_every_bit(open: Open<'_>, wide: &[usize]) {
    for (dtype, cols, experts) in [(DType::Q8_0, 3328, 40), (DType::F32, 96, 7)] {
        let specs = [
            WeightSpec::matrix("table", DType::F16, VOCABULARY, cols),
            WeightSpec::vector("norm", 1, cols),
            WeightSpec::matrix("router", DType::F32, experts, cols),
            WeightSpec::vector("router.bias", 1, experts),
            WeightSpec::experts("experts", dtype, experts, 32, cols),
            WeightSpec::experts("floats", DType::F32, experts, 8, cols),
            WeightSpec::matrix("spread", DType::F32, 32, 8),
        ];
        agree(open, dtype.name(), &specs, &[&[2, 9, 17, 70][..], wide].concat(), |builder| {
            let x = builder.embed("x", WeightId(0)).unwrap();
            let normed = builder.rms_norm("norm", x, WeightId(1), 1e-5).unwrap();
            let logits = builder.linear("logits", normed, WeightId(2), Some(WeightId(3))).unwrap();
            let (ids, weights) = builder.router("router", logits, 5).unwrap();
            let of_records = builder.moe_linear("of_records", normed, ids, WeightId(4), None).unwrap();
            let of_floats = builder.moe_linear("of_floats", normed, ids, WeightId(5), None).unwrap();
            let [first, second] = [("first", of_records), ("second", of_floats)]
                .map(|(label, products)| builder.moe_combine(label, products, weights).unwrap());
            builder.gelu("later", x).unwrap();
            let second = builder.linear("spread", second, WeightId(6), None).unwrap();
            builder.add("both", first, second).unwrap()
        });
    }
}

/// The second half of a layer of experts, as the models record it: few experts that all have many tokens, and many of which
/// some have none.
pub(crate) fn expert_layers_agree_in_every_bit(open: Open<'_>, wide: &[usize]) {
    expert_layer_agrees(open, 7, &[&[2, 9, 17, 20, 64, 140][..], wide].concat());
    expert_layer_agrees(open, 24, &[5, 8, 16, 33, 64]);
}

fn expert_layer_agrees(open: Open<'_>, count: usize, sizes: &[usize]) {
    let (cols, hidden) = (352, 96);
    let specs = [
        WeightSpec::matrix("table", DType::F16, VOCABULARY, cols),
        WeightSpec::vector("norm", 1, cols),
        WeightSpec::matrix("router", DType::F32, count, cols),
        WeightSpec::experts("gate", DType::MXFP4, count, hidden, cols),
        WeightSpec::experts("up", DType::MXFP4, count, hidden, cols),
        WeightSpec::experts("down", DType::MXFP4, count, cols, hidden),
        WeightSpec::vector("gate.bias", count, hidden),
        WeightSpec::vector("up.bias", count, hidden),
        WeightSpec::vector("down.bias", count, cols),
        WeightSpec::vector("router.bias", 1, count),
    ];
    agree(open, &format!("{count} experts"), &specs, sizes, |builder| {
        let x = builder.embed("x", WeightId(0)).unwrap();
        let normed = builder.rms_norm("norm", x, WeightId(1), 1e-5).unwrap();
        let logits = builder.linear("logits", normed, WeightId(2), Some(WeightId(9))).unwrap();
        let (experts, weights) = builder.router("router", logits, 4).unwrap();
        let gate = builder.moe_linear("gate", normed, experts, WeightId(3), Some(WeightId(6))).unwrap();
        let up = builder.moe_linear("up", normed, experts, WeightId(4), Some(WeightId(7))).unwrap();
        let kind = SwiGluKind::Clamped { alpha: 1.702, limit: 7.0 };
        let active = builder.swiglu("act", gate, up, kind).unwrap();
        let down = builder.moe_linear("down", active, experts, WeightId(5), Some(WeightId(8))).unwrap();
        let change = builder.moe_combine("combine", down, weights).unwrap();
        builder.add("residual", x, change).unwrap()
    });
}

/// The second half of a dense layer, as the models record it.
pub(crate) fn gated_layers_agree_in_every_bit(open: Open<'_>, wide: &[usize]) {
    for (dtype, down) in [(DType::Q4_K, DType::Q6_K), (DType::Q5_0, DType::Q8_0)] {
        let cols = 512;
        let specs = [
            WeightSpec::matrix("table", DType::F16, VOCABULARY, cols),
            WeightSpec::vector("norm", 1, cols),
            WeightSpec::matrix("gate", dtype, 768, cols),
            WeightSpec::matrix("up", dtype, 768, cols),
            WeightSpec::matrix("down", down, cols, 768),
            WeightSpec::vector("bias", 1, 768),
        ];
        agree(open, dtype.name(), &specs, &[&[2, 9, 17, 40][..], wide].concat(), |builder| {
            let x = builder.embed("x", WeightId(0)).unwrap();
            let normed = builder.rms_norm("norm", x, WeightId(1), 1e-5).unwrap();
            let gate = builder.linear("gate", normed, WeightId(2), Some(WeightId(5))).unwrap();
            let up = builder.linear("up", normed, WeightId(3), None).unwrap();
            let active = builder.swiglu("act", gate, up, SwiGluKind::Silu).unwrap();
            let change = builder.linear("down", active, WeightId(4), None).unwrap();
            builder.add("residual", x, change).unwrap()
        });
    }
}

/// A layer with every neighbour that single steps fuse: norms, several formats on one input, residuals, both kinds of
/// gated activation, a weighted sum of experts.
fn record_layer(builder: &mut ProgramBuilder<'_>) -> ValueId {
    let x = builder.embed("x", WeightId(0)).unwrap();
    let normed = builder.rms_norm("norm", x, WeightId(1), 1e-5).unwrap();
    let q = builder.linear("q", normed, WeightId(2), Some(WeightId(3))).unwrap();
    let k = builder.linear("k", normed, WeightId(2), None).unwrap();
    let v = builder.linear("v", normed, WeightId(4), None).unwrap();
    let sum = builder.add("qk", q, k).unwrap();
    let sum = builder.add("qkv", sum, v).unwrap();
    let change = builder.linear("o", sum, WeightId(4), Some(WeightId(3))).unwrap();
    let x = builder.add("residual", x, change).unwrap();
    let normed = builder.rms_norm("ffn.norm", x, WeightId(1), 1e-5).unwrap();
    let logits = builder.linear("logits", normed, WeightId(5), None).unwrap();
    let (experts, weights) = builder.router("router", logits, 3).unwrap();
    let gate = builder.moe_linear("gate", normed, experts, WeightId(6), Some(WeightId(7))).unwrap();
    let up = builder.moe_linear("up", normed, experts, WeightId(6), None).unwrap();
    let clamped = SwiGluKind::Clamped { alpha: 1.702, limit: 7.0 };
    let active = builder.swiglu("act", gate, up, clamped).unwrap();
    let down = builder.moe_linear("down", active, experts, WeightId(6), Some(WeightId(7))).unwrap();
    let change = builder.moe_combine("combine", down, weights).unwrap();
    let x = builder.add("moe.residual", change, x).unwrap();
    let normed = builder.rms_norm("last.norm", x, WeightId(1), 1e-5).unwrap();
    let gate = builder.linear("dense.gate", normed, WeightId(2), None).unwrap();
    let up = builder.linear("dense.up", normed, WeightId(2), Some(WeightId(3))).unwrap();
    let active = builder.swiglu("dense.act", gate, up, SwiGluKind::Silu).unwrap();
    let change = builder.linear("dense.down", active, WeightId(4), None).unwrap();
    builder.add("dense.residual", x, change).unwrap()
}

/// Weights of `record_layer`: formats of the first products, the second and the experts.
fn layer_specs([first, second, experts]: [DType; 3], width: usize) -> [WeightSpec; 8] {
    [
        WeightSpec::matrix("table", DType::F16, VOCABULARY, width),
        WeightSpec::vector("norm", 1, width),
        WeightSpec::matrix("first", first, width, width),
        WeightSpec::vector("bias", 1, width),
        WeightSpec::matrix("second", second, width, width),
        WeightSpec::matrix("router", DType::F32, 5, width),
        WeightSpec::experts("experts", experts, 5, width, width),
        WeightSpec::vector("biases", 5, width),
    ]
}

pub(crate) fn fused_single_steps_agree_with_batches_in_every_bit(open: Open<'_>, _: &[usize]) {
    for formats in [
        [DType::Q8_0, DType::Q5_0, DType::MXFP4],
        [DType::Q4_K, DType::Q6_K, DType::Q8_0],
        [DType::Q4_1, DType::Q2_K, DType::Q3_K],
        [DType::Q5_1, DType::Q5_1, DType::Q4_0],
    ] {
        agree(open, &format!("{formats:?}"), &layer_specs(formats, 768), &[2, 9, 20], record_layer);
    }
}

pub(crate) fn prefill_steps_agree_with_single_ones_in_every_bit(open: Open<'_>, wide: &[usize]) {
    for (formats, width) in
        [([DType::Q8_0, DType::Q5_0, DType::MXFP4], 96), ([DType::Q4_K, DType::Q6_K, DType::Q8_0], 256)]
    {
        agree(
            open,
            &format!("{formats:?}"),
            &layer_specs(formats, width),
            &[&[130][..], wide].concat(),
            record_layer,
        );
    }
}
