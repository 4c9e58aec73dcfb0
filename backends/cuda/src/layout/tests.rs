//! The layout's index arithmetic, without a GPU: a host repack and decoder that mirror `cuda/repack.cu` and
//! `cuda/common/weight.cuh` line by line, against the decoders of the storage formats.

use half::{bf16, f16};
use worker_orcd_core::quant::{dequantize_row, random_row};
use worker_orcd_core::rng::Rng;

use super::*;

/// `nibble` in repack.cu.
fn nibble(bytes: &[u8], e: usize) -> u32 {
    u32::from(bytes[e % 16]) >> (4 * (e / 16)) & 15
}

/// `stored_code` in repack.cu.
fn stored_code(dtype: DType, block: &[u8], e: usize) -> u32 {
    let (n, j, l) = (e / 128, e % 128 / 32, e % 32);
    let at = |index: usize| u32::from(block[index]);
    match dtype {
        DType::Q4_0 => nibble(&block[2..], e) ^ 8,
        DType::Q4_1 => nibble(&block[4..], e),
        DType::Q5_0 => nibble(&block[6..], e) | (((at(2 + e / 8) >> (e % 8)) & 1) ^ 1) << 4,
        DType::Q5_1 => nibble(&block[8..], e) | ((at(4 + e / 8) >> (e % 8)) & 1) << 4,
        DType::Q8_0 => at(2 + e),
        DType::Q2_K => (at(16 + 32 * n + l) >> (2 * j)) & 3,
        DType::Q3_K => {
            let low = (at(32 + 32 * n + l) >> (2 * j)) & 3;
            low | (((at(l) >> (4 * n + j)) & 1) ^ 1) << 2
        }
        DType::Q4_K => (at(16 + 32 * (e / 64) + l) >> (4 * (e / 32 % 2))) & 15,
        DType::Q5_K => {
            let low = (at(48 + 32 * (e / 64) + l) >> (4 * (e / 32 % 2))) & 15;
            low | ((at(16 + l) >> (e / 32)) & 1) << 4
        }
        DType::Q6_K => {
            let low = (at(64 * n + 32 * (j % 2) + l) >> (4 * (j / 2))) & 15;
            low | (((at(128 + 32 * n + l) >> (2 * j)) & 3) ^ 2) << 4
        }
        _ => nibble(&block[1..], e),
    }
}

/// Ranges of a quant block that `store_scales` copies: (offset in the block, bytes, record bytes), scales then supers.
fn scale_parts(dtype: DType) -> [(usize, usize, usize); 2] {
    match dtype {
        DType::Q4_1 | DType::Q5_1 => [(0, 4, 4), (0, 0, 0)],
        DType::MXFP4 => [(0, 1, 1), (0, 0, 0)],
        DType::Q2_K => [(0, 16, 16), (80, 4, 4)],
        DType::Q3_K => [(96, 14, 16), (0, 0, 0)],
        DType::Q4_K | DType::Q5_K => [(0, 16, 16), (0, 0, 0)],
        DType::Q6_K => [(192, 16, 16), (208, 2, 2)],
        _ => [(0, 2, 2), (0, 0, 0)],
    }
}

fn or_u32(memory: &mut [u8], at: usize, value: u32) {
    for (byte, bits) in memory[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *byte |= bits;
    }
}

/// `repack_blocks`, one lane of one tile.
fn repack_lane(
    layout: &WeightLayout,
    row: impl Fn(usize) -> Option<usize>,
    source: &[u8],
    tile: usize,
    lane: usize,
    memory: &mut [u8],
) {
    let dtype = layout.dtype;
    let per_unit = dtype.block_elements() / TILE_COLUMNS;
    let block = tile % layout.blocks;
    let unit_offset = block / per_unit * dtype.block_bytes();
    let (g, t) = (lane / 4, lane % 4);
    for w in 0..4 {
        let Some(row) = row(g + 8 * w) else { continue };
        for half in 0..2 {
            let slot = w % 2 + 2 * half;
            for i in 0..4 {
                let e = block % per_unit * 32 + 16 * half + 4 * t + i;
                let code = stored_code(dtype, &source[row + unit_offset..], e);
                let shift = if dtype == DType::MXFP4 { 4 * (4 * half + i) } else { 8 * i + 4 * half };
                let pair_shift = 8 * i + 6 - 2 * slot;
                match dtype {
                    DType::Q8_0 => {
                        let at = tile * 1024 + (w / 2) * 512 + lane * 16 + slot * 4;
                        or_u32(memory, at, code << (8 * i));
                    }
                    DType::Q2_K | DType::Q3_K => {
                        or_u32(memory, tile * 256 + lane * 8 + (w / 2) * 4, (code & 3) << pair_shift);
                    }
                    _ => or_u32(memory, tile * 512 + lane * 16 + w * 4, (code & 15) << shift),
                }
                if dtype == DType::Q6_K {
                    let at = layout.high + tile * 256 + lane * 8 + (w / 2) * 4;
                    or_u32(memory, at, (code >> 4) << pair_shift);
                }
                if matches!(dtype, DType::Q5_0 | DType::Q5_1 | DType::Q5_K | DType::Q3_K) {
                    let bit = if dtype == DType::Q3_K { code >> 2 } else { code >> 4 & 1 };
                    let shift = 8 * i + 7 - (4 * (w / 2) + slot);
                    or_u32(memory, layout.high + tile * 128 + lane * 4, bit << shift);
                }
            }
        }
    }
    if block.is_multiple_of(per_unit) {
        let Some(row) = row(lane / 4 + 8 * (lane % 4)) else { return };
        let index = tile / per_unit * 32 + lane;
        for ((from, bytes, record), plane) in
            scale_parts(dtype).into_iter().zip([layout.scales, layout.supers])
        {
            let from = row + unit_offset + from;
            memory[plane + index * record..][..bytes].copy_from_slice(&source[from..from + bytes]);
        }
    }
}

