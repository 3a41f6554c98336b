//! URLs as they may be printed: without user names, passwords or query strings, where signatures and tokens live.

/// `scheme://user:password@host/path?signature` becomes `scheme://host/path`. Every URL goes through here
/// before it reaches a log line, an error, a metric or the terminal.
pub fn redact_url(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let bare = &url[..end];
    let Some((scheme, rest)) = bare.split_once("://") else {
        return bare.to_owned();
    };
    let authority_end = rest.find('/').unwrap_or(rest.len());
    match rest[..authority_end].rfind('@') {
        // In `hf://org/name@revision` the @ comes after the first slash and stays.
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => bare.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::redact_url;

    #[test]
    fn secrets_go_and_paths_stay() {
        assert_eq!(redact_url("https://me:pw@host:1/a/b?X-Amz-Signature=1#f"), "https://host:1/a/b");
        assert_eq!(redact_url("hf://org/name@main"), "hf://org/name@main");
        assert_eq!(redact_url("s3://bucket/key"), "s3://bucket/key");
        assert_eq!(redact_url("/local/path?x"), "/local/path");
    }
}
