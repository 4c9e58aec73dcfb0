//! OCP microscaling: 32 E2M1 elements under one E8M0 scale.
//!
//! Byte `j` holds element `j` low and `j + 16` high. Code 8 decodes to +0, as everywhere this layout is read. Scale 255
//! is NaN by OCP; the loader rejects it.

/// E2M1 codes 0–15.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let scale = match block[0] {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    };
    for i in 0..16 {
        let byte = usize::from(block[1 + i]);
        out[i] = scale * E2M1[byte & 15];
        out[i + 16] = scale * E2M1[byte >> 4];
    }
}
