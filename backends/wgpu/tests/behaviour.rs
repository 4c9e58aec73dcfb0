//! What the contract asks beyond arithmetic: bits that do not depend on the batch or on where blocks lie, errors instead
//! of panics, accounting, profiles, poison.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops by panicking and says what it skips"
)]

mod device;

use std::process::Command;

use worker_orcd_core::conformance::StepData;
use worker_orcd_core::quant::random_row;
use worker_orcd_core::rng::Rng;
use worker_orcd_core::{
    Backend, BackendError, DType, KvElement, KvGroup, KvLayer, KvLayout, NO_SLOT, Op, PlanId, Program,
    ProgramBuilder, RopeStyle, StepOutputs, StepShape, SwiGluKind, ValueId, WeightId, WeightSpec,
};
use worker_orcd_wgpu::{AdapterChoice, WgpuBackend, WgpuOptions, enumerate};

const HIDDEN: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const FFN: usize = 96;
const EXPERTS: usize = 6;
const TOP_K: usize = 2;
const VOCAB: usize = 300;
const BLOCK_SIZE: usize = 4;
const BLOCKS: usize = 16;

/// One attention layer and one layer of experts, every value tapped: (specs, program for at most `tokens`).
fn model(tokens: usize) -> (Vec<WeightSpec>, Program) {
    let matrix = |label: &str, rows, cols| WeightSpec::matrix(label, DType::Q8_0, rows, cols);
    let kv = KV_HEADS * HEAD_DIM;
    let specs = vec![
        matrix("embed", VOCAB, HIDDEN),
        WeightSpec::vector("norm", 1, HIDDEN),
        matrix("q", HEADS * HEAD_DIM, HIDDEN),
        matrix("k", kv, HIDDEN),
        matrix("v", kv, HIDDEN),
        WeightSpec::vector("rope", 64, HEAD_DIM),
        matrix("o", HIDDEN, HEADS * HEAD_DIM),
        matrix("router", EXPERTS, HIDDEN),
        WeightSpec::experts("gate", DType::MXFP4, EXPERTS, FFN, HIDDEN),
        WeightSpec::experts("up", DType::MXFP4, EXPERTS, FFN, HIDDEN),
        WeightSpec::experts("down", DType::Q4_0, EXPERTS, HIDDEN, FFN),
    ];
    let program = record(&specs, tokens).expect("the model records").tapped();
    (specs, program)
}

fn record(specs: &[WeightSpec], tokens: usize) -> Result<Program, BackendError> {
    let shape = StepShape { tokens, rows: tokens, sequences: 2 };
    let mut b = ProgramBuilder::new("model", shape, specs);
    let id = WeightId;
    let x = b.embed("embed", id(0))?;
    let normed = b.rms_norm("norm", x, id(1), 1e-5)?;
    let q = b.linear("q", normed, id(2), None)?;
    let k = b.linear("k", normed, id(3), None)?;
    let v = b.linear("v", normed, id(4), None)?;
    let q = b.rope("q.rope", q, id(5), (HEADS, HEAD_DIM), RopeStyle::HalfSplit)?;
    let k = b.rope("k.rope", k, id(5), (KV_HEADS, HEAD_DIM), RopeStyle::HalfSplit)?;
    let layer = KvLayer { group: 0, index: 0 };
    b.kv_write("write", k, v, layer)?;
    let attention = Op::Attention {
        q,
        layer,
        heads: HEADS,
        num_kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        scale: 0.25,
        window: None,
        sinks: None,
    };
    let attended = b.attention("attention", attention)?;
    let o = b.linear("o", attended, id(6), None)?;
    let x = b.add("add", x, o)?;
    let logits = b.linear("router.logits", x, id(7), None)?;
    let (experts, weights) = b.router("router", logits, TOP_K)?;
    let gate = b.moe_linear("gate", x, experts, id(8), None)?;
    let up = b.moe_linear("up", x, experts, id(9), None)?;
    let acted = b.swiglu("swiglu", gate, up, SwiGluKind::Silu)?;
    let down = b.moe_linear("down", acted, experts, id(10), None)?;
    let combined = b.moe_combine("combine", down, weights)?;
    b.output(combined);
    Ok(b.finish())
}

