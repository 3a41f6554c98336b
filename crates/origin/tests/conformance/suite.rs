//! What every origin must do.

use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use longshore_types::{Artifact, Code, Error, Result, names};
use tokio_util::sync::CancellationToken;

use crate::prepared::Prepared;

/// Bytes that differ from place to place and from seed to seed.
pub fn bytes_of(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[6] ^ seed).collect()
}

/// Reads in both ways, which must agree.
async fn read(prepared: &Prepared, artifact: &Arc<Artifact>, range: Range<u64>) -> Result<Vec<u8>> {
    let pieces = prepared.origins.read(artifact, range.clone()).try_collect::<Vec<_>>().await;
    let (origins, artifact, runtime) = (prepared.origins.clone(), artifact.clone(), tokio::runtime::Handle::current());
    let work = move || {
        let mut bytes = vec![0; range.end.saturating_sub(range.start).min(1 << 30) as usize];
        let read = origins.read_into(&artifact, range, &mut &mut bytes[..], &runtime, &CancellationToken::new());
        read.map(|()| bytes)
    };
    let straight = tokio::task::spawn_blocking(work).await.unwrap();
    match (pieces, straight) {
        (Ok(pieces), Ok(straight)) => {
            assert!(pieces.concat() == straight, "the two ways of reading differ");
            Ok(straight)
        }
        (Err(streamed), Err(straight)) => {
            assert_eq!(streamed.code(), straight.code(), "{streamed} | {straight}");
            Err(straight)
        }
        (streamed, straight) => panic!("{:?} | {:?}", streamed.map(|_| ()), straight.map(|_| ())),
    }
}

async fn read_all(prepared: &Prepared, artifact: &Arc<Artifact>) -> Result<Vec<u8>> {
    read(prepared, artifact, 0..artifact.size_bytes()).await
}

async fn stat(prepared: &Prepared, name: &str) -> Result<Arc<Artifact>> {
    prepared.origins.stat(&prepared.url(name)).await.map(Arc::new)
}

pub fn assert_names(error: &Error, code: Code, words: &[&str]) {
    assert_eq!(error.code(), code, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word:?} is missing in: {error}");
    }
    assert!(!error.message().contains("geheim"), "a secret is in: {error}");
}

pub async fn folder_is_resolved(prepared: &Prepared) {
    let files = [("config.json", 12), ("model.safetensors", 70_000), ("sub/deep/er.bin", 3), ("sub/x", 1)];
    for (seed, (name, len)) in files.into_iter().enumerate() {
        prepared.put(&format!("model/{name}"), &bytes_of(seed as u8, len)).await;
    }
    // The name of a folder is not a prefix of text.
    prepared.put("model2/other.bin", b"other").await;
    let url = prepared.url("model");
    if !prepared.capabilities.lists {
        let error = prepared.origins.resolve(&url).await.unwrap_err();
        return assert_names(&error, Code::Unsupported, &[&url, "cannot list", "one file"]);
    }
    let before = prepared.origins.stats();
    let resolved = prepared.origins.resolve(&format!("{url}/")).await.unwrap();
    let after = prepared.origins.stats();
    assert_eq!(resolved.url, url);
    assert_eq!(resolved.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), files.map(|(name, _)| name));
    if prepared.capabilities.listing_has_versions {
        assert_eq!(after.requests - before.requests, prepared.capabilities.requests_of_folder, "listings only");
    }
    for (seed, (file, (name, len))) in resolved.files.iter().zip(files).enumerate() {
        assert_eq!(file.artifact.size_bytes(), len as u64);
        assert_eq!(read_all(prepared, &file.artifact).await.unwrap(), bytes_of(seed as u8, len), "{name}");
        assert_eq!(prepared.origins.stat(file.artifact.url()).await.unwrap(), *file.artifact);
    }
}

pub async fn single_file_is_resolved(prepared: &Prepared) {
    prepared.put("dir/one.gguf", b"GGUF").await;
    prepared.put("dir/README", b"read me").await;
    for (name, content) in [("one.gguf", &b"GGUF"[..]), ("README", b"read me")] {
        let url = prepared.url(&format!("dir/{name}"));
        let resolved = prepared.origins.resolve(&url).await.unwrap();
        assert_eq!(resolved.url, url);
        assert_eq!(resolved.files.len(), 1);
        assert_eq!(resolved.files[0].name, name);
        let commit = format!("@{}/", resolved.files[0].artifact.version().as_str()[4..].split('/').next().unwrap());
        let wanted = match prepared.capabilities.urls_carry_commits {
            true => url.replace("@main/", &commit),
            false => url,
        };
        assert_eq!(resolved.files[0].artifact.url(), wanted);
        assert_eq!(read_all(prepared, &resolved.files[0].artifact).await.unwrap(), content);
    }
}

