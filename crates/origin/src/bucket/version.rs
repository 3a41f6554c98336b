//! Versions of objects: how they are written, sent as conditions, and compared.
//!
//! `generation:<n>` on Google Cloud Storage, else `etag:<quoted value>`, else `modified:<seconds>` from
//! `Last-Modified` for servers that know nothing better.

use longshore_types::{Artifact, Code, Version};
use object_store::ObjectMeta;

use crate::address::Cloud;
use crate::fault::{Attempt, Fault};
use crate::version::is_attempt;

/// The version that a response or a listing tells. `generation` comes from a listing; in a response it is a header.
pub(super) fn version_of(
    cloud: Option<Cloud>,
    meta: &ObjectMeta,
    generation: Option<&str>,
    url: &str,
) -> Attempt<Version> {
    let of_header = meta.version.as_deref().filter(|_| cloud == Some(Cloud::Gcs));
    if let Some(generation) = generation.or(of_header) {
        return Ok(Version::new(format!("generation:{generation}"))?);
    }
    if let Some(etag) = etag_of(meta) {
        return Ok(Version::new(format!("etag:{etag}"))?);
    }
    match meta.last_modified.timestamp() {
        0 => Err(Fault::fatal(
            Code::Unsupported,
            format!("{url} has neither an ETag nor a Last-Modified time, so a change could not be noticed"),
        )),
        seconds => Ok(Version::new(format!("modified:{seconds}"))?),
    }
}

/// Whether a better version may exist than this one, which a change within the same second keeps.
pub(super) fn is_weak(version: &Version) -> bool {
    version.as_str().starts_with("modified:")
}

/// The version that the answer to a write tells, as a question for the object would tell it.
pub(super) fn written(etag: Option<&str>, generation: Option<&str>) -> Option<Version> {
    match (generation, etag.and_then(quoted)) {
        (Some(generation), _) => Version::new(format!("generation:{generation}")).ok(),
        (None, Some(etag)) => Version::new(format!("etag:{etag}")).ok(),
        (None, None) => None,
    }
}

/// The ETag in quotes: Azure's listing leaves them out, its headers do not.
fn etag_of(meta: &ObjectMeta) -> Option<String> {
    quoted(meta.e_tag.as_deref()?)
}

fn quoted(etag: &str) -> Option<String> {
    let etag = etag.trim();
    let (weak, value) = etag.strip_prefix("W/").map_or(("", etag), |value| ("W/", value));
    let value = value.trim_matches('"');
    (!value.is_empty()).then(|| format!("{weak}\"{value}\""))
}

/// The `If-Match` condition. A weak ETag never matches there, so it is only compared.
pub(super) fn if_match(version: &Version) -> Option<String> {
    version.as_str().strip_prefix("etag:").filter(|etag| !etag.starts_with("W/")).map(str::to_owned)
}

/// The generation to ask for by number.
pub(super) fn generation(version: &Version) -> Option<String> {
    version.as_str().strip_prefix("generation:").map(str::to_owned)
}

/// Whether a response is of the version that was asked for.
pub(super) fn is_same(cloud: Option<Cloud>, meta: &ObjectMeta, version: &Version) -> bool {
    let expected = version.as_str();
    if is_attempt(version) {
        return true;
    }
    if expected.starts_with("generation:") {
        return cloud == Some(Cloud::Gcs) && meta.version.as_deref() == expected.strip_prefix("generation:");
    }
    if let Some(expected) = expected.strip_prefix("etag:") {
        let strong = |etag: &str| etag.strip_prefix("W/").unwrap_or(etag).to_owned();
        return etag_of(meta).is_some_and(|etag| strong(&etag) == strong(expected));
    }
    expected == format!("modified:{}", meta.last_modified.timestamp())
}

/// The object has another version now.
pub(super) fn changed(artifact: &Artifact, now: &str) -> Fault {
    let (url, was) = (artifact.url(), artifact.version());
    let size = artifact.size_bytes();
    let text = format!(
        "{url} changed since it was resolved: it was {was} of {size} bytes and is {now}; resolve the model again"
    );
    Fault::fatal(Code::FailedPrecondition, text)
}

/// The object has been deleted.
pub(super) fn gone(artifact: &Artifact) -> Fault {
    let text = format!("{} was deleted since it was resolved at version {}", artifact.url(), artifact.version());
    Fault::fatal(Code::NotFound, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(etag: Option<&str>, version: Option<&str>, seconds: &str) -> ObjectMeta {
        ObjectMeta {
            location: "x".into(),
            last_modified: seconds.parse().unwrap(),
            size: 1,
            e_tag: etag.map(str::to_owned),
            version: version.map(str::to_owned),
        }
    }

    const EPOCH: &str = "1970-01-01T00:00:00Z";
    const LATER: &str = "2026-01-01T00:00:00.5Z";

    #[test]
    fn the_best_version_there_is() {
        let of = |cloud, meta: ObjectMeta| version_of(cloud, &meta, None, "u").map(|v| v.to_string());
        assert_eq!(of(Some(Cloud::Gcs), meta(Some("\"e\""), Some("7"), EPOCH)).unwrap(), "generation:7");
        assert_eq!(of(Some(Cloud::S3), meta(Some("\"e\""), Some("7"), EPOCH)).unwrap(), "etag:\"e\"");
        assert_eq!(of(Some(Cloud::Azure), meta(Some("0x8D"), None, EPOCH)).unwrap(), "etag:\"0x8D\"");
        assert_eq!(of(None, meta(Some("W/\"e\""), None, EPOCH)).unwrap(), "etag:W/\"e\"");
        assert_eq!(of(None, meta(Some(""), None, LATER)).unwrap(), "modified:1767225600");
        assert_eq!(of(None, meta(None, None, EPOCH)).unwrap_err().code(), Code::Unsupported);
    }

    #[test]
    fn comparison() {
        let version = |text: &str| Version::new(text).unwrap();
        let same = |cloud, etag, v, text| is_same(cloud, &meta(etag, v, LATER), &version(text));
        assert!(same(None, Some("\"e\""), None, "etag:\"e\""));
        assert!(same(None, Some("W/\"e\""), None, "etag:\"e\""));
        assert!(!same(None, Some("\"f\""), None, "etag:\"e\""));
        assert!(!same(None, None, None, "etag:\"e\""));
        assert!(same(Some(Cloud::Gcs), Some("\"f\""), Some("7"), "generation:7"));
        assert!(!same(Some(Cloud::Gcs), Some("\"e\""), Some("8"), "generation:7"));
        assert!(!same(Some(Cloud::Gcs), Some("\"e\""), None, "generation:7"));
        assert!(same(None, None, None, "modified:1767225600"));
        assert!(!same(None, None, None, "modified:1767225601"));
        assert_eq!(if_match(&version("etag:\"e\"")).as_deref(), Some("\"e\""));
        assert_eq!(if_match(&version("etag:W/\"e\"")), None);
    }
}
