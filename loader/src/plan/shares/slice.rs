//! The bytes of a tensor that are one rank's piece of it.

use std::ops::Range;

use longshore_types::Tensor;

use super::Share;
use crate::parallel::{FusedPart, Parallel};

/// Equal pieces of a file at equal distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Where the first begins.
    pub start_bytes: u64,
    /// Length of each.
    pub row_bytes: u64,
    /// From the end of one to the beginning of the next.
    pub skip_bytes: u64,
    /// How many.
    pub count: u64,
}

/// Bytes of a file that become one tensor, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// A regular pattern, or all of it.
    Regular(Rows),
    /// The same unequal pieces, so many times.
    Loose {
        start_bytes: u64,
        /// Within each row.
        pieces: Vec<Range<u64>>,
        pitch_bytes: u64,
        rows: u64,
    },
}

impl Pieces {
    /// A range of the file.
    pub(crate) fn one(start_bytes: u64, len_bytes: u64) -> Pieces {
        Pieces::Regular(Rows { start_bytes, row_bytes: len_bytes, skip_bytes: 0, count: 1 })
    }

    /// Bytes of all of them.
    pub(crate) fn len_bytes(&self) -> u64 {
        match self {
            Pieces::Regular(rows) => rows.row_bytes * rows.count,
            Pieces::Loose { pieces, rows, .. } => pieces.iter().map(len).sum::<u64>() * rows,
        }
    }

    /// Number of pieces that have to be listed one by one.
    pub(crate) fn loose(&self) -> u64 {
        match self {
            Pieces::Regular(_) => 0,
            Pieces::Loose { pieces, rows, .. } => (pieces.len() as u64).saturating_mul(*rows),
        }
    }

    /// Lists them in the order of the file; none is empty.
    pub(crate) fn for_each_rows(&self, mut each: impl FnMut(Rows)) {
        match self {
            Pieces::Regular(rows) if rows.row_bytes > 0 => each(*rows),
            Pieces::Regular(_) => {}
            Pieces::Loose { start_bytes, pieces, pitch_bytes, rows } => {
                for row in 0..*rows {
                    let start_bytes = start_bytes + row * pitch_bytes;
                    for piece in pieces {
                        let start_bytes = start_bytes + piece.start;
                        each(Rows { start_bytes, row_bytes: len(piece), skip_bytes: 0, count: 1 });
                    }
                }
            }
        }
    }

    /// Finds the pattern in `rows` rows of `pitch_bytes` with the same pieces in each: pieces of equal length and distance
    /// are as good as more and shorter rows.
    fn find(start_bytes: u64, cut: Cut, pitch_bytes: u64, rows: u64) -> Pieces {
        let pieces = cut.as_slice();
        let (Some(first), count) = (pieces.first(), pieces.len() as u64) else { return Pieces::one(start_bytes, 0) };
        let (start, row_bytes) = (start_bytes + first.start, len(first));
        if count == 1 && (rows == 1 || row_bytes == pitch_bytes) {
            return Pieces::one(start, row_bytes * rows);
        }
        let distance = pitch_bytes / count;
        let mut expected = (0..count).map(|i| first.start + i * distance);
        let is_even = pitch_bytes.is_multiple_of(count)
            && pieces.iter().all(|piece| expected.next() == Some(piece.start) && len(piece) == row_bytes);
        match is_even {
            true => {
                let skip_bytes = distance - row_bytes;
                Pieces::Regular(Rows { start_bytes: start, row_bytes, skip_bytes, count: rows * count })
            }
            false => Pieces::Loose { start_bytes, pieces: cut.into_vec(), pitch_bytes, rows },
        }
    }
}

/// A rank's share of one row; most often it is a single range, and a model has a hundred thousand.
enum Cut {
    One([Range<u64>; 1]),
    Several(Vec<Range<u64>>),
}