pub async fn ranges_are_exact(prepared: &Prepared) {
    let len = (3 << 20) + 17;
    let content = bytes_of(5, len);
    prepared.put("ranges/a.bin", &content).await;
    let artifact = stat(prepared, "ranges/a.bin").await.unwrap();
    let end = len as u64;
    for range in [0..0, 0..1, 0..end, 1..end, end - 1..end, end..end, 5..(1 << 20) + 9, (1 << 20)..(2 << 20)] {
        let expected = &content[range.start as usize..range.end as usize];
        let got = read(prepared, &artifact, range.clone()).await.unwrap();
        assert!(got == expected, "bytes {range:?} differ");
    }
    for range in [0..end + 1, end + 1..end + 2] {
        assert_names(&read(prepared, &artifact, range).await.unwrap_err(), Code::InvalidArgument, &["a.bin"]);
    }
}

pub async fn empty_object_is_read(prepared: &Prepared) {
    prepared.put("empty/nothing.bin", b"").await;
    prepared.put("empty/something.bin", b"x").await;
    let artifact = stat(prepared, "empty/nothing.bin").await.unwrap();
    assert_eq!(artifact.size_bytes(), 0);
    assert!(read_all(prepared, &artifact).await.unwrap().is_empty());
    if prepared.capabilities.lists {
        let resolved = prepared.origins.resolve(&prepared.url("empty")).await.unwrap();
        assert_eq!(resolved.files.len(), 2);
    }
}

pub async fn changed_object_is_noticed(prepared: &Prepared) {
    let old = bytes_of(1, 100_000);
    // Another size; and the same size, which only a version tells.
    for (i, new) in [bytes_of(2, 100_001), bytes_of(3, 100_000)].into_iter().enumerate() {
        if i == 1 && !prepared.capabilities.versions_are_exact {
            continue;
        }
        let name = format!("changed/{i}.bin");
        prepared.put(&name, &old).await;
        let before = stat(prepared, &name).await.unwrap();
        prepared.put(&name, &new).await;
        for range in [0..100_000, 7..50_000] {
            let read = read(prepared, &before, range.clone()).await;
            if prepared.capabilities.keeps_versions {
                assert!(read.unwrap() == old[range.start as usize..range.end as usize]);
                continue;
            }
            let error = read.unwrap_err();
            assert_names(&error, Code::FailedPrecondition, &[before.url(), before.version().as_str(), "resolve"]);
            if prepared.capabilities.versions_are_exact {
                let now = stat(prepared, &name).await.unwrap();
                assert_names(&error, Code::FailedPrecondition, &[now.version().as_str()]);
            }
        }
        let after = stat(prepared, &name).await.unwrap();
        assert!(read_all(prepared, &after).await.unwrap() == new);
    }
}

pub async fn deleted_object_is_noticed(prepared: &Prepared) {
    prepared.put("deleted/a.bin", &bytes_of(1, 1000)).await;
    prepared.put("deleted/b.bin", b"stays").await;
    let artifact = stat(prepared, "deleted/a.bin").await.unwrap();
    prepared.remove("deleted/a.bin").await;
    let read = read(prepared, &artifact, 10..20).await;
    if prepared.capabilities.keeps_versions {
        return assert_eq!(read.unwrap(), bytes_of(1, 1000)[10..20]);
    }
    assert_names(&read.unwrap_err(), Code::NotFound, &["deleted/a.bin"]);
}

pub async fn what_is_missing_is_named(prepared: &Prepared) {
    prepared.put("there/a.bin", b"x").await;
    let error = stat(prepared, "there/b.bin").await.unwrap_err();
    assert_names(&error, Code::NotFound, &["there/b.bin"]);
    // A folder is not an object.
    if prepared.capabilities.folder_is_no_object {
        assert_eq!(stat(prepared, "there").await.unwrap_err().code(), Code::NotFound);
    }
    if prepared.capabilities.lists {
        for name in ["nowhere", "nowhere.safetensors"] {
            let error = prepared.origins.resolve(&prepared.url(name)).await.unwrap_err();
            assert_names(&error, Code::NotFound, &[name]);
        }
    }
}

