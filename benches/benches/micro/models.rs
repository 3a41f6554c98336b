//! Models that exist as headers and manifests only.

use std::fmt::Write;
use std::sync::Arc;

use longshore_types::{
    Artifact, Manifest, ManifestBuilder, Progress, Resolved, ResolvedFile, SafetensorsHeader, Selection, Version,
};

/// The matrices of one expert: name, dimension that is split among ranks, shape.
const MATRICES: [(&str, [u64; 2]); 4] =
    [("gate_proj", [64, 128]), ("up_proj", [64, 128]), ("down_proj", [128, 64]), ("norm", [1, 128])];

/// A safetensors file without its data.
pub struct Model {
    /// Prefix and header.
    pub head: Vec<u8>,
    /// Of the whole file.
    pub size_bytes: u64,
}

/// A file of `tensors` tensors in BF16, named as a mixture of experts names them.
pub fn model(tensors: usize) -> Model {
    let (mut json, mut at) = (String::from("{\"__metadata__\":{\"format\":\"pt\"}"), 0);
    for number in 0..tensors {
        let (name, [rows, columns]) = MATRICES[number % 4];
        let (layer, expert) = (number / 4 / 256, number / 4 % 256);
        let end = at + rows * columns * 2;
        let _ = write!(
            json,
            ",\"model.layers.{layer}.mlp.experts.{expert}.{name}.weight\":\
             {{\"dtype\":\"BF16\",\"shape\":[{rows},{columns}],\"data_offsets\":[{at},{end}]}}"
        );
        at = end;
    }
    json.push('}');
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let head = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
    Model { size_bytes: head.len() as u64 + at, head }
}

impl Model {
    /// Parses the header.
    pub fn parse(&self) -> SafetensorsHeader {
        SafetensorsHeader::parse(&self.head, self.size_bytes, "model.safetensors").expect("a good header")
    }

    /// The whole file, for a library that asks for its length: the data is never touched, and takes no memory.
    pub fn file(&self) -> Vec<u8> {
        let mut file = vec![0; self.size_bytes as usize];
        file[..self.head.len()].copy_from_slice(&self.head);
        file
    }

    /// Builds the manifest as a worker does it, from the listing to the last tensor.
    pub fn manifest(&self) -> Manifest {
        let version = Version::new("etag:1").expect("a version");
        let url = "s3://bucket/model/model.safetensors";
        let artifact = Arc::new(Artifact::new(url, version, self.size_bytes).expect("an artifact"));
        let files = vec![ResolvedFile { name: "model.safetensors".into(), artifact }];
        let resolved = Resolved { url: "s3://bucket/model".into(), revision: "1".into(), files };
        let mut builder = ManifestBuilder::new(resolved, &Selection::default()).expect("a model");
        let zeros = vec![0; 1 << 20];
        loop {
            match builder.advance().expect("a good model") {
                Progress::Done(manifest) => return manifest,
                Progress::Need(reads) => {
                    for read in reads {
                        let (start, end) = (read.range.start as usize, read.range.end as usize);
                        let mut bytes = self.head[start.min(self.head.len())..end.min(self.head.len())].to_vec();
                        // The first read may go beyond the header, into the data.
                        bytes.extend_from_slice(&zeros[..end - start - bytes.len()]);
                        builder.supply(&read, &bytes).expect("a good header");
                    }
                }
            }
        }
    }
}
