//! From a plan and what is stored to the commit. Each rank's part is built where the rank is ([`RankParts`]), and put
//! together where the commit is written ([`assemble`]): equal inputs give equal commits, whichever daemon does it.

use std::collections::HashMap;

use longshore_types::checkpoint::{
    ChunkRun, Commit, FilePlace, Parent, RankFile, RankRecord, StoredFile, StoredObject, StoredPiece, StoredTensor,
    full_name,
};
use longshore_types::{Code, Error, Result};

use crate::attempt::{Attempt, ChunkPlace};
use crate::plan::{PlannedTensor, SavePlan};

/// Objects by path, each once.
#[derive(Debug, Default)]
pub(crate) struct RankParts {
    objects: Vec<StoredObject>,
    by_path: HashMap<String, u32>,
}

impl RankParts {
    /// The record of a rank of this node, all of whose objects are verified.
    pub(crate) fn record(attempt: &Attempt, rank: u32) -> Result<RankRecord> {
        let mut parts = RankParts::default();
        let plan = attempt.plan();
        let pack = attempt.pack_object(rank);
        let mut files = vec![];
        for file in plan.files_of(rank) {
            let index = file as u32;
            let totals = attempt.file_totals(index)?;
            let place = match attempt.file_chunks(index)? {
                None => FilePlace::Object(parts.own(attempt, index)?),
                Some(chunks) => parts.chunks(attempt, index, pack, &chunks)?,
            };
            let planned = &plan.files[file];
            files.push(RankFile {
                file: index,
                stored: StoredFile {
                    name: planned.name.clone(),
                    size_bytes: planned.size_bytes,
                    checksum: totals.checksum,
                    blocks: totals.blocks,
                    place,
                },
                tensors: totals.tensors,
            });
        }
        let (parent, delta_depth) = match &attempt.state().delta {
            Some(base) => (Some(Parent { step: base.step, attempt: base.attempt }), base.depth),
            None => (None, 0),
        };
        Ok(RankRecord {
            attempt: plan.attempt,
            step: plan.step,
            rank,
            objects: parts.objects,
            files,
            parent,
            delta_depth,
        })
    }

    fn add(&mut self, object: &StoredObject) -> u32 {
        if let Some(index) = self.by_path.get(&object.path) {
            return *index;
        }
        let index = self.objects.len() as u32;
        self.by_path.insert(object.path.clone(), index);
        self.objects.push(object.clone());
        index
    }

    /// An object of this attempt.
    fn own(&mut self, attempt: &Attempt, object: u32) -> Result<u32> {
        let path = object_path(attempt, object);
        let state = attempt.state();
        let verified = state.uploads.get(&object).and_then(|upload| upload.verified.clone());
        drop(state);
        let Some((version, _)) = verified else {
            return Err(Error::new(Code::Internal, format!("{path} is not verified and cannot be committed")));
        };
        let (checksum, size_bytes) = attempt.object_total(object)?;
        Ok(self.add(&StoredObject { path, size_bytes, version, checksum, attempt: attempt.id() }))
    }

    /// The place of a file of a delta.
    fn chunks(&mut self, attempt: &Attempt, file: u32, pack: u32, chunks: &[ChunkPlace]) -> Result<FilePlace> {
        let lost = || Error::new(Code::Internal, format!("file {file} of {} has lost its parent", attempt.url()));
        let parent = attempt.parent_commit().ok_or_else(lost)?;
        let theirs = attempt.parent_file(file).ok_or_else(lost)?;
        let theirs = parent.files.get(theirs as usize).ok_or_else(lost)?;
        let parent_chunks = chunk_places(theirs);
        let mut runs: Vec<ChunkRun> = vec![];
        for (number, chunk) in chunks.iter().enumerate() {
            let (object, at) = match chunk {
                ChunkPlace::Pack(at) => (self.own(attempt, pack)?, *at),
                ChunkPlace::Parent => {
                    let (object, at) = *parent_chunks.get(number).ok_or_else(lost)?;
                    (self.add(parent.objects.get(object as usize).ok_or_else(lost)?), at)
                }
            };
            match runs.last_mut() {
                Some(run) if run.object == object && run.first_chunk.checked_add(run.count) == Some(at) => {
                    run.count += 1
                }
                _ => runs.push(ChunkRun { object, first_chunk: at, count: 1 }),
            }
        }
        Ok(FilePlace::Chunks(runs))
    }
}

/// Object and chunk of each chunk of a stored file. Commits are checked when they are parsed, so runs are not longer than
/// their file.
fn chunk_places(file: &StoredFile) -> Vec<(u32, u32)> {
    match &file.place {
        FilePlace::Object(object) => {
            let count = u32::try_from(longshore_types::chunk::chunk_count(file.size_bytes)).unwrap_or(u32::MAX);
            (0..count).map(|chunk| (*object, chunk)).collect()
        }
        FilePlace::Chunks(runs) => runs
            .iter()
            .flat_map(|run| (0..run.count).map(move |chunk| (run.object, run.first_chunk.saturating_add(chunk))))
            .collect(),
    }
}