fn layout() -> KvLayout {
    let group = KvGroup {
        layers: 1,
        num_kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        num_blocks: BLOCKS,
        max_blocks_per_sequence: BLOCKS / 2,
    };
    KvLayout { block_size: BLOCK_SIZE, element: KvElement::F16, groups: vec![group] }
}

/// Uploads seeded weights, one chunk of `chunk` bytes at a time, and creates the cache.
fn fill(backend: &mut WgpuBackend, specs: &[WeightSpec], chunk: usize) {
    let mut rng = Rng::seeded(7);
    for spec in specs {
        let mut bytes = vec![];
        for _ in 0..spec.rows * spec.experts {
            random_row(spec.dtype, spec.cols, 0.2, &mut rng, &mut bytes);
        }
        backend.upload(spec, &mut bytes.chunks(chunk)).expect("the weight uploads");
    }
    backend.create_kv(&layout()).expect("the cache fits");
}

/// Tokens `range` of the sequence in row `sequence`, whose logical blocks lie at `blocks`.
fn tokens(range: std::ops::Range<u32>, sequence: u32, blocks: &[u32]) -> StepData {
    let mut table = vec![u32::MAX; BLOCKS];
    table[sequence as usize * (BLOCKS / 2)..][..blocks.len()].copy_from_slice(blocks);
    let size = BLOCK_SIZE as u32;
    StepData {
        tokens: range.clone().map(|position| position * 7 % VOCAB as u32).collect(),
        positions: range.clone().collect(),
        sequences: range.clone().map(|_| sequence).collect(),
        slots: vec![range.map(|p| blocks[(p / size) as usize] * size + p % size).collect()],
        block_tables: vec![table],
        ..StepData::default()
    }
}

fn run(backend: &mut WgpuBackend, plan: PlanId, program: &Program, data: &StepData) -> StepOutputs {
    let mut outputs = StepOutputs::for_program(program);
    data.lend(|inputs| backend.submit(plan, inputs)).expect("the step starts");
    backend.wait(&mut outputs).expect("the step ends");
    outputs
}

/// Bits of row `row` of every output.
fn row_bits(program: &Program, outputs: &StepOutputs, row: usize) -> Vec<(String, Vec<u32>)> {
    let values = program.outputs().iter().zip(&outputs.values);
    values
        .map(|(&id, output): (&ValueId, _)| {
            let value = program.value(id);
            let words: Vec<u32> = match output {
                worker_orcd_core::OutputValue::F32(values) => values.iter().map(|v| v.to_bits()).collect(),
                worker_orcd_core::OutputValue::U32(values) => values.clone(),
            };
            (value.label.clone(), words[row * value.width..][..value.width].to_vec())
        })
        .collect()
}