pub async fn revision_follows_the_files(prepared: &Prepared) {
    if !prepared.capabilities.lists {
        return;
    }
    prepared.put("rev/a.json", b"{}").await;
    prepared.put("rev/b.json", b"[]").await;
    let url = prepared.url("rev");
    let first = prepared.origins.resolve(&url).await.unwrap();
    assert_eq!(prepared.origins.resolve(&url).await.unwrap(), first, "nothing changed");
    prepared.put("rev/b.json", b"[1]").await;
    let second = prepared.origins.resolve(&url).await.unwrap();
    assert_ne!(second.revision, first.revision);
    prepared.put("rev/c.json", b"0").await;
    let third = prepared.origins.resolve(&url).await.unwrap();
    assert!(third.revision != second.revision && third.files.len() == 3);
}

pub async fn long_listing_is_paged(prepared: &Prepared) {
    let page_size = prepared.capabilities.page_size;
    if !prepared.capabilities.lists || page_size == usize::MAX {
        return;
    }
    let count = page_size + 3;
    let names: Vec<String> = (0..count).map(|i| format!("{i:05}")).collect();
    futures::stream::iter(&names)
        .for_each_concurrent(8, |name| async move { prepared.put(&format!("many/{name}"), b"x").await })
        .await;
    let before = prepared.origins.stats();
    let resolved = prepared.origins.resolve(&prepared.url("many")).await.unwrap();
    let pages = prepared.origins.stats().list_requests - before.list_requests;
    assert_eq!(resolved.files.iter().map(|file| &file.name).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
    assert!(pages >= 2, "{count} files came in {pages} page(s) of {page_size}");
}

pub async fn odd_names_survive(prepared: &Prepared) {
    if !prepared.capabilities.odd_names {
        return;
    }
    let mut odd = [
        "a b.bin",
        "c%20d.bin",
        "e+f&g.bin",
        "hé日.bin",
        "~i=j;k'l(m).bin",
        "why?.bin",
        "no#1.bin",
        "%3F%23%25?#%.bin",
        "sub?/deep#/x",
    ];
    for name in odd {
        prepared.put(&format!("odd/{name}"), name.as_bytes()).await;
    }
    if !prepared.capabilities.lists {
        return;
    }
    odd.sort_unstable();
    let resolved = prepared.origins.resolve(&prepared.url("odd")).await.unwrap();
    assert_eq!(resolved.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), odd);
    for file in &resolved.files {
        assert_eq!(read_all(prepared, &file.artifact).await.unwrap(), file.name.as_bytes(), "{}", file.name);
        let again = prepared.origins.resolve(file.artifact.url()).await.unwrap();
        assert_eq!(again.files[0].name, names::base_of(&file.name));
        assert_eq!(again.files[0].artifact, file.artifact);
    }
}

pub async fn folder_markers_are_left_out(prepared: &Prepared) {
    if !prepared.capabilities.folder_markers {
        return;
    }
    for (name, content) in [("marked/", ""), ("marked/sub/", ""), ("marked/sub/a.bin", "a"), ("marked/empty", "")] {
        prepared.put(name, content.as_bytes()).await;
    }
    let resolved = prepared.origins.resolve(&prepared.url("marked")).await.unwrap();
    assert_eq!(resolved.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["empty", "sub/a.bin"]);
}

pub async fn parallel_reads_agree(prepared: &Prepared) {
    let content = Arc::new(bytes_of(9, 4 << 20));
    prepared.put("parallel/a.bin", &content).await;
    let artifact = stat(prepared, "parallel/a.bin").await.unwrap();
    let reads = (0..32u64).map(|i| {
        let (artifact, content) = (artifact.clone(), content.clone());
        async move {
            let range = i * 100_000..(i + 1) * 100_000 + 3;
            let expected = &content[range.start as usize..range.end as usize];
            assert!(read(prepared, &artifact, range).await.unwrap() == expected, "read {i} differs");
        }
    });
    futures::stream::iter(reads).for_each_concurrent(16, |read| read).await;
}
