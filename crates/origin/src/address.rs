//! URLs of origins, parsed once: which store, and where in it. Formatting an [`Address`] gives the canonical URL.
//!
//! Keys of buckets and names on a hub are taken as they are (as `aws s3` and `gsutil` do), but for what would end the
//! path of a URL: see [`escape`]. Paths of `http` and `file` URLs are percent-encoded. Query strings and user names are
//! refused rather than dropped: a URL is printed, hashed and sent to other processes, so it must not be a secret, and
//! without them it would name something else.

mod escape;

use std::fmt;
use std::path::{Component, Path, PathBuf};

use longshore_types::{Code, Error, Result, names, redact_url};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use url::Url;

use escape::{escape, unescape};

/// The kinds of URL there are, for messages.
pub(crate) const SCHEMES: &str = "s3://bucket/key, gs://bucket/key, az://container/key, http(s)://host/path, \
     hf://org/name@revision, file:///path or a plain path";

/// What is encoded in the path of an http URL: what [`Url`] encodes by itself, so that parsing changes nothing, and `%`.
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'}');

/// The cloud stores that have buckets (containers, in Azure's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cloud {
    S3,
    Gcs,
    Azure,
}

impl Cloud {
    pub(crate) fn scheme(self) -> &'static str {
        match self {
            Cloud::S3 => "s3",
            Cloud::Gcs => "gs",
            Cloud::Azure => "az",
        }
    }
}

/// A place in an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Bucket {
        cloud: Cloud,
        bucket: String,
        key: String,
    },
    /// `server` is scheme, host and port; `path` is percent-encoded and has no slash at either end.
    Web {
        server: String,
        path: String,
    },
    File(PathBuf),
    Hub(HubPlace),
}

/// A place in a repository of a Hugging Face hub; `path` is empty for the repository itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubPlace {
    pub repo: String,
    pub revision: String,
    pub path: String,
}

impl HubPlace {
    /// The same place at a commit, which never moves.
    pub(crate) fn at(&self, commit: &str) -> HubPlace {
        HubPlace { revision: commit.to_owned(), ..self.clone() }
    }
}

impl Address {
    /// Parses a URL or a plain path. Touches the disk only for a relative path or one with `..`.
    pub(crate) fn parse(text: &str) -> Result<Address> {
        // A scheme has no slash; a path may well hold "://" further on.
        let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| !scheme.contains('/')) else {
            return local(Path::new(text));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "s3" => bucket(Cloud::S3, rest, text),
            "gs" => bucket(Cloud::Gcs, rest, text),
            "az" => bucket(Cloud::Azure, rest, text),
            "http" | "https" => web(text),
            "file" => file_url(text),
            "hf" => hub(rest, text),
            _ => Err(invalid(text, format!("has a scheme that is not known: use {SCHEMES}"))),
        }
    }

    /// The address of a file `name` below this one.
    pub(crate) fn child(&self, name: &str) -> Address {
        match self {
            Address::Bucket { cloud, bucket, key } => {
                Address::Bucket { cloud: *cloud, bucket: bucket.clone(), key: names::join(key, name) }
            }
            Address::Web { server, path } => {
                let name = utf8_percent_encode(name, PATH).to_string();
                Address::Web { server: server.clone(), path: names::join(path, &name) }
            }
            Address::File(path) => Address::File(path.join(name)),
            Address::Hub(place) => Address::Hub(HubPlace { path: names::join(&place.path, name), ..place.clone() }),
        }
    }

    /// The last part, decoded: the name of a model that is a single file.
    pub(crate) fn base_name(&self) -> String {
        match self {
            Address::Bucket { key, .. } => names::base_of(key).to_owned(),
            Address::Web { path, .. } => percent_decode_str(names::base_of(path)).decode_utf8_lossy().into_owned(),
            Address::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Address::Hub(place) => names::base_of(&place.path).to_owned(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Bucket { cloud, bucket, key } if key.is_empty() => write!(f, "{}://{bucket}", cloud.scheme()),
            Address::Bucket { cloud, bucket, key } => {
                write!(f, "{}://{bucket}/{}", cloud.scheme(), escape(key))
            }
            Address::Web { server, path } if path.is_empty() => f.write_str(server),
            Address::Web { server, path } => write!(f, "{server}/{path}"),
            Address::File(path) => match Url::from_file_path(path) {
                Ok(url) => f.write_str(url.as_str()),
                Err(()) => write!(f, "file://{}", path.display()),
            },
            Address::Hub(place) => {
                write!(f, "hf://{}@{}", place.repo, place.revision.replace('/', "%2F"))?;
                if place.path.is_empty() { Ok(()) } else { write!(f, "/{}", escape(&place.path)) }
            }
        }
    }
}

