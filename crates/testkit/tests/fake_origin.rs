//! The fake origin against the client library that the product uses, and against itself.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use longshore_testkit::origin::{Quirks, Verb};
use longshore_testkit::{Content, Dialect, FakeOrigin, Fault, FaultKind, OriginConfig};
use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
};

const MIB: u64 = 1 << 20;

fn no_retry() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn s3(origin: &FakeOrigin, id: &str, secret: &str) -> impl ObjectStore {
    AmazonS3Builder::new()
        .with_endpoint(origin.url())
        .with_allow_http(true)
        .with_bucket_name("bucket")
        .with_region("us-east-1")
        .with_access_key_id(id)
        .with_secret_access_key(secret)
        .with_retry(no_retry())
        .build()
        .unwrap()
}

fn gcs(origin: &FakeOrigin, token: Option<&str>) -> impl ObjectStore {
    let options = ClientOptions::new().with_allow_http(true);
    let builder = GoogleCloudStorageBuilder::new()
        .with_base_url(&origin.url())
        .with_bucket_name("bucket")
        .with_client_options(options)
        .with_retry(no_retry());
    match token {
        Some(token) => builder.with_bearer_token(token),
        None => builder.with_skip_signature(true),
    }
    .build()
    .unwrap()
}

fn http(origin: &FakeOrigin) -> impl ObjectStore {
    let options = ClientOptions::new().with_allow_http(true);
    HttpBuilder::new().with_url(origin.url()).with_client_options(options).with_retry(no_retry()).build().unwrap()
}

/// What every dialect must do through `store`, which sees the objects below `prefix`.
async fn conforms(origin: &FakeOrigin, store: &dyn ObjectStore, prefix: &str) {
    let content = Content::generated(5, 3 * MIB + 17);
    origin.put_content("bucket/model/a b+c&d.bin", content.clone());
    origin.put("bucket/model/sub/empty", Vec::new());
    origin.put("bucket/other", b"no".to_vec());
    let path = |name: &str| Path::from(format!("{prefix}{name}"));
    let file = path("model/a b+c&d.bin");

    let head = store.head(&file).await.unwrap();
    assert_eq!(head.size, content.len_bytes());
    let all = store.get(&file).await.unwrap().bytes().await.unwrap();
    assert!(content.equals(&all));
    let part = store.get_range(&file, MIB - 5..MIB + 5).await.unwrap();
    assert_eq!(part, content.read(MIB - 5..MIB + 5));
    assert_eq!(store.get(&path("model/sub/empty")).await.unwrap().bytes().await.unwrap().len(), 0);

    let same = GetOptions { if_match: head.e_tag.clone(), ..GetOptions::default() };
    let suffix = GetOptions { range: Some(GetRange::Suffix(10)), ..same.clone() };
    let tail = store.get_opts(&file, suffix).await.unwrap().bytes().await.unwrap();
    assert_eq!(tail, content.read(content.len_bytes() - 10..content.len_bytes()));
    origin.generate("bucket/model/a b+c&d.bin", 6, content.len_bytes());
    let changed = store.get_opts(&file, same).await.unwrap_err();
    assert!(matches!(changed, object_store::Error::Precondition { .. }), "{changed}");

    let listed: Vec<_> = store.list(Some(&path("model"))).try_collect().await.unwrap();
    let mut names: Vec<_> = listed.iter().map(|meta| meta.location.to_string()).collect();
    names.sort();
    assert_eq!(names, [file.to_string(), path("model/sub/empty").to_string()]);
    assert!(listed.iter().all(|meta| meta.e_tag.is_some()));
    let missing = store.get(&path("nothing")).await.unwrap_err();
    assert!(matches!(missing, object_store::Error::NotFound { .. }), "{missing}");
}

