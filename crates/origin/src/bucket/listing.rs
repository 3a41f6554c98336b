//! What a listing says beside what `object_store` keeps of it: generations, and which keys are folder markers.

use std::collections::{HashMap, HashSet};

use quick_xml::de::from_reader;
use serde::Deserialize;

/// The extra facts of one page.
#[derive(Default)]
pub(super) struct Raw {
    generations: HashMap<String, String>,
    markers: HashSet<String>,
}

impl Raw {
    /// Whether the empty object at `location` is only there to make a folder visible: its key ends with a slash.
    pub(super) fn is_folder_marker(&self, location: &str) -> bool {
        self.markers.contains(location)
    }

    /// The generation of an object (Google Cloud Storage).
    pub(super) fn generation(&self, location: &str) -> Option<&str> {
        self.generations.get(location).map(String::as_str)
    }
}

/// The answers of S3 and Google (`Contents`/`Key`) and of Azure (`Blobs`/`Blob`/`Name`).
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Contents", default)]
    contents: Vec<Entry>,
    #[serde(rename = "Blobs")]
    blobs: Option<Blobs>,
}

#[derive(Deserialize)]
struct Blobs {
    #[serde(rename = "Blob", default)]
    blobs: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "Key", alias = "Name")]
    key: String,
    #[serde(rename = "Generation")]
    generation: Option<String>,
}

/// Reads a page that `object_store` has parsed already; an answer it understood and this does not has no extras.
pub(super) fn parse(raw: Option<&[u8]>) -> Raw {
    let Some(answer) = raw.and_then(|raw| from_reader::<_, Answer>(raw).ok()) else { return Raw::default() };
    let mut extra = Raw::default();
    for entry in answer.contents.into_iter().chain(answer.blobs.into_iter().flat_map(|blobs| blobs.blobs)) {
        if let Some(folder) = entry.key.strip_suffix('/') {
            extra.markers.insert(folder.to_owned());
        } else if let Some(generation) = entry.generation {
            extra.generations.insert(entry.key, generation);
        }
    }
    extra
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_and_generations() {
        let google = b"<?xml version='1.0'?><ListBucketResult xmlns='x'><Name>b</Name><Contents><Key>m/</Key>\
            <Generation>5</Generation><Size>0</Size></Contents><Contents><Key>m/a&amp;b</Key><Generation>7</Generation>\
            </Contents></ListBucketResult>";
        let raw = parse(Some(google));
        assert!(raw.is_folder_marker("m"));
        assert!(!raw.is_folder_marker("m/a&b"));
        assert_eq!(raw.generation("m/a&b"), Some("7"));

        let azure = b"<EnumerationResults><Blobs><Blob><Name>m/</Name><Properties><Etag>x</Etag></Properties></Blob>\
            <Blob><Name>m/a</Name></Blob></Blobs><NextMarker/></EnumerationResults>";
        let raw = parse(Some(azure));
        assert!(raw.is_folder_marker("m") && !raw.is_folder_marker("m/a"));

        assert_eq!(parse(Some(b"no xml")).generation("x"), None);
    }
}