#[test]
fn a_token_alone_equals_the_same_token_in_a_chunk_and_in_other_blocks() {
    const COUNT: u32 = 17;
    let Some(device) = device::open(&WgpuOptions::default()) else { return };
    let (specs, chunk_program) = model(COUNT as usize);
    let (_, single_program) = model(1);
    let steps = |order: &[u32], sequence: u32| {
        let mut backend = device.sibling();
        fill(&mut backend, &specs, 1 << 20);
        let programs = [chunk_program.clone(), single_program.clone()];
        let plans = backend.compile(&programs).expect("the programs compile");
        backend.poison().expect("poison");
        let whole = run(&mut backend, plans[0], &chunk_program, &tokens(0..COUNT, sequence, order));
        // The last token again, by itself, over the cache the chunk left.
        let last = tokens(COUNT - 1..COUNT, sequence, order);
        let alone = run(&mut backend, plans[1], &single_program, &last);
        backend.poison().expect("poison");
        let mut one_by_one = StepOutputs::default();
        for position in 0..COUNT {
            let data = tokens(position..position + 1, sequence, order);
            one_by_one = run(&mut backend, plans[1], &single_program, &data);
        }
        let row = COUNT as usize - 1;
        [
            row_bits(&chunk_program, &whole, row),
            row_bits(&single_program, &alone, 0),
            row_bits(&single_program, &one_by_one, 0),
        ]
    };
    let straight = steps(&[0, 1, 2, 3, 4], 0);
    let scattered = steps(&[9, 3, 14, 0, 7], 1);
    for (index, other) in straight.iter().chain(&scattered).enumerate() {
        for ((label, expected), (_, got)) in straight[0].iter().zip(other) {
            assert_eq!(got, expected, "{label} differs in run {index}");
            assert!(!expected.contains(&f32::NAN.to_bits()), "{label} was never written");
        }
    }
}

#[test]
fn the_cache_rounds_to_nearest_even_bit_for_bit() {
    const WIDTH: usize = 512;
    const TOKENS: usize = 96;
    let Some(mut backend) = device::open(&WgpuOptions::default()) else { return };
    // Every 3rd half with its neighbours in f32 and the midpoints to the next half, then any finite bits at all.
    let halves = (0..0x7c00_u32).step_by(3).flat_map(|bits| {
        let value = half::f16::from_bits(bits as u16).to_f32().to_bits();
        let middle = u32::midpoint(value, half::f16::from_bits(bits as u16 + 1).to_f32().to_bits());
        [value, value + 1, middle, middle + 1].map(|bits| f32::from_bits(bits ^ ((bits & 1) << 31)))
    });
    // Around half of the smallest half, the smallest normal one and the largest.
    let edges = [0x3300_0000, 0x387f_e000, 0x3880_0000, 0x477f_f000_u32];
    let edges = edges.into_iter().flat_map(|bits| [bits - 1, bits, bits + 1].map(f32::from_bits));
    let mut rng = Rng::seeded(3);
    let random = std::iter::repeat_with(|| f32::from_bits(rng.next_u32())).filter(|value| value.is_finite());
    let values: Vec<f32> = edges.chain(halves).chain(random).take(WIDTH * TOKENS).collect();
    let specs = [
        WeightSpec::matrix("values", DType::F32, TOKENS, WIDTH),
        WeightSpec::matrix("zeros", DType::F32, TOKENS, WIDTH),
    ];
    for (spec, rows) in specs.iter().zip([&values, &vec![0.0; WIDTH * TOKENS]]) {
        let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
        backend.upload(spec, &mut bytes.chunks(777)).expect("upload");
    }
    let group =
        KvGroup { layers: 1, num_kv_heads: 1, head_dim: WIDTH, num_blocks: 6, max_blocks_per_sequence: 6 };
    let cache = KvLayout { block_size: 16, element: KvElement::F16, groups: vec![group] };
    backend.create_kv(&cache).expect("the cache fits");
    let layer = KvLayer { group: 0, index: 0 };
    let shape = StepShape { tokens: TOKENS, rows: 1, sequences: 1 };
    let mut b = ProgramBuilder::new("round", shape, &specs);
    let v = b.embed("v", WeightId(0)).expect("v");
    let k = b.position_embed("k", WeightId(1)).expect("k");
    b.kv_write("write", k, v, layer).expect("write");
    // A window of one position returns that position's value with weight exactly 1.
    let (heads, num_kv_heads, head_dim, scale, window, sinks) = (1, 1, WIDTH, 1.0, Some(1), None);
    let op = Op::Attention { q: k, layer, heads, num_kv_heads, head_dim, scale, window, sinks };
    let out = b.attention("attention", op).expect("attention");
    b.output(out);
    let program = b.finish();
    let plan = backend.compile(std::slice::from_ref(&program)).expect("compile")[0];
    let ids: Vec<u32> = (0..TOKENS as u32).collect();
    let data = StepData {
        tokens: ids.clone(),
        positions: ids.clone(),
        sequences: vec![0; TOKENS],
        slots: vec![ids],
        block_tables: vec![(0..6).collect()],
        ..StepData::default()
    };
    let outputs = run(&mut backend, plan, &program, &data);
    for (&value, &got) in values.iter().zip(outputs.f32(0)) {
        let expected = half::f16::from_f32_const(value).to_f32();
        // Adding zero makes both zeros one; a sum may lose the sign.
        assert!(
            (got + 0.0).to_bits() == (expected + 0.0).to_bits(),
            "{value:e} ({:#x}) became {got:e}, not {expected:e}",
            value.to_bits()
        );
    }
}

