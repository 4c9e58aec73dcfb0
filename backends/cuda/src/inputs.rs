//! The one packed buffer that carries a step's inputs to the device, in one copy.
//!
//! Offsets are fixed per plan, because kernels hold the addresses of the fields in their (captured) arguments; how much
//! of each field is live is data, in the counts at the head. Block tables come last, so that a copy ends with the last
//! live row. Nothing beyond the live part is read by any kernel, so it is not cleared.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::sampling::PreparedRow;
use worker_orcd_core::{BackendError, KvLayout, Op, Program, SampleRow, StepInputs, StepShape};

/// Alignment of every field.
const FIELD_ALIGNMENT: usize = 16;

/// The live sizes of a step, first thing in the buffer; `StepCounts` in `cuda/common/inputs.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct StepCounts {
    /// Tokens of the step.
    pub(crate) tokens: u32,
    /// Output rows of the step.
    pub(crate) rows: u32,
    /// Sequences of the step.
    pub(crate) sequences: u32,
    /// Keeps the structure 16 bytes.
    pub(crate) reserved: u32,
}

/// A part of the input buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// `[T]` token ids.
    Tokens,
    /// `[T]` positions.
    Positions,
    /// `[T]` rows of the block tables.
    Sequences,
    /// `[T]` cache slots of one group.
    Slots(usize),
    /// `[S, max_blocks_per_sequence]` of one group.
    BlockTable(usize),
    /// `[R]` token indices.
    OutRows,
    /// `[R]` of [`PreparedRow`].
    Sampling,
    /// `[R, max_penalty_tokens]` ids.
    PenaltyTokens,
}

/// Where each field of a plan's input buffer lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InputLayout {
    shape: StepShape,
    /// Width of each group's block table.
    table_widths: Vec<usize>,
    max_penalty_tokens: usize,
    positions: usize,
    sequences: usize,
    slots: Vec<usize>,
    out_rows: usize,
    sampling: usize,
    penalty_tokens: usize,
    block_tables: Vec<usize>,
    bytes: usize,
}

/// Hands out consecutive aligned ranges.
struct Cursor(usize);

impl Cursor {
    fn take(&mut self, bytes: usize) -> usize {
        let offset = self.0;
        self.0 = (offset + bytes).next_multiple_of(FIELD_ALIGNMENT);
        offset
    }
}

impl InputLayout {
    /// The layout for steps of `program` over a cache of layout `kv`.
    pub(crate) fn of(program: &Program, kv: Option<&KvLayout>) -> Self {
        let shape = program.shape();
        let table_widths: Vec<usize> =
            kv.iter().flat_map(|kv| &kv.groups).map(|group| group.max_blocks_per_sequence).collect();
        let penalty = |op: &Op| match *op {
            Op::Sample { max_penalty_tokens, .. } => max_penalty_tokens,
            _ => 0,
        };
        let max_penalty_tokens = program.nodes().iter().map(|node| penalty(&node.op)).max().unwrap_or(0);
        let per_token = shape.tokens * size_of::<u32>();
        let mut cursor = Cursor(size_of::<StepCounts>());
        cursor.take(per_token);
        let positions = cursor.take(per_token);
        let sequences = cursor.take(per_token);
        let slots = table_widths.iter().map(|_| cursor.take(per_token)).collect();
        let out_rows = cursor.take(shape.rows * size_of::<u32>());
        let sampling = cursor.take(shape.rows * size_of::<PreparedRow>());
        let penalty_tokens = cursor.take(shape.rows * max_penalty_tokens * size_of::<u32>());
        let block_tables = table_widths
            .iter()
            .map(|width| cursor.take(shape.sequences * width * size_of::<u32>()))
            .collect();
        Self {
            shape,
            table_widths,
            max_penalty_tokens,
            positions,
            sequences,
            slots,
            out_rows,
            sampling,
            penalty_tokens,
            block_tables,
            bytes: cursor.0,
        }
    }

