//! The fake origin as a store that is written to.

#![allow(clippy::unwrap_used)]

mod support;

use futures::{StreamExt, TryStreamExt};
use longshore_testkit::origin::{PartCounters, Quirks, Verb};
use longshore_testkit::{Content, Dialect, FakeOrigin, OriginConfig};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};
use support::{MIB, ask, crc64, gcs, s3, s3_builder};

fn start(config: OriginConfig) -> FakeOrigin {
    let origin = FakeOrigin::with(config);
    origin.create_bucket("bucket");
    origin
}

fn start_s3() -> FakeOrigin {
    start(OriginConfig { access_key: Some(("id".to_owned(), "secret".to_owned())), ..OriginConfig::default() })
}

/// An S3 server that takes unsigned requests and small parts.
fn start_open() -> FakeOrigin {
    start(OriginConfig { part_bytes_min: 1, ..OriginConfig::default() })
}

fn part(content: &Content, start: u64, end: u64) -> PutPayload {
    content.read(start..end).into()
}

async fn write_on_conditions(origin: &FakeOrigin, store: &dyn ObjectStore) {
    let path = Path::from("run/a b&c");
    let put = async |mode, text: &'static [u8]| {
        store.put_opts(&path, text.to_vec().into(), PutOptions { mode, ..PutOptions::default() }).await
    };
    let nothing = UpdateVersion { e_tag: Some("\"no\"".to_owned()), version: Some("17".to_owned()) };
    let error = put(PutMode::Update(nothing.clone()), b"x").await.unwrap_err();
    assert!(matches!(error, object_store::Error::Precondition { .. }), "{error}");
    let one = put(PutMode::Create, b"one").await.unwrap();
    let error = put(PutMode::Create, b"two").await.unwrap_err();
    assert!(matches!(error, object_store::Error::AlreadyExists { .. }), "{error}");
    let error = put(PutMode::Update(nothing), b"x").await.unwrap_err();
    assert!(matches!(error, object_store::Error::Precondition { .. }), "{error}");
    put(PutMode::Update(one.clone().into()), b"three").await.unwrap();
    assert!(put(PutMode::Update(one.into()), b"four").await.is_err(), "the version is an old one");
    put(PutMode::Overwrite, b"five").await.unwrap();
    assert_eq!(origin.content("bucket/run/a b&c").unwrap().to_vec(), b"five");
    store.delete(&path).await.unwrap();
    assert!(origin.content("bucket/run/a b&c").is_none());
    put(PutMode::Create, b"six").await.unwrap();
}

async fn write_in_parts(origin: &FakeOrigin, store: &dyn ObjectStore) {
    let content = Content::generated(7, 12 * MIB + 5);
    let mut upload = store.put_multipart(&Path::from("run/big file")).await.unwrap();
    assert_eq!(origin.uploads().len(), 1);
    let parts = [(0, 5 * MIB), (5 * MIB, 10 * MIB), (10 * MIB, content.len_bytes())];
    let sent: Vec<_> = parts.iter().map(|&(start, end)| upload.put_part(part(&content, start, end))).collect();
    for sent in sent {
        sent.await.unwrap();
    }
    assert!(origin.content("bucket/run/big file").is_none(), "before it is complete");
    upload.complete().await.unwrap();
    assert!(origin.content("bucket/run/big file").unwrap().equals(&content.to_vec()));
    let got = store.get(&Path::from("run/big file")).await.unwrap();
    assert!(got.meta.e_tag.as_ref().unwrap().ends_with("-3\""), "{:?}", got.meta);
    assert!(content.equals(&got.bytes().await.unwrap()));
    assert!(origin.uploads().is_empty());

    let mut upload = store.put_multipart(&Path::from("run/never")).await.unwrap();
    upload.put_part(part(&content, 0, 5 * MIB)).await.unwrap();
    upload.abort().await.unwrap();
    assert!(origin.uploads().is_empty() && origin.content("bucket/run/never").is_none());
    let counters = origin.counters();
    let key = &counters.keys["bucket/run/big file"];
    assert_eq!((key.create_upload, key.complete_upload, key.received_bytes), (1, 1, content.len_bytes()));
    assert!(key.parts.values().all(|part| *part == PartCounters { received: 1, stored: 1 }) && key.parts.len() == 3);
    assert_eq!((counters.upload_part, counters.abort_upload, counters.parts_again("*")), (4, 1, 0));
}

