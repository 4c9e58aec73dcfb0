//! Randomness for names and seeds: unpredictable enough to be distinct, never used where secrecy matters.

use std::hash::{BuildHasher, Hasher, RandomState};

/// 64 bits from the operating system's random numbers, through the keys the standard library draws for its hash maps.
fn bits() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A seed for a request that brought none. It has 53 bits, so that it survives every JSON reader.
pub(crate) fn seed() -> u64 {
    bits() >> 11
}

/// An id of a trace, not 0.
pub(crate) fn trace_id() -> u128 {
    (u128::from(bits()) << 64 | u128::from(bits())).max(1)
}

/// An id of a span, not 0.
pub(crate) fn span_id() -> u64 {
    bits().max(1)
}

/// A random (version 4) UUID in its text form.
pub(crate) fn uuid() -> String {
    let (high, low) = (bits(), bits());
    let version = high & 0xffff_ffff_ffff_0fff | 0x4000;
    let variant = low & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        version >> 32,
        version >> 16 & 0xffff,
        version & 0xffff,
        variant >> 48,
        variant & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ_and_survive_a_double() {
        let seeds: std::collections::HashSet<u64> = (0..1000).map(|_| seed()).collect();
        assert_eq!(seeds.len(), 1000);
        assert!(seeds.iter().all(|&seed| seed as f64 as u64 == seed));
    }

    #[test]
    fn a_uuid_has_its_form() {
        let uuid = uuid();
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(uuid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uuid.as_bytes()[19]));
    }
}