#[tokio::test]
async fn s3_conforms() {
    let origin = FakeOrigin::with(OriginConfig {
        access_key: Some(("id".to_owned(), "secret".to_owned())),
        page_size: 1,
        ..OriginConfig::default()
    });
    let store = s3(&origin, "id", "secret");
    conforms(&origin, &store, "").await;

    let put = store.put(&Path::from("new"), b"one".to_vec().into()).await.unwrap();
    let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let there = store.put_opts(&Path::from("new"), b"two".to_vec().into(), create).await.unwrap_err();
    assert!(matches!(there, object_store::Error::AlreadyExists { .. }), "{there}");
    let update = PutOptions { mode: PutMode::Update(put.into()), ..PutOptions::default() };
    store.put_opts(&Path::from("new"), b"two".to_vec().into(), update.clone()).await.unwrap();
    assert!(store.put_opts(&Path::from("new"), b"three".to_vec().into(), update).await.is_err());
    assert_eq!(origin.content("bucket/new").unwrap().to_vec(), b"two");
    let folders = store.list_with_delimiter(Some(&Path::from("model"))).await.unwrap();
    assert_eq!(folders.common_prefixes, [Path::from("model/sub")]);
    assert_eq!(folders.objects.len(), 1);
}

#[tokio::test]
async fn s3_lets_nobody_in_who_has_no_right_key() {
    let origin = FakeOrigin::with(OriginConfig {
        access_key: Some(("id".to_owned(), "secret".to_owned())),
        ..OriginConfig::default()
    });
    origin.put("bucket/key with space", b"x".to_vec());
    let path = Path::from("key with space");
    for (id, secret, code) in [("who", "secret", "InvalidAccessKeyId"), ("id", "wrong", "SignatureDoesNotMatch")] {
        let error = s3(&origin, id, secret).get(&path).await.unwrap_err();
        assert!(format!("{error:?}").contains(code), "{error:?}");
    }
    assert!(s3(&origin, "id", "secret").get(&path).await.is_ok());
    let counters = origin.counters();
    assert_eq!((counters.get, counters.errors, counters.bytes), (3, 2, 1));
}

#[tokio::test]
async fn gcs_conforms() {
    let config = OriginConfig { dialect: Dialect::Gcs, token: Some("t".to_owned()), ..OriginConfig::default() };
    let origin = FakeOrigin::with(config);
    let store = gcs(&origin, Some("t"));
    conforms(&origin, &store, "").await;
    let head = store.head(&Path::from("other")).await.unwrap();
    let old = GetOptions { version: head.version, ..GetOptions::default() };
    assert!(store.get_opts(&Path::from("other"), old.clone()).await.is_ok());
    origin.put("bucket/other", b"new".to_vec());
    assert!(store.get_opts(&Path::from("other"), old).await.is_err());
    let error = gcs(&origin, Some("wrong")).get(&Path::from("other")).await.unwrap_err();
    assert!(matches!(error, object_store::Error::Unauthenticated { .. }), "{error}");
    let error = gcs(&origin, None).get(&Path::from("other")).await.unwrap_err();
    assert!(matches!(error, object_store::Error::PermissionDenied { .. }), "{error}");
}

#[tokio::test]
async fn http_conforms() {
    let origin = FakeOrigin::speaking(Dialect::Http);
    conforms(&origin, &http(&origin), "bucket/").await;
}

#[tokio::test]
async fn counts_what_is_asked_and_served() {
    let origin = FakeOrigin::start();
    origin.generate("bucket/big", 1, 40 * MIB);
    let store = s3(&origin, "a", "b");
    let path = Path::from("big");
    store.get_range(&path, 0..MIB).await.unwrap();
    store.get_range(&path, MIB..3 * MIB).await.unwrap();
    store.head(&path).await.unwrap();
    let _: Vec<_> = store.list(None).try_collect().await.unwrap();
    assert!(origin.wait_idle(Duration::from_secs(10)));
    let counters = origin.counters();
    assert_eq!((counters.get, counters.head, counters.list, counters.bytes), (2, 1, 1, 3 * MIB));
    assert_eq!(counters.ranges("bucket/big"), [0..MIB, MIB..3 * MIB]);
    assert_eq!(counters.keys["bucket/big"].bytes, 3 * MIB);
    assert!(counters.requests.iter().all(|record| matches!(record.status, 200 | 206)));
    origin.reset_counters();
    assert_eq!(origin.counters().total(), 0);
}

