//! Builds a [`Manifest`] in rounds of reads: indexes first, then headers, then the long headers' rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use serde::Deserialize;

use super::select::{Choice, FolderFacts, SINGLE_NAME, Selection, is_index, is_safetensors};
use super::{Extent, FILES_MAX, Manifest, ModelFile, Resolved, Tensor};
use crate::error::{Code, Error, Result};
use crate::header::{self, SafetensorsHeader};
use crate::names::{base_of, check_relative, folder_of, join};

/// Largest index file that is read, in bytes: the largest public ones have about 20 MB.
pub const INDEX_BYTES_MAX: u64 = 100_000_000;
/// First read of a safetensors file, in bytes: holds most headers whole, and is one block.
pub const HEAD_GUESS_BYTES: u64 = crate::chunk::BLOCK_BYTES;
/// Most characters of warnings that are kept per manifest; behind it only their number is told.
const WARNINGS_MAX: usize = 100;

/// A read that the builder asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadNeeded {
    /// Index into the files of [`Resolved`].
    pub file: usize,
    /// Byte range in that file; never longer than [`INDEX_BYTES_MAX`] plus a prefix.
    pub range: Range<u64>,
}

/// What [`ManifestBuilder::advance`] says.
#[derive(Debug)]
pub enum Progress {
    /// Read these, [`ManifestBuilder::supply`] each, and advance again.
    Need(Vec<ReadNeeded>),
    /// All is known.
    Done(Manifest),
}

#[derive(Debug, Deserialize)]
struct RawIndex {
    weight_map: HashMap<String, String>,
}

enum Stage {
    Indexes,
    Headers,
}

/// See the module above for the loop that drives it.
pub struct ManifestBuilder {
    resolved: Resolved,
    selection: Selection,
    stage: Stage,
    /// Per index file: the tensors it names and the file that holds each, relative to the model.
    indexes: BTreeMap<usize, HashMap<String, String>>,
    headers: BTreeMap<usize, SafetensorsHeader>,
    /// Safetensors files of the load whose header is not known, with the bytes to read.
    wanted: BTreeMap<usize, u64>,
    chosen: Vec<usize>,
    skipped: Vec<(String, String)>,
}

impl ManifestBuilder {
    /// Starts with what the origin said.
    ///
    /// # Errors
    /// [`Code::NotFound`] when there are no files, [`Code::InvalidArgument`] when there are too many or a name is a trick.
    pub fn new(resolved: Resolved, selection: &Selection) -> Result<Self> {
        if resolved.files.is_empty() {
            return Err(Error::new(Code::NotFound, format!("{} holds no files", resolved.url)));
        }
        if resolved.files.len() > FILES_MAX {
            return Err(Error::new(
                Code::InvalidArgument,
                format!("{} holds {} files, a model may have {FILES_MAX}", resolved.url, resolved.files.len()),
            ));
        }
        for file in &resolved.files {
            check_relative(&file.name, &resolved.url)?;
        }
        Ok(ManifestBuilder {
            resolved,
            selection: selection.clone(),
            stage: Stage::Indexes,
            indexes: BTreeMap::new(),
            headers: BTreeMap::new(),
            wanted: BTreeMap::new(),
            chosen: Vec::new(),
            skipped: Vec::new(),
        })
    }

    /// The files that the reads refer to.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// Says what to read next, or gives the manifest.
    ///
    /// # Errors
    /// [`Code::Corrupt`] or [`Code::NotFound`] naming the file and the reason.
    pub fn advance(&mut self) -> Result<Progress> {
        if matches!(self.stage, Stage::Indexes) {
            let reads = self.index_reads()?;
            if !reads.is_empty() {
                return Ok(Progress::Need(reads));
            }
            self.choose_files()?;
            self.stage = Stage::Headers;
        }
        if self.wanted.is_empty() {
            return self.finish().map(Progress::Done);
        }
        let reads = self.wanted.iter().map(|(&file, &end)| ReadNeeded { file, range: 0..end });
        Ok(Progress::Need(reads.collect()))
    }

    /// Gives the bytes of one read of the last round.
    ///
    /// # Errors
    /// [`Code::Corrupt`] naming the file and the reason.
    pub fn supply(&mut self, read: &ReadNeeded, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 != read.range.end - read.range.start {
            return Err(Error::new(Code::Internal, format!("read of {:?} gave {} bytes", read.range, bytes.len())));
        }
        match self.stage {
            Stage::Indexes => self.supply_index(read.file, bytes),
            Stage::Headers => self.supply_head(read.file, bytes),
        }
    }

    fn index_reads(&self) -> Result<Vec<ReadNeeded>> {
        let mut reads = Vec::new();
        for (file, entry) in self.resolved.files.iter().enumerate() {
            // A single file that is itself an index is just bytes.
            if !is_index(&entry.name) || self.indexes.contains_key(&file) || self.resolved.files.len() == 1 {
                continue;
            }
            let size = entry.artifact.size_bytes();
            if size == 0 || size > INDEX_BYTES_MAX {
                return Err(Error::new(
                    Code::Corrupt,
                    format!("{}: index has {size} bytes, must have 1 to {INDEX_BYTES_MAX}", entry.name),
                ));
            }
            reads.push(ReadNeeded { file, range: 0..size });
        }
        Ok(reads)
    }

    fn supply_index(&mut self, file: usize, bytes: &[u8]) -> Result<()> {
        let name = &self.resolved.files[file].name;
        let raw: RawIndex = serde_json::from_slice(bytes).map_err(|error| {
            Error::new(Code::Corrupt, format!("{name}: index is not valid: {error}")).with_source(error)
        })?;
        let folder = folder_of(name);
        let mut map = HashMap::with_capacity(raw.weight_map.len());
        for (tensor, shard) in raw.weight_map {
            check_relative(&shard, name)?;
            map.insert(tensor, join(folder, &shard));
        }
        self.indexes.insert(file, map);
        Ok(())
    }

