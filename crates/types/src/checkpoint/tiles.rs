//! Whether rectangular pieces tile a tensor: each element in exactly one of them.
//!
//! The corners of a box, with alternating signs, are the mixed derivative of its indicator function, and a function that
//! ends somewhere is determined by that derivative. So the pieces tile the whole exactly when their signed corners add up to
//! those of the whole: `pieces * 2^dimensions` steps, no comparison of pairs. The first point (in the order of indexes) where
//! the sums differ is the first element that is missing or there more than once.

use std::collections::BTreeMap;

/// Most corners that are looked at for one tensor.
const CORNERS_MAX: usize = 32 << 20;

/// Why pieces do not tile their tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TileFault {
    /// The element at this index is in no piece.
    Missing(Vec<u64>),
    /// The element at this index is in more than one piece.
    Twice(Vec<u64>),
    /// The piece of this number has another number of dimensions, or goes beyond the tensor.
    Outside(usize),
    /// There are too many pieces in too many dimensions.
    TooMany,
}

impl std::fmt::Display for TileFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TileFault::Missing(at) => write!(f, "its piece from index {at:?} on is missing"),
            TileFault::Twice(at) => write!(f, "its element at index {at:?} is in more than one piece"),
            TileFault::Outside(piece) => write!(f, "its piece {piece} is not within its shape"),
            TileFault::TooMany => f.write_str("it is cut into too many pieces"),
        }
    }
}

/// Checks that `pieces` (first index and extent, in each dimension) cover a tensor of `shape` exactly once.
///
/// # Errors
/// What is wrong first.
pub fn check_tiles(shape: &[u64], pieces: &[(&[u64], &[u64])]) -> Result<(), TileFault> {
    for (number, (start, extent)) in pieces.iter().enumerate() {
        let within = start.len() == shape.len()
            && extent.len() == shape.len()
            && (0..shape.len()).all(|d| start[d].checked_add(extent[d]).is_some_and(|end| end <= shape[d]));
        if !within {
            return Err(TileFault::Outside(number));
        }
    }
    if shape.contains(&0) {
        // Nothing to cover; but a tensor without any piece would have no place.
        return if pieces.is_empty() { Err(TileFault::Missing(vec![0; shape.len()])) } else { Ok(()) };
    }
    // Dimensions that no piece cuts tell nothing.
    let cut: Vec<usize> = (0..shape.len())
        .filter(|&d| pieces.iter().any(|(start, extent)| start[d] != 0 || extent[d] != shape[d]))
        .collect();
    let origin = vec![0; shape.len()];
    let full: Vec<_> = pieces.iter().filter(|(_, extent)| !extent.contains(&0)).collect();
    if cut.is_empty() {
        return match full.len() {
            0 => Err(TileFault::Missing(origin)),
            1 => Ok(()),
            _ => Err(TileFault::Twice(origin)),
        };
    }
    let corners = 1usize.checked_shl(cut.len() as u32).filter(|_| cut.len() < 24);
    if corners.and_then(|corners| corners.checked_mul(full.len() + 1)).is_none_or(|all| all > CORNERS_MAX) {
        return Err(TileFault::TooMany);
    }
    let mut sums: BTreeMap<Vec<u64>, i64> = BTreeMap::new();
    for (start, extent) in &full {
        add_corners(&mut sums, &cut, start, extent, 1);
    }
    add_corners(&mut sums, &cut, &origin, shape, -1);
    match sums.into_iter().next() {
        None => Ok(()),
        Some((at, sum)) => {
            let mut index = origin;
            for (&d, value) in cut.iter().zip(at) {
                index[d] = value;
            }
            Err(if sum < 0 { TileFault::Missing(index) } else { TileFault::Twice(index) })
        }
    }
}

