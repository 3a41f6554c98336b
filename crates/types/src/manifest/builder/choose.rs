//! Which files are loaded: what indexes or a commit say of them, and which headers are still to be read.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;

use super::super::committed;
use super::super::select::{Choice, FolderFacts, SINGLE_NAME, is_index, is_safetensors};
use super::{HEAD_GUESS_BYTES, INDEX_BYTES_MAX, ManifestBuilder, ReadNeeded};
use crate::checkpoint::Commit;
use crate::error::{Code, Error, Result};
use crate::header;
use crate::names::{check_relative, folder_of, join};

#[derive(Debug, Deserialize)]
struct RawIndex {
    weight_map: HashMap<String, String>,
}

impl ManifestBuilder {
    /// The files and tensors are those of the commit, and of nothing else that lies beside it.
    pub(super) fn take_commit(&mut self, commit: &Commit) -> Result<()> {
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

    pub(super) fn index_reads(&self) -> Result<Vec<ReadNeeded>> {
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

    pub(super) fn supply_index(&mut self, file: usize, bytes: &[u8]) -> Result<()> {
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

    pub(super) fn choose_files(&mut self) -> Result<()> {
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
}
