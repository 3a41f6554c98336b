//! What all ranks have, put together: each tensor once, each of its pieces once, with the ranks that have it.

use std::collections::{BTreeMap, HashMap};

use longshore_types::checkpoint::{Alias, TENSORS_MAX, check_tensor_name, check_tiles, full_name};
use longshore_types::header::{parse_dtype, tensor_bytes};
use longshore_types::{Dtype, Result};

use super::names::{check_file_name, check_group, invalid};
use super::{RankItems, SaveTensor};

/// A piece of a tensor and who has it.
#[derive(Debug)]
pub(super) struct Piece {
    /// First index in each dimension.
    pub start: Vec<u64>,
    /// Extent in each dimension.
    pub shape: Vec<u64>,
    /// Its bytes.
    pub length_bytes: u64,
    /// Ascending.
    pub ranks: Vec<u32>,
}

/// A tensor with all its pieces.
#[derive(Debug)]
pub(super) struct Whole<'a> {
    pub group: &'a str,
    pub name: &'a str,
    pub dtype_name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [u64],
    /// Sorted by their first index.
    pub pieces: Vec<Piece>,
}

/// A file and who has it.
#[derive(Debug)]
pub(super) struct Plain<'a> {
    pub name: &'a str,
    pub size_bytes: u64,
    /// Ascending.
    pub ranks: Vec<u32>,
}

/// Everything, in the order in which the lowest rank gives it.
#[derive(Debug, Default)]
pub(super) struct Items<'a> {
    pub tensors: Vec<Whole<'a>>,
    pub files: Vec<Plain<'a>>,
    pub aliases: Vec<Alias>,
}

impl<'a> Items<'a> {
    /// Takes the items of all ranks, ascending.
    pub(super) fn collect(ranks: &'a [RankItems]) -> Result<Items<'a>> {
        let mut items = Items::default();
        let mut tensor_at: HashMap<(&str, &str), usize> = HashMap::new();
        let mut file_at: HashMap<&str, usize> = HashMap::new();
        for rank in ranks {
            for tensor in &rank.tensors {
                let at = *tensor_at.entry((&tensor.group, &tensor.name)).or_insert(items.tensors.len());
                if at == items.tensors.len() {
                    items.tensors.push(whole_of(tensor, rank.rank)?);
                    if items.tensors.len() > TENSORS_MAX {
                        return Err(invalid(format!("there are more than {TENSORS_MAX} tensors to save")));
                    }
                }
                add_piece(&mut items.tensors[at], tensor, rank.rank)?;
            }
            for file in &rank.files {
                let at = *file_at.entry(&file.name).or_insert(items.files.len());
                if at == items.files.len() {
                    check_file_name(&file.name)?;
                    items.files.push(Plain { name: &file.name, size_bytes: file.size_bytes, ranks: vec![] });
                }
                add_file(&mut items.files[at], file.size_bytes, rank.rank)?;
            }
        }
        items.tensors.iter_mut().try_for_each(finish_tensor)?;
        items.aliases = aliases(ranks, &tensor_at)?;
        Ok(items)
    }
}

fn whole_of(tensor: &SaveTensor, rank: u32) -> Result<Whole<'_>> {
    check_group(&tensor.group)?;
    check_tensor_name(&tensor.name).map_err(|error| error.context(format!("rank {rank}")))?;
    let Some(dtype) = parse_dtype(&tensor.dtype) else {
        return Err(invalid(format!(
            "tensor {:?} of rank {rank} has the dtype {:?}, which the safetensors format does not know",
            full_name(&tensor.group, &tensor.name),
            tensor.dtype
        )));
    };
    Ok(Whole {
        group: &tensor.group,
        name: &tensor.name,
        dtype_name: &tensor.dtype,
        dtype,
        shape: &tensor.shape,
        pieces: vec![],
    })
}