    /// Size of the whole buffer.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Byte offset of a field. A group the cache does not have has no field.
    pub(crate) fn offset(&self, field: Field) -> Option<usize> {
        match field {
            Field::Tokens => Some(size_of::<StepCounts>()),
            Field::Positions => Some(self.positions),
            Field::Sequences => Some(self.sequences),
            Field::Slots(group) => self.slots.get(group).copied(),
            Field::BlockTable(group) => self.block_tables.get(group).copied(),
            Field::OutRows => Some(self.out_rows),
            Field::Sampling => Some(self.sampling),
            Field::PenaltyTokens => Some(self.penalty_tokens),
        }
    }

    /// Width of a group's block table.
    pub(crate) fn table_width(&self, group: usize) -> usize {
        self.table_widths.get(group).copied().unwrap_or(0)
    }

    /// The live sizes of a step.
    pub(crate) fn counts(inputs: &StepInputs<'_>) -> StepCounts {
        let rows = inputs.out_rows.len() as u32;
        let last = inputs.sequences.iter().max();
        let sequences = last.map_or(0, |&sequence| sequence.saturating_add(1));
        StepCounts { tokens: inputs.tokens.len() as u32, rows, sequences, reserved: 0 }
    }

    /// Packs a step into `buffer` and returns how many of its bytes are live.
    ///
    /// # Errors
    /// A field that is longer than the plan has room for; the engine's inputs are validated before, so this is the
    /// second line.
    pub(crate) fn pack(&self, inputs: &StepInputs<'_>, buffer: &mut [u8]) -> Result<usize, BackendError> {
        let counts = Self::counts(inputs);
        let mut packer = Packer { buffer, live: 0 };
        packer.put("counts", 0, usize::MAX, &[counts])?;
        let tokens = self.shape.tokens;
        packer.put("tokens", size_of::<StepCounts>(), tokens, inputs.tokens)?;
        packer.put("positions", self.positions, tokens, inputs.positions)?;
        packer.put("sequences", self.sequences, tokens, inputs.sequences)?;
        for (&offset, slots) in self.slots.iter().zip(inputs.slots) {
            packer.put("slots", offset, tokens, slots)?;
        }
        packer.put("out_rows", self.out_rows, self.shape.rows, inputs.out_rows)?;
        packer.put_sampling(self.sampling, self.shape.rows, inputs.sampling)?;
        let ids = self.shape.rows * self.max_penalty_tokens;
        packer.put("penalty_tokens", self.penalty_tokens, ids, inputs.penalty_tokens)?;
        for ((&offset, &width), table) in
            self.block_tables.iter().zip(&self.table_widths).zip(inputs.block_tables)
        {
            packer.put("block_tables", offset, self.shape.sequences * width, table)?;
        }
        Ok(packer.live)
    }
}

/// Copies typed slices to their places and remembers where the last live byte is.
struct Packer<'a> {
    buffer: &'a mut [u8],
    live: usize,
}

