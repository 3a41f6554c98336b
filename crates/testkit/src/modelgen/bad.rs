//! Models that must be refused, each with what the refusal must say.

use longshore_types::Code;
use serde_json::json;

use super::Model;
use super::spec::{ModelSpec, TensorSpec};
use super::write::{INDEX_NAME, safetensors_file};
use crate::content::Content;

/// A model that must be refused.
#[derive(Debug, Clone)]
pub struct BadModel {
    /// What is wrong, in snake case.
    pub name: &'static str,
    /// Its files.
    pub model: Model,
    /// The code of the refusal.
    pub code: Code,
    /// What its message must name.
    pub says: Vec<&'static str>,
}

const FILE: &str = "model.safetensors";

fn files(files: Vec<(&str, Content)>) -> Model {
    let files = files.into_iter().map(|(name, content)| (name.to_owned(), content)).collect();
    Model { files, tensors: Vec::new() }
}

/// A model of one file with this header and so many bytes of data, refused as corrupt.
fn header(name: &'static str, header: &str, data_bytes: u64, says: &[&'static str]) -> BadModel {
    let content = safetensors_file(header.as_bytes(), Content::generated(1, data_bytes));
    raw(name, content, says)
}

fn raw(name: &'static str, content: Content, says: &[&'static str]) -> BadModel {
    let says = std::iter::once(FILE).chain(says.iter().copied()).collect();
    BadModel { name, model: files(vec![(FILE, content)]), code: Code::Corrupt, says }
}

/// A sharded model whose index is replaced.
fn index(name: &'static str, index: &str, code: Code, says: &[&'static str]) -> BadModel {
    let mut model = ModelSpec::small(1).shards(2).build();
    for (name, content) in &mut model.files {
        if name == INDEX_NAME {
            *content = Content::from(index.as_bytes().to_vec());
        }
    }
    BadModel { name, model, code, says: std::iter::once(INDEX_NAME).chain(says.iter().copied()).collect() }
}

fn with_length(length: u64, rest: &[u8]) -> Content {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(rest);
    Content::from(bytes)
}

/// Every case of bad input that a model's files can hold.
pub fn bad_models() -> Vec<BadModel> {
    let mut all = bad_headers();
    all.extend(bad_offsets());
    all.extend(bad_sets());
    all
}

fn bad_headers() -> Vec<BadModel> {
    let nested = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    vec![
        raw("empty_file", Content::default(), &[]),
        raw("shorter_than_the_prefix", Content::from(vec![1, 2, 3]), &[]),
        raw("header_beyond_the_file", with_length(1000, b"{}"), &["1000"]),
        raw("header_over_the_limit", with_length(100_000_001, b"{}"), &["100000001"]),
        raw("header_length_huge", with_length(u64::MAX, b"{}"), &[]),
        raw("header_length_zero", with_length(0, b""), &[]),
        header("header_no_json", "{\"a\": nonsense}", 4, &[]),
        header("header_no_object", "[1, 2, 3]", 4, &[]),
        raw("header_no_utf8", safetensors_file(b"{\"\xff\xfe\": 1}", Content::default()), &[]),
        header("header_nested_deep", &nested, 0, &[]),
        header("metadata_no_strings", "{\"__metadata__\":{\"a\":1}}", 0, &[]),
        header("entry_without_shape", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}}", 4, &["\"a\""]),
        header(
            "name_twice",
            "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\
             \"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
            8,
            &["\"a\""],
        ),
    ]
}

fn tensors(entries: &[(&str, &str, &[u64], [u64; 2])]) -> String {
    let entries = entries.iter().map(|(name, dtype, shape, offsets)| {
        format!("\"{name}\":{}", json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }))
    });
    format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
}

