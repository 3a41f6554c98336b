//! Names of files that are being written: `.<name>.<32 hex digits>.part` for uploads and `.tmp` for whole objects. They
//! lie beside what they become, so that a rename makes them that, and listings leave them out.

use std::path::{Path, PathBuf};

/// Hex digits of an id.
const ID_LEN: usize = 32;

/// What is being written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Upload,
    Object,
}

impl Kind {
    fn ending(self) -> &'static str {
        match self {
            Kind::Upload => "part",
            Kind::Object => "tmp",
        }
    }
}

/// A new id.
pub(super) fn new_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Whether a text has the form of an id.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Where `target` is written before it is complete.
pub(super) fn path_of(target: &Path, id: &str, kind: Kind) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{id}.{}", kind.ending()))
}

/// The name that an unfinished file will have, its id and its kind; `None` for any other file.
pub(super) fn parse(name: &str) -> Option<(&str, &str, Kind)> {
    let (rest, ending) = name.strip_prefix('.')?.rsplit_once('.')?;
    let (target, id) = rest.rsplit_once('.')?;
    let kind = [Kind::Upload, Kind::Object].into_iter().find(|kind| kind.ending() == ending)?;
    (is_id(id) && !target.is_empty()).then_some((target, id, kind))
}

/// Whether a file of this name is an unfinished one.
pub(super) fn is_temporary(name: &str) -> bool {
    parse(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_back_what_they_were_made_of() {
        let id = new_id();
        for kind in [Kind::Upload, Kind::Object] {
            let path = path_of(Path::new("/x/model-a.b.safetensors"), &id, kind);
            assert_eq!(path.parent(), Some(Path::new("/x")));
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse(name), Some(("model-a.b.safetensors", id.as_str(), kind)));
        }
        for name in [
            "model",
            ".gitattributes",
            ".a.part",
            &format!("a.{id}.part"),
            &format!("..{id}.part"),
            &format!(".a.{id}.new"),
        ] {
            assert!(!is_temporary(name), "{name}");
        }
    }
}