    fn choose_files(&mut self) -> Result<()> {
        let names: BTreeSet<&str> = self.resolved.files.iter().map(|file| file.name.as_str()).collect();
        let mut indexed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (&index, map) in &self.indexes {
            let index_name = &self.resolved.files[index].name;
            for shard in map.values() {
                if !names.contains(shard.as_str()) {
                    return Err(Error::new(
                        Code::NotFound,
                        format!("{index_name} names the shard {shard}, which is missing under {}", self.resolved.url),
                    ));
                }
                indexed.entry(folder_of(index_name).to_owned()).or_default().insert(shard.clone());
            }
        }
        let any_safetensors = names.iter().any(|name| is_safetensors(name));
        for (file, entry) in self.resolved.files.iter().enumerate() {
            let folder = folder_of(&entry.name);
            let facts = FolderFacts {
                any_safetensors,
                indexed: indexed.get(folder),
                has_single: names.contains(join(folder, SINGLE_NAME).as_str()),
            };
            match self.selection.choose(&entry.name, &facts) {
                Choice::Load => self.chosen.push(file),
                Choice::Skip(reason) => self.skipped.push((entry.name.clone(), reason)),
            }
        }
        if self.chosen.is_empty() {
            return Err(Error::new(
                Code::NotFound,
                format!("no file under {} matches the include patterns", self.resolved.url),
            ));
        }
        for &file in &self.chosen {
            let entry = &self.resolved.files[file];
            if is_safetensors(&entry.name) {
                let size = entry.artifact.size_bytes();
                if size < header::PREFIX_BYTES {
                    header::header_span(&[], size, &entry.name)?;
                }
                self.wanted.insert(file, size.min(HEAD_GUESS_BYTES));
            }
        }
        Ok(())
    }

    fn supply_head(&mut self, file: usize, bytes: &[u8]) -> Result<()> {
        let entry = &self.resolved.files[file];
        let size = entry.artifact.size_bytes();
        let span = header::header_span(bytes, size, &entry.name)?;
        if span > bytes.len() as u64 {
            self.wanted.insert(file, span);
            return Ok(());
        }
        let header = SafetensorsHeader::parse(bytes, size, &entry.name)?;
        self.wanted.remove(&file);
        self.headers.insert(file, header);
        Ok(())
    }

    fn finish(&mut self) -> Result<Manifest> {
        let mut files = Vec::with_capacity(self.chosen.len());
        let mut tensors = Vec::new();
        let mut warnings = Warnings::default();
        let mut holders: HashMap<String, usize> = HashMap::new();
        for (position, &file) in self.chosen.iter().enumerate() {
            let entry = &self.resolved.files[file];
            let header = self.headers.remove(&file);
            files.push(ModelFile::plain(entry.name.clone(), entry.artifact.clone(), header.is_some()));
            for raw in header.into_iter().flat_map(|header| header.tensors) {
                let name = join(folder_of(&entry.name), &raw.name);
                if let Some(other) = holders.insert(name.clone(), file) {
                    return Err(Error::new(
                        Code::Corrupt,
                        format!(
                            "tensor {name:?} is in both {} and {}; choose one with --include",
                            self.resolved.files[other].name, entry.name
                        ),
                    ));
                }
                if raw.dtype.is_none() {
                    warnings.push(format!(
                        "tensor {name:?} in {} has the unknown dtype {:?}: delivered as bytes",
                        entry.name, raw.dtype_name
                    ));
                }
                let length_bytes = raw.range.end - raw.range.start;
                tensors.push(Tensor {
                    name,
                    dtype_name: raw.dtype_name,
                    dtype: raw.dtype,
                    shape: raw.shape,
                    extent: Extent { file: position, offset_bytes: raw.range.start, length_bytes },
                    piece: None,
                });
            }
        }
        self.check_indexes(&holders)?;
        Ok(Manifest {
            url: self.resolved.url.clone(),
            revision: self.resolved.revision.clone(),
            files,
            tensors,
            skipped: std::mem::take(&mut self.skipped),
            warnings: warnings.finish(),
        })
    }

    /// Every tensor that an index names must be in the shard that it names, when that shard is loaded.
    fn check_indexes(&self, holders: &HashMap<String, usize>) -> Result<()> {
        let chosen: BTreeSet<&str> = self.chosen.iter().map(|&f| self.resolved.files[f].name.as_str()).collect();
        for (&index, map) in &self.indexes {
            let index_name = &self.resolved.files[index].name;
            for (tensor, shard) in map {
                let holder = holders.get(&join(folder_of(index_name), tensor));
                if chosen.contains(shard.as_str()) && holder.map(|&f| &self.resolved.files[f].name) != Some(shard) {
                    return Err(Error::new(
                        Code::Corrupt,
                        format!("{index_name} says that {} holds tensor {tensor:?}, but it does not", base_of(shard)),
                    ));
                }
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Warnings {
    kept: Vec<String>,
    dropped: usize,
}

impl Warnings {
    fn push(&mut self, warning: String) {
        if self.kept.len() < WARNINGS_MAX {
            self.kept.push(warning);
        } else {
            self.dropped += 1;
        }
    }

    fn finish(mut self) -> Vec<String> {
        if self.dropped > 0 {
            self.kept.push(format!("and {} more warnings", self.dropped));
        }
        self.kept
    }
}