#[test]
fn weights_arrive_in_chunks_of_any_size() {
    let Some(device) = device::open(&WgpuOptions::default()) else { return };
    let (specs, program) = model(3);
    let mut seen = vec![];
    for chunk in [1, 33, 1 << 20] {
        let mut backend = device.sibling();
        fill(&mut backend, &specs, chunk);
        let plan = backend.compile(std::slice::from_ref(&program)).expect("compile")[0];
        let outputs = run(&mut backend, plan, &program, &tokens(0..3, 0, &[5]));
        seen.push(row_bits(&program, &outputs, 2));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[1], seen[2]);
}

#[test]
fn padding_and_short_steps_leave_the_rest_alone() {
    let Some(mut backend) = device::open(&WgpuOptions::default()) else { return };
    let (specs, program) = model(8);
    fill(&mut backend, &specs, 1000);
    let plan = backend.compile(std::slice::from_ref(&program)).expect("compile")[0];
    backend.poison().expect("poison");
    let expected = run(&mut backend, plan, &program, &tokens(0..4, 0, &[2]));
    // Rows beyond the actual count do not come back, and a padding token writes nothing into the cache.
    assert_eq!(expected.f32(0).len(), 4 * HIDDEN);
    let mut padded = tokens(3..5, 0, &[2, 3]);
    padded.tokens[1] = 0;
    padded.slots[0] = vec![2 * BLOCK_SIZE as u32 + 3, NO_SLOT];
    run(&mut backend, plan, &program, &padded);
    let again = run(&mut backend, plan, &program, &tokens(3..4, 0, &[2]));
    assert_eq!(row_bits(&program, &again, 0), row_bits(&program, &expected, 3));
    let nothing =
        StepData { block_tables: vec![vec![u32::MAX; BLOCKS]], slots: vec![vec![]], ..StepData::default() };
    assert!(run(&mut backend, plan, &program, &nothing).f32(0).is_empty());
}

#[test]
fn wrong_uploads_and_steps_are_errors() {
    let Some(mut backend) = device::open(&WgpuOptions::default()) else { return };
    let spec = WeightSpec::matrix("short", DType::Q4_0, 2, 64);
    for length in [0, 71, 73] {
        let bytes = vec![0; length];
        let error = backend.upload(&spec, &mut std::iter::once(bytes.as_slice())).expect_err("wrong length");
        assert!(matches!(error, BackendError::Weight { .. }), "{error}");
    }
    let ragged = WeightSpec::matrix("ragged", DType::Q4_0, 2, 33);
    assert!(matches!(backend.upload(&ragged, &mut std::iter::empty()), Err(BackendError::Weight { .. })));
    let wide = KvLayout { element: KvElement::F32, ..layout() };
    assert!(matches!(backend.create_kv(&wide), Err(BackendError::Unsupported { .. })));
    let (specs, program) = model(2);
    assert!(matches!(backend.compile(std::slice::from_ref(&program)), Err(BackendError::Program { .. })));
    fill(&mut backend, &specs, 1000);
    assert!(matches!(backend.create_kv(&layout()), Err(BackendError::Unsupported { .. })));
    let plan = backend.compile(std::slice::from_ref(&program)).expect("compile")[0];
    let mut outputs = StepOutputs::default();
    assert!(
        matches!(backend.wait(&mut outputs), Err(BackendError::Execution { .. })),
        "nothing is in flight"
    );
    let too_many = tokens(0..3, 0, &[0]).lend(|inputs| backend.submit(plan, inputs));
    assert!(matches!(too_many, Err(BackendError::Input { .. })));
    let good = tokens(0..2, 0, &[0]);
    good.lend(|inputs| backend.submit(plan, inputs)).expect("the step starts");
    let second = good.lend(|inputs| backend.submit(plan, inputs));
    assert!(matches!(second, Err(BackendError::Execution { .. })), "one step at a time");
    backend.wait(&mut outputs).expect("the first step is unharmed");
    assert!(good.lend(|inputs| backend.submit(PlanId(9), inputs)).is_err());
}

