// half: binary32 to binary16 in integer arithmetic, so that the bits are the same on every device.

// Bits of the binary16 nearest to the binary32 with these bits, ties to even; NaN stays NaN.
fn half_bits(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return sign | 0x7e00u | ((magnitude >> 13u) & 0x3ffu);
    }
    // From 65520 on (halfway to 2^16) the nearest is infinity.
    if (magnitude >= 0x477ff000u) {
        return sign | 0x7c00u;
    }
    // Below 2^-14 the result is subnormal: the significand shifted down to units of 2^-24.
    if (magnitude < 0x38800000u) {
        let exponent = magnitude >> 23u;
        // At most half of 2^-24: zero.
        if (magnitude <= 0x33000000u) {
            return sign;
        }
        let significand = (magnitude & 0x7fffffu) | 0x800000u;
        let shift = 126u - exponent;
        let kept = significand >> shift;
        let rest = significand & ((1u << shift) - 1u);
        let halfway = 1u << (shift - 1u);
        let up = rest > halfway || (rest == halfway && (kept & 1u) == 1u);
        return sign | (kept + select(0u, 1u, up));
    }
    let rebased = magnitude - 0x38000000u;
    return sign | ((rebased + 0xfffu + ((rebased >> 13u) & 1u)) >> 13u);
}
