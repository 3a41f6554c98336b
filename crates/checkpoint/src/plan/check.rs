//! Checks of requests and plans: both come from clients.

use std::collections::HashMap;

use longshore_types::checkpoint::{FILES_MAX, TENSORS_MAX, check_tensor_name, check_tiles, full_name};
use longshore_types::header::SafetensorsHeader;
use longshore_types::{Code, Result};

use super::names::{INDEX_NAME, check_distinct, check_file_name, check_group, invalid, object_name};
use super::{PlanRequest, PlannedFile, PlannedTensor, SaveOptions, SavePlan, WORLD_SIZE_MAX};

/// Largest file, in bytes: its chunks can be counted by 32 bits.
const SIZE_BYTES_MAX: u64 = 1 << 55;
/// Most bytes of all metadata together.
const METADATA_BYTES_MAX: usize = 1 << 20;
/// Most copies on other nodes.
const PEER_COPIES_MAX: u32 = 16;

/// A request, or a part of one that waits for more ranks.
pub(super) fn request(request: &PlanRequest) -> Result<()> {
    world(request.world_size)?;
    options(&request.options)?;
    if request.uri.is_empty() {
        return Err(invalid("the URL of the run is empty"));
    }
    let mut seen = std::collections::HashSet::new();
    for rank in &request.ranks {
        if rank.rank >= request.world_size {
            return Err(invalid(format!(
                "rank {} is given, but the world has {} ranks, counted from 0",
                rank.rank, request.world_size
            )));
        }
        if !seen.insert(rank.rank) {
            return Err(invalid(format!("rank {} is given twice in one call", rank.rank)));
        }
        if rank.tensors.len() > TENSORS_MAX || rank.files.len() > FILES_MAX || rank.aliases.len() > TENSORS_MAX {
            return Err(invalid(format!(
                "rank {} has {} tensors, {} files and {} aliases: at most {TENSORS_MAX}, {FILES_MAX} and {TENSORS_MAX}",
                rank.rank,
                rank.tensors.len(),
                rank.files.len(),
                rank.aliases.len()
            )));
        }
    }
    Ok(())
}

fn world(world_size: u32) -> Result<()> {
    if (1..=WORLD_SIZE_MAX).contains(&world_size) {
        return Ok(());
    }
    Err(invalid(format!("the world size is {world_size}, must be 1 to {WORLD_SIZE_MAX}")))
}

fn options(options: &SaveOptions) -> Result<()> {
    let metadata: usize = options.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if metadata > METADATA_BYTES_MAX {
        return Err(invalid(format!(
            "the metadata has {metadata} bytes, at most {METADATA_BYTES_MAX}: save it as a file"
        )));
    }
    if options.peer_copies > PEER_COPIES_MAX {
        return Err(invalid(format!(
            "{} copies on other nodes are asked for, at most {PEER_COPIES_MAX}",
            options.peer_copies
        )));
    }
    Ok(())
}

/// Sizes that later arithmetic relies on.
pub(super) fn sizes(plan: &SavePlan) -> Result<()> {
    if plan.files.len() > FILES_MAX {
        return Err(invalid(format!("the checkpoint has {} files, at most {FILES_MAX}", plan.files.len())));
    }
    let mut total = 0u64;
    for file in &plan.files {
        total = total.saturating_add(file.size_bytes);
        if file.size_bytes > SIZE_BYTES_MAX || total > SIZE_BYTES_MAX {
            return Err(invalid(format!(
                "the file {:?} makes the checkpoint larger than {SIZE_BYTES_MAX} bytes",
                file.name
            )));
        }
    }
    Ok(())
}

/// A whole plan.
pub(super) fn plan(plan: &SavePlan) -> Result<()> {
    world(plan.world_size)?;
    options(&plan.options)?;
    sizes(plan)?;
    if plan.uri.is_empty() || plan.files.is_empty() {
        return Err(invalid("the plan has no URL or no files"));
    }
    check_distinct(plan.files.iter().map(|file| file.name.as_str()))?;
    let objects: Vec<String> = plan.files.iter().map(|file| object_name(file, &plan.attempt)).collect();
    check_distinct(objects.iter().map(String::as_str))?;
    let mut tensors = Tensors::default();
    for file in &plan.files {
        if file.rank >= plan.world_size {
            return Err(invalid(format!(
                "the file {:?} belongs to rank {}, which is not in the world",
                file.name, file.rank
            )));
        }
        check_file_name(&file.name)?;
        if plan.options.hf_index && !file.is_tensors() && file.name == INDEX_NAME && has_model_tensors(plan) {
            return Err(invalid(format!("the file {INDEX_NAME:?} is made by the save: leave it out")));
        }
        check_file(file)?;
        for planned in &file.tensors {
            tensors.add(planned)?;
        }
    }
    tensors.finish(plan)
}

