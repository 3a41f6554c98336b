//! The header parser against the format's own library, and against files made to hurt.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use longshore_types::header::{HEADER_BYTES_MAX, tensor_bytes};
use longshore_types::{Code, SafetensorsHeader};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};

const DTYPES: [Dtype; 21] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
];

fn file(json: &str, data_bytes: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.resize(file.len() + data_bytes, 7);
    file
}

fn parse(file: &[u8]) -> longshore_types::Result<SafetensorsHeader> {
    SafetensorsHeader::parse(file, file.len() as u64, "model.safetensors")
}

/// Tensors laid end to end, as the format wants them, with dtypes and shapes drawn at random.
fn valid_file() -> impl Strategy<Value = Vec<u8>> {
    let tensor = (0..DTYPES.len(), prop::collection::vec(0u64..5, 0..4));
    prop::collection::vec(tensor, 0..12).prop_map(|tensors| {
        let mut entries = vec![r#""__metadata__":{"format":"pt"}"#.to_owned()];
        let mut at = 0;
        for (i, (dtype, mut shape)) in tensors.into_iter().enumerate() {
            let dtype = DTYPES[dtype];
            if tensor_bytes(dtype, &shape).is_none() {
                shape.push(4);
            }
            let end = at + tensor_bytes(dtype, &shape).unwrap();
            let name = serde_json::to_string(&dtype).unwrap();
            entries.push(format!(r#""t{i}":{{"dtype":{name},"shape":{shape:?},"data_offsets":[{at},{end}]}}"#));
            at = end;
        }
        file(&format!("{{{}}}", entries.join(",")), at as usize)
    })
}

proptest! {
    #[test]
    fn valid_files_read_as_the_library_reads_them(file in valid_file()) {
        let ours = parse(&file).unwrap();
        let theirs = SafeTensors::deserialize(&file).unwrap();
        prop_assert_eq!(ours.tensors.len(), theirs.len());
        for tensor in &ours.tensors {
            let view = theirs.tensor(&tensor.name).unwrap();
            prop_assert_eq!(tensor.dtype, Some(view.dtype()));
            let shape: Vec<u64> = view.shape().iter().map(|&d| d as u64).collect();
            prop_assert_eq!(&tensor.shape, &shape);
            prop_assert_eq!(&file[tensor.range.start as usize..tensor.range.end as usize], view.data());
        }
    }

    /// One changed byte: no panic, and never accepted where the library refuses.
    #[test]
    fn damaged_files_never_panic_and_are_not_taken_more_lightly(
        file in valid_file(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut damaged = file.clone();
        let at = at.index(damaged.len());
        damaged[at] = byte;
        if let Ok(header) = parse(&damaged) {
            let unknown_dtype = header.tensors.iter().any(|t| t.dtype.is_none());
            prop_assert!(unknown_dtype || SafeTensors::deserialize(&damaged).is_ok());
        }
        let _ = parse(&file[..cut.index(file.len())]);
    }
}

fn reason(file: &[u8]) -> String {
    let error = parse(file).expect_err("must be refused");
    assert_eq!(error.code(), Code::Corrupt);
    assert!(error.message().starts_with("model.safetensors: "), "{error}");
    error.message().to_owned()
}

#[test]
fn lengths_are_checked_before_anything_else() {
    assert!(reason(&[1, 2, 3]).contains("too few"));
    assert!(reason(&u64::MAX.to_le_bytes()).contains("over the limit"));
    assert!(reason(&(HEADER_BYTES_MAX + 1).to_le_bytes()).contains("over the limit"));
    assert!(reason(&100u64.to_le_bytes()).contains("beyond the end of the file"));
}

#[test]
fn each_fault_is_named() {
    let one =
        |offsets: &str, data| file(&format!(r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":{offsets}}}}}"#), data);
    assert!(reason(&file("[1]", 0)).contains("not a JSON object"));
    assert!(reason(&file("{\"a\":", 0)).contains("not valid"));
    assert!(reason(&one("[0,3]", 2)).contains("outside of the 2 bytes"));
    assert!(reason(&one("[2,0]", 2)).contains("outside of"));
    assert!(reason(&one("[0,1]", 1)).contains("disagrees with dtype U8 and shape [2]"));
    assert!(reason(&one("[1,3]", 3)).contains("belong to no tensor"));
    assert!(reason(&one("[0,2]", 3)).contains("1 bytes at the end"));
    assert!(reason(&one("[0,-1]", 2)).contains("not valid"));
    let two =
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
    assert!(reason(&file(two, 3)).contains("\"b\" overlaps"));
    let twice =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert!(reason(&file(twice, 2)).contains("is there twice"));
    let huge = r#"{"a":{"dtype":"F64","shape":[9223372036854775807,9],"data_offsets":[0,2]}}"#;
    assert!(reason(&file(huge, 2)).contains("disagrees"));
    let packed = r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#;
    assert!(reason(&file(packed, 2)).contains("disagrees"));
}

#[test]
fn an_unknown_dtype_leaves_the_others_readable() {
    let json = r#"{"a":{"dtype":"Q3_K","shape":[9],"data_offsets":[0,5]},"b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}}"#;
    let header = parse(&file(json, 6)).unwrap();
    assert_eq!((header.tensors[0].dtype, header.tensors[0].dtype_name.as_str()), (None, "Q3_K"));
    assert_eq!(header.tensors[1].dtype, Some(Dtype::U8));
}

#[test]
fn names_are_compared_as_they_are_read_and_not_as_they_are_written() {
    let tensor =
        |name: &str, at: u64| format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{}]}}"#, at + 1);
    let json = |names: [&str; 2]| format!("{{{},{}}}", tensor(names[0], 0), tensor(names[1], 1));
    assert!(reason(&file(&json(["a", r"\u0061"]), 2)).contains("\"a\" is there twice"));
    assert!(reason(&file(&json(["__metadata__", r"\u005f_metadata__"]), 2)).contains("not valid"));
    let header = parse(&file(&json(["b", r"\u0061\n"]), 2)).unwrap();
    assert_eq!([&header.tensors[0].name, &header.tensors[1].name], ["b", "a\n"]);
    let twice = r#"{"__metadata__":{"a":"b"},"__metadata__":{}}"#;
    assert!(reason(&file(twice, 0)).contains("\"__metadata__\" is there twice"));
}

#[test]
fn what_is_not_a_text_or_not_the_end_is_refused() {
    let json = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    assert!(parse(&file(&format!("{json}   "), 1)).is_ok());
    assert!(reason(&file(&format!("{json}{{}}"), 1)).contains("not valid"));
    let mut no_text = file(json, 1);
    no_text[10] = 0xff;
    assert!(reason(&no_text).contains("not valid"));
    let ranks = |rank: usize| {
        format!(r#"{{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}}}}"#, vec!["1"; rank].join(","))
    };
    assert!(parse(&file(&ranks(64), 1)).is_ok());
    assert!(reason(&file(&ranks(65), 1)).contains("65 dimensions"));
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    assert!(reason(&file(&deep, 0)).contains("not valid"));
}
