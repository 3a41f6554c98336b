//! The attach socket, from the client's side.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use longshore_memory::fdpass;
use longshore_proto::v1;
use longshore_testkit::Content;
use longshore_testkit::modelgen::Model;
use prost::Message;

/// Longest answer of the loader, in bytes, as the protocol has it.
const ANSWER_BYTES_MAX: u32 = 64 << 20;
/// Bytes that are compared at once.
const PIECE_BYTES: u64 = 16 << 20;

/// A model whose memory this process holds; the lease ends when it is dropped.
pub struct Attached {
    /// What the loader says of it.
    pub model: v1::LoadedModel,
    /// Segments of each region, with their sizes.
    regions: Vec<Vec<(File, u64)>>,
    _lease: UnixStream,
}

impl Attached {
    /// Attaches to a loaded model.
    ///
    /// # Errors
    /// When the loader refuses, with its code in the text, or does not keep to the protocol.
    pub fn attach(socket: &Path, model_id: &str) -> anyhow::Result<Attached> {
        let mut lease = UnixStream::connect(socket).with_context(|| format!("no socket at {}", socket.display()))?;
        let request = v1::AttachRequest { model_id: model_id.to_owned() }.encode_to_vec();
        lease.write_all(&(request.len() as u32).to_le_bytes())?;
        lease.write_all(&request)?;
        let mut length = [0; 4];
        lease.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        ensure!(length <= ANSWER_BYTES_MAX, "an answer of {length} bytes");
        let mut answer = vec![0; length as usize];
        lease.read_exact(&mut answer)?;
        let answer = v1::AttachResponse::decode(answer.as_slice())?;
        if !answer.error_code.is_empty() {
            bail!("{}: {}", answer.error_code, answer.error_message);
        }
        let model = answer.model.context("an answer without a model")?;
        let mut fds = Vec::new();
        while fds.len() < answer.fd_count as usize {
            // One byte a batch, so that a batch is never split.
            let received = fdpass::recv_with_fds(lease.as_fd(), &mut [0], &mut fds)?;
            ensure!(received == 1, "the loader closed the socket after {} of {} files", fds.len(), answer.fd_count);
        }
        let mut files = fds.into_iter().map(File::from);
        let mut regions = Vec::new();
        for region in &model.regions {
            let mut segments = Vec::new();
            for &bytes in &region.segment_bytes {
                segments.push((files.next().context("fewer files than segments")?, bytes));
            }
            let held_bytes: u64 = region.segment_bytes.iter().sum();
            // Memory of a GPU comes in whole granules.
            let makes_up =
                held_bytes == region.size_bytes || (region.device != "host" && held_bytes > region.size_bytes);
            ensure!(makes_up, "segments of {held_bytes} bytes do not make up a region of {}", region.size_bytes);
            regions.push(segments);
        }
        ensure!(files.next().is_none(), "more files than segments");
        Ok(Attached { model, regions, _lease: lease })
    }

    /// Bytes of a region.
    ///
    /// # Errors
    /// When they lie outside of it.
    pub fn read(&self, region: u32, offset_bytes: u64, length_bytes: u64) -> anyhow::Result<Vec<u8>> {
        if length_bytes == 0 {
            return Ok(Vec::new());
        }
        let segments = self.regions.get(region as usize).with_context(|| format!("there is no region {region}"))?;
        let mut out = vec![0; usize::try_from(length_bytes)?];
        let (mut start, mut done) = (0, 0);
        for (file, bytes) in segments {
            let at = offset_bytes + done as u64;
            let end = start + bytes;
            if done < out.len() && at < end && at >= start {
                let len = (out.len() - done).min((end - at) as usize);
                file.read_exact_at(&mut out[done..done + len], at - start)?;
                done += len;
            }
            start = end;
        }
        ensure!(done == out.len(), "{offset_bytes}+{length_bytes} is outside of region {region} of {start} bytes");
        Ok(out)
    }

    /// Compares everything with what the model must hold.
    ///
    /// # Errors
    /// Naming the first thing that differs.
    pub fn check(&self, expected: &Model) -> anyhow::Result<()> {
        let placed = &self.model.tensors;
        ensure!(placed.len() == expected.tensors.len(), "{} tensors, not {}", placed.len(), expected.tensors.len());
        ensure!(self.model.tensor_count as usize == placed.len(), "tensor_count is {}", self.model.tensor_count);
        for tensor in placed {
            let name = &tensor.name;
            let wanted = expected.tensor(name).with_context(|| format!("there is no tensor {name}"))?;
            ensure!(tensor.dtype == wanted.dtype, "{name} is {}, not {}", tensor.dtype, wanted.dtype);
            ensure!(tensor.shape == wanted.shape, "{name} has the shape {:?}, not {:?}", tensor.shape, wanted.shape);
            let length = wanted.content.len_bytes();
            ensure!(tensor.length_bytes == length, "{name} has {} bytes, not {length}", tensor.length_bytes);
            self.compare(tensor.region, tensor.offset_bytes, &wanted.content).with_context(|| name.clone())?;
        }
        let plain = expected.files.iter().filter(|(name, _)| !name.ends_with(".safetensors"));
        for (name, content) in plain {
            let file = self.model.files.iter().find(|file| &file.name == name);
            let file = file.with_context(|| format!("file {name} is not delivered"))?;
            ensure!(file.length_bytes == content.len_bytes(), "file {name} has {} bytes", file.length_bytes);
            self.compare(file.region, file.offset_bytes, content).with_context(|| name.clone())?;
        }
        Ok(())
    }

    /// Compares piece by piece: a tensor may be larger than what a test should hold.
    fn compare(&self, region: u32, offset_bytes: u64, content: &Content) -> anyhow::Result<()> {
        let mut at = 0;
        while at < content.len_bytes() {
            let length = PIECE_BYTES.min(content.len_bytes() - at);
            let bytes = self.read(region, offset_bytes + at, length)?;
            let difference = content.first_difference(at, &bytes);
            ensure!(difference.is_none(), "differs at byte {difference:?} of {}", content.len_bytes());
            at += length;
        }
        Ok(())
    }
}