fn bad_offsets() -> Vec<BadModel> {
    let one = |dtype, shape: &[u64], offsets| tensors(&[("a", dtype, shape, offsets)]);
    let two = |b: [u64; 2]| tensors(&[("a", "U8", &[8], [0, 8]), ("b", "U8", &[8], b)]);
    vec![
        header("offsets_overlap", &two([4, 12]), 12, &["\"b\"", "overlap"]),
        header("offsets_out_of_range", &one("U8", &[8], [0, 8]), 4, &["\"a\""]),
        header("offsets_huge", &one("U8", &[u64::MAX], [0, u64::MAX]), 4, &["\"a\""]),
        header("offsets_backwards", &one("U8", &[4], [4, 0]), 4, &["\"a\""]),
        header("offsets_negative", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[-4,0]}}", 4, &["\"a\""]),
        header("hole_between_tensors", &two([12, 20]), 20, &["\"b\""]),
        header("bytes_at_the_end", &one("U8", &[8], [0, 8]), 9, &[]),
        header("size_disagrees_with_shape", &one("F32", &[3], [0, 8]), 8, &["\"a\"", "F32"]),
        header("shape_overflows", &one("F32", &[1 << 62, 1 << 62], [0, 0]), 0, &["\"a\""]),
        header("half_a_byte", &one("F4", &[3], [0, 1]), 1, &["\"a\""]),
        header("too_many_dimensions", &one("U8", &[1; 1000], [0, 1]), 1, &["\"a\""]),
    ]
}

fn bad_sets() -> Vec<BadModel> {
    let map = |shard: &str| json!({ "weight_map": { "embed.weight": shard } }).to_string();
    let mut missing = ModelSpec::small(1).shards(3).build();
    missing.files.retain(|(name, _)| name != "model-00002-of-00003.safetensors");
    let twice = ModelSpec::small(1).build().files.into_iter().filter(|(name, _)| name == FILE);
    let twice = twice.flat_map(|(_, content)| [("a.safetensors", content.clone()), ("b.safetensors", content)]);
    let mut short = ModelSpec::small(1).shards(2).build();
    for (name, content) in &mut short.files {
        if name == "model-00002-of-00002.safetensors" {
            *content = Content::from(content.read(0..content.len_bytes() - 1));
        }
    }
    vec![
        BadModel {
            name: "shard_missing",
            model: missing,
            code: Code::NotFound,
            says: vec![INDEX_NAME, "model-00002-of-00003.safetensors"],
        },
        BadModel {
            name: "shard_cut_short",
            model: short,
            code: Code::Corrupt,
            says: vec!["model-00002-of-00002.safetensors"],
        },
        BadModel {
            name: "tensor_in_two_files",
            model: files(twice.collect()),
            code: Code::Corrupt,
            says: vec!["a.safetensors", "b.safetensors"],
        },
        index("index_no_json", "{\"weight_map\": ", Code::Corrupt, &[]),
        index("index_without_map", "{\"metadata\": {}}", Code::Corrupt, &["weight_map"]),
        index("index_empty", "", Code::Corrupt, &[]),
        index("index_path_up", &map("../../etc/passwd"), Code::InvalidArgument, &["../../etc/passwd"]),
        index("index_path_absolute", &map("/etc/passwd"), Code::InvalidArgument, &["/etc/passwd"]),
        index("index_path_backslash", &map("..\\secret"), Code::InvalidArgument, &[]),
        index("index_wrong_shard", &map("model-00002-of-00002.safetensors"), Code::Corrupt, &["embed.weight"]),
    ]
}

/// A good model with one tensor of a dtype that nobody knows yet: it must load, as bytes and with a warning.
/// The size of such a tensor is what its offsets say.
pub fn unknown_dtype() -> Model {
    let mut spec = ModelSpec::small(3);
    spec.tensors.push(TensorSpec::new("from.the.future", "F3_E1M1", [24]));
    spec.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_types::header::SafetensorsHeader;

    #[test]
    fn names_are_unique_and_the_format_library_refuses_what_is_bad_in_one_file() {
        let mut names = std::collections::HashSet::new();
        for bad in bad_models() {
            assert!(names.insert(bad.name), "{} is there twice", bad.name);
            let [(file, content)] = &bad.model.files[..] else { continue };
            let bytes = content.to_vec();
            let ours = SafetensorsHeader::parse(&bytes, bytes.len() as u64, file);
            assert_eq!(ours.unwrap_err().code(), Code::Corrupt, "{}", bad.name);
            // The library counts no dimensions; all else it refuses too.
            if bad.name != "too_many_dimensions" && bad.name != "name_twice" {
                assert!(safetensors::SafeTensors::deserialize(&bytes).is_err(), "{}", bad.name);
            }
        }
        assert!(names.len() > 30);
    }
}
