//! The XML documents of multipart uploads.

use std::fmt::Write as _;

use quick_xml::de::from_reader;
use quick_xml::escape::escape;
use serde::Deserialize;

use super::parts::Part;

#[derive(Deserialize)]
struct Begun {
    #[serde(rename = "UploadId")]
    upload_id: String,
}

#[derive(Deserialize)]
struct Completed {
    #[serde(rename = "ETag")]
    etag: Option<String>,
    /// Only in the error that may stand in a successful answer.
    #[serde(rename = "Code")]
    code: Option<String>,
}

/// What a completion came to.
pub(super) enum Completion {
    Done { etag: Option<String> },
    Refused { code: String },
}

/// A page of the uploads that are open.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct OpenPage {
    #[serde(default)]
    pub is_truncated: bool,
    pub next_key_marker: Option<String>,
    pub next_upload_id_marker: Option<String>,
    #[serde(rename = "Upload", default)]
    pub uploads: Vec<Open>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Open {
    pub key: String,
    pub upload_id: String,
    #[serde(default)]
    pub initiated: String,
}

/// The id of a new upload.
pub(super) fn begun(document: &[u8]) -> Option<String> {
    let begun: Begun = from_reader(document).ok()?;
    (!begun.upload_id.is_empty()).then_some(begun.upload_id)
}

/// The answer to a completion; `None` when it is neither of the two.
pub(super) fn completed(document: &[u8]) -> Option<Completion> {
    let completed: Completed = from_reader(document).ok()?;
    Some(match completed.code {
        Some(code) => Completion::Refused { code },
        None => Completion::Done { etag: completed.etag },
    })
}

/// A page of open uploads.
pub(super) fn open_page(document: &[u8]) -> Option<OpenPage> {
    from_reader(document).ok()
}

/// The request to complete an upload of these parts.
pub(super) fn complete(parts: &[Part], with_checksums: bool) -> String {
    let mut text = String::with_capacity(160 * parts.len() + 128);
    text.push_str("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (i, part) in parts.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(text, "<Part><PartNumber>{}</PartNumber><ETag>{}</ETag>", i + 1, escape(part.etag.as_str()));
        if let Some(checksum) = part.crc64.filter(|_| with_checksums) {
            let _ = write!(text, "<ChecksumCRC64NVME>{}</ChecksumCRC64NVME>", super::parts::base64_of(checksum));
        }
        text.push_str("</Part>");
    }
    text.push_str("</CompleteMultipartUpload>");
    text
}

/// Milliseconds since 1970 of a time as `2026-11-22T19:40:00.000Z`.
pub(super) fn milliseconds(time: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| time.get(range)?.parse::<u64>().ok();
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !time.ends_with('Z') || !separators.iter().all(|&(at, mark)| time.as_bytes().get(at) == Some(&mark)) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years begin in March, so that the leap day is the last of one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    // The first of January 1970 is day 719,468 of that count.
    let seconds = (days - 719_468) * 86_400 + number(11..13)? * 3600 + number(14..16)? * 60 + number(17..19)?;
    let fraction = time.get(20..23).and_then(|text| text.parse().ok()).unwrap_or(0);
    Some(seconds * 1000 + fraction)
}

#[cfg(test)]
mod tests {
    use longshore_types::BlockChecksum;

    use super::*;

    #[test]
    fn times() {
        assert_eq!(milliseconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(milliseconds("2000-02-29T12:34:56.789Z"), Some(951_827_696_789));
        assert_eq!(milliseconds("2026-11-22T19:40:00.000Z"), Some(1_795_376_400_000));
        for text in
            ["", "now", "1969-12-31T23:59:59Z", "2026-11-22", "2026-13-01T00:00:00Z", "2026-11-22T19:40:00+01:00"]
        {
            assert_eq!(milliseconds(text), None, "{text}");
        }
    }

    #[test]
    fn documents_of_uploads() {
        let text = b"<?xml version='1.0'?><InitiateMultipartUploadResult xmlns='x'><Bucket>b</Bucket><Key>k</Key>\
            <UploadId>a+b/c&amp;</UploadId></InitiateMultipartUploadResult>";
        assert_eq!(begun(text).as_deref(), Some("a+b/c&"));
        assert_eq!(begun(b"<x/>"), None);

        let done =
            completed(b"<CompleteMultipartUploadResult><ETag>&quot;e-2&quot;</ETag></CompleteMultipartUploadResult>");
        assert!(matches!(done, Some(Completion::Done { etag: Some(etag) }) if etag == "\"e-2\""));
        let late = completed(b"<Error><Code>InternalError</Code><Message>m</Message></Error>");
        assert!(matches!(late, Some(Completion::Refused { code }) if code == "InternalError"));
        assert!(completed(b"").is_none());

        let page = b"<ListMultipartUploadsResult><Bucket>b</Bucket><KeyMarker/><NextKeyMarker>k</NextKeyMarker>\
            <NextUploadIdMarker>i</NextUploadIdMarker><IsTruncated>true</IsTruncated><Upload><Key>k</Key>\
            <UploadId>i</UploadId><Initiated>2026-11-22T19:40:00.000Z</Initiated></Upload></ListMultipartUploadsResult>";
        let page = open_page(page).unwrap();
        assert!(page.is_truncated && page.next_key_marker.as_deref() == Some("k"));
        assert_eq!((page.uploads[0].key.as_str(), page.uploads[0].upload_id.as_str()), ("k", "i"));
        assert!(open_page(b"<ListMultipartUploadsResult/>").unwrap().uploads.is_empty());
    }

    #[test]
    fn completion_names_each_part() {
        let part = |crc64| Part { crc64, crc32c: None, len_bytes: 1, etag: "\"a&b\"".to_owned() };
        let text = complete(&[part(Some(BlockChecksum(1))), part(None)], true);
        assert!(
            text.contains("<PartNumber>1</PartNumber><ETag>&quot;a&amp;b&quot;</ETag><ChecksumCRC64NVME>AAAAAAAAAAE=")
        );
        assert!(text.contains("<PartNumber>2</PartNumber><ETag>&quot;a&amp;b&quot;</ETag></Part>"));
        assert!(!complete(&[part(Some(BlockChecksum(1)))], false).contains("Checksum"));
    }
}