/// The repack kernels over a whole weight.
fn repack(spec: &WeightSpec, source: &[u8]) -> Vec<u8> {
    let layout = WeightLayout::of(spec).unwrap();
    let row_bytes = spec.row_bytes().unwrap();
    let mut memory = vec![0; layout.bytes()];
    let granule = layout.row_granule();
    for expert in 0..spec.experts {
        let row = |row: usize| (row < spec.rows).then_some((expert * spec.rows + row) * row_bytes);
        for row_tile in 0..layout.row_tiles {
            let tile = (expert * layout.row_tiles + row_tile) * layout.blocks;
            for block in 0..layout.blocks {
                if is_plain(spec.dtype) {
                    for in_tile in 0..granule {
                        let Some(start) = row(row_tile * granule + in_tile) else { continue };
                        let bytes = (row_bytes - block * 16).min(16);
                        let to = ((tile + block) * 8 + in_tile) * 16;
                        memory[to..to + bytes].copy_from_slice(&source[start + block * 16..][..bytes]);
                    }
                } else {
                    for lane in 0..32 {
                        let row = |in_tile: usize| row(row_tile * granule + in_tile);
                        repack_lane(&layout, row, source, tile + block, lane, &mut memory);
                    }
                }
            }
        }
    }
    memory
}

/// Reads of a repacked weight, as in weight.cuh.
struct Reader<'a> {
    layout: &'a WeightLayout,
    memory: &'a [u8],
    expert: usize,
}

/// `struct TilePlace`.
struct Place {
    tile: usize,
    lane: usize,
    word: usize,
    half: usize,
    byte: usize,
    slot: usize,
    scale: usize,
}