#[test]
fn a_lost_device_is_reported_and_nothing_panics() {
    let Some(mut backend) = device::open(&WgpuOptions::default()) else { return };
    let (specs, program) = model(2);
    fill(&mut backend, &specs, 1000);
    let plan = backend.compile(std::slice::from_ref(&program)).expect("compile")[0];
    let data = tokens(0..2, 0, &[0]);
    backend.lose_device();
    let mut outputs = StepOutputs::default();
    let step = data.lend(|inputs| backend.submit(plan, inputs)).and_then(|()| backend.wait(&mut outputs));
    assert!(matches!(step, Err(BackendError::DeviceLost { .. })), "{step:?}");
    let again = data.lend(|inputs| backend.submit(plan, inputs));
    assert!(matches!(again, Err(BackendError::DeviceLost { .. })), "{again:?}");
    let upload = backend.upload(&specs[1], &mut std::iter::empty());
    assert!(matches!(upload, Err(BackendError::DeviceLost { .. })), "{upload:?}");
    assert!(backend.compile(std::slice::from_ref(&program)).is_err());
    assert!(backend.check_residency().is_err());
    assert!(backend.poison().is_err());
}

#[test]
fn a_broken_shader_is_a_compile_error_with_its_name() {
    let broken = "@compute @workgroup_size(1) fn main() { nonsense }";
    let options =
        WgpuOptions { shader_overrides: vec![("rms_norm".into(), broken.into())], ..WgpuOptions::default() };
    let Some(mut backend) = device::open(&options) else { return };
    let (specs, program) = model(2);
    fill(&mut backend, &specs, 1000);
    let error = backend.compile(&[program]).expect_err("the shader does not parse").to_string();
    assert!(error.contains("rms_norm"), "{error}");
}

#[test]
fn memory_is_accounted_and_does_not_grow_with_steps() {
    let Some(mut backend) = device::open(&WgpuOptions::default()) else { return };
    let (specs, program) = model(4);
    fill(&mut backend, &specs, 1000);
    let stored: usize = specs.iter().filter_map(WeightSpec::bytes).sum();
    let weights = backend.memory().weights_bytes as usize;
    // Repacking costs at most a few bytes per row, never a wider copy.
    assert!(weights >= stored && weights < stored + stored / 20, "{weights} bytes for {stored}");
    assert_eq!(backend.memory().kv_cache_bytes as usize, layout().bytes());
    let plan = backend.compile(std::slice::from_ref(&program)).expect("compile")[0];
    let before = backend.memory();
    assert!(before.activations_bytes > 0 && before.workspace_bytes > 0);
    run(&mut backend, plan, &program, &tokens(0..4, 0, &[1]));
    assert_eq!(backend.memory(), before);
    backend.check_residency().expect("residency");
}

