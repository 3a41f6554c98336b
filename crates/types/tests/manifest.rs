//! Manifests built from folders in memory: which files are chosen, how tensors are named, what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;

use longshore_types::{
    Artifact, Code, Error, Manifest, ManifestBuilder, Progress, Resolved, ResolvedFile, Selection, Version,
};

type Folder = BTreeMap<&'static str, Vec<u8>>;

fn shard(tensors: &[&str]) -> Vec<u8> {
    let entries: Vec<String> = tensors
        .iter()
        .enumerate()
        .map(|(i, name)| format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1))
        .collect();
    let json = format!("{{{}}}", entries.join(","));
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.resize(file.len() + tensors.len(), 1);
    file
}

fn index(map: &[(&str, &str)]) -> Vec<u8> {
    let map: BTreeMap<&str, &str> = map.iter().copied().collect();
    serde_json::to_vec(&serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map})).unwrap()
}

/// Builds the manifest, and says how many bytes were read for it.
fn build(folder: &Folder, include: &[&str]) -> Result<(Manifest, u64), Error> {
    let files = folder
        .iter()
        .map(|(name, bytes)| ResolvedFile {
            name: (*name).to_owned(),
            artifact: Arc::new(
                Artifact::new(format!("s3://b/m/{name}"), Version::new("etag:1").unwrap(), bytes.len() as u64).unwrap(),
            ),
        })
        .collect();
    let resolved = Resolved { url: "s3://b/m".to_owned(), revision: "r".to_owned(), files };
    let selection = Selection::new(include.iter().map(|&p| p.to_owned()).collect())?;
    let mut builder = ManifestBuilder::new(resolved, &selection)?;
    let mut read_bytes = 0;
    loop {
        match builder.advance()? {
            Progress::Done(manifest) => return Ok((manifest, read_bytes)),
            Progress::Need(reads) => {
                for read in reads {
                    let name = builder.resolved().files[read.file].name.clone();
                    let bytes = &folder[name.as_str()][read.range.start as usize..read.range.end as usize];
                    read_bytes += bytes.len() as u64;
                    builder.supply(&read, bytes)?;
                }
            }
        }
    }
}

fn names(manifest: &Manifest) -> Vec<&str> {
    manifest.files.iter().map(|file| file.name.as_str()).collect()
}

#[test]
fn an_index_chooses_the_shards_and_other_formats_are_left_out_by_name() {
    let folder = Folder::from([
        ("config.json", b"{}".to_vec()),
        ("consolidated.safetensors", shard(&["a", "b"])),
        ("model-1.safetensors", shard(&["a"])),
        ("model-2.safetensors", shard(&["b", "c"])),
        ("model.safetensors.index.json", index(&[("a", "model-1.safetensors"), ("b", "model-2.safetensors")])),
        ("pytorch_model.bin", vec![0; 10]),
    ]);
    let (manifest, _) = build(&folder, &[]).unwrap();
    assert_eq!(
        names(&manifest),
        ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"]
    );
    let tensors: Vec<&str> = manifest.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(tensors, ["a", "b", "c"]);
    let skipped: Vec<&str> = manifest.skipped.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(skipped, ["consolidated.safetensors", "pytorch_model.bin"]);
    let (all, _) = build(&folder, &["*.bin"]).unwrap();
    assert_eq!(names(&all), ["pytorch_model.bin"]);
}

#[test]
fn folders_prefix_their_tensors_and_plain_model_wins_over_variants() {
    let folder = Folder::from([
        ("unet/model.safetensors", shard(&["w"])),
        ("unet/model.fp16.safetensors", shard(&["w"])),
        ("vae/model.safetensors", shard(&["w"])),
    ]);
    let (manifest, _) = build(&folder, &[]).unwrap();
    let tensors: Vec<&str> = manifest.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(tensors, ["unet/w", "vae/w"]);
    assert_eq!(manifest.skipped[0].0, "unet/model.fp16.safetensors");
}

#[test]
fn folders_without_safetensors_load_as_bytes_and_read_nothing() {
    let folder = Folder::from([("model.gguf", vec![1; 100]), ("sub/data.npz", vec![])]);
    let (manifest, read_bytes) = build(&folder, &[]).unwrap();
    assert_eq!((names(&manifest), read_bytes), (vec!["model.gguf", "sub/data.npz"], 0));
    assert!(manifest.tensors.is_empty() && manifest.files.iter().all(|file| !file.is_tensors));
}

#[test]
fn a_header_longer_than_the_first_read_is_read_whole() {
    let many: Vec<String> = (0..30_000).map(|i| format!("layers.{i}.weight")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let folder = Folder::from([("model.safetensors", shard(&many))]);
    let (manifest, _) = build(&folder, &[]).unwrap();
    assert_eq!(manifest.tensors.len(), many.len());
}

#[test]
fn faults_name_the_file_and_the_reason() {
    let refused = |folder: &Folder, include: &[&str], code: Code, parts: &[&str]| {
        let error = build(folder, include).expect_err("must be refused");
        assert_eq!(error.code(), code, "{error}");
        for part in parts {
            assert!(error.message().contains(part), "{error} does not name {part}");
        }
    };
    let missing = Folder::from([
        ("model-1.safetensors", shard(&["a"])),
        ("model.safetensors.index.json", index(&[("a", "model-1.safetensors"), ("b", "model-2.safetensors")])),
    ]);
    refused(&missing, &[], Code::NotFound, &["index.json", "model-2.safetensors", "missing"]);
    let trick = Folder::from([
        ("model-1.safetensors", shard(&["a"])),
        ("model.safetensors.index.json", index(&[("a", "../../etc/passwd")])),
    ]);
    refused(&trick, &[], Code::InvalidArgument, &["../../etc/passwd", "index.json"]);
    let liar = Folder::from([
        ("model-1.safetensors", shard(&["a"])),
        ("model.safetensors.index.json", index(&[("b", "model-1.safetensors")])),
    ]);
    refused(&liar, &[], Code::Corrupt, &["\"b\"", "model-1.safetensors"]);
    let twice = Folder::from([("x.safetensors", shard(&["a"])), ("y.safetensors", shard(&["a"]))]);
    refused(&twice, &[], Code::Corrupt, &["\"a\"", "x.safetensors", "y.safetensors", "--include"]);
    let no_json = Folder::from([("model.safetensors.index.json", b"x".to_vec()), ("a.safetensors", shard(&["a"]))]);
    refused(&no_json, &[], Code::Corrupt, &["index.json", "not valid"]);
    let short = Folder::from([("a.safetensors", vec![1, 2])]);
    refused(&short, &[], Code::Corrupt, &["a.safetensors", "too few"]);
    refused(&short, &["*.gguf"], Code::NotFound, &["include"]);
    refused(&Folder::new(), &[], Code::NotFound, &["no files"]);
}

#[test]
fn unknown_dtypes_warn() {
    let json = r#"{"a":{"dtype":"Q3_K","shape":[9],"data_offsets":[0,5]}}"#;
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.resize(file.len() + 5, 1);
    let (manifest, _) = build(&Folder::from([("a.safetensors", file)]), &[]).unwrap();
    assert!(manifest.warnings[0].contains("Q3_K"), "{:?}", manifest.warnings);
}
