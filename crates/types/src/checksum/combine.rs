//! Checksums of concatenations: polynomials over GF(2), modulo that of CRC-64/NVME.
//!
//! The library combines by squaring matrices, a fifth of a millisecond a time, which is more than checksumming the block took.
//! Multiplying by a power of x gives the same in about two microseconds; a test holds both together.

/// The polynomial with its bits reflected: bit 63 is the coefficient of x^0.
const POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5;
/// The polynomial 1.
const ONE: u64 = 1 << 63;
/// x to the power of 2^n, for each n that a length in bits can have.
const POWERS: [u64; 67] = powers();

/// What the checksum of some bytes adds to the checksum of those bytes followed by `len_bytes` others.
pub(super) fn shift(checksum: u64, len_bytes: u64) -> u64 {
    let mut product = checksum;
    let mut rest = len_bytes;
    // A byte is 2^3 bits.
    let mut power = 3;
    while rest != 0 {
        if rest & 1 == 1 {
            product = multiply(POWERS[power], product);
        }
        rest >>= 1;
        power += 1;
    }
    product
}

/// a * b modulo the polynomial.
const fn multiply(a: u64, b: u64) -> u64 {
    let (mut product, mut shifted, mut bit) = (0, b, ONE);
    while bit != 0 {
        if a & bit != 0 {
            product ^= shifted;
        }
        // Times x.
        shifted = (shifted >> 1) ^ if shifted & 1 == 1 { POLYNOMIAL } else { 0 };
        bit >>= 1;
    }
    product
}

const fn powers() -> [u64; 67] {
    // x^1.
    let mut powers = [ONE >> 1; 67];
    let mut n = 1;
    while n < powers.len() {
        powers[n] = multiply(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
}

#[cfg(test)]
mod tests {
    use crc_fast::{CrcAlgorithm, checksum_combine};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_what_the_library_says(first: u64, second: u64, len_bytes in prop_oneof![0..100u64, any::<u64>()]) {
            let library = checksum_combine(CrcAlgorithm::Crc64Nvme, first, second, len_bytes);
            prop_assert_eq!(shift(first, len_bytes) ^ second, library);
        }
    }
}
