//! The rules a step's inputs must keep, checked once for every backend: after this no index in a step can leave its
//! buffer, whatever the engine did.

use crate::backend::BackendError;
use crate::kv::{KvGroup, KvLayout};
use crate::op::Op;
use crate::program::Program;
use crate::step::{NO_BLOCK, NO_SLOT, NO_TOKEN, SampleRow, StepInputs};
use crate::weight::WeightSpec;

/// Checks `inputs` against the bounds of `program`, the cache and the tables the program looks up. Costs O(tokens) plus
/// O(visible blocks) per sequence. `kv` is `None` when no cache exists; then slots and block tables are not looked at.
///
/// Not checked: that slots agree with the block tables, that no two tokens share a slot, and that penalty ids are
/// distinct. Those break results, not memory.
///
/// # Errors
/// [`BackendError::Input`] naming the field and the first element that breaks a rule.
pub fn validate(
    program: &Program,
    kv: Option<&KvLayout>,
    weights: &[WeightSpec],
    inputs: &StepInputs<'_>,
) -> Result<(), BackendError> {
    let shape = program.shape();
    let tokens = inputs.tokens.len();
    at_most("tokens", tokens, shape.tokens)?;
    length("positions", inputs.positions.len(), tokens)?;
    length("sequences", inputs.sequences.len(), tokens)?;
    at_most("out_rows", inputs.out_rows.len(), shape.rows)?;
    below("sequences", inputs.sequences, shape.sequences, None)?;
    below("out_rows", inputs.out_rows, tokens, None)?;
    for node in program.nodes() {
        let rows = |id: crate::weight::WeightId| weights.get(id.0 as usize).map_or(0, |spec| spec.rows);
        match node.op {
            Op::Embed { table } => below("tokens", inputs.tokens, rows(table), None)?,
            Op::PositionEmbed { table } | Op::Rope { table, .. } => {
                below("positions", inputs.positions, rows(table), None)?;
            }
            Op::Sample { logits, max_penalty_tokens } => {
                sampling(inputs, program.value(logits).width, max_penalty_tokens)?;
            }
            _ => {}
        }
    }
    match kv {
        Some(layout) => cache(program, layout, inputs),
        None => Ok(()),
    }
}

fn sampling(inputs: &StepInputs<'_>, vocab: usize, max_penalty_tokens: usize) -> Result<(), BackendError> {
    length("sampling", inputs.sampling.len(), inputs.out_rows.len())?;
    length("penalty_tokens", inputs.penalty_tokens.len(), inputs.out_rows.len() * max_penalty_tokens)?;
    below("penalty_tokens", inputs.penalty_tokens, vocab, Some(NO_TOKEN))?;
    let valid = |row: &SampleRow| {
        row.temperature >= 0.0
            && row.temperature.is_finite()
            && row.top_p > 0.0
            && row.top_p <= 1.0
            && (0.0..=1.0).contains(&row.min_p)
            && row.repetition_penalty > 0.0
            && row.repetition_penalty.is_finite()
    };
    match inputs.sampling.iter().position(|row| !valid(row)) {
        Some(index) => {
            Err(input("sampling", format!("row {index} is out of range: {:?}", inputs.sampling[index])))
        }
        None => Ok(()),
    }
}

fn cache(program: &Program, layout: &KvLayout, inputs: &StepInputs<'_>) -> Result<(), BackendError> {
    length("slots", inputs.slots.len(), layout.groups.len())?;
    length("block_tables", inputs.block_tables.len(), layout.groups.len())?;
    let mut sequences = None;
    for (index, group) in layout.groups.iter().enumerate() {
        let (slots, table) = (inputs.slots[index], inputs.block_tables[index]);
        length("slots", slots.len(), inputs.tokens.len())?;
        below("slots", slots, group.num_blocks * layout.block_size, Some(NO_SLOT))?;
        below("block_tables", table, group.num_blocks, Some(NO_BLOCK))?;
        let width = group.max_blocks_per_sequence;
        if width == 0 || !table.len().is_multiple_of(width) {
            return Err(input("block_tables", format!("{} entries are not rows of {width}", table.len())));
        }
        let rows = table.len() / width;
        at_most("block_tables", rows, program.shape().sequences)?;
        length("block_tables", rows, *sequences.get_or_insert(rows))?;
        below("sequences", inputs.sequences, rows, None)?;
        if let Some(window) = widest_window(program, index) {
            visible_blocks(layout.block_size, group, table, window, inputs)?;
        }
    }
    Ok(())
}

/// The widest window any attention over `group` has (`usize::MAX` for full attention); `None` when nothing reads it.
fn widest_window(program: &Program, group: usize) -> Option<usize> {
    let window = |op: &Op| match op {
        Op::Attention { layer, window, .. } if layer.group == group => Some(window.unwrap_or(usize::MAX)),
        _ => None,
    };
    program.nodes().iter().filter_map(|node| window(&node.op)).max()
}

/// Every position a query sees must lie in a block that is held.
fn visible_blocks(
    block_size: usize,
    group: &KvGroup,
    table: &[u32],
    window: usize,
    inputs: &StepInputs<'_>,
) -> Result<(), BackendError> {
    let width = group.max_blocks_per_sequence;
    // Blocks already found held, per sequence, so that a chunk walks its table once.
    let mut held = vec![0..0; table.len() / width];
    for (&position, &sequence) in inputs.positions.iter().zip(inputs.sequences) {
        let (position, sequence) = (position as usize, sequence as usize);
        let first = (position + 1).saturating_sub(window) / block_size;
        let last = position / block_size;
        if last >= width {
            return Err(input("positions", format!("{position} is beyond {width} blocks of {block_size}")));
        }
        let known = &mut held[sequence];
        for block in (first..=last).filter(|block| !known.contains(block)) {
            if table[sequence * width + block] == NO_BLOCK {
                let reason =
                    format!("sequence {sequence} sees block {block} from position {position}: not held");
                return Err(input("block_tables", reason));
            }
        }
        let touches = first <= known.end && known.start <= last + 1 && known.start < known.end;
        *known = if touches { first.min(known.start)..known.end.max(last + 1) } else { first..last + 1 };
    }
    Ok(())
}

fn at_most(field: &'static str, got: usize, bound: usize) -> Result<(), BackendError> {
    if got <= bound { Ok(()) } else { Err(input(field, format!("{got} rows, the plan holds {bound}"))) }
}

fn length(field: &'static str, got: usize, expected: usize) -> Result<(), BackendError> {
    if got == expected { Ok(()) } else { Err(input(field, format!("{got} rows, expected {expected}"))) }
}

fn below(
    field: &'static str,
    values: &[u32],
    bound: usize,
    padding: Option<u32>,
) -> Result<(), BackendError> {
    match values.iter().find(|&&value| value as usize >= bound && Some(value) != padding) {
        Some(value) => Err(input(field, format!("{value} is not below {bound}"))),
        None => Ok(()),
    }
}

fn input(field: &'static str, reason: String) -> BackendError {
    BackendError::Input { field, reason }
}
