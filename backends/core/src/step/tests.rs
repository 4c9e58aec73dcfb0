//! Every rule of `validate`, one broken input at a time.

use super::*;
use crate::conformance::StepData;
use crate::dtype::DType;
use crate::kv::{KvElement, KvGroup, KvLayer, KvLayout};
use crate::op::{Op, RopeStyle};
use crate::program::ProgramBuilder;
use crate::weight::{WeightId, WeightSpec};

fn weights() -> Vec<WeightSpec> {
    vec![
        WeightSpec::matrix("embed", DType::F32, 10, 4),
        WeightSpec::vector("rope", 9, 4),
        WeightSpec::matrix("positions", DType::F32, 12, 4),
    ]
}

fn layout() -> KvLayout {
    let group =
        KvGroup { layers: 1, num_kv_heads: 1, head_dim: 4, num_blocks: 5, max_blocks_per_sequence: 3 };
    KvLayout { block_size: 2, element: KvElement::F16, groups: vec![group.clone(), group] }
}

fn program() -> Program {
    let weights = weights();
    let shape = StepShape { tokens: 4, rows: 2, sequences: 2 };
    let mut builder = ProgramBuilder::new("p", shape, &weights);
    let x = builder.embed("x", WeightId(0)).unwrap();
    let x = builder.rope("rope", x, WeightId(1), (1, 4), RopeStyle::HalfSplit).unwrap();
    let positions = builder.position_embed("positions", WeightId(2)).unwrap();
    let x = builder.add("sum", x, positions).unwrap();
    for (group, window) in [(0, None), (1, Some(2))] {
        let layer = KvLayer { group, index: 0 };
        builder.kv_write("write", x, x, layer).unwrap();
        let op = Op::Attention {
            q: x,
            layer,
            heads: 1,
            num_kv_heads: 1,
            head_dim: 4,
            scale: 1.0,
            window,
            sinks: None,
        };
        builder.attention("attention", op).unwrap();
    }
    let rows = builder.gather_rows("rows", x).unwrap();
    let token = builder.sample("token", rows, 2).unwrap();
    builder.output(token);
    builder.finish()
}

/// Sequence 0 at positions 2 and 3, sequence 1 at 4; the window group holds only what is seen.
fn valid() -> StepData {
    StepData {
        tokens: vec![0, 9, 3],
        positions: vec![2, 3, 4],
        sequences: vec![0, 0, 1],
        slots: vec![vec![4, 5, 0], vec![4, NO_SLOT, 9]],
        block_tables: vec![vec![1, 2, NO_BLOCK, 4, 3, 0], vec![0, 2, NO_BLOCK, NO_BLOCK, 1, 4]],
        out_rows: vec![1, 2],
        sampling: vec![SampleRow::GREEDY; 2],
        penalty_tokens: vec![3, 1, NO_TOKEN, NO_TOKEN],
    }
}

fn field(data: &StepData) -> Option<&'static str> {
    match data.lend(|inputs| validate(&program(), Some(&layout()), &weights(), inputs)) {
        Ok(()) => None,
        Err(crate::BackendError::Input { field, .. }) => Some(field),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn valid_steps_pass() {
    assert_eq!(field(&valid()), None);
    let mut short = valid();
    for list in [&mut short.tokens, &mut short.positions, &mut short.sequences] {
        list.truncate(1);
    }
    short.slots.iter_mut().for_each(|slots| slots.truncate(1));
    (short.out_rows, short.sampling, short.penalty_tokens) =
        (vec![0], vec![SampleRow::GREEDY], vec![NO_TOKEN; 2]);
    assert_eq!(field(&short), None);
    let empty = StepData { slots: vec![vec![]; 2], block_tables: vec![vec![]; 2], ..StepData::default() };
    assert_eq!(field(&empty), None);
}

#[test]
fn every_broken_rule_names_its_field() {
    type Break = fn(&mut StepData);
    let broken: [(&str, Break); 26] = [
        ("tokens", |d| d.tokens[1] = 10),
        ("tokens", |d| d.tokens.resize(5, 0)),
        ("positions", |d| d.positions[2] = 9),
        ("positions", |d| d.positions[2] = 6),
        ("positions", |d| d.positions.truncate(2)),
        ("sequences", |d| d.sequences[0] = 2),
        ("sequences", |d| d.sequences.push(0)),
        ("out_rows", |d| d.out_rows[0] = 3),
        ("out_rows", |d| d.out_rows.push(0)),
        ("slots", |d| d.slots[0][1] = 10),
        ("slots", |d| d.slots[1].truncate(2)),
        ("slots", |d| d.slots.truncate(1)),
        ("block_tables", |d| d.block_tables[0][0] = 5),
        ("block_tables", |d| d.block_tables[1].truncate(5)),
        ("block_tables", |d| d.block_tables[1].truncate(3)),
        ("block_tables", |d| d.block_tables.truncate(1)),
        ("block_tables", |d| d.block_tables[0][0] = NO_BLOCK),
        ("block_tables", |d| d.block_tables[0][3] = NO_BLOCK),
        ("block_tables", |d| d.block_tables[1][0] = NO_BLOCK),
        ("block_tables", |d| d.block_tables.iter_mut().for_each(|table| table.resize(9, 0))),
        ("sampling", |d| d.sampling.truncate(1)),
        ("sampling", |d| d.sampling[1].temperature = f32::NAN),
        ("sampling", |d| d.sampling[1].top_p = -0.1),
        ("sampling", |d| d.sampling[0].repetition_penalty = 0.0),
        ("penalty_tokens", |d| d.penalty_tokens.truncate(3)),
        ("penalty_tokens", |d| d.penalty_tokens[0] = 4),
    ];
    for (index, (expected, change)) in broken.into_iter().enumerate() {
        let mut data = valid();
        change(&mut data);
        assert_eq!(field(&data), Some(expected), "rule {index}");
    }
}

#[test]
fn blocks_behind_a_window_are_not_asked_for() {
    let mut data = valid();
    // Position 2 with a window of 2 sees positions 1 and 2: block 0 is needed, and no longer from position 3 on.
    data.positions = vec![3, 3, 4];
    data.block_tables[1][0] = NO_BLOCK;
    assert_eq!(field(&data), None);
    data.positions = vec![3, 2, 4];
    assert_eq!(field(&data), Some("block_tables"));
}

#[test]
fn a_gap_between_windows_is_not_taken_for_held() {
    let mut data = valid();
    data.sequences = vec![0; 3];
    data.positions = vec![0, 5, 2];
    data.block_tables = vec![vec![1, 2, 3], vec![0, NO_BLOCK, 2]];
    assert_eq!(field(&data), Some("block_tables"), "position 2 sees block 1");
    data.positions = vec![0, 5, 1];
    assert_eq!(field(&data), None);
}

#[test]
fn outputs_have_room_for_the_largest_step() {
    let outputs = StepOutputs::for_program(&program());
    assert!(matches!(&outputs.values[..], [OutputValue::U32(values)] if values.capacity() >= 2));
    assert!(outputs.u32(0).is_empty() && outputs.f32(0).is_empty() && outputs.u32(1).is_empty());
}
