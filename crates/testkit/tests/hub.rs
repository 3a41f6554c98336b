//! The hub's routes, as a client sees them.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;

use longshore_testkit::modelgen::ModelSpec;
use longshore_testkit::{Dialect, FakeOrigin, OriginConfig};
use serde_json::Value;

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

fn ask(method: &str, url: &str, headers: &str) -> Answer {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(stream, "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let cut = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..cut].to_vec()).unwrap();
    Answer { status: head[9..12].parse().unwrap(), head, body: bytes[cut + 4..].to_vec() }
}

fn hub(redirects_large_files: bool, token: Option<&str>) -> FakeOrigin {
    let origin = FakeOrigin::with(OriginConfig {
        dialect: Dialect::Hub,
        token: token.map(str::to_owned),
        redirects_large_files,
        page_size: 2,
        ..OriginConfig::default()
    });
    ModelSpec::small(1).shards(2).build().put_into(&origin, "org/name");
    origin.put("org/name/sub/vocab.txt", b"words".to_vec());
    origin
}

#[test]
fn resolves_lists_in_pages_and_serves() {
    let origin = hub(false, None);
    let info = ask("GET", &format!("{}/api/models/org/name/revision/main", origin.url()), "").json();
    let sha = info["sha"].as_str().unwrap();
    assert_eq!(Some(sha), origin.hub_commit("org/name").as_deref());

    let mut next = Some(format!("{}/api/models/org/name/tree/{sha}?recursive=true&expand=false", origin.url()));
    let mut paths = Vec::new();
    while let Some(url) = next {
        let page = ask("GET", &url, "");
        paths.extend(page.json().as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap().to_owned()));
        next = page.header("link").map(|link| link[1..link.find('>').unwrap()].to_owned());
    }
    let model = ModelSpec::small(1).shards(2).build();
    let mut wanted: Vec<String> = model.files.iter().map(|(name, _)| name.clone()).collect();
    wanted.extend(["sub".to_owned(), "sub/vocab.txt".to_owned()]);
    wanted.sort();
    assert_eq!(paths, wanted);

    let (name, content) = model.files.iter().find(|(name, _)| name.ends_with("1-of-00002.safetensors")).unwrap();
    let url = format!("{}/org/name/resolve/{sha}/{name}", origin.url());
    let head = ask("HEAD", &url, "");
    assert_eq!(head.header("x-repo-commit"), Some(sha));
    assert_eq!(head.header("etag"), Some(&*format!("\"{}\"", content.sha256())));
    assert_eq!(head.header("content-length"), Some(&*content.len_bytes().to_string()));
    assert!(content.equals(&ask("GET", &url, "").body));
    assert_eq!(ask("GET", &url, "Range: bytes=5-9\r\n").body, content.read(5..10));

    origin.put(&format!("org/name/{name}"), b"changed".to_vec());
    assert_ne!(origin.hub_commit("org/name").as_deref(), Some(sha), "main moves");
    assert!(content.equals(&ask("GET", &url, "").body), "the commit stays");
    for (path, code) in [
        ("api/models/org/none/revision/main", "RepoNotFound"),
        ("api/models/org/name/revision/v9", "RevisionNotFound"),
        ("org/name/resolve/main/none.txt", "EntryNotFound"),
    ] {
        assert_eq!(ask("GET", &format!("{}/{path}", origin.url()), "").header("x-error-code"), Some(code));
    }
}

#[test]
fn redirects_and_wants_its_token_but_not_there() {
    let origin = hub(true, Some("hf_x"));
    let url = format!("{}/org/name/resolve/main/model-00001-of-00002.safetensors", origin.url());
    assert_eq!(ask("GET", &url, "").status, 401);
    let redirect = ask("GET", &url, "Authorization: Bearer hf_x\r\n");
    assert_eq!(redirect.status, 302);
    assert!(redirect.header("x-linked-etag").is_some() && redirect.header("x-linked-size").is_some());
    let target = redirect.header("location").unwrap();
    assert_eq!(ask("GET", target, "").status, 200);
    assert!(!origin.token_leaked());
    assert_eq!(ask("GET", target, "Authorization: Bearer hf_x\r\n").status, 400);
    assert!(origin.token_leaked());
    assert_eq!(ask("GET", &url.replace("model-00001-of-00002.safetensors", "config.json"), "").status, 401);
}