/// Path of an object of an attempt, relative to the run: that of a file, or of the pack of a rank.
pub(crate) fn object_path(attempt: &Attempt, object: u32) -> String {
    let plan = attempt.plan();
    match plan.files.get(object as usize) {
        Some(file) => plan.object_path(file),
        None => plan.pack_path(attempt.rank_of_object(object)),
    }
}

/// Puts the commit together from the records of all ranks, and files that were made here.
///
/// # Errors
/// `FailedPrecondition` when a rank is missing, or ranks refer to different parents; `Internal` when the result does not hold
/// together.
pub(crate) fn assemble(
    plan: &SavePlan,
    epoch: u64,
    records: &[RankRecord],
    made: &[(StoredObject, StoredFile)],
) -> Result<Commit> {
    let mut all = RankParts::default();
    let mut files: Vec<Option<(StoredFile, &RankFile)>> = vec![None; plan.files.len()];
    let mut parent: Option<(Parent, u32)> = None;
    for record in records {
        if let Some(of_rank) = record.parent {
            let known = *parent.get_or_insert((of_rank, record.delta_depth));
            if known != (of_rank, record.delta_depth) {
                return Err(precondition(format!(
                    "ranks of {} made deltas from different checkpoints: steps {} and {}",
                    plan.url(),
                    known.0.step,
                    of_rank.step
                )));
            }
        }
        let objects: Vec<u32> = record.objects.iter().map(|object| all.add(object)).collect();
        for file in &record.files {
            let planned = plan.files.get(file.file as usize).filter(|planned| planned.rank == record.rank);
            let fits = planned.is_some_and(|planned| {
                planned.size_bytes == file.stored.size_bytes && planned.tensors.len() == file.tensors.len()
            });
            if !fits {
                return Err(precondition(format!("the record of rank {} does not fit the plan", record.rank)));
            }
            let stored = StoredFile { place: moved(&file.stored.place, &objects), ..file.stored.clone() };
            files[file.file as usize] = Some((stored, file));
        }
    }
    let mut stored = Vec::with_capacity(files.len() + made.len());
    let mut tensors = Tensors::default();
    for (index, (file, planned)) in files.into_iter().zip(&plan.files).enumerate() {
        let (file, record) = file.ok_or_else(|| precondition(format!("{} is not stored", planned.name)))?;
        for (tensor, checksum) in planned.tensors.iter().zip(&record.tensors) {
            tensors.add(index as u32, tensor, *checksum);
        }
        stored.push(file);
    }
    for (object, file) in made {
        let place = FilePlace::Object(all.add(object));
        stored.push(StoredFile { place, ..file.clone() });
    }
    let commit = Commit {
        attempt: plan.attempt,
        step: plan.step,
        epoch,
        created_ms: plan.created_ms,
        world_size: plan.world_size,
        parent: parent.map(|(parent, _)| parent),
        delta_depth: parent.map_or(0, |(_, depth)| depth),
        objects: all.objects,
        files: stored,
        tensors: tensors.finish(),
        aliases: plan.aliases.clone(),
        metadata: plan.options.metadata.clone(),
    };
    commit.check()?;
    Ok(commit)
}

fn moved(place: &FilePlace, objects: &[u32]) -> FilePlace {
    // Indexes were checked when the record was parsed, or were made by it.
    let to = |object: u32| objects.get(object as usize).copied().unwrap_or(u32::MAX);
    match place {
        FilePlace::Object(object) => FilePlace::Object(to(*object)),
        FilePlace::Chunks(runs) => {
            FilePlace::Chunks(runs.iter().map(|run| ChunkRun { object: to(run.object), ..*run }).collect())
        }
    }
}

/// Tensors in the order of the plan, pieces by their first index.
#[derive(Default)]
struct Tensors<'a> {
    all: Vec<StoredTensor>,
    at: HashMap<(&'a str, &'a str), usize>,
}

impl<'a> Tensors<'a> {
    fn add(&mut self, file: u32, planned: &'a PlannedTensor, checksum: longshore_types::BlockChecksum) {
        let tensor = &planned.tensor;
        let at = *self.at.entry((&tensor.group, &tensor.name)).or_insert(self.all.len());
        if at == self.all.len() {
            self.all.push(StoredTensor {
                name: full_name(&tensor.group, &tensor.name),
                dtype: tensor.dtype.clone(),
                shape: tensor.shape.clone(),
                pieces: vec![],
            });
        }
        let or_default = |given: &[u64], whole: Vec<u64>| if given.is_empty() { whole } else { given.to_vec() };
        self.all[at].pieces.push(StoredPiece {
            file,
            offset_bytes: planned.offset_bytes,
            length_bytes: planned.length_bytes,
            start: or_default(&tensor.start, vec![0; tensor.shape.len()]),
            shape: or_default(&tensor.piece_shape, tensor.shape.clone()),
            checksum,
        });
    }

    fn finish(mut self) -> Vec<StoredTensor> {
        for tensor in &mut self.all {
            tensor.pieces.sort_by(|a, b| (&a.start, &a.shape).cmp(&(&b.start, &b.shape)));
        }
        self.all
    }
}

fn precondition(message: String) -> Error {
    Error::new(Code::FailedPrecondition, message)
}