#[tokio::test]
async fn misbehaves_as_told() {
    let origin = FakeOrigin::start();
    let content = Content::generated(9, 2 * MIB);
    origin.put_content("bucket/k", content.clone());
    let (store, path) = (s3(&origin, "a", "b"), Path::from("k"));
    let get = async || store.get(&path).await?.bytes().await;

    origin.fault(Fault::new(FaultKind::Status(503)).times(1));
    assert!(get().await.unwrap_err().to_string().contains("503"));
    origin.fault(Fault::new(FaultKind::FlipBit(MIB + 3)).times(1));
    assert_eq!(content.first_difference(0, &get().await.unwrap()), Some(MIB + 3));
    origin.fault(Fault::new(FaultKind::CutAfter(1000)).times(1));
    assert!(get().await.is_err(), "cut");
    origin.fault(Fault::new(FaultKind::Status(403)).verb(Verb::Head).times(1));
    assert!(store.head(&path).await.is_err());
    for fault in [FaultKind::Hang, FaultKind::HangAfter(10)] {
        origin.fault(Fault::new(fault).times(1));
        assert!(tokio::time::timeout(Duration::from_millis(300), get()).await.is_err(), "hang");
    }
    origin.fault(Fault::new(FaultKind::BytesPerSecond(4 * MIB)).times(1));
    let start = std::time::Instant::now();
    assert!(content.equals(&get().await.unwrap()));
    assert!(start.elapsed() > Duration::from_millis(400), "throttled: {:?}", start.elapsed());

    let etag = store.head(&path).await.unwrap().e_tag;
    origin.fault(Fault::new(FaultKind::Replace).times(1));
    let conditional = GetOptions { if_match: etag.clone(), ..GetOptions::default() };
    assert!(store.get_opts(&path, conditional).await.is_err());
    let now = store.get(&path).await.unwrap();
    assert_ne!(now.meta.e_tag, etag);
    assert!(!content.equals(&now.bytes().await.unwrap()));
    origin.fault(Fault::new(FaultKind::Remove).times(1));
    assert!(get().await.is_err());
    assert_eq!(origin.counters().faults, 9);
}

#[tokio::test]
async fn quirks_are_those_of_real_servers() {
    let quirks = Quirks { ignores_conditions: true, ignores_ranges: true, ..Quirks::default() };
    let origin = FakeOrigin::with(OriginConfig { quirks, ..OriginConfig::default() });
    origin.put("bucket/k", b"0123456789".to_vec());
    let store = s3(&origin, "a", "b");
    let wrong = GetOptions { if_match: Some("\"no\"".to_owned()), ..GetOptions::default() };
    assert!(store.get_opts(&Path::from("k"), wrong).await.is_ok());
    assert!(store.get_range(&Path::from("k"), 1..3).await.is_err(), "200 instead of 206");
}

#[tokio::test]
async fn a_connection_is_as_slow_as_a_cloud_stores_and_four_are_faster() {
    let config = OriginConfig {
        connection_bytes_per_second: Some(20_000_000),
        first_byte: Duration::from_millis(50),
        ..OriginConfig::default()
    };
    let fake = FakeOrigin::with(config);
    fake.generate("bucket/a", 1, 4_000_000);
    let store = s3(&fake, "id", "secret");
    let path = Path::from("a");
    let get = || async { assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap().len(), 4_000_000) };
    let started = Instant::now();
    get().await;
    let one = started.elapsed();
    // 200 ms less what may be caught up with, and the first byte.
    assert!(one >= Duration::from_millis(220), "{one:?}");
    let started = Instant::now();
    futures::future::join_all((0..4).map(|_| get())).await;
    assert!(started.elapsed() < 3 * one, "four at once took {:?}, one took {one:?}", started.elapsed());
}