impl Packer<'_> {
    fn put<T: Pod>(
        &mut self,
        field: &'static str,
        offset: usize,
        capacity: usize,
        values: &[T],
    ) -> Result<(), BackendError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let too_long = || BackendError::Input {
            field,
            reason: format!("{} elements, the plan has room for {capacity}", values.len()),
        };
        if values.len() > capacity {
            return Err(too_long());
        }
        let end = offset + bytes.len();
        self.buffer.get_mut(offset..end).ok_or_else(too_long)?.copy_from_slice(bytes);
        self.live = self.live.max(end);
        Ok(())
    }

    fn put_sampling(
        &mut self,
        offset: usize,
        capacity: usize,
        rows: &[SampleRow],
    ) -> Result<(), BackendError> {
        for (index, row) in rows.iter().enumerate() {
            let at = offset + index * size_of::<PreparedRow>();
            self.put("sampling", at, capacity.saturating_sub(index), &[PreparedRow::from(row)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use worker_orcd_core::{DType, KvElement, KvGroup, ProgramBuilder, WeightId, WeightSpec};

    use super::*;

    fn layout(sequences: usize) -> InputLayout {
        let weights = [WeightSpec::matrix("table", DType::F32, 10, 8)];
        let shape = StepShape { tokens: 5, rows: 3, sequences };
        let mut builder = ProgramBuilder::new("inputs", shape, &weights);
        let x = builder.embed("embed", WeightId(0)).unwrap();
        let rows = builder.gather_rows("rows", x).unwrap();
        let token = builder.sample("sample", rows, 4).unwrap();
        builder.output(token);
        let group = |max_blocks_per_sequence| KvGroup {
            layers: 1,
            num_kv_heads: 1,
            head_dim: 8,
            num_blocks: 9,
            max_blocks_per_sequence,
        };
        let kv = KvLayout { block_size: 16, element: KvElement::F16, groups: vec![group(7), group(2)] };
        InputLayout::of(&builder.finish(), Some(&kv))
    }

    fn u32_at(buffer: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(buffer[offset..offset + 4].try_into().unwrap())
    }

    #[test]
    fn fields_are_aligned_disjoint_and_inside() {
        let layout = layout(2);
        let sizes = [
            (Field::Tokens, 20),
            (Field::Positions, 20),
            (Field::Sequences, 20),
            (Field::Slots(0), 20),
            (Field::Slots(1), 20),
            (Field::OutRows, 12),
            (Field::Sampling, 3 * 48),
            (Field::PenaltyTokens, 3 * 4 * 4),
            (Field::BlockTable(0), 2 * 7 * 4),
            (Field::BlockTable(1), 2 * 2 * 4),
        ];
        let mut end = size_of::<StepCounts>();
        for (field, bytes) in sizes {
            let offset = layout.offset(field).unwrap();
            assert_eq!(offset % FIELD_ALIGNMENT, 0, "{field:?}");
            assert!(offset >= end, "{field:?} overlaps its predecessor");
            end = offset + bytes;
        }
        assert!(end <= layout.bytes());
        assert_eq!(layout.offset(Field::Slots(2)), None);
        assert_eq!(layout.offset(Field::BlockTable(2)), None);
    }

    #[test]
    fn pack_puts_every_field_in_its_place_and_copies_only_live_rows() {
        let layout = layout(2);
        let mut buffer = vec![0xEE; layout.bytes()];
        let row = SampleRow { top_k: 77, ..SampleRow::GREEDY };
        let inputs = StepInputs {
            tokens: &[4, 5],
            positions: &[40, 50],
            sequences: &[0, 0],
            slots: &[&[100, 101], &[200, 201]],
            block_tables: &[&[1, 2, 3, 4, 5, 6, 7], &[8, 9]],
            out_rows: &[1],
            sampling: &[row],
            penalty_tokens: &[11, 12, 13, 14],
        };
        let live = layout.pack(&inputs, &mut buffer).unwrap();
        assert_eq!(live, layout.offset(Field::BlockTable(1)).unwrap() + 2 * 4);
        let at = |field, index: usize| u32_at(&buffer, layout.offset(field).unwrap() + 4 * index);
        assert_eq!([0, 4, 8].map(|offset| u32_at(&buffer, offset)), [2, 1, 1], "counts");
        assert_eq!([at(Field::Tokens, 1), at(Field::Positions, 1), at(Field::Sequences, 1)], [5, 50, 0]);
        assert_eq!([at(Field::Slots(0), 1), at(Field::Slots(1), 0)], [101, 200]);
        assert_eq!([at(Field::BlockTable(0), 6), at(Field::BlockTable(1), 1)], [7, 9]);
        assert_eq!([at(Field::OutRows, 0), at(Field::Sampling, 4), at(Field::PenaltyTokens, 3)], [1, 77, 14]);
        assert_eq!(at(Field::Tokens, 2), 0xEEEE_EEEE, "padding is left alone");
    }

    #[test]
    fn pack_rejects_more_than_the_plan_has_room_for() {
        let layout = layout(1);
        let mut buffer = vec![0; layout.bytes()];
        let six = [0; 6];
        let inputs = StepInputs {
            tokens: &six,
            positions: &six,
            sequences: &six,
            slots: &[&six, &six],
            block_tables: &[&[0; 7], &[0; 2]],
            out_rows: &[],
            sampling: &[],
            penalty_tokens: &[],
        };
        let error = layout.pack(&inputs, &mut buffer).unwrap_err();
        assert!(matches!(error, BackendError::Input { field: "tokens", .. }), "{error}");
    }
}
