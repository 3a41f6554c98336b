//! Slices by definition, written without a look at the plan: split a list of indices, pick one piece, join, and go
//! through the elements one by one.

use longshore_types::Dtype;

use crate::parallel::FusedPart;

/// A rank and its group.
#[derive(Debug, Clone, Copy)]
pub struct Seat {
    pub rank: u32,
    pub world_size: u32,
}

/// The indices along a dimension of `size` that a rank gets, or `None` when they cannot be dealt out.
pub fn indices(size: u64, parts: &[FusedPart], seat: Seat) -> Option<Vec<u64>> {
    let all: Vec<u64> = (0..size).collect();
    let whole = [FusedPart { size, replicas: 1 }];
    let parts = if parts.is_empty() { &whole[..] } else { parts };
    let mut rest = all.as_slice();
    let mut own = Vec::new();
    for part in parts {
        let (matrix, behind) = rest.split_at_checked(part.size as usize)?;
        let pieces = (seat.world_size / part.replicas) as usize;
        if matrix.len() % pieces != 0 {
            return None;
        }
        if !matrix.is_empty() {
            // As `numpy.split(matrix, pieces)[rank // replicas]`.
            let mut split = matrix.chunks(matrix.len() / pieces);
            own.extend(split.nth((seat.rank / part.replicas) as usize)?);
        }
        rest = behind;
    }
    rest.is_empty().then_some(own)
}

/// The elements at `own` along `dim`, packed again; `None` when that does not fill whole bytes.
pub fn take(bytes: &[u8], dtype: Dtype, shape: &[u64], dim: usize, own: &[u64]) -> Vec<u8> {
    let bits = dtype.bitsize();
    let inner: u64 = shape[dim + 1..].iter().product();
    let outer: u64 = shape[..dim].iter().product();
    let mut out = Vec::new();
    let mut at = 0;
    for o in 0..outer {
        for &index in own {
            for i in 0..inner {
                let element = ((o * shape[dim] + index) * inner + i) as usize;
                for bit in element * bits..(element + 1) * bits {
                    if at % 8 == 0 {
                        out.push(0);
                    }
                    *out.last_mut().unwrap() |= (bytes[bit / 8] >> (bit % 8) & 1) << (at % 8);
                    at += 1;
                }
            }
        }
    }
    out
}