#[tokio::test]
async fn s3_is_written_through_the_client() {
    let origin = start_s3();
    write_on_conditions(&origin, &s3(&origin)).await;
    write_in_parts(&origin, &s3(&origin)).await;
    let plain = s3_builder(&origin).with_unsigned_payload(true).build().unwrap();
    origin.reset_counters();
    origin.remove("bucket/run/big file");
    write_in_parts(&origin, &plain).await;
}

#[tokio::test]
async fn gcs_is_written_through_the_client() {
    let origin = start(OriginConfig { dialect: Dialect::Gcs, token: Some("t".to_owned()), ..OriginConfig::default() });
    let store = gcs(&origin);
    write_on_conditions(&origin, &store).await;
    write_in_parts(&origin, &store).await;
    let error = store.delete(&Path::from("nothing")).await.unwrap_err();
    assert!(matches!(error, object_store::Error::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn large_uploads_lie_in_files_that_end_with_them() {
    let folder = tempfile::tempdir().unwrap();
    // No memory to speak of: what does not go to the folder is refused.
    let data_dir = Some(folder.path().to_owned());
    let origin = start(OriginConfig { data_dir, memory_bytes_max: 300 << 10, ..OriginConfig::default() });
    write_in_parts(&origin, &s3(&origin)).await;
    assert!(origin.content("bucket/run/big file").unwrap().is_on_disk());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files have no names");
}

#[tokio::test]
async fn memory_is_bounded_and_comes_back() {
    let origin = start(OriginConfig { memory_bytes_max: 8 * MIB, ..OriginConfig::default() });
    let store = s3(&origin);
    let put = async |name: &str| store.put(&Path::from(name), vec![7; 5 << 20].into()).await;
    put("one").await.unwrap();
    let error = put("two").await.unwrap_err();
    assert!(error.to_string().contains("507"), "{error}");
    store.delete(&Path::from("one")).await.unwrap();
    put("two").await.unwrap();
}

#[tokio::test]
async fn of_many_who_create_an_object_one_does() {
    let origin = start_s3();
    let store = s3(&origin);
    let tries = (0..16_u8).map(|i| {
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let store = &store;
        async move { store.put_opts(&Path::from("one"), vec![i].into(), create).await }
    });
    let done = futures::future::join_all(tries).await;
    let winners: Vec<usize> = (0..16).filter(|&i| done[i].is_ok()).collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(origin.content("bucket/one").unwrap().to_vec(), [winners[0] as u8]);
}

#[tokio::test]
async fn many_are_deleted_at_once() {
    let origin = start_s3();
    let names = ["a", "b & c", "d/e", "never was"];
    for name in &names[..3] {
        origin.put(&format!("bucket/{name}"), b"x".to_vec());
    }
    let paths = names.map(|name| Ok(Path::from(name)));
    let done: Vec<Path> = s3(&origin).delete_stream(futures::stream::iter(paths).boxed()).try_collect().await.unwrap();
    assert_eq!(done.len(), 4);
    assert!(origin.paths("bucket/").is_empty());
    let counters = origin.counters();
    assert_eq!((counters.delete, counters.keys["bucket/d/e"].delete), (1, 1));
}

#[test]
fn checksums_are_checked_kept_and_told() {
    let origin = start_open();
    let (right, wrong) = (crc64(b"hello"), crc64(b"hallo"));
    let put = |checksum: &str| ask(&origin, "PUT", "bucket/k", &[("x-amz-checksum-crc64nvme", checksum)], b"hello");
    let refused = put(&wrong);
    assert_eq!((refused.status, refused.element("Code").as_str()), (400, "BadDigest"));
    assert!(origin.content("bucket/k").is_none());
    assert_eq!(put(&right).header("x-amz-checksum-crc64nvme"), Some(right.as_str()));

    let mode = [("x-amz-checksum-mode", "ENABLED")];
    for verb in ["HEAD", "GET"] {
        let told = ask(&origin, verb, "bucket/k", &mode, b"");
        assert_eq!(told.header("x-amz-checksum-crc64nvme"), Some(right.as_str()), "{verb}");
        assert_eq!(told.header("x-amz-checksum-type"), Some("FULL_OBJECT"));
    }
    assert_eq!(ask(&origin, "HEAD", "bucket/k", &[], b"").header("x-amz-checksum-crc64nvme"), None, "not asked");
    let part = ask(&origin, "GET", "bucket/k", &[mode[0], ("range", "bytes=0-1")], b"");
    assert_eq!((part.status, part.header("x-amz-checksum-crc64nvme")), (206, None), "only of the whole");
    // As in S3, every object has one.
    origin.put("bucket/other", b"hello".to_vec());
    let told = ask(&origin, "HEAD", "bucket/other", &mode, b"");
    assert_eq!(told.header("x-amz-checksum-crc64nvme"), Some(right.as_str()));

    let sha = [("x-amz-checksum-sha256", "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=")];
    assert_eq!(ask(&origin, "PUT", "bucket/sha", &sha, b"hello").status, 200);
    assert_eq!(ask(&origin, "PUT", "bucket/sha", &sha, b"hallo").status, 400);
    assert_eq!(ask(&origin, "PUT", "bucket/new", &[("x-amz-checksum-md9", "x")], b"hello").status, 501);
}

/// Begins an upload with these headers; its id.
fn begin(origin: &FakeOrigin, key: &str, headers: &[(&str, &str)]) -> String {
    let key = key.replace(' ', "%20");
    let begun = ask(origin, "POST", &format!("bucket/{key}?uploads"), headers, b"");
    assert_eq!(begun.status, 200, "{begun:?}");
    begun.element("UploadId")
}

const CRC64: [(&str, &str); 2] = [("x-amz-checksum-algorithm", "CRC64NVME"), ("x-amz-checksum-type", "FULL_OBJECT")];

fn list_of(etags: &[(u32, &str)]) -> String {
    let parts = etags.iter().map(|(number, etag)| {
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>", etag.replace('"', "&quot;"))
    });
    format!("<CompleteMultipartUpload>{}</CompleteMultipartUpload>", parts.collect::<String>())
}

#[test]
fn a_completion_is_checked_against_the_whole_object() {
    let origin = start_open();
    let id = begin(&origin, "k", &CRC64);
    let put = |number: u32, body: &[u8], checksum: &str| {
        let target = format!("bucket/k?partNumber={number}&uploadId={id}");
        ask(&origin, "PUT", &target, &[("x-amz-checksum-crc64nvme", checksum)], body)
    };
    assert_eq!(put(1, b"hel", &crc64(b"hal")).element("Code"), "BadDigest");
    let one = put(1, b"hel", &crc64(b"hel"));
    let two = put(2, b"lo", &crc64(b"lo"));
    assert_eq!(two.header("x-amz-checksum-crc64nvme"), Some(crc64(b"lo").as_str()));
    let (one, two) = (one.header("etag").unwrap(), two.header("etag").unwrap());
    let target = format!("bucket/k?uploadId={id}");
    let complete = |list: &str, headers: &[(&str, &str)]| ask(&origin, "POST", &target, headers, list.as_bytes());
    let list = list_of(&[(1, one), (2, two)]);

    let whole = crc64(b"hello");
    assert_eq!(complete(&list_of(&[(2, two), (1, one)]), &[]).element("Code"), "InvalidPartOrder");
    assert_eq!(complete(&list_of(&[(1, one), (3, two)]), &[]).element("Code"), "InvalidPart");
    assert_eq!(complete(&list_of(&[(1, two)]), &[]).element("Code"), "InvalidPart");
    assert_eq!(complete("<nonsense", &[]).element("Code"), "MalformedXML");
    assert_eq!(complete(&list, &[("x-amz-checksum-crc64nvme", &crc64(b"hallo"))]).element("Code"), "BadDigest");
    assert_eq!(complete(&list, &[("x-amz-mp-object-size", "4")]).status, 400);
    origin.put("bucket/k", b"there".to_vec());
    assert_eq!(complete(&list, &[("if-none-match", "*")]).status, 412);
    origin.remove("bucket/k");
    let headers = [("x-amz-checksum-crc64nvme", whole.as_str()), ("if-none-match", "*"), ("x-amz-mp-object-size", "5")];
    let done = complete(&list, &headers);
    assert_eq!(
        (done.status, done.element("ChecksumCRC64NVME"), done.element("ChecksumType")),
        (200, whole.clone(), "FULL_OBJECT".to_owned())
    );
    assert_eq!(done.element("ETag"), ask(&origin, "HEAD", "bucket/k", &[], b"").header("etag").unwrap());
    let told = ask(&origin, "HEAD", "bucket/k", &[("x-amz-checksum-mode", "ENABLED")], b"");
    assert_eq!(told.header("x-amz-checksum-crc64nvme"), Some(whole.as_str()));
    assert_eq!(origin.content("bucket/k").unwrap().to_vec(), b"hello");
    assert_eq!(complete(&list, &[]).element("Code"), "NoSuchUpload");
    assert_eq!(ask(&origin, "DELETE", &target, &[], b"").status, 404);
}

#[test]
fn parts_have_the_checksum_that_was_announced_and_a_smallest_size() {
    let origin = start(OriginConfig::default());
    let id = begin(&origin, "k", &[]);
    let target = format!("bucket/k?partNumber=1&uploadId={id}");
    let refused = ask(&origin, "PUT", &target, &[("x-amz-checksum-crc64nvme", &crc64(b"x"))], b"x");
    assert!(refused.body.contains("expected checksum Type: null"), "{refused:?}");
    assert_eq!(ask(&origin, "PUT", &format!("bucket/k?partNumber=10001&uploadId={id}"), &[], b"x").status, 400);
    let etag = ask(&origin, "PUT", &target, &[], b"x");
    let etag = etag.header("etag").unwrap();
    ask(&origin, "PUT", &format!("bucket/k?partNumber=2&uploadId={id}"), &[], b"x");
    let complete =
        |list: &[(u32, &str)]| ask(&origin, "POST", &format!("bucket/k?uploadId={id}"), &[], list_of(list).as_bytes());
    assert_eq!(complete(&[(1, etag), (2, etag)]).element("Code"), "EntityTooSmall");
    assert_eq!(complete(&[(1, etag)]).status, 200, "the last may be small");
    // Of SHA-256 there is only the checksum of the checksums, which says nothing of the whole.
    let id = begin(&origin, "sha", &[("x-amz-checksum-algorithm", "SHA256")]);
    let target = format!("bucket/sha?partNumber=1&uploadId={id}");
    let sha = ("x-amz-checksum-sha256", "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=");
    let etag = ask(&origin, "PUT", &target, &[sha], b"hello");
    let list = list_of(&[(1, etag.header("etag").unwrap())]);
    let done = ask(&origin, "POST", &format!("bucket/sha?uploadId={id}"), &[], list.as_bytes());
    assert_eq!(done.element("ChecksumType"), "COMPOSITE");
    assert!(done.element("ChecksumSHA256").ends_with("-1"), "{done:?}");
}

#[test]
fn open_uploads_and_their_parts_are_listed_in_pages() {
    let origin = start(OriginConfig { page_size: 2, part_bytes_min: 1, ..OriginConfig::default() });
    let mut begun = Vec::new();
    for key in ["run/a", "run/a", "run/b c", "other"] {
        begun.push((key.to_owned(), begin(&origin, key, &CRC64)));
    }
    let page = |more: &str| ask(&origin, "GET", &format!("bucket?uploads&prefix=run/{more}"), &[], b"");
    let first = page("");
    assert_eq!((first.elements("Key"), first.element("IsTruncated")), (vec!["run/a".to_owned(); 2], "true".to_owned()));
    let (key, id) = (first.element("NextKeyMarker"), first.element("NextUploadIdMarker"));
    let second = page(&format!("&key-marker={key}&upload-id-marker={id}"));
    assert_eq!(
        (second.elements("Key"), second.element("IsTruncated")),
        (vec!["run/b c".to_owned()], "false".to_owned())
    );
    let ids: Vec<String> = first.elements("UploadId").into_iter().chain(second.elements("UploadId")).collect();
    assert_eq!(ids, begun[..3].iter().map(|(_, id)| id.clone()).collect::<Vec<_>>());
    assert_eq!(first.elements("Initiated").len(), 2);

    let id = &begun[2].1;
    for number in [3, 1, 2] {
        let target = format!("bucket/run/b%20c?partNumber={number}&uploadId={id}");
        ask(&origin, "PUT", &target, &[("x-amz-checksum-crc64nvme", &crc64(b"part"))], b"part");
    }
    let first = ask(&origin, "GET", &format!("bucket/run/b%20c?uploadId={id}"), &[], b"");
    assert_eq!(first.elements("PartNumber"), ["1", "2"]);
    assert_eq!(
        (first.elements("Size"), first.elements("ChecksumCRC64NVME")),
        (vec!["4".to_owned(); 2], vec![crc64(b"part"); 2])
    );
    let after = first.element("NextPartNumberMarker");
    let rest = ask(&origin, "GET", &format!("bucket/run/b%20c?uploadId={id}&part-number-marker={after}"), &[], b"");
    assert_eq!((rest.elements("PartNumber"), rest.element("IsTruncated")), (vec!["3".to_owned()], "false".to_owned()));
    assert_eq!(origin.counters().list_uploads, 4);
    assert!(origin.forget_upload("bucket/other", &begun[3].1));
    assert_eq!(origin.uploads().len(), 3);
}

#[test]
fn checksums_may_come_behind_the_body() {
    let origin = start_open();
    let headers = [
        ("content-encoding", "aws-chunked"),
        ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
        ("x-amz-decoded-content-length", "5"),
        ("x-amz-trailer", "x-amz-checksum-crc64nvme"),
    ];
    let put = |trailer: &str| {
        let body = format!("3\r\nhel\r\n2\r\nlo\r\n0\r\n{trailer}\r\n\r\n");
        ask(&origin, "PUT", "bucket/k", &headers, body.as_bytes())
    };
    let right = crc64(b"hello");
    assert_eq!(put(&format!("x-amz-checksum-crc64nvme:{}", crc64(b"hallo"))).element("Code"), "BadDigest");
    assert_eq!(put("x-amz-other:1").element("Code"), "MalformedTrailerError");
    assert!(origin.content("bucket/k").is_none());
    let done = put(&format!("x-amz-checksum-crc64nvme:{right}"));
    assert_eq!((done.status, done.header("x-amz-checksum-crc64nvme")), (200, Some(right.as_str())));
    assert_eq!(origin.content("bucket/k").unwrap().to_vec(), b"hello");
    assert_eq!(ask(&origin, "PUT", "bucket/k", &headers, b"5\r\nhel").element("Code"), "IncompleteBody");
}

#[test]
fn other_checksums_of_whole_objects_combine() {
    let origin = start_open();
    // Of "hel", "lo" and "hello", by zlib.
    let (one, two, whole) = ("5QvxGw==", "VZxKnQ==", "NhCmhg==");
    let id = begin(&origin, "k", &[("x-amz-checksum-algorithm", "CRC32"), ("x-amz-checksum-type", "FULL_OBJECT")]);
    let put = |number: u32, body: &[u8], checksum: &str| {
        let target = format!("bucket/k?partNumber={number}&uploadId={id}");
        let answer = ask(&origin, "PUT", &target, &[("x-amz-checksum-crc32", checksum)], body);
        answer.header("etag").unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    };
    let list = list_of(&[(1, &put(1, b"hel", one)), (2, &put(2, b"lo", two))]);
    let done =
        ask(&origin, "POST", &format!("bucket/k?uploadId={id}"), &[("x-amz-checksum-crc32", whole)], list.as_bytes());
    assert_eq!(
        (done.element("ChecksumCRC32"), done.element("ChecksumType")),
        (whole.to_owned(), "FULL_OBJECT".to_owned())
    );
}

#[test]
fn google_keeps_a_crc32c_of_every_object() {
    let origin = start(OriginConfig { dialect: Dialect::Gcs, part_bytes_min: 1, ..OriginConfig::default() });
    // CRC-32C of "123456789", from the catalogue.
    let (right, wrong) = ("crc32c=4waSgw==", "crc32c=AAAAAA==");
    let put = |hash: &str| ask(&origin, "PUT", "bucket/k", &[("x-goog-hash", hash)], b"123456789");
    assert_eq!(put(wrong).element("Code"), "BadDigest");
    assert_eq!(put(right).header("x-goog-hash"), Some(right));
    assert_eq!(ask(&origin, "PUT", "bucket/k", &[], b"123456789").header("x-goog-hash"), Some(right), "not asked for");
    let hash_of =
        |key: &str| ask(&origin, "HEAD", &format!("bucket/{key}"), &[], b"").header("x-goog-hash").map(str::to_owned);
    assert_eq!(hash_of("k").as_deref(), Some(right));
    let id = begin(&origin, "parts", &[]);
    let part = |number: u32, body: &[u8]| {
        let answer = ask(&origin, "PUT", &format!("bucket/parts?partNumber={number}&uploadId={id}"), &[], body);
        answer.header("etag").unwrap().to_owned()
    };
    let list = list_of(&[(1, &part(1, b"1234")), (2, &part(2, b"56789"))]);
    let refused =
        ask(&origin, "PUT", &format!("bucket/parts?partNumber=3&uploadId={id}"), &[("x-goog-hash", wrong)], b"x");
    assert_eq!(refused.element("Code"), "BadDigest");
    let done = ask(&origin, "POST", &format!("bucket/parts?uploadId={id}"), &[], list.as_bytes());
    assert_eq!((done.status, done.header("x-goog-hash")), (200, Some(right)));
    assert_eq!(hash_of("parts").as_deref(), Some(right));
    assert!(origin.flip_byte("bucket/parts", 3));
    assert_eq!(hash_of("parts").as_deref(), Some(right), "it tells what came in");
}

#[test]
fn worse_stores_can_be_had() {
    let quirky = |quirks| start(OriginConfig { quirks, part_bytes_min: 1, ..OriginConfig::default() });
    let origin = quirky(Quirks { ignores_conditional_puts: true, ..Quirks::default() });
    origin.put("bucket/k", b"old".to_vec());
    assert_eq!(ask(&origin, "PUT", "bucket/k", &[("if-none-match", "*")], b"new").status, 200);
    assert_eq!(ask(&origin, "PUT", "bucket/k", &[("if-match", "\"no\"")], b"newer").status, 200);
    assert_eq!(ask(&origin, "GET", "bucket/k", &[("if-match", "\"no\"")], b"").status, 412, "reads are right");
    assert_eq!(origin.content("bucket/k").unwrap().to_vec(), b"newer");

    let crc = [("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=")];
    let origin = quirky(Quirks { has_no_checksums: true, ..Quirks::default() });
    assert_eq!(ask(&origin, "PUT", "bucket/k", &crc, b"new").status, 200, "not looked at");
    let told = ask(&origin, "HEAD", "bucket/k", &[("x-amz-checksum-mode", "ENABLED")], b"");
    assert_eq!(told.header("x-amz-checksum-crc64nvme"), None);

    let origin = quirky(Quirks { rejects_checksums: true, ..Quirks::default() });
    assert_eq!(ask(&origin, "PUT", "bucket/k", &crc, b"new").status, 501);
    assert_eq!(ask(&origin, "POST", "bucket/k?uploads", &CRC64, b"").status, 501);
    assert_eq!(ask(&origin, "PUT", "bucket/k", &[], b"new").status, 200);

    let origin = quirky(Quirks { cannot_list_uploads: true, ..Quirks::default() });
    assert_eq!(ask(&origin, "GET", "bucket?uploads", &[], b"").status, 501);
}

#[tokio::test]
async fn parts_are_counted_by_number() {
    let origin = start_open();
    let store = s3_builder(&origin).build().unwrap();
    let path = Path::from("k");
    let id = store.create_multipart(&path).await.unwrap();
    store.put_part(&path, &id, 0, b"one".to_vec().into()).await.unwrap();
    let two = store.put_part(&path, &id, 1, b"two".to_vec().into()).await.unwrap();
    let one = store.put_part(&path, &id, 0, b"ONE".to_vec().into()).await.unwrap();
    store.complete_multipart(&path, &id, vec![one, two]).await.unwrap();
    assert_eq!(origin.content("bucket/k").unwrap().to_vec(), b"ONEtwo");
    let counters = origin.counters();
    assert_eq!((counters.parts_again("bucket/*"), counters.parts_again("else/*")), (1, 0));
    assert_eq!(counters.keys["bucket/k"].parts[&1], PartCounters { received: 2, stored: 2 });
    let parts: Vec<_> = counters.of(Verb::UploadPart).map(|record| (record.part, record.received_bytes)).collect();
    assert_eq!(parts, [(Some(1), 3), (Some(2), 3), (Some(1), 3)]);
    assert_eq!(counters.writes(), 5);
}

#[test]
fn signed_bodies_are_checked() {
    let origin = start_s3();
    // Signed by nobody, so that the signature is what is refused; and a body that is none is refused before.
    assert_eq!(ask(&origin, "PUT", "bucket/k", &[], b"x").status, 403);
    assert!(origin.content("bucket/k").is_none());
    assert_eq!(ask(&origin, "POST", "bucket/k?uploads", &[], b"").status, 403);
    assert_eq!(ask(&origin, "PUT", "none/k", &[], b"x").status, 403);
    assert_eq!(ask(&start_open(), "PUT", "none/k", &[], b"x").element("Code"), "NoSuchBucket");
}