#[test]
fn copies_have_a_bandwidth_and_leave_nothing_behind() {
    let Some(mut backend) = device::open(&WgpuOptions::default()) else { return };
    let found = backend.measure_bandwidth().expect("bandwidth");
    // Between a slow machine's memory and more than any device has.
    let plausible = |rate: Option<f64>| rate.is_some_and(|rate| (1e7..1e14).contains(&rate));
    assert!(plausible(found.copy_bytes_per_second) && plausible(found.upload_bytes_per_second), "{found:?}");
    assert_eq!(backend.memory().total_bytes(), 0);
    let (specs, program) = model(4);
    fill(&mut backend, &specs, 1000);
    let plan = backend.compile(std::slice::from_ref(&program)).expect("compile")[0];
    let data = tokens(0..4, 0, &[1]);
    data.lend(|inputs| backend.submit(plan, inputs)).expect("submit");
    assert!(
        matches!(backend.measure_bandwidth(), Err(BackendError::Execution { .. })),
        "a step is in flight"
    );
    backend.wait(&mut StepOutputs::for_program(&program)).expect("the step goes on");
}

#[test]
fn a_profile_has_every_node_in_order() {
    let Some(mut backend) = device::open(&WgpuOptions::default()) else { return };
    let (specs, program) = model(4);
    fill(&mut backend, &specs, 1000);
    let plan = backend.compile(std::slice::from_ref(&program)).expect("compile")[0];
    let data = tokens(0..4, 0, &[1]);
    let profile = data.lend(|inputs| backend.profile(plan, inputs)).expect("profile");
    let labels: Vec<&str> = profile.entries.iter().map(|entry| entry.label.as_str()).collect();
    let expected: Vec<&str> = program.nodes().iter().map(|node| node.label.as_str()).collect();
    assert_eq!(labels, expected);
    assert!(profile.entries.iter().all(|entry| entry.time_us >= 0.0 && entry.time_us < 60e6));
    assert!(profile.entries.iter().any(|entry| entry.time_us > 0.0));
    // A profile leaves the backend ready for the next step.
    run(&mut backend, plan, &program, &data);
}

#[test]
fn adapters_are_listed_by_preference_and_chosen_by_index_or_name() {
    if device::open(&WgpuOptions::default()).is_none() {
        return;
    }
    let found = enumerate();
    assert!(found.iter().enumerate().all(|(index, adapter)| adapter.index == index));
    assert!(found.windows(2).all(|pair| pair[0].kind <= pair[1].kind));
    let open = |choice| WgpuBackend::open(&choice, &WgpuOptions::default());
    let first = &found[0].name;
    assert_eq!(&open(AdapterChoice::Index(0)).expect("the first").caps().device, first);
    assert_eq!(&open(AdapterChoice::Name(first.to_uppercase())).expect("by name").caps().device, first);
    for choice in [AdapterChoice::Index(found.len()), AdapterChoice::Name("no such device".into())] {
        let error = open(choice).expect_err("nothing matches").to_string();
        assert!(error.contains(first.as_str()), "the error lists what there is: {error}");
    }
}

/// Set for the child process of the test below.
const WITHOUT_DRIVER: &str = "WORKER_ORCD_TEST_WITHOUT_DRIVER";

#[test]
fn a_machine_without_a_driver_gets_an_error_that_names_a_package() {
    if std::env::var_os(WITHOUT_DRIVER).is_some() {
        let error = WgpuBackend::open(&AdapterChoice::Preferred, &WgpuOptions::default()).err();
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(enumerate().is_empty() && text.contains("mesa-vulkan-drivers"), "{text}");
        return;
    }
    if !cfg!(target_os = "linux") {
        println!("SKIPPED: only the Vulkan loader can be told to find no driver");
        return;
    }
    let status = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "a_machine_without_a_driver_gets_an_error_that_names_a_package"])
        .env(WITHOUT_DRIVER, "1")
        .envs([("VK_ICD_FILENAMES", "/nonexistent.json"), ("VK_DRIVER_FILES", "/nonexistent.json")])
        .status()
        .expect("the child runs");
    assert!(status.success());
}
