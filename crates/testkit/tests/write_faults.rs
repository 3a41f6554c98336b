//! What the fake origin does wrong with writes when it is told to.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use longshore_testkit::origin::{PartCounters, Verb};
use longshore_testkit::{Content, FakeOrigin, Fault, FaultKind, OriginConfig};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use support::{MIB, ask, crc64, s3, s3_builder, send};

fn start() -> FakeOrigin {
    let origin = FakeOrigin::with(OriginConfig { part_bytes_min: 1, ..OriginConfig::default() });
    origin.create_bucket("bucket");
    origin
}

#[test]
fn errors_in_the_words_of_the_store() {
    let origin = start();
    let put = || ask(&origin, "PUT", "bucket/run/k", &[], b"new");
    let cases = [
        (FaultKind::Status(500), 500, "InternalError"),
        (FaultKind::Status(409), 409, "ConditionalRequestConflict"),
        (FaultKind::Status(412), 412, "PreconditionFailed"),
        (FaultKind::Status(507), 507, "InsufficientStorage"),
        (FaultKind::expired_token(), 400, "ExpiredToken"),
        (FaultKind::answer(403, "ExpiredToken"), 403, "ExpiredToken"),
        (FaultKind::quota(), 403, "QuotaExceeded"),
        (FaultKind::slow_down(7), 503, "SlowDown"),
    ];
    for (kind, status, code) in cases {
        origin.fault(Fault::new(kind.clone()).verb(Verb::Put).on("bucket/run/*").skip(1).times(1));
        assert_eq!(put().status, 200);
        origin.remove("bucket/run/k");
        let answer = put();
        assert_eq!((answer.status, answer.element("Code").as_str()), (status, code));
        assert_eq!(answer.header("retry-after"), (status == 503).then_some("7"));
        assert!(origin.content("bucket/run/k").is_none(), "{kind:?} was not applied");
    }
    assert_eq!(put().status, 200);
    assert_eq!(origin.counters().faults, 8);
}

#[tokio::test]
async fn each_step_of_an_upload_has_its_own_faults() {
    let origin = start();
    let store = s3(&origin);
    let path = Path::from("k");
    let fail = |verb| origin.fault(Fault::new(FaultKind::Status(500)).verb(verb).times(1));
    fail(Verb::CreateUpload);
    fail(Verb::UploadPart);
    fail(Verb::CompleteUpload);
    fail(Verb::AbortUpload);
    fail(Verb::Delete);
    store.put(&path, b"x".to_vec().into()).await.unwrap();
    assert!(store.create_multipart(&path).await.is_err());
    let id = store.create_multipart(&path).await.unwrap();
    assert!(store.put_part(&path, &id, 0, b"one".to_vec().into()).await.is_err());
    let part = store.put_part(&path, &id, 0, b"one".to_vec().into()).await.unwrap();
    let complete = async || store.complete_multipart(&path, &id, vec![part.clone()]).await;
    assert!(complete().await.is_err());
    complete().await.unwrap();
    let id = store.create_multipart(&path).await.unwrap();
    assert!(store.abort_multipart(&path, &id).await.is_err());
    store.abort_multipart(&path, &id).await.unwrap();
    let counters = origin.counters();
    // It came twice, and the first time it was refused.
    assert_eq!(counters.keys["bucket/k"].parts[&1], PartCounters { received: 2, stored: 1 });
    assert_eq!(ask(&origin, "DELETE", "bucket/k", &[], b"").status, 500);
    assert_eq!(ask(&origin, "DELETE", "bucket/k", &[], b"").status, 204);
}

