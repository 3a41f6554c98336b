//! Google keeps a CRC-32C over each object, and we know the CRC-64: what went through one process, or all parts of it,
//! is verified without reading it back. The CRC-32C here is worked out by another way than ours, by a server of a few lines.

// A helper of a test may fail it as the test itself may.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use longshore_origin::{OriginOptions, Origins, PutHow, Verified};
use longshore_types::BlockChecksum;

/// CRC-32C by the book, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

fn hash_of(bytes: &[u8]) -> String {
    use base64::Engine;
    format!("crc32c={}", base64::prelude::BASE64_STANDARD.encode(crc32c(bytes).to_be_bytes()))
}

#[derive(Default)]
struct Store {
    objects: HashMap<String, Vec<u8>>,
    parts: HashMap<u32, Vec<u8>>,
    /// The `x-goog-hash` of everything that came with a body.
    hashes: Vec<String>,
}

struct Request {
    method: String,
    path: String,
    query: String,
    hash: String,
    body: Vec<u8>,
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut len, mut hash) = (0, String::new());
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => len = value.parse().ok()?,
            "x-goog-hash" => hash = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Request { method, path: path.to_owned(), query: query.to_owned(), hash, body })
}

fn answer(store: &mut Store, request: Request) -> (String, String) {
    let number = request.query.split('&').find_map(|pair| pair.strip_prefix("partNumber=")?.parse().ok());
    match (request.method.as_str(), request.query.as_str(), number) {
        ("POST", "uploads=", _) => ("".to_owned(), "<I><UploadId>u</UploadId></I>".to_owned()),
        ("PUT", _, Some(number)) => {
            store.parts.insert(number, request.body);
            store.hashes.push(request.hash);
            ("ETag: \"p\"\r\n".to_owned(), String::new())
        }
        ("POST", _, _) => {
            let mut parts: Vec<_> = store.parts.drain().collect();
            parts.sort_unstable();
            store.objects.insert(request.path, parts.into_iter().flat_map(|(_, bytes)| bytes).collect());
            ("x-goog-generation: 7\r\n".to_owned(), "<C><ETag>\"e\"</ETag></C>".to_owned())
        }
        ("PUT", _, None) => {
            store.hashes.push(request.hash);
            store.objects.insert(request.path, request.body);
            ("ETag: \"e\"\r\nx-goog-generation: 7\r\n".to_owned(), String::new())
        }
        _ => {
            let bytes = &store.objects[&request.path];
            let hash = hash_of(bytes);
            let head = format!(
                "ETag: \"e\"\r\nx-goog-generation: 7\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
                 x-goog-hash: {hash}\r\nx-goog-hash: md5=xx\r\n"
            );
            (head, String::from_utf8(bytes.clone()).unwrap())
        }
    }
}

fn serve(connection: TcpStream, store: &Mutex<Store>) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let mut connection = connection;
    while let Some(request) = read_request(&mut reader) {
        let is_head = request.method == "HEAD";
        let (head, body) = answer(&mut store.lock().unwrap(), request);
        let sent = if is_head { "" } else { body.as_str() };
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{head}\r\n{sent}", body.len());
        if connection.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

fn start() -> (Arc<Mutex<Store>>, OriginOptions) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let store = Arc::new(Mutex::new(Store::default()));
    let for_server = store.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let store = for_server.clone();
            std::thread::spawn(move || serve(connection.unwrap(), &store));
        }
    });
    (store, OriginOptions { gcs_endpoint: Some(url), gcs_skip_signature: true, ..OriginOptions::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_verified_by_the_checksum_that_google_keeps() {
    let (store, options) = start();
    let origins = Origins::new(options.clone()).unwrap();
    let (url, first, second) = ("gs://bucket/big", "a".repeat(600_000), "b".repeat(1234));
    let id = origins.upload_start(url).await.unwrap();
    let part = origins.upload_part(url, &id, 0, Bytes::from(first.clone())).await.unwrap();
    // The other part is sent by the process that goes on after a restart, which knows the first by its id alone.
    let origins = Origins::new(options.clone()).unwrap();
    let parts = [part, origins.upload_part(url, &id, 1, Bytes::from(second.clone())).await.unwrap()];
    assert_eq!(store.lock().unwrap().hashes, [hash_of(first.as_bytes()), hash_of(second.as_bytes())]);
    let version = origins.upload_complete(url, &id, &parts).await.unwrap().unwrap();
    assert_eq!(version.as_str(), "generation:7");
    let whole = first + &second;
    let checksum = BlockChecksum::of(whole.as_bytes());
    let verified = origins.verify(url, whole.len() as u64, checksum).await.unwrap();
    assert_eq!(verified, (Verified::ByStore, version.clone()));
    assert_eq!(origins.stats().read_requests, 0);

    // Who has not seen it reads it.
    let other = Origins::new(options).unwrap();
    assert_eq!(other.verify(url, whole.len() as u64, checksum).await.unwrap(), (Verified::ReadBack, version));

    // What Google keeps is not what was sent: the bytes are read, and are not those.
    let damaged = whole.replacen('a', "c", 1);
    store.lock().unwrap().objects.insert("/bucket/big".to_owned(), damaged.into_bytes());
    let error = origins.verify(url, whole.len() as u64, checksum).await.unwrap_err();
    assert!(error.message().contains("damaged"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_object_is_verified_in_the_same_way() {
    let (store, options) = start();
    let origins = Origins::new(options).unwrap();
    origins.put("gs://bucket/small", Bytes::from_static(b"123456789"), PutHow::Create).await.unwrap();
    assert_eq!(store.lock().unwrap().hashes, ["crc32c=4waSgw=="]);
    let checksum = BlockChecksum::of(b"123456789");
    let (how, _) = origins.verify("gs://bucket/small", 9, checksum).await.unwrap();
    assert_eq!(how, Verified::ByStore);
}