fn has_model_tensors(plan: &SavePlan) -> bool {
    plan.files.iter().flat_map(|file| &file.tensors).any(|planned| planned.tensor.group.is_empty())
}

/// The header describes exactly the tensors of the plan.
fn check_file(file: &PlannedFile) -> Result<()> {
    let wrong = |reason: String| invalid(format!("the plan of the file {:?} is wrong: {reason}", file.name));
    if !file.is_tensors() {
        return if file.tensors.is_empty() { Ok(()) } else { Err(wrong("it has tensors and no header".to_owned())) };
    }
    let header = SafetensorsHeader::parse(&file.header, file.size_bytes, &file.name).map_err(|error| {
        longshore_types::Error::new(Code::InvalidArgument, error.message()).context("the plan is wrong")
    })?;
    if header.data_start != file.header.len() as u64 || header.tensors.len() != file.tensors.len() {
        return Err(wrong(format!("its header has {} tensors, the plan {}", header.tensors.len(), file.tensors.len())));
    }
    // Both are sorted by place; tensors without bytes may stand in another order than the header's parser gives them.
    let key = |offset: u64, length: u64| (offset, offset + length);
    let mut planned: Vec<&PlannedTensor> = file.tensors.iter().collect();
    planned.sort_by_key(|planned| key(planned.offset_bytes, planned.length_bytes.min(file.size_bytes)));
    for (said, planned) in header.tensors.iter().zip(planned) {
        let range = planned.offset_bytes..planned.offset_bytes.saturating_add(planned.length_bytes);
        let shape = piece_shape(planned);
        let same_place = said.range == range && said.dtype_name == planned.tensor.dtype;
        if !same_place || (said.shape != shape && planned.length_bytes > 0) {
            return Err(wrong(format!("its header and its plan disagree about tensor {:?}", planned.tensor.name)));
        }
    }
    Ok(())
}

fn piece_shape(planned: &PlannedTensor) -> &[u64] {
    if planned.tensor.piece_shape.is_empty() { &planned.tensor.shape } else { &planned.tensor.piece_shape }
}

/// Pieces by tensor.
#[derive(Default)]
struct Tensors<'a>(HashMap<(&'a str, &'a str), Vec<&'a PlannedTensor>>);

impl<'a> Tensors<'a> {
    fn add(&mut self, planned: &'a PlannedTensor) -> Result<()> {
        let tensor = &planned.tensor;
        check_group(&tensor.group)?;
        check_tensor_name(&tensor.name)?;
        let pieces = self.0.entry((&tensor.group, &tensor.name)).or_default();
        if pieces.first().is_some_and(|first| first.tensor.dtype != tensor.dtype || first.tensor.shape != tensor.shape)
        {
            return Err(invalid(format!("pieces of tensor {:?} disagree about its dtype or shape", tensor.name)));
        }
        pieces.push(planned);
        Ok(())
    }

    fn finish(&self, plan: &SavePlan) -> Result<()> {
        for ((group, name), planned) in &self.0 {
            let shape = &planned[0].tensor.shape;
            let zeros = vec![0; shape.len()];
            let pieces: Vec<(&[u64], &[u64])> = planned
                .iter()
                .map(|planned| {
                    let start = &planned.tensor.start;
                    (if start.is_empty() { &zeros[..] } else { &start[..] }, piece_shape(planned))
                })
                .collect();
            check_tiles(shape, &pieces).map_err(|fault| {
                invalid(format!("the plan of tensor {:?} is wrong: {fault}", full_name(group, name)))
            })?;
        }
        for alias in &plan.aliases {
            check_tensor_name(&alias.name)?;
            let known = |name: &str| self.0.contains_key(&(alias.group.as_str(), name));
            if !known(&alias.target) || known(&alias.name) {
                return Err(invalid(format!("the alias {:?} stands for no tensor, or is one itself", alias.name)));
            }
        }
        Ok(())
    }
}
