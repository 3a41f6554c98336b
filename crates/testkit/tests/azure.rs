//! The fake origin in the words of Azure.

#![allow(clippy::unwrap_used)]

mod support;

use futures::{StreamExt, TryStreamExt};
use longshore_testkit::origin::Verb;
use longshore_testkit::{Content, FakeOrigin, Fault, FaultKind, OriginConfig};
use object_store::path::Path;
use object_store::{GetOptions, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};
use support::{MIB, azure};

fn start(page_size: usize) -> FakeOrigin {
    let origin = FakeOrigin::with(OriginConfig { page_size, ..OriginConfig::default() });
    origin.create_bucket("bucket");
    origin
}

#[tokio::test]
async fn blobs_are_written_on_conditions_and_read() {
    let origin = start(1000);
    let (store, path) = (azure(&origin), Path::from("run/a b&c"));
    let put = async |mode, text: &'static [u8]| {
        store.put_opts(&path, text.to_vec().into(), PutOptions { mode, ..PutOptions::default() }).await
    };
    let one = put(PutMode::Create, b"one").await.unwrap();
    let error = put(PutMode::Create, b"two").await.unwrap_err();
    assert!(matches!(error, object_store::Error::AlreadyExists { .. }), "{error}");
    let wrong = UpdateVersion { e_tag: Some("\"no\"".to_owned()), version: None };
    let error = put(PutMode::Update(wrong), b"x").await.unwrap_err();
    assert!(matches!(error, object_store::Error::Precondition { .. }), "{error}");
    let two = put(PutMode::Update(one.clone().into()), b"one").await.unwrap();
    assert_ne!(one.e_tag, two.e_tag, "another version of the same bytes");
    let old = GetOptions { if_match: one.e_tag, ..GetOptions::default() };
    assert!(matches!(store.get_opts(&path, old).await, Err(object_store::Error::Precondition { .. })));
    assert_eq!(store.get_range(&path, 1..3).await.unwrap().to_vec(), b"ne");
    assert_eq!(store.head(&path).await.unwrap().size, 3);
    let error = store.get(&Path::from("none")).await.unwrap_err();
    assert!(matches!(error, object_store::Error::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn blocks_become_a_blob() {
    let origin = start(1000);
    let store = azure(&origin);
    let content = Content::generated(7, 3 * MIB + 5);
    let mut upload = store.put_multipart(&Path::from("big file")).await.unwrap();
    let ends = [MIB, 2 * MIB, content.len_bytes()];
    for (start, end) in std::iter::once(0).chain(ends).zip(ends) {
        upload.put_part(content.read(start..end).into()).await.unwrap();
    }
    assert_eq!(origin.uploads()[0].parts.values().sum::<u64>(), content.len_bytes());
    assert!(origin.content("bucket/big file").is_none());
    upload.complete().await.unwrap();
    assert!(origin.uploads().is_empty());
    assert!(content.equals(&store.get(&Path::from("big file")).await.unwrap().bytes().await.unwrap()));
    let error = upload.complete().await.unwrap_err();
    assert!(!error.to_string().is_empty(), "the list is used up");
    let counters = origin.counters();
    let numbers: Vec<u32> = counters.keys["bucket/big file"].parts.keys().copied().collect();
    assert_eq!((numbers, counters.parts_again("*")), (vec![1, 2, 3], 0));
}

#[tokio::test]
async fn blobs_are_listed_in_pages_and_folders() {
    let origin = start(2);
    let store = azure(&origin);
    for name in ["run/a", "run/sub/x", "run/sub/y", "run/z", "other"] {
        store.put(&Path::from(name), b"x".to_vec().into()).await.unwrap();
    }
    let listed: Vec<_> = store.list(Some(&Path::from("run"))).try_collect().await.unwrap();
    let names: Vec<_> = listed.iter().map(|meta| meta.location.to_string()).collect();
    assert_eq!(names, ["run/a", "run/sub/x", "run/sub/y", "run/z"]);
    let etag = store.head(&Path::from("run/a")).await.unwrap().e_tag.unwrap();
    assert_eq!(listed[0].e_tag.as_deref(), Some(etag.trim_matches('"')));
    let folders = store.list_with_delimiter(Some(&Path::from("run"))).await.unwrap();
    assert_eq!(folders.common_prefixes, [Path::from("run/sub")]);
    assert_eq!(folders.objects.len(), 2);
    let behind: Vec<_> =
        store.list_with_offset(Some(&Path::from("run")), &Path::from("run/sub/x")).try_collect().await.unwrap();
    assert_eq!(behind.len(), 2);
}

#[tokio::test]
async fn batches_delete_and_tell_what_was_not_there() {
    let origin = start(1000);
    let store = azure(&origin);
    for name in ["a", "b c", "d"] {
        origin.put(&format!("bucket/{name}"), b"x".to_vec());
    }
    origin.fault(Fault::new(FaultKind::Status(503)).verb(Verb::Delete).on("bucket/d").times(1));
    let paths = ["a", "b c", "none", "d"].map(|name| Ok(Path::from(name)));
    let done: Vec<_> = store.delete_stream(futures::stream::iter(paths).boxed()).collect().await;
    assert!(done[0].is_ok() && done[1].is_ok());
    assert!(matches!(done[2], Err(object_store::Error::NotFound { .. })), "{:?}", done[2]);
    assert!(done[3].as_ref().unwrap_err().to_string().contains("503"), "{:?}", done[3]);
    assert_eq!(origin.paths("bucket/"), ["bucket/d"]);
}

#[tokio::test]
async fn faults_speak_its_words() {
    let origin = start(1000);
    let (store, path) = (azure(&origin), Path::from("k"));
    let put = async || store.put(&path, b"x".to_vec().into()).await;
    origin.fault(Fault::new(FaultKind::Status(503)).verb(Verb::Put).times(1));
    let error = put().await.unwrap_err();
    assert!(error.to_string().contains("ServerBusy"), "{error}");
    origin.fault(Fault::new(FaultKind::ReplyLost).verb(Verb::Put).times(1));
    assert!(put().await.is_err());
    assert!(origin.content("bucket/k").is_some());
    for verb in [Verb::UploadPart, Verb::CompleteUpload] {
        origin.fault(Fault::new(FaultKind::Status(500)).verb(verb).times(1));
        let mut upload = store.put_multipart(&Path::from("big")).await.unwrap();
        let part = upload.put_part(b"x".to_vec().into()).await;
        assert!(part.is_err() || upload.complete().await.is_err(), "{verb:?}");
    }
    assert!(origin.content("bucket/big").is_none());
    // The environment that leads there.
    let env = origin.azure_env();
    assert!(env.contains(&("AZURE_STORAGE_ENDPOINT".to_owned(), origin.url())));
    let mut builder = object_store::azure::MicrosoftAzureBuilder::new().with_container_name("bucket");
    for (name, value) in env {
        builder = builder.with_config(name.to_lowercase().parse().unwrap(), value);
    }
    builder.build().unwrap().head(&path).await.unwrap();
}
