//! Reads a checkpoint from the origin as its commit says, and compares it with what was saved.

use anyhow::{Context, ensure};
use longshore_testkit::FakeOrigin;
use longshore_testkit::modelgen::Model;
use longshore_types::checkpoint::{COMMIT_NAME, Commit, FilePlace};

/// Path of the run at the origin.
pub const RUN: &str = "bucket/run";

/// The commit of a step, when there is one.
pub fn commit(origin: &FakeOrigin, step: u64) -> anyhow::Result<Option<Commit>> {
    let path = format!("{RUN}/step-{step}/{COMMIT_NAME}");
    let Some(content) = origin.content(&path) else { return Ok(None) };
    Ok(Some(Commit::parse(&content.to_vec(), &path)?))
}

/// Every tensor and file of the model is there, byte for byte.
///
/// # Errors
/// Naming what is missing or differs.
pub fn whole(origin: &FakeOrigin, commit: &Commit, model: &Model) -> anyhow::Result<()> {
    ensure!(commit.tensors.len() == model.tensors.len(), "{} tensors are committed", commit.tensors.len());
    for tensor in &commit.tensors {
        let expected = model.tensor(&tensor.name).with_context(|| format!("tensor {} is foreign", tensor.name))?;
        let [piece] = tensor.pieces.as_slice() else { anyhow::bail!("{} is in pieces", tensor.name) };
        let bytes = read(origin, commit, piece.file, piece.offset_bytes, piece.length_bytes)?;
        ensure!(expected.content.equals(&bytes), "tensor {} differs", tensor.name);
    }
    for (name, content) in model.files.iter().filter(|(name, _)| !name.ends_with(".safetensors")) {
        let index = commit.files.iter().position(|file| &file.name == name);
        let index = index.with_context(|| format!("file {name} is missing"))?;
        let bytes = read(origin, commit, index as u32, 0, content.len_bytes())?;
        ensure!(content.equals(&bytes), "file {name} differs");
    }
    for object in &commit.objects {
        let there = origin.content(&format!("{RUN}/{}", object.path)).map(|content| content.len_bytes());
        ensure!(there == Some(object.size_bytes), "object {} has the size {there:?}", object.path);
    }
    Ok(())
}

fn read(origin: &FakeOrigin, commit: &Commit, file: u32, at: u64, length: u64) -> anyhow::Result<Vec<u8>> {
    let file = commit.files.get(file as usize).context("a file outside of the commit")?;
    let FilePlace::Object(object) = &file.place else { anyhow::bail!("{} is in chunks", file.name) };
    let object = commit.objects.get(*object as usize).context("an object outside of the commit")?;
    let path = format!("{RUN}/{}", object.path);
    let content = origin.content(&path).with_context(|| format!("object {path} is not there"))?;
    ensure!(content.len_bytes() == file.size_bytes, "object {path} has {} bytes", content.len_bytes());
    Ok(content.read(at..at + length))
}
