//! From a description to files.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::spec::{HeaderStyle, ModelSpec, TensorSpec};
use super::{ExpectedTensor, Model};
use crate::content::{Content, Fill, Segment, mix};

/// Name of the index of a sharded model.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// A file of length prefix, `header` and `data`, whatever they are.
pub fn safetensors_file(header: &[u8], data: Content) -> Content {
    let mut head = (header.len() as u64).to_le_bytes().to_vec();
    head.extend_from_slice(header);
    Content::of(std::iter::once(Segment::Bytes(head.into())).chain(data.segments().cloned()))
}

impl ModelSpec {
    /// Generates it.
    pub fn build(&self) -> Model {
        let shards = self.shards.max(1);
        let mut model = Model { files: self.side_files.clone(), tensors: Vec::new() };
        let mut weight_map = Map::new();
        // As even as it gets without splitting: each shard has a run of neighbours, some perhaps none.
        for shard in 0..shards {
            let range = self.tensors.len() * shard / shards..self.tensors.len() * (shard + 1) / shards;
            let file = match shards {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
            };
            let first = range.start;
            let contents: Vec<Content> =
                range.clone().map(|i| tensor_content(mix(self.seed ^ mix(i as u64)), &self.tensors[i])).collect();
            for (tensor, content) in self.tensors[range.clone()].iter().zip(&contents) {
                weight_map.insert(tensor.name.clone(), Value::from(file.clone()));
                model.tensors.push(ExpectedTensor {
                    name: tensor.name.clone(),
                    dtype: tensor.dtype.clone(),
                    shape: tensor.shape.clone(),
                    file: file.clone(),
                    content: content.clone(),
                });
            }
            let header = self.header_text(&self.tensors[range], first as u64);
            let data = Content::of(contents.iter().flat_map(|content| content.segments().cloned()));
            model.files.push((file, safetensors_file(header.as_bytes(), data)));
        }
        if shards > 1 {
            let index = json!({ "metadata": { "total_size": model.tensor_bytes() }, "weight_map": weight_map });
            model.files.push((INDEX_NAME.to_owned(), Content::from(index.to_string().into_bytes())));
        }
        model.files.sort_by(|a, b| a.0.cmp(&b.0));
        model.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        model
    }

    fn header_text(&self, tensors: &[TensorSpec], salt: u64) -> String {
        let mut at = 0;
        let mut entries: Vec<String> = tensors
            .iter()
            .map(|tensor| {
                let (begin, end) = (at, at + tensor.len_bytes());
                at = end;
                let name = Value::from(tensor.name.as_str());
                let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end] });
                format!("{name}:{entry}")
            })
            .collect();
        if self.header == HeaderStyle::Shuffled {
            entries.sort_by_key(|entry| mix(entry.len() as u64 ^ mix(salt ^ u64::from(entry.as_bytes()[2]))));
        }
        if self.has_metadata {
            entries.insert(0, "\"__metadata__\":{\"format\":\"pt\"}".to_owned());
        }
        let mut text = format!("{{{}}}", entries.join(","));
        match self.header {
            HeaderStyle::Aligned => text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len())),
            HeaderStyle::Odd if text.len() % 2 == 0 => text.push(' '),
            HeaderStyle::Odd | HeaderStyle::Shuffled => {}
        }
        text
    }
}

fn tensor_content(seed: u64, tensor: &TensorSpec) -> Content {
    let fill = if tensor.dtype == "BOOL" { Fill::Bool } else { Fill::Random };
    let len_bytes = tensor.len_bytes();
    if len_bytes <= 64 {
        // Short ones in memory: a segment each would make the files of a thousand scalars slow to serve.
        let segment = Segment::Generated { seed, fill, offset_bytes: 0, len_bytes };
        return Content::from(Bytes::from(Content::of([segment]).to_vec()));
    }
    Content::of([Segment::Generated { seed, fill, offset_bytes: 0, len_bytes }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_types::header::SafetensorsHeader;

    fn check(spec: &ModelSpec) {
        let model = spec.build();
        let mut found = 0;
        for (name, content) in model.files.iter().filter(|(name, _)| name.ends_with(".safetensors")) {
            let bytes = content.to_vec();
            let header = SafetensorsHeader::parse(&bytes, bytes.len() as u64, name).unwrap();
            safetensors::SafeTensors::deserialize(&bytes).unwrap();
            if spec.header == HeaderStyle::Odd {
                assert_eq!(header.data_start % 2, 1);
            }
            for tensor in &header.tensors {
                let expected = model.tensor(&tensor.name).unwrap();
                assert_eq!((&expected.file, &expected.dtype), (name, &tensor.dtype_name));
                assert_eq!(expected.shape, tensor.shape);
                assert!(expected.content.equals(&bytes[tensor.range.start as usize..tensor.range.end as usize]));
                found += 1;
            }
        }
        assert_eq!(found, spec.tensors.len());
    }

    #[test]
    fn the_formats_own_library_reads_what_is_generated() {
        check(&ModelSpec::small(1));
        check(&ModelSpec::every_dtype(2));
        check(&ModelSpec::every_dtype(2).shards(30));
        check(&ModelSpec::sized(3, 5 << 20, 20).shards(3).header(HeaderStyle::Shuffled));
        check(&ModelSpec::of(4, Vec::new()));
        for seed in 0..30 {
            check(&ModelSpec::random(seed, 10_000));
        }
    }

    #[test]
    fn the_same_description_gives_the_same_bytes() {
        let text = |seed| ModelSpec::random(seed, 1000).build().expectation().to_string();
        assert_eq!(text(5), text(5));
        assert_ne!(text(5), text(6));
        let sized = ModelSpec::sized(1, 100 << 20, 50).build().size_bytes();
        assert!((99 << 20..101 << 20).contains(&sized), "{sized}");
    }
}