#[tokio::test]
async fn a_reply_is_lost_after_the_write_was_applied() {
    let origin = start();
    let (store, path) = (s3(&origin), Path::from("k"));
    let lose = |verb| origin.fault(Fault::new(FaultKind::ReplyLost).verb(verb).times(1));
    lose(Verb::Put);
    assert!(store.put(&path, b"one".to_vec().into()).await.is_err());
    assert_eq!(origin.content("bucket/k").unwrap().to_vec(), b"one");

    lose(Verb::CreateUpload);
    assert!(store.create_multipart(&path).await.is_err());
    assert_eq!(origin.uploads().len(), 1, "an orphan");
    let id = store.create_multipart(&path).await.unwrap();
    lose(Verb::UploadPart);
    assert!(store.put_part(&path, &id, 0, b"two".to_vec().into()).await.is_err());
    let upload = origin.uploads().into_iter().find(|upload| upload.id == id).unwrap();
    assert_eq!(upload.parts[&1], 3);
    let part = store.put_part(&path, &id, 0, b"two".to_vec().into()).await.unwrap();
    lose(Verb::CompleteUpload);
    assert!(store.complete_multipart(&path, &id, vec![part.clone()]).await.is_err());
    assert_eq!(origin.content("bucket/k").unwrap().to_vec(), b"two");
    let error = store.complete_multipart(&path, &id, vec![part]).await.unwrap_err();
    assert!(format!("{error:?}").contains("NoSuchUpload"), "{error:?}");
    lose(Verb::Delete);
    assert!(send(&origin, "DELETE", "bucket/k", &[], b"").is_err());
    assert!(origin.content("bucket/k").is_none());
    let counters = origin.counters();
    assert_eq!(counters.requests.iter().filter(|record| record.reply_lost).count(), 5);
    assert_eq!(counters.parts_again("bucket/k"), 1);

    // With its own retries the client ends well: what was applied is applied again, or a condition says that it was.
    let retries = s3_builder(&origin).with_retry(object_store::RetryConfig::default()).build().unwrap();
    lose(Verb::Put);
    retries.put(&path, b"three".to_vec().into()).await.unwrap();
}

#[tokio::test]
async fn answers_that_never_come() {
    let origin = start();
    let (store, path) = (s3(&origin), Path::from("k"));
    let put = async || store.put(&path, b"one".to_vec().into()).await;
    let soon = Duration::from_millis(300);
    origin.fault(Fault::new(FaultKind::Hang).verb(Verb::Put).times(1));
    assert!(tokio::time::timeout(soon, put()).await.is_err());
    assert!(origin.content("bucket/k").is_none());
    origin.fault(Fault::new(FaultKind::ReplyHangs).verb(Verb::Put).times(1));
    assert!(tokio::time::timeout(soon, put()).await.is_err());
    assert!(origin.content("bucket/k").is_some());
}

#[test]
fn a_completion_fails_in_the_body_of_a_200() {
    let origin = start();
    let id = ask(&origin, "POST", "bucket/k?uploads", &[], b"").element("UploadId");
    let part = ask(&origin, "PUT", &format!("bucket/k?partNumber=1&uploadId={id}"), &[], b"x");
    let etag = part.header("etag").unwrap().trim_matches('"').to_owned();
    let list = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    );
    origin.fault(Fault::new(FaultKind::ErrorInBody).verb(Verb::CompleteUpload).times(1));
    let complete = || ask(&origin, "POST", &format!("bucket/k?uploadId={id}"), &[], list.as_bytes());
    let answer = complete();
    assert_eq!((answer.status, answer.element("Code").as_str()), (200, "InternalError"));
    assert!(origin.content("bucket/k").is_none());
    assert_eq!(complete().element("ETag"), format!("\"{}\"", origin_etag(&origin)));
}

fn origin_etag(origin: &FakeOrigin) -> String {
    ask(origin, "HEAD", "bucket/k", &[], b"").header("etag").unwrap().trim_matches('"').to_owned()
}