fn invalid(text: &str, reason: impl fmt::Display) -> Error {
    Error::new(Code::InvalidArgument, format!("URL {:?} {reason}", redact_url(text)))
}

/// Refuses what would be lost or printed: credentials, queries, fragments.
fn refuse_query(rest: &str, text: &str) -> Result<()> {
    if rest.contains(['?', '#']) {
        return Err(invalid(
            text,
            "has a query string or fragment ('?' or '#'), which is not kept: give the plain URL, and credentials by \
             environment variables; a '?' or '#' that belongs to a name is written %3F or %23",
        ));
    }
    Ok(())
}

fn bucket(cloud: Cloud, rest: &str, text: &str) -> Result<Address> {
    refuse_query(rest, text)?;
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '$');
    if bucket.is_empty() || !bucket.chars().all(valid) {
        let form = format!("names no valid bucket: the form is {}://bucket/key, without credentials", cloud.scheme());
        return Err(invalid(text, form));
    }
    let key = unescape(key.trim_end_matches('/'));
    if !key.is_empty() {
        names::check_relative(&key, &format!("the URL {}", redact_url(text)))?;
    }
    Ok(Address::Bucket { cloud, bucket: bucket.to_owned(), key })
}

fn web(text: &str) -> Result<Address> {
    let url = Url::parse(text).map_err(|error| invalid(text, format!("is not valid: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid(text, "holds a user name or password, which would be printed and sent on: leave them out"));
    }
    refuse_query(&url[url::Position::AfterPath..], text)?;
    if url.path().contains("//") {
        return Err(invalid(text, "has an empty part in its path"));
    }
    let server = url[..url::Position::BeforePath].to_owned();
    Ok(Address::Web { server, path: url.path().trim_matches('/').to_owned() })
}

fn file_url(text: &str) -> Result<Address> {
    refuse_query(text, text)?;
    let url = Url::parse(text).map_err(|error| invalid(text, format!("is not valid: {error}")))?;
    let path = url
        .to_file_path()
        .map_err(|()| invalid(text, "names another host: a file URL has the form file:///absolute/path"))?;
    local(&path)
}

fn local(path: &Path) -> Result<Address> {
    if path.as_os_str().is_empty() {
        return Err(Error::new(Code::InvalidArgument, format!("the URL is empty: use {SCHEMES}")));
    }
    let absolute = if path.components().any(|part| part == Component::ParentDir) {
        // `..` behind a symbolic link depends on where the link leads, so the disk has to say.
        path.canonicalize()
    } else {
        std::path::absolute(path)
    };
    let absolute = absolute.map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound { Code::NotFound } else { Code::InvalidArgument };
        Error::new(code, format!("path {} cannot be made absolute: {error}", path.display()))
    })?;
    // Collecting the components drops a trailing slash, which would otherwise make a second name for the same thing.
    Ok(Address::File(absolute.components().collect()))
}