impl Reader<'_> {
    fn byte(&self, at: usize) -> u32 {
        u32::from(self.memory[at])
    }

    fn half(&self, at: usize) -> f32 {
        f16::from_le_bytes([self.memory[at], self.memory[at + 1]]).to_f32()
    }

    fn code4(&self, at: &Place) -> u32 {
        self.byte(at.tile * 512 + at.lane * 16 + at.word * 4 + at.byte) >> (4 * at.half) & 15
    }

    fn code2(&self, plane: usize, at: &Place) -> u32 {
        self.byte(plane + at.tile * 256 + at.lane * 8 + (at.word / 2) * 4 + at.byte) >> (6 - 2 * at.slot) & 3
    }

    fn high(&self, at: &Place) -> u32 {
        let byte = self.byte(self.layout.high + at.tile * 128 + at.lane * 4 + at.byte);
        byte >> (7 - (4 * (at.word / 2) + at.slot)) & 1
    }

    /// `weight_at`.
    fn element(&self, row: usize, column: usize) -> f32 {
        let layout = self.layout;
        if is_plain(layout.dtype) {
            return self.plain(row, column);
        }
        let (r, c) = (row % 32, column % 32);
        let (word, half) = (r / 8, c / 16);
        let at = Place {
            tile: (self.expert * layout.row_tiles + row / 32) * layout.blocks + column / 32,
            lane: 4 * (r % 8) + (c / 4) % 4,
            word,
            half,
            byte: c % 4,
            slot: word % 2 + 2 * half,
            scale: 4 * (r % 8) + word,
        };
        if layout.dtype.block_elements() == 256 {
            self.super_block(&at, column / 32 % 8)
        } else {
            self.block(&at)
        }
    }

    fn plain(&self, row: usize, column: usize) -> f32 {
        let dtype = self.layout.dtype;
        let per_chunk = 16 / dtype.block_bytes();
        let tile = self.expert * self.layout.row_tiles + row / 8;
        let chunk = (tile * self.layout.blocks + column / per_chunk) * 8 + row % 8;
        let at = (chunk * per_chunk + column % per_chunk) * dtype.block_bytes();
        let bytes = &self.memory[at..];
        match dtype {
            DType::F32 => f32::from_le_bytes(bytes[..4].try_into().unwrap()),
            DType::F16 => f16::from_le_bytes(bytes[..2].try_into().unwrap()).to_f32(),
            _ => bf16::from_le_bytes(bytes[..2].try_into().unwrap()).to_f32(),
        }
    }

    fn block(&self, at: &Place) -> f32 {
        let scales = self.layout.scales;
        let scale = at.tile * 32 + at.scale;
        match self.layout.dtype {
            DType::Q4_0 => self.half(scales + 2 * scale) * ((self.code4(at) ^ 8) as i32 - 8) as f32,
            DType::Q4_1 => {
                self.half(scales + 4 * scale) * self.code4(at) as f32 + self.half(scales + 4 * scale + 2)
            }
            DType::Q5_0 => {
                let code = self.code4(at) | (self.high(at) ^ 1) << 4;
                self.half(scales + 2 * scale) * (code as i32 - 16) as f32
            }
            DType::Q5_1 => {
                let code = self.code4(at) | self.high(at) << 4;
                self.half(scales + 4 * scale) * code as f32 + self.half(scales + 4 * scale + 2)
            }
            DType::Q8_0 => {
                let code =
                    self.byte(at.tile * 1024 + (at.word / 2) * 512 + at.lane * 16 + at.slot * 4 + at.byte);
                self.half(scales + 2 * scale) * f32::from((code as u8).cast_signed())
            }
            _ => {
                let exponent = self.byte(scales + scale);
                let bits = if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 };
                let byte = at.tile * 512 + at.lane * 16 + at.word * 4 + at.half * 2 + at.byte / 2;
                let code = self.byte(byte) >> (4 * (at.byte % 2)) & 15;
                let magnitude = (0xc864_3210_u32 >> (4 * (code & 7)) & 15) as f32;
                let doubled = if code & 8 == 0 { magnitude } else { -magnitude };
                // Code 8 is +0, as in the decoder.
                f32::from_bits(bits) * if doubled == 0.0 { 0.0 } else { doubled }
            }
        }
    }

    fn super_block(&self, at: &Place, j: usize) -> f32 {
        let layout = self.layout;
        let record = at.tile / 8 * 32 + at.scale;
        let table = layout.scales + record * 16;
        let sub = 2 * j + at.half;
        match layout.dtype {
            DType::Q2_K => {
                let (scale, supers) = (self.byte(table + sub), layout.supers + 4 * record);
                let d = self.half(supers) * (scale & 15) as f32;
                let m = self.half(supers + 2) * (scale >> 4) as f32;
                d * self.code2(0, at) as f32 - m
            }
            DType::Q3_K => {
                let low = if sub < 8 { self.byte(table + sub) & 15 } else { self.byte(table + sub - 8) >> 4 };
                let scale = low | (self.byte(table + 8 + sub % 4) >> (2 * (sub / 4)) & 3) << 4;
                let d = self.half(table + 12) * (scale as i32 - 32) as f32;
                d * ((self.code2(0, at) | (self.high(at) ^ 1) << 2) as i32 - 4) as f32
            }
            DType::Q6_K => {
                let scale = (self.byte(table + sub) as u8).cast_signed();
                let d = self.half(layout.supers + 2 * record) * f32::from(scale);
                d * ((self.code4(at) | (self.code2(layout.high, at) ^ 2) << 4) as i32 - 32) as f32
            }
            _ => {
                let t = |index: usize| self.byte(table + 4 + index);
                let (scale, minimum) = if j < 4 {
                    (t(j) & 63, t(j + 4) & 63)
                } else {
                    ((t(j + 4) & 15) | (t(j - 4) >> 6) << 4, (t(j + 4) >> 4) | (t(j) >> 6) << 4)
                };
                let (d, m) = (self.half(table) * scale as f32, self.half(table + 2) * minimum as f32);
                let high = if layout.dtype == DType::Q5_K { self.high(at) << 4 } else { 0 };
                d * (self.code4(at) | high) as f32 - m
            }
        }
    }
}

fn forged(spec: &WeightSpec) -> Vec<u8> {
    let (mut rng, mut bytes) = (Rng::seeded(7), vec![]);
    for _ in 0..spec.rows * spec.experts {
        random_row(spec.dtype, spec.cols, 0.5, &mut rng, &mut bytes);
    }
    bytes
}