/// Adds the signed corners of one box; sums that come to nothing are dropped.
fn add_corners(sums: &mut BTreeMap<Vec<u64>, i64>, cut: &[usize], start: &[u64], extent: &[u64], sign: i64) {
    for corner in 0u32..1 << cut.len() {
        let point: Vec<u64> = cut
            .iter()
            .enumerate()
            .map(|(bit, &d)| start[d] + if corner >> bit & 1 == 1 { extent[d] } else { 0 })
            .collect();
        let value = if corner.count_ones() % 2 == 0 { sign } else { -sign };
        let sum = sums.entry(point.clone()).or_insert(0);
        *sum += value;
        if *sum == 0 {
            sums.remove(&point);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Piece = (Vec<u64>, Vec<u64>);

    fn check(shape: &[u64], pieces: &[Piece]) -> Result<(), TileFault> {
        let pieces: Vec<_> = pieces.iter().map(|(start, extent)| (&start[..], &extent[..])).collect();
        check_tiles(shape, &pieces)
    }

    /// Counts each element of a small tensor one by one.
    fn counted(shape: &[u64], pieces: &[Piece]) -> Result<(), TileFault> {
        let total: u64 = shape.iter().product();
        for flat in 0..total {
            let mut rest = flat;
            let mut index = vec![0; shape.len()];
            for d in (0..shape.len()).rev() {
                index[d] = rest % shape[d];
                rest /= shape[d];
            }
            let holds = |(start, extent): &&Piece| {
                index.iter().enumerate().all(|(d, &i)| start[d] <= i && i < start[d] + extent[d])
            };
            match pieces.iter().filter(holds).count() {
                0 => return Err(TileFault::Missing(index)),
                1 => {}
                _ => return Err(TileFault::Twice(index)),
            }
        }
        Ok(())
    }

    #[test]
    fn whole_scalar_and_empty() {
        assert_eq!(check(&[], &[(vec![], vec![])]), Ok(()));
        assert_eq!(check(&[], &[]), Err(TileFault::Missing(vec![])));
        assert_eq!(check(&[4, 0], &[(vec![0, 0], vec![4, 0])]), Ok(()));
        assert_eq!(check(&[4], &[(vec![0], vec![4]), (vec![0], vec![4])]), Err(TileFault::Twice(vec![0])));
        assert_eq!(check(&[4], &[(vec![0], vec![2])]), Err(TileFault::Missing(vec![2])));
        assert_eq!(check(&[4], &[(vec![3], vec![u64::MAX])]), Err(TileFault::Outside(0)));
        assert_eq!(check(&[u64::MAX; 64], &[(vec![1; 64], vec![1; 64])]), Err(TileFault::TooMany));
    }

    #[test]
    fn many_pieces_are_checked_quickly() {
        let pieces: Vec<Piece> = (0..100_000).map(|i| (vec![i * 3, 0], vec![3, 7])).collect();
        assert_eq!(check(&[300_000, 7], &pieces), Ok(()));
    }

    proptest! {
        #[test]
        fn agrees_with_counting(
            shape in proptest::collection::vec(1u64..5, 1..4),
            raw in proptest::collection::vec(proptest::collection::vec((0u64..5, 0u64..5), 3), 0..8),
        ) {
            let pieces: Vec<Piece> = raw.iter().map(|dims| {
                let start: Vec<u64> = shape.iter().zip(dims).map(|(&s, d)| d.0 % s).collect();
                let extent = shape.iter().zip(dims).zip(&start).map(|((&s, d), &at)| d.1 % (s - at + 1)).collect();
                (start, extent)
            }).collect();
            prop_assert_eq!(check(&shape, &pieces), counted(&shape, &pieces));
        }

        #[test]
        fn a_grid_tiles(shape in proptest::collection::vec(1u64..9, 1..4), cell in 1u64..5) {
            let mut pieces: Vec<Piece> = vec![(vec![], vec![])];
            for &dim in &shape {
                pieces = pieces.into_iter().flat_map(|(start, extent)| {
                    (0..dim.div_ceil(cell)).map(move |i| {
                        let (mut start, mut extent) = (start.clone(), extent.clone());
                        start.push(i * cell);
                        extent.push(cell.min(dim - i * cell));
                        (start, extent)
                    })
                }).collect();
            }
            prop_assert_eq!(check(&shape, &pieces), Ok(()));
        }
    }
}