fn add_piece(whole: &mut Whole<'_>, tensor: &SaveTensor, rank: u32) -> Result<()> {
    let name = || full_name(whole.group, whole.name);
    if tensor.dtype != whole.dtype_name || tensor.shape != whole.shape {
        return Err(invalid(format!(
            "tensor {:?} is {} {:?} on one rank and {} {:?} on rank {rank}: ranks must give the whole tensor's dtype and \
             shape alike",
            name(),
            whole.dtype_name,
            whole.shape,
            tensor.dtype,
            tensor.shape
        )));
    }
    let dims = whole.shape.len();
    let start = if tensor.start.is_empty() { vec![0; dims] } else { tensor.start.clone() };
    let shape = if tensor.piece_shape.is_empty() { whole.shape.to_vec() } else { tensor.piece_shape.clone() };
    if shape.len() != dims || start.len() != dims {
        return Err(invalid(format!(
            "a piece of tensor {:?} of rank {rank} has another number of dimensions than the tensor",
            name()
        )));
    }
    let length_bytes = tensor_bytes(whole.dtype, &shape).ok_or_else(|| {
        invalid(format!(
            "a piece of tensor {:?} of rank {rank} has a shape that does not fill whole bytes: {shape:?}",
            name()
        ))
    })?;
    // Ranks come in ascending order, and mostly with the piece that was added last or with one of their own.
    let known =
        whole.pieces.iter_mut().rev().take(KNOWN_PIECES).find(|piece| piece.start == start && piece.shape == shape);
    match known {
        Some(piece) => add_rank(&mut piece.ranks, rank),
        None => whole.pieces.push(Piece { start, shape, length_bytes, ranks: vec![rank] }),
    }
    Ok(())
}

/// How far back an equal piece is looked for at once; equal pieces that are further apart are merged at the end.
const KNOWN_PIECES: usize = 4;

fn add_rank(ranks: &mut Vec<u32>, rank: u32) {
    if ranks.last() != Some(&rank) {
        ranks.push(rank);
    }
}

fn add_file(file: &mut Plain<'_>, size_bytes: u64, rank: u32) -> Result<()> {
    if file.size_bytes != size_bytes {
        return Err(invalid(format!(
            "the file {:?} has {} bytes on one rank and {size_bytes} on rank {rank}: a file of one name is the same on all ranks",
            file.name, file.size_bytes
        )));
    }
    if file.ranks.last() == Some(&rank) {
        return Err(invalid(format!("rank {rank} gives the file {:?} twice", file.name)));
    }
    file.ranks.push(rank);
    Ok(())
}

/// Merges equal pieces, drops empty ones, and checks that the rest tiles the tensor.
fn finish_tensor(whole: &mut Whole<'_>) -> Result<()> {
    let empty = whole.shape.contains(&0);
    let mut merged: BTreeMap<(Vec<u64>, Vec<u64>), Piece> = BTreeMap::new();
    for mut piece in std::mem::take(&mut whole.pieces) {
        if empty {
            piece = Piece { start: vec![0; whole.shape.len()], shape: whole.shape.to_vec(), length_bytes: 0, ..piece };
        } else if piece.shape.contains(&0) {
            continue;
        }
        match merged.get_mut(&(piece.start.clone(), piece.shape.clone())) {
            Some(known) => known.ranks.append(&mut piece.ranks),
            None => {
                merged.insert((piece.start.clone(), piece.shape.clone()), piece);
            }
        }
    }
    whole.pieces = merged.into_values().collect();
    for piece in &mut whole.pieces {
        piece.ranks.sort_unstable();
        piece.ranks.dedup();
    }
    let pieces: Vec<_> = whole.pieces.iter().map(|piece| (&piece.start[..], &piece.shape[..])).collect();
    check_tiles(whole.shape, &pieces).map_err(|fault| {
        let name = full_name(whole.group, whole.name);
        invalid(format!(
            "tensor {name:?} of shape {:?} is not given exactly once by all ranks together: {fault}",
            whole.shape
        ))
    })
}

/// All aliases, each once; none may be a tensor or stand for something that is not there.
fn aliases(ranks: &[RankItems], tensors: &HashMap<(&str, &str), usize>) -> Result<Vec<Alias>> {
    let mut known: HashMap<(&str, &str), &str> = HashMap::new();
    let mut all = vec![];
    for alias in ranks.iter().flat_map(|rank| &rank.aliases) {
        check_tensor_name(&alias.name)?;
        let name = full_name(&alias.group, &alias.name);
        if tensors.contains_key(&(alias.group.as_str(), alias.name.as_str())) {
            return Err(invalid(format!("{name:?} is given both as a tensor and as an alias")));
        }
        if !tensors.contains_key(&(alias.group.as_str(), alias.target.as_str())) {
            return Err(invalid(format!("the alias {name:?} stands for {:?}, which no rank gives", alias.target)));
        }
        match known.insert((&alias.group, &alias.name), &alias.target) {
            None => all.push(alias.clone()),
            Some(target) if target == alias.target => {}
            Some(target) => {
                return Err(invalid(format!("the alias {name:?} stands for {target:?} and for {:?}", alias.target)));
            }
        }
    }
    Ok(all)
}