#[tokio::test]
async fn uploads_are_cut_slowed_and_held_up() {
    let origin = start();
    let (store, path) = (s3(&origin), Path::from("k"));
    let content = Content::generated(3, 2 * MIB);
    let put = async || store.put(&path, content.to_vec().into()).await;
    origin.fault(Fault::new(FaultKind::CutAfter(MIB)).verb(Verb::Put).times(1));
    assert!(put().await.is_err());
    assert!(origin.content("bucket/k").is_none());
    assert_eq!(origin.counters().received_bytes, MIB);

    origin.fault(Fault::new(FaultKind::HangAfter(MIB)).verb(Verb::Put).times(1));
    assert!(tokio::time::timeout(Duration::from_millis(500), put()).await.is_err());
    assert!(origin.content("bucket/k").is_none());
    for slow in [FaultKind::BytesPerSecond(8 * MIB), FaultKind::LatencyMs(250)] {
        origin.fault(Fault::new(slow.clone()).verb(Verb::Put).times(1));
        let start = Instant::now();
        put().await.unwrap();
        assert!(start.elapsed() > Duration::from_millis(240), "{slow:?}: {:?}", start.elapsed());
    }
    // A cut part is not counted as received.
    let id = store.create_multipart(&path).await.unwrap();
    origin.fault(Fault::new(FaultKind::CutAfter(10)).verb(Verb::UploadPart).times(1));
    assert!(store.put_part(&path, &id, 0, vec![1; 1 << 20].into()).await.is_err());
    assert!(!origin.counters().keys["bucket/k"].parts.contains_key(&1));
    assert!(content.equals(&origin.content("bucket/k").unwrap().to_vec()));
}

#[tokio::test]
async fn all_uploads_share_the_bandwidth() {
    let origin = start();
    let store = s3(&origin);
    origin.limit_uploads(Some(8 * MIB));
    let start = Instant::now();
    let puts = (0..4).map(|i| {
        let (store, path) = (&store, Path::from(format!("k{i}")));
        async move { store.put(&path, vec![1; 1 << 20].into()).await }
    });
    futures::future::try_join_all(puts).await.unwrap();
    assert!(start.elapsed() > Duration::from_millis(480), "4 MiB at 8 MiB/s: {:?}", start.elapsed());
    origin.limit_uploads(None);
    store.put(&Path::from("k"), vec![1; 1 << 20].into()).await.unwrap();
}

#[tokio::test]
async fn bits_flip_on_the_way_and_where_they_lie() {
    let origin = start();
    let (store, path) = (s3(&origin), Path::from("k"));
    let content = Content::generated(3, MIB);
    let put = async || store.put(&path, content.to_vec().into()).await;
    let lies = || content.first_difference(0, &origin.content("bucket/k").unwrap().to_vec());

    // On the way: the checksum finds it, if there is one.
    origin.fault(Fault::new(FaultKind::FlipBit(1000)).verb(Verb::Put).times(2));
    let error = put().await.unwrap_err();
    assert!(format!("{error:?}").contains("BadDigest"), "{error:?}");
    s3_builder(&origin).build().unwrap().put(&path, content.to_vec().into()).await.unwrap();
    assert_eq!(lies(), Some(1000));

    // Where it lies: the store tells what it was given.
    origin.fault(Fault::new(FaultKind::FlipStored(2000)).verb(Verb::Put).times(1));
    put().await.unwrap();
    assert_eq!(lies(), Some(2000));
    let told = || {
        let head = ask(&origin, "HEAD", "bucket/k", &[("x-amz-checksum-mode", "ENABLED")], b"");
        head.header("x-amz-checksum-crc64nvme").unwrap().to_owned()
    };
    assert_eq!(told(), crc64(&content.to_vec()));
    put().await.unwrap();
    let etag = origin_etag(&origin);
    assert!(origin.flip_byte("bucket/k", 3000) && !origin.flip_byte("bucket/k", MIB));
    assert_eq!((lies(), told(), origin_etag(&origin)), (Some(3000), crc64(&content.to_vec()), etag));

    // In a part that waits for its completion.
    let id = store.create_multipart(&path).await.unwrap();
    let part: PartId = store.put_part(&path, &id, 0, content.to_vec().into()).await.unwrap();
    assert!(origin.flip_part_byte("bucket/k", 1, 4000) && !origin.flip_part_byte("bucket/k", 2, 0));
    store.complete_multipart(&path, &id, vec![part]).await.unwrap();
    assert_eq!((lies(), told()), (Some(4000), crc64(&content.to_vec())));
}

