//! Builds a [`Manifest`] in rounds of reads: indexes first, then headers, then the long headers' rest.
//!
//! Where there is a commit, it is read alone, and says nearly everything: only safetensors files that were saved byte for
//! byte have headers that must be read.

mod choose;
mod finish;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::committed::{self, Found};
use super::heads::Heads;
use super::select::Selection;
use super::{Extent, FILES_MAX, Manifest, ModelFile, Resolved, Tensor};
use crate::artifact::Artifact;
use crate::checkpoint::Commit;
use crate::error::{Code, Error, Result};
use crate::header::{self, TensorHeader};
use crate::names::check_relative;

/// Largest index file that is read, in bytes: the largest public ones have about 20 MB.
pub const INDEX_BYTES_MAX: u64 = 100_000_000;
/// First read of a safetensors file, in bytes: holds most headers whole, and is one block.
pub const HEAD_GUESS_BYTES: u64 = crate::chunk::BLOCK_BYTES;
/// Most characters of warnings that are kept per manifest; behind it only their number is told.
const WARNINGS_MAX: usize = 100;

/// A read that the builder asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadNeeded {
    /// Index into the files of [`Resolved`], or of a checkpoint.
    pub file: usize,
    /// Byte range in that file; never longer than [`INDEX_BYTES_MAX`] plus a prefix, or than
    /// [`COMMIT_BYTES_MAX`](crate::checkpoint::COMMIT_BYTES_MAX) for a commit.
    pub range: Range<u64>,
    /// Where to read it: the file itself, or the object that these bytes of it lie in.
    pub artifact: Arc<Artifact>,
    /// Byte range there, as long as `range`.
    pub object_range: Range<u64>,
}

impl ReadNeeded {
    /// The first `len_bytes` of a file that is an object.
    pub(super) fn whole(file: usize, artifact: &Arc<Artifact>, len_bytes: u64) -> ReadNeeded {
        ReadNeeded { file, range: 0..len_bytes, artifact: artifact.clone(), object_range: 0..len_bytes }
    }
}

/// What [`ManifestBuilder::advance`] says.
#[derive(Debug)]
pub enum Progress {
    /// Read these, [`ManifestBuilder::supply`] each, and advance again.
    Need(Vec<ReadNeeded>),
    /// All is known.
    Done(Manifest),
}

enum Stage {
    Indexes,
    /// The commit is wanted: the file of that index in the listing.
    Commit(usize),
    Headers,
}

/// See the module above for the loop that drives it.
pub struct ManifestBuilder {
    resolved: Resolved,
    selection: Selection,
    stage: Stage,
    /// Per index file: the tensors it names and the file that holds each, relative to the model.
    indexes: BTreeMap<usize, HashMap<String, String>>,
    /// What may be loaded: the files of the listing, or those of the commit.
    files: Vec<ModelFile>,
    /// The tensors that a commit tells of, by file and offset.
    committed: Vec<Tensor>,
    revision: String,
    /// The tensors of files whose header was read, as it names them; the file of their extents is still to be set.
    headers: BTreeMap<usize, Vec<Tensor>>,
    /// Safetensors files of the load whose header is not known.
    heads: Heads,
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
        let stage = match committed::look_for_commit(&resolved, !selection.include.is_empty())? {
            Found::Commit(file) => Stage::Commit(file),
            Found::Nothing => Stage::Indexes,
        };
        let plain = |file: &super::ResolvedFile| ModelFile::plain(file.name.clone(), file.artifact.clone(), false);
        let files = match stage {
            Stage::Commit(_) => Vec::new(),
            _ => resolved.files.iter().map(plain).collect(),
        };
        Ok(ManifestBuilder {
            selection: selection.clone(),
            stage,
            indexes: BTreeMap::new(),
            files,
            committed: Vec::new(),
            revision: resolved.revision.clone(),
            headers: BTreeMap::new(),
            heads: Heads::default(),
            chosen: Vec::new(),
            skipped: Vec::new(),
            resolved,
        })
    }

    /// Starts with a commit that is known already, of the checkpoint in the folder `url`.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when the commit contradicts itself, [`Code::NotFound`] when nothing of it is selected.
    pub fn of_commit(commit: &Commit, url: &str, selection: &Selection) -> Result<Self> {
        let mut builder = ManifestBuilder {
            resolved: Resolved { url: url.to_owned(), revision: String::new(), files: Vec::new() },
            selection: selection.clone(),
            stage: Stage::Headers,
            indexes: BTreeMap::new(),
            files: Vec::new(),
            committed: Vec::new(),
            revision: String::new(),
            headers: BTreeMap::new(),
            heads: Heads::default(),
            chosen: Vec::new(),
            skipped: Vec::new(),
        };
        builder.take_commit(commit)?;
        Ok(builder)
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
        if let Stage::Commit(file) = self.stage {
            let artifact = &self.resolved.files[file].artifact;
            return Ok(Progress::Need(vec![ReadNeeded::whole(file, artifact, artifact.size_bytes())]));
        }
        if matches!(self.stage, Stage::Indexes) {
            let reads = self.index_reads()?;
            if !reads.is_empty() {
                return Ok(Progress::Need(reads));
            }
            self.choose_files()?;
            self.stage = Stage::Headers;
        }
        if self.heads.is_empty() {
            return self.finish().map(Progress::Done);
        }
        self.heads.reads(&self.files).map(Progress::Need)
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
            Stage::Commit(file) => {
                let commit = Commit::parse(bytes, self.resolved.files[file].artifact.url())?;
                self.take_commit(&commit)?;
                self.stage = Stage::Headers;
                Ok(())
            }
            Stage::Headers => self.supply_head(read, bytes),
        }
    }

    fn supply_head(&mut self, read: &ReadNeeded, bytes: &[u8]) -> Result<()> {
        let unknown = || Error::new(Code::Internal, "a read of a file that nobody asked for");
        let (file, entry) = (read.file, self.files.get(read.file).ok_or_else(unknown)?);
        let Some(head) = self.heads.supply(read, bytes, entry)? else { return Ok(()) };
        let size = entry.artifact.size_bytes();
        let span = header::header_span(&head, size, &entry.name)?;
        if span > head.len() as u64 {
            self.heads.want(file, entry, span);
            return Ok(());
        }
        let (tensors, _) = header::parse_each(&head, size, &entry.name, of_header, &mut HashMap::new())?;
        self.heads.done(file);
        self.headers.insert(file, tensors);
        Ok(())
    }
}

/// A tensor as a header has it.
fn of_header(raw: TensorHeader) -> Tensor {
    let TensorHeader { name, dtype_name, dtype, shape, range } = raw;
    let extent = Extent { file: 0, offset_bytes: range.start, length_bytes: range.end - range.start };
    Tensor { name, dtype_name, dtype, shape, extent, piece: None }
}

impl header::Described for Tensor {
    fn name(&self) -> &str {
        &self.name
    }

    fn bounds(&self) -> (u64, u64) {
        let Extent { offset_bytes, length_bytes, .. } = self.extent;
        (offset_bytes, offset_bytes + length_bytes)
    }
}