/// `org/name[@revision][/path]`. A revision with slashes is written `refs%2Fpr%2F1`; `refs/pr/N` and
/// `refs/convert/NAME` are understood as well, as `huggingface_hub` does.
fn hub(rest: &str, text: &str) -> Result<Address> {
    refuse_query(rest, text)?;
    let rest = rest.trim_end_matches('/');
    let mut parts = rest.splitn(3, '/');
    let org = parts.next().unwrap_or_default();
    let name = parts.next().unwrap_or_default();
    let mut path = parts.next().unwrap_or_default().to_owned();
    if matches!(org, "datasets" | "spaces") {
        return Err(Error::new(
            Code::Unsupported,
            format!(
                "URL {text:?} names a {}: only models are supported, as hf://org/name@revision",
                &org[..org.len() - 1]
            ),
        ));
    }
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    let mut revision = percent_decode_str(revision).decode_utf8_lossy().into_owned();
    if revision == "refs" {
        let mut parts = path.splitn(3, '/');
        if let (Some(kind @ ("pr" | "convert")), Some(id)) = (parts.next(), parts.next()) {
            revision = format!("refs/{kind}/{id}");
            path = parts.next().unwrap_or_default().to_owned();
        }
    }
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    if !plain(org) || !plain(name) || !revision.split('/').all(plain) {
        return Err(invalid(
            text,
            "is not of the form hf://org/name, hf://org/name@revision or hf://org/name@revision/file",
        ));
    }
    let path = unescape(&path);
    if !path.is_empty() {
        names::check_relative(&path, &format!("the URL {text}"))?;
    }
    Ok(Address::Hub(HubPlace { repo: format!("{org}/{name}"), revision, path }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Result<String> {
        Address::parse(text).map(|address| address.to_string())
    }

    #[test]
    fn canonical_urls() {
        for (text, expected) in [
            ("s3://bucket/a/b c%20.bin", "s3://bucket/a/b c%20.bin"),
            ("s3://bucket/a/", "s3://bucket/a"),
            ("S3://bucket", "s3://bucket"),
            ("s3://bucket/a%3fb%23c", "s3://bucket/a%3Fb%23c"),
            ("s3://bucket/100%25%2525", "s3://bucket/100%%2525"),
            ("gs://bucket/x", "gs://bucket/x"),
            ("az://container/x/y", "az://container/x/y"),
            ("http://Host:80/a/b/", "http://host/a/b"),
            ("https://host:8443/a b", "https://host:8443/a%20b"),
            ("https://host", "https://host"),
            ("/tmp/a b/", "file:///tmp/a%20b"),
            ("/tmp/a?b#c%", "file:///tmp/a%3Fb%23c%25"),
            ("/tmp/x:/y://z", "file:///tmp/x:/y:/z"),
            ("file:///tmp/x%20y/", "file:///tmp/x%20y"),
            ("hf://org/name", "hf://org/name@main"),
            ("hf://org/name@v1/sub/model.safetensors", "hf://org/name@v1/sub/model.safetensors"),
            ("hf://org/name@v1/a%23b", "hf://org/name@v1/a%23b"),
            ("hf://org/name@refs/pr/3/x", "hf://org/name@refs%2Fpr%2F3/x"),
            ("hf://org/name@refs%2Fpr%2F3", "hf://org/name@refs%2Fpr%2F3"),
        ] {
            let url = canonical(text).unwrap();
            assert_eq!(url, expected);
            assert_eq!(canonical(&url).unwrap(), url, "a canonical URL stays what it is");
        }
    }

    #[test]
    fn relative_paths_become_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(Address::parse("x/y").unwrap(), Address::File(here.join("x/y")));
        assert_eq!(Address::parse("./src/../src").unwrap(), Address::File(here.canonicalize().unwrap().join("src")));
    }

    #[test]
    fn what_is_refused_says_why_and_holds_no_secret() {
        for (text, code, words) in [
            ("ftp://host/x", Code::InvalidArgument, "s3://bucket/key"),
            ("", Code::InvalidArgument, "empty"),
            ("s3://", Code::InvalidArgument, "bucket"),
            ("s3://key:geheim@bucket/x", Code::InvalidArgument, "credentials"),
            ("s3://bucket/a?X-Signature=geheim", Code::InvalidArgument, "query"),
            ("s3://bucket/a?b", Code::InvalidArgument, "written %3F"),
            ("hf://org/name/a#b", Code::InvalidArgument, "%23"),
            ("s3://bucket/../x", Code::InvalidArgument, "plain relative path"),
            ("s3://bucket/a//b", Code::InvalidArgument, "plain relative path"),
            ("https://me:geheim@host/x", Code::InvalidArgument, "password"),
            ("https://host/x?sig=geheim", Code::InvalidArgument, "query"),
            ("file://other/x", Code::InvalidArgument, "host"),
            ("hf://datasets/org/name", Code::Unsupported, "dataset"),
            ("hf://name", Code::InvalidArgument, "hf://org/name"),
            ("hf://org/name@a/../b", Code::InvalidArgument, "plain relative path"),
            ("hf://org/na me", Code::InvalidArgument, "hf://org/name"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert_eq!(error.code(), code, "{text}: {error}");
            assert!(error.message().contains(words), "{text}: {error}");
            assert!(!error.message().contains("geheim"), "{error}");
        }
    }

    #[test]
    fn children_and_names() {
        let child = |url: &str, name: &str| Address::parse(url).unwrap().child(name);
        assert_eq!(child("s3://b", "x/y").to_string(), "s3://b/x/y");
        assert_eq!(child("https://h/m", "a b%.bin").to_string(), "https://h/m/a%20b%25.bin");
        assert_eq!(child("https://h/m", "a b%.bin").base_name(), "a b%.bin");
        assert_eq!(child("/m", "a b.bin").to_string(), "file:///m/a%20b.bin");
        assert_eq!(child("hf://o/n", "x.bin").to_string(), "hf://o/n@main/x.bin");
    }
}