/// Shapes that leave a ragged last tile, and one with experts.
fn specs(dtype: DType) -> Vec<WeightSpec> {
    let step = dtype.block_elements().max(1);
    let cols = |blocks: usize| if is_plain(dtype) { 11 * blocks } else { step.max(32) * blocks };
    vec![
        WeightSpec::matrix("one", dtype, 1, cols(1)),
        WeightSpec::matrix("ragged", dtype, 45, cols(3)),
        WeightSpec::matrix("whole", dtype, 64, cols(2)),
        WeightSpec::experts("experts", dtype, 3, 11, cols(2)),
    ]
}

#[test]
fn every_element_of_every_format_survives_the_repack() {
    for dtype in DType::ALL {
        for spec in specs(dtype) {
            let stored = forged(&spec);
            let memory = repack(&spec, &stored);
            let layout = WeightLayout::of(&spec).unwrap();
            let row_bytes = spec.row_bytes().unwrap();
            let mut expected = vec![0.0; spec.cols];
            for (index, row) in stored.chunks(row_bytes).enumerate() {
                dequantize_row(dtype, row, &mut expected);
                let reader = Reader { layout: &layout, memory: &memory, expert: index / spec.rows };
                for (column, want) in expected.iter().enumerate() {
                    let got = reader.element(index % spec.rows, column);
                    assert_eq!(
                        got.to_bits(),
                        want.to_bits(),
                        "{dtype} {} [{index}, {column}]: {got} is not {want}",
                        spec.label
                    );
                }
            }
        }
    }
}

#[test]
fn padding_rows_have_zero_scales() {
    let spec = WeightSpec::matrix("ragged", DType::Q8_0, 1, 32);
    let layout = WeightLayout::of(&spec).unwrap();
    let memory = repack(&spec, &forged(&spec));
    let reader = Reader { layout: &layout, memory: &memory, expert: 0 };
    assert!((0..32).any(|column| reader.element(0, column) != 0.0));
    assert!((1..32).all(|row| (0..32).all(|column| reader.element(row, column) == 0.0)));
}

#[test]
fn layouts_take_no_more_than_the_file() {
    // (format, rows, columns): the large matrices of the models we ship for.
    let shapes = [
        (DType::MXFP4, 2880, 2880),
        (DType::Q8_0, 4096, 2880),
        (DType::Q8_0, 201_088, 2880),
        (DType::F32, 32, 2880),
        (DType::Q5_0, 896, 896),
        (DType::Q8_0, 151_936, 896),
        (DType::Q6_K, 896, 4864),
        (DType::Q4_K, 896, 4864),
        (DType::Q4_K, 3072, 8192),
        (DType::Q5_K, 9216, 3072),
        (DType::Q6_K, 32_064, 3072),
    ];
    for (dtype, rows, cols) in shapes {
        let spec = WeightSpec::matrix("weight", dtype, rows, cols);
        let (stored, bytes) = (spec.bytes().unwrap(), WeightLayout::of(&spec).unwrap().bytes());
        // Planes are padded to 256 bytes, at most four times.
        assert!(bytes <= stored + 1024, "{dtype} [{rows}, {cols}]: {bytes} for {stored}");
    }
}

#[test]
fn absurd_shapes_are_refused() {
    let huge = WeightSpec::matrix("huge", DType::Q8_0, usize::MAX / 64, 64);
    assert!(WeightLayout::of(&huge).is_err());
    let ragged = WeightSpec::matrix("ragged", DType::Q4_K, 4, 100);
    assert!(WeightLayout::of(&ragged).is_err());
}

#[test]
fn repacks_are_split_at_row_tiles() {
    let spec = WeightSpec::experts("experts", DType::MXFP4, 3, 40, 64);
    let layout = WeightLayout::of(&spec).unwrap();
    assert_eq!(layout.row_granule(), 32);
    let launch = layout.repack(&spec, DevicePtr(16), DevicePtr(4096), 40 + 32, 8).unwrap();
    let args: RepackArgs = bytemuck::pod_read_unaligned(&launch.args);
    // Second tile of the second expert.
    assert_eq!((args.first_tile, args.rows, args.row_bytes), (3, 8, 34));
    assert_eq!(launch.grid, [1, 1, 1]);
    let vector = WeightSpec::vector("norm", 1, 64);
    let layout = WeightLayout::of(&vector).unwrap();
    assert_eq!((layout.bytes(), layout.row_granule()), (256, 1));
    assert_eq!(layout.repack(&vector, DevicePtr(0), DevicePtr(0), 0, 1), None);
}
