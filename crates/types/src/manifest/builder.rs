//! Builds a [`Manifest`] in rounds of reads: indexes first, then headers, then the long headers' rest.
//!
//! Where there is a commit, it is read alone, and says nearly everything: only safetensors files that were saved byte for
//! byte have headers that must be read.

mod finish;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;

use super::committed::{self, Found};
use super::heads::Heads;
use super::select::{Choice, FolderFacts, SINGLE_NAME, Selection, is_index, is_safetensors};
use super::{FILES_MAX, Manifest, ModelFile, Resolved, Tensor};
use crate::artifact::Artifact;
use crate::checkpoint::Commit;
use crate::error::{Code, Error, Result};
use crate::header::{self, SafetensorsHeader};
use crate::names::{check_relative, folder_of, join};

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

#[derive(Debug, Deserialize)]
struct RawIndex {
    weight_map: HashMap<String, String>,
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
    headers: BTreeMap<usize, SafetensorsHeader>,
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

    /// The files and tensors are those of the commit, and of nothing else that lies beside it.
    fn take_commit(&mut self, commit: &Commit) -> Result<()> {
        self.files = committed::files(commit, &self.resolved.url)?;
        self.committed = committed::tensors(commit);
        // The same whether the commit was listed or is known already.
        self.revision = format!("attempt:{}", commit.attempt);
        for tensor in &self.committed {
            let file = self.files.get_mut(tensor.extent.file);
            let missing = || format!("tensor {:?} of {} lies in no file of it", tensor.name, self.resolved.url);
            file.ok_or_else(|| Error::new(Code::Corrupt, missing()))?.is_tensors = true;
        }
        let own: BTreeSet<&str> = committed::own_objects(commit).collect();
        let names = self.resolved.files.iter().map(|file| file.name.as_str());
        let beside = names.filter(|name| !own.contains(name));
        self.skipped = beside.map(|name| (name.to_owned(), committed::reason_to_skip(name))).collect();
        for (file, entry) in self.files.iter().enumerate() {
            match self.selection.choose_plainly(&entry.name) {
                Choice::Load => self.chosen.push(file),
                Choice::Skip(reason) => self.skipped.push((entry.name.clone(), reason)),
            }
        }
        self.want_heads()
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
            reads.push(ReadNeeded::whole(file, &entry.artifact, size));
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
        self.want_heads()
    }

    /// Asks for the headers of the chosen safetensors files whose tensors are not known.
    fn want_heads(&mut self) -> Result<()> {
        if self.chosen.is_empty() {
            return Err(Error::new(
                Code::NotFound,
                format!("no file under {} matches the include patterns", self.resolved.url),
            ));
        }
        for &file in &self.chosen {
            let entry = &self.files[file];
            if is_safetensors(&entry.name) && !entry.is_tensors {
                let size = entry.artifact.size_bytes();
                if size < header::PREFIX_BYTES {
                    header::header_span(&[], size, &entry.name)?;
                }
                self.heads.want(file, entry, size.min(HEAD_GUESS_BYTES));
            }
        }
        Ok(())
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
        let header = SafetensorsHeader::parse(&head, size, &entry.name)?;
        self.heads.done(file);
        self.headers.insert(file, header);
        Ok(())
    }
}