#[tokio::test]
async fn some_of_many_deletes_fail() {
    let origin = start();
    let store = s3(&origin);
    let put_all = || ["a", "b", "c"].map(|name| origin.put(&format!("bucket/{name}"), b"x".to_vec()));
    let delete = async || -> object_store::Result<Vec<Path>> {
        let paths = ["a", "b", "c"].map(|name| Ok(Path::from(name)));
        store.delete_stream(futures::stream::iter(paths).boxed()).try_collect().await
    };
    put_all();
    origin.fault(Fault::new(FaultKind::Status(403)).verb(Verb::Delete).on("bucket/b").times(1));
    let error = delete().await.unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    assert_eq!(origin.paths("bucket/"), ["bucket/b"]);
    // And all of them.
    put_all();
    origin.fault(Fault::new(FaultKind::Status(503)).verb(Verb::Delete).on("bucket").times(1));
    assert!(delete().await.is_err());
    assert_eq!(origin.paths("bucket/").len(), 3);
    origin.fault(Fault::new(FaultKind::ReplyLost).verb(Verb::Delete).on("bucket/c").times(1));
    assert!(delete().await.is_err());
    assert!(origin.paths("bucket/").is_empty());
    assert_eq!(origin.counters().faults, 3);
}

#[test]
fn other_processes_drive_it_by_its_pages() {
    let origin = start();
    let page = |method: &str, target: &str, body: &str| ask(&origin, method, target, &[], body.as_bytes());
    assert_eq!(page("POST", "_bucket?name=new", "").status, 200);
    assert_eq!(ask(&origin, "PUT", "new/run/k", &[], b"hello").status, 200);
    let listed: serde_json::Value = serde_json::from_str(&page("GET", "_objects?prefix=new/", "").body).unwrap();
    let checksum = longshore_types::BlockChecksum::of(b"hello").to_string();
    assert_eq!((&listed[0]["size_bytes"], &listed[0]["crc64nvme"]), (&5.into(), &checksum.into()));
    assert_eq!(page("POST", "_flip?path=new/run/k&offset=1", "").status, 200);
    assert_eq!(page("POST", "_flip?path=new/run/k&offset=5", "").status, 404);
    assert_eq!(page("POST", "_flip?path=new/run/k", "").status, 400);
    assert_ne!(origin.content("new/run/k").unwrap().to_vec(), b"hello");
    let fault =
        r#"{"keys":"new/*","verb":"upload_part","times":1,"kind":{"answer":{"status":403,"code":"ExpiredToken"}}}"#;
    assert_eq!(page("POST", "_fault", fault).status, 200);
    assert_eq!(page("POST", "_fault", r#"{"kind":"reply_lost","verb":"complete_upload"}"#).status, 200);
    let id = ask(&origin, "POST", "new/big?uploads", &[], b"").element("UploadId");
    let target = format!("new/big?partNumber=1&uploadId={id}");
    assert_eq!(ask(&origin, "PUT", &target, &[], b"x").element("Code"), "ExpiredToken");
    assert_eq!(ask(&origin, "PUT", &target, &[], b"x").status, 200);
    assert_eq!(page("POST", "_flip?path=new/big&offset=0&part=1", "").status, 200);
    assert!(page("GET", "_uploads", "").body.contains(&id));
    let counters: serde_json::Value = serde_json::from_str(&page("GET", "_counters?requests=0", "").body).unwrap();
    assert_eq!(counters["keys"]["new/big"]["parts"]["1"]["received"], 2);
    assert_eq!(page("DELETE", &format!("_uploads?path=new/big&id={id}"), "").status, 200);
    assert_eq!(page("DELETE", "_object?path=new/run/k", "").status, 200);
    assert_eq!(page("DELETE", "_object?path=new/run/k", "").status, 404);
    assert_eq!(page("POST", "_bandwidth?bytes_per_second=1000000", "").status, 200);
    assert_eq!(page("POST", "_bandwidth", "").status, 200);
}