impl Cut {
    fn as_slice(&self) -> &[Range<u64>] {
        match self {
            Cut::One(one) => one,
            Cut::Several(several) => several,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Range<u64>] {
        match self {
            Cut::One(one) => one,
            Cut::Several(several) => several,
        }
    }

    fn into_vec(self) -> Vec<Range<u64>> {
        match self {
            Cut::One(one) => one.into(),
            Cut::Several(several) => several,
        }
    }
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// The rank's piece along `dim`. The tensor agrees with its dtype and shape. An error is a reason: the caller names the
/// tensor.
pub(super) fn split(tensor: &Tensor, dim: u32, parts: &[FusedPart], parallel: &Parallel) -> Result<Share, String> {
    let (shape, index) = (&tensor.shape, dim as usize);
    let size = shape.get(index).ok_or_else(|| format!("there is no dimension {dim} in the shape {shape:?}"))?;
    let unknown = || format!("its dtype {:?} is unknown, so it can be replicated and not split", tensor.dtype_name);
    let dtype = tensor.dtype.ok_or_else(unknown)?;
    let mut pieces =
        ranges(*size, parts, parallel).map_err(|reason| format!("dimension {dim} of {shape:?} {reason}"))?;
    let own_size: u64 = pieces.as_slice().iter().map(len).sum();
    let own_shape = (own_size != *size).then(|| {
        let mut own_shape = shape.clone().into_boxed_slice();
        own_shape[index] = own_size;
        own_shape
    });
    let start_bytes = tensor.extent.offset_bytes;
    if tensor.extent.length_bytes == 0 {
        return Ok(Share::Here { pieces: Pieces::one(start_bytes, 0), shape: own_shape });
    }
    // Not empty, and checked against its length: no product of dimensions overflows.
    let inner_bits = shape[index + 1..].iter().product::<u64>() * dtype.bitsize() as u64;
    let rows: u64 = shape[..index].iter().product();
    let whole_bytes = |elements: u64| {
        let bits = elements * inner_bits;
        let torn = || {
            let dtype = &tensor.dtype_name;
            format!(
                "a piece along dimension {dim} of {shape:?} does not fill whole bytes of {dtype}; split another one"
            )
        };
        bits.is_multiple_of(8).then_some(bits / 8).ok_or_else(torn)
    };
    for piece in pieces.as_mut_slice() {
        *piece = whole_bytes(piece.start)?..whole_bytes(piece.end)?;
    }
    let pitch_bytes = if rows == 1 { tensor.extent.length_bytes } else { whole_bytes(*size)? };
    Ok(Share::Here { pieces: Pieces::find(start_bytes, pieces, pitch_bytes, rows), shape: own_shape })
}

/// The rank's elements along the dimension that is split, neighbours merged.
fn ranges(size: u64, parts: &[FusedPart], parallel: &Parallel) -> Result<Cut, String> {
    if parts.is_empty() {
        return Ok(Cut::One([range(FusedPart { size, replicas: 1 }, 1, 0, parallel)?]));
    }
    let total = parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.size));
    if total != Some(size) {
        let sizes: Vec<String> = parts.iter().map(|part| part.size.to_string()).collect();
        return Err(format!("does not have the size of the rule's parts together, {}", sizes.join(" + ")));
    }
    let mut ranges: Vec<Range<u64>> = Vec::with_capacity(parts.len());
    let mut at = 0;
    for part in parts {
        let own = range(*part, parts.len(), at, parallel)?;
        match ranges.last_mut() {
            Some(last) if last.end == own.start => last.end = own.end,
            _ => ranges.push(own),
        }
        at += part.size;
    }
    Ok(Cut::Several(ranges))
}

/// The rank's elements of one of `parts` parts, which begins at `at`.
fn range(part: FusedPart, parts: usize, at: u64, parallel: &Parallel) -> Result<Range<u64>, String> {
    let pieces = u64::from(parallel.world_size() / part.replicas);
    if !part.size.is_multiple_of(pieces) {
        return Err(cannot_cut(&part, parts, parallel));
    }
    let length = part.size / pieces;
    let start = at + length * u64::from(parallel.rank() / part.replicas);
    Ok(start..start + length)
}

fn cannot_cut(part: &FusedPart, parts: usize, parallel: &Parallel) -> String {
    let (FusedPart { size, replicas }, world_size) = (part, parallel.world_size());
    let pieces = world_size / replicas;
    let which = if parts > 1 { format!("has a part of {size} that ") } else { String::new() };
    let shared = if *replicas > 1 { format!(" with {replicas} replicas of each") } else { String::new() };
    format!("{which}cannot be cut into {pieces} equal pieces, for a world of {world_size}{shared}")
}
