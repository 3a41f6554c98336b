//! Stores that misbehave while they are written to: what is repeated, what is a conflict, what is found by verifying,
//! and what the user is told.

// A helper of a test may fail it as the test itself may.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use longshore_origin::{OriginOptions, Origins, PartId, PutHow, PutOutcome, UploadId, Verified};
use longshore_testkit::origin::{FaultKind, Quirks, Verb};
use longshore_testkit::{Dialect, FakeOrigin, Fault, OriginConfig};
use longshore_types::{BlockChecksum, Code, Error, Version};

const URL: &str = "s3://bucket/run/step-1/model é+1.safetensors";
const PART: usize = 5 << 20;

fn options_of(fake: &FakeOrigin) -> OriginOptions {
    OriginOptions {
        attempts_max: 4,
        retry_pause_ms: 1,
        s3_endpoint: Some(fake.url()),
        s3_access_key_id: Some("key-id".to_owned()),
        s3_secret_access_key: Some("geheim".into()),
        ..OriginOptions::default()
    }
}

/// An S3 double that checks signatures.
fn setup(quirks: Quirks) -> (FakeOrigin, Origins) {
    let access_key = Some(("key-id".to_owned(), "geheim".to_owned()));
    let fake = FakeOrigin::with(OriginConfig { quirks, access_key, ..OriginConfig::default() });
    fake.create_bucket("bucket");
    let origins = Origins::new(options_of(&fake)).unwrap();
    (fake, origins)
}

fn once(kind: FaultKind, verb: Verb) -> Fault {
    Fault::new(kind).verb(verb).times(1)
}

fn conflict() -> FaultKind {
    FaultKind::answer(409, "ConditionalRequestConflict")
}

async fn put(origins: &Origins, text: &'static str, how: PutHow) -> Result<PutOutcome, Error> {
    origins.put(URL, Bytes::from_static(text.as_bytes()), how).await
}

async fn content(origins: &Origins) -> Bytes {
    origins.read_small(URL, 1 << 30).await.unwrap().1
}

fn version(outcome: PutOutcome) -> Version {
    match outcome {
        PutOutcome::Written(version) => version,
        PutOutcome::Conflict => panic!("nothing stood in the way of this put"),
    }
}

fn assert_names(error: &Error, code: Code, words: &[&str]) {
    assert_eq!(error.code(), code, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word:?} is missing in: {error}");
    }
    assert!(!error.message().contains("geheim"), "a secret is in: {error}");
}

/// An object of two parts.
struct Upload {
    id: UploadId,
    bytes: Bytes,
}

impl Upload {
    async fn start(origins: &Origins) -> Upload {
        let bytes: Vec<u8> =
            (0..PART as u64 + 1000).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8).collect();
        Upload { id: origins.upload_start(URL).await.unwrap(), bytes: bytes.into() }
    }

    async fn part(&self, origins: &Origins, index: u32) -> Result<PartId, Error> {
        let start = index as usize * PART;
        let part = self.bytes.slice(start..(start + PART).min(self.bytes.len()));
        origins.upload_part(URL, &self.id, index, part).await
    }

    async fn parts(&self, origins: &Origins) -> Vec<PartId> {
        vec![self.part(origins, 0).await.unwrap(), self.part(origins, 1).await.unwrap()]
    }

    async fn verify(&self, origins: &Origins) -> Result<Verified, Error> {
        let checksum = BlockChecksum::of(&self.bytes);
        origins.verify(URL, self.bytes.len() as u64, checksum).await.map(|(how, _)| how)
    }

    /// Sends everything and checks it.
    async fn finish(&self, origins: &Origins) -> Verified {
        let parts = self.parts(origins).await;
        origins.upload_complete(URL, &self.id, &parts).await.unwrap().unwrap();
        self.verify(origins).await.unwrap()
    }
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_is_a_conflict_to_be_read_back() {
    let (fake, origins) = setup(Quirks::default());
    fake.fault(once(FaultKind::ReplyLost, Verb::Put));
    assert_eq!(put(&origins, "mine", PutHow::Create).await.unwrap(), PutOutcome::Conflict);
    assert_eq!(content(&origins).await, "mine");
    let stats = origins.stats();
    assert_eq!((stats.put_requests, stats.retries, stats.conflicts), (2, 1, 1));

    let version = origins.stat(URL).await.unwrap().version().clone();
    fake.fault(once(FaultKind::ReplyLost, Verb::Put));
    assert_eq!(put(&origins, "second", PutHow::Replace(version)).await.unwrap(), PutOutcome::Conflict);
    assert_eq!(content(&origins).await, "second");

    // Without a condition, it is the same the second time.
    fake.fault(once(FaultKind::ReplyLost, Verb::Put));
    version_is_current(&origins, put(&origins, "third", PutHow::Overwrite).await.unwrap()).await;
    assert_eq!(content(&origins).await, "third");
}

async fn version_is_current(origins: &Origins, outcome: PutOutcome) {
    assert_eq!(origins.stat(URL).await.unwrap().version(), &version(outcome));
}

#[tokio::test]
async fn two_conditional_puts_at_once_are_told_to_come_again() {
    let (fake, origins) = setup(Quirks::default());
    fake.fault(once(conflict(), Verb::Put));
    let first = version(put(&origins, "one", PutHow::Create).await.unwrap());
    fake.fault(once(conflict(), Verb::Put));
    version_is_current(&origins, put(&origins, "two", PutHow::Replace(first)).await.unwrap()).await;
    assert_eq!(origins.stats().retries, 2);
    fake.fault(Fault::new(conflict()).verb(Verb::Put));
    let error = put(&origins, "three", PutHow::Create).await.unwrap_err();
    assert_names(&error, Code::Unavailable, &[URL, "409 ConditionalRequestConflict", "4 attempts"]);
}

#[tokio::test]
async fn failures_of_the_server_are_repeated_in_every_step() {
    let (fake, origins) = setup(Quirks::default());
    for verb in [Verb::Put, Verb::CreateUpload, Verb::UploadPart, Verb::CompleteUpload, Verb::Head] {
        for (skip, kind) in [FaultKind::Status(500), FaultKind::slow_down(0)].into_iter().enumerate() {
            fake.fault(once(kind, verb).skip(skip as u64));
        }
    }
    fake.fault(once(FaultKind::Status(503), Verb::Delete));
    put(&origins, "x", PutHow::Overwrite).await.unwrap();
    assert_eq!(Upload::start(&origins).await.finish(&origins).await, Verified::ByStore);
    assert_eq!(origins.delete(&[URL.to_owned()]).await.unwrap(), 1);
    assert!(fake.paths("bucket/").is_empty());
    assert!(origins.stats().retries == 11, "{:?}", origins.stats());
}

#[tokio::test]
async fn a_part_that_is_changed_or_cut_on_its_way_is_sent_again() {
    let (fake, origins) = setup(Quirks::default());
    let upload = Upload::start(&origins).await;
    fake.fault(once(FaultKind::FlipBit(1 << 20), Verb::UploadPart));
    fake.fault(once(FaultKind::CutAfter(3 << 20), Verb::UploadPart).skip(1));
    fake.fault(once(FaultKind::ReplyLost, Verb::UploadPart).skip(2));
    assert_eq!(upload.finish(&origins).await, Verified::ByStore);
    assert!(content(&origins).await == upload.bytes);
    let stats = origins.stats();
    assert_eq!((stats.retries, stats.checksums_refused), (3, 0), "{stats:?}");
}

#[tokio::test]
async fn a_completion_whose_answer_was_lost_is_found_done() {
    let (fake, origins) = setup(Quirks::default());
    let upload = Upload::start(&origins).await;
    let parts = upload.parts(&origins).await;
    fake.fault(once(FaultKind::ReplyLost, Verb::CompleteUpload));
    assert_eq!(origins.upload_complete(URL, &upload.id, &parts).await.unwrap(), None);
    assert_eq!(upload.verify(&origins).await.unwrap(), Verified::ByStore);
}

#[tokio::test]
async fn an_error_within_a_successful_completion_is_repeated() {
    let (fake, origins) = setup(Quirks::default());
    let upload = Upload::start(&origins).await;
    let parts = upload.parts(&origins).await;
    fake.fault(once(FaultKind::ErrorInBody, Verb::CompleteUpload));
    let version = origins.upload_complete(URL, &upload.id, &parts).await.unwrap().unwrap();
    assert_eq!(origins.stat(URL).await.unwrap().version(), &version);
    assert_eq!(origins.stats().retries, 1);

    let again = Upload::start(&origins).await;
    let parts = again.parts(&origins).await;
    fake.fault(Fault::new(FaultKind::ErrorInBody).verb(Verb::CompleteUpload));
    let error = origins.upload_complete(URL, &again.id, &parts).await.unwrap_err();
    assert_names(&error, Code::Unavailable, &[URL, "500 InternalError"]);
}

#[tokio::test]
async fn an_upload_that_was_forgotten_is_named() {
    let (fake, origins) = setup(Quirks::default());
    let upload = Upload::start(&origins).await;
    let parts = upload.parts(&origins).await;
    let open = fake.uploads();
    assert!(fake.forget_upload(&open[0].path, &open[0].id));
    let error = upload.part(&origins, 0).await.unwrap_err();
    assert_names(&error, Code::NotFound, &[URL, "no such upload", "completed or aborted"]);
    assert_eq!(origins.upload_complete(URL, &upload.id, &parts).await.unwrap(), None);
    assert_eq!(upload.verify(&origins).await.unwrap_err().code(), Code::NotFound);
    origins.upload_abort(URL, &upload.id).await.unwrap();
}

#[tokio::test]
async fn an_upload_whose_begin_was_lost_is_found_and_swept() {
    let (fake, origins) = setup(Quirks::default());
    fake.fault(once(FaultKind::ReplyLost, Verb::CreateUpload));
    let upload = Upload::start(&origins).await;
    let open = origins.open_uploads("s3://bucket/run").await.unwrap().unwrap();
    assert_eq!(open.len(), 2);
    assert!(open.iter().all(|open| open.url == URL));
    upload.finish(&origins).await;
    let left = origins.open_uploads("s3://bucket/run").await.unwrap().unwrap();
    assert_eq!(left.len(), 1);
    origins.upload_abort(&left[0].url, &left[0].id).await.unwrap();
    assert!(fake.uploads().is_empty());
}

#[tokio::test]
async fn what_cannot_be_helped_is_told_at_once() {
    let (fake, origins) = setup(Quirks::default());
    let upload = Upload::start(&origins).await;
    for (kind, code, words) in [
        (FaultKind::quota(), Code::Exhausted, "the store is full"),
        (FaultKind::Status(507), Code::Exhausted, "the store is full"),
        (FaultKind::expired_token(), Code::Unauthenticated, "AWS_ACCESS_KEY_ID"),
        (FaultKind::Status(403), Code::PermissionDenied, "do not allow it"),
    ] {
        fake.fault(Fault::new(kind.clone()).verb(Verb::Put));
        fake.fault(Fault::new(kind.clone()).verb(Verb::UploadPart));
        fake.reset_counters();
        let error = put(&origins, "x", PutHow::Create).await.unwrap_err();
        assert_names(&error, code, &["cannot write", URL, words]);
        let error = upload.part(&origins, 1).await.unwrap_err();
        assert_names(&error, code, &["cannot send a part of", URL, words]);
        let requests = (fake.counters().put, fake.counters().upload_part);
        assert_eq!(requests, (1, 1), "{kind:?} is not repeated");
        fake.clear_faults();
    }
    assert_eq!(upload.finish(&origins).await, Verified::ByStore);
    assert_eq!(origins.stats().checksums_refused, 0);
    let error = origins.put("s3://nowhere/x", Bytes::new(), PutHow::Create).await.unwrap_err();
    assert_names(&error, Code::NotFound, &["s3://nowhere/x", "no such bucket"]);
}

#[tokio::test]
async fn a_store_that_refuses_checksums_is_found_out_and_read_back() {
    let (fake, origins) = setup(Quirks { rejects_checksums: true, ..Quirks::default() });
    let upload = Upload::start(&origins).await;
    assert_eq!(upload.finish(&origins).await, Verified::ReadBack);
    assert!(content(&origins).await == upload.bytes);
    version_is_current(&origins, put(&origins, "small", PutHow::Overwrite).await.unwrap()).await;
    assert_eq!(origins.stats().checksums_refused, 1);
    fake.reset_counters();
    assert_eq!(Upload::start(&origins).await.finish(&origins).await, Verified::ReadBack);
    assert_eq!(fake.counters().errors, 0, "nothing is tried again that is known");
}

#[tokio::test]
async fn a_bad_request_does_not_end_checksums() {
    let (fake, origins) = setup(Quirks::default());
    let upload = Upload::start(&origins).await;
    // The first is refused as such, and what is tried without checksums meets a failure that passes.
    fake.fault(once(FaultKind::answer(400, "InvalidRequest"), Verb::UploadPart));
    fake.fault(once(FaultKind::Status(503), Verb::UploadPart).skip(1));
    assert_eq!(upload.finish(&origins).await, Verified::ByStore);
    fake.fault(Fault::new(FaultKind::answer(400, "InvalidRequest")).verb(Verb::Put));
    let error = put(&origins, "x", PutHow::Create).await.unwrap_err();
    assert_names(&error, Code::InvalidArgument, &[URL, "400 InvalidRequest"]);
    assert_eq!(origins.stats().checksums_refused, 0);
}

#[tokio::test]
async fn a_store_that_keeps_no_checksums_is_read_back() {
    let (fake, origins) = setup(Quirks { has_no_checksums: true, ..Quirks::default() });
    let upload = Upload::start(&origins).await;
    assert_eq!(upload.finish(&origins).await, Verified::ReadBack);
    assert!(fake.flip_byte(&fake.paths("bucket/")[0], 4_000_000));
    let error = upload.verify(&origins).await.unwrap_err();
    assert_names(&error, Code::Corrupt, &[URL, "damaged", &BlockChecksum::of(&upload.bytes).to_string()]);
}

#[tokio::test]
async fn a_checksum_that_differs_is_confirmed_by_the_bytes() {
    let (_fake, origins) = setup(Quirks::default());
    put(&origins, "other bytes", PutHow::Overwrite).await.unwrap();
    let error = origins.verify(URL, 11, BlockChecksum::of(b"these bytes")).await.unwrap_err();
    assert_names(&error, Code::Corrupt, &[URL, "read back"]);
    assert!(origins.stats().read_requests > 0);
}

#[tokio::test]
async fn a_store_that_overwrites_is_refused() {
    let (fake, origins) = setup(Quirks { ignores_conditional_puts: true, ..Quirks::default() });
    for _ in 0..2 {
        let error = origins.check_conditional_puts("s3://bucket/run").await.unwrap_err();
        assert_names(&error, Code::Unsupported, &["s3://bucket/run", "does not honour conditional writes"]);
        assert!(fake.paths("bucket/").is_empty(), "nothing is left behind");
    }
}

#[tokio::test]
async fn the_probe_survives_lost_answers() {
    for skip in 0..4 {
        let (fake, origins) = setup(Quirks::default());
        fake.fault(once(FaultKind::ReplyLost, Verb::Put).skip(skip));
        origins.check_conditional_puts("s3://bucket/run").await.unwrap();
        assert!(fake.paths("bucket/").is_empty());
    }
}

#[tokio::test]
async fn a_store_that_cannot_list_uploads_says_so() {
    let (_fake, origins) = setup(Quirks { cannot_list_uploads: true, ..Quirks::default() });
    assert_eq!(origins.open_uploads("s3://bucket/run").await.unwrap(), None);
}

#[tokio::test]
async fn a_store_that_never_answers_is_given_up() {
    let (fake, _) = setup(Quirks::default());
    let options =
        OriginOptions { first_byte_timeout_ms: 100, stall_timeout_ms: 100, attempts_max: 2, ..options_of(&fake) };
    let origins = Origins::new(options).unwrap();
    let upload = Upload::start(&origins).await;
    fake.fault(Fault::new(FaultKind::Hang).verb(Verb::UploadPart));
    let start = Instant::now();
    let error = upload.part(&origins, 0).await.unwrap_err();
    assert_names(&error, Code::Timeout, &["cannot send a part of", URL, "2 attempts"]);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_slow_link_is_no_silent_server() {
    let (fake, _) = setup(Quirks::default());
    // The part takes about a second and a half, more than a first byte may.
    fake.limit_uploads(Some(4 << 20));
    let options = OriginOptions { first_byte_timeout_ms: 500, stall_timeout_ms: 4000, ..options_of(&fake) };
    let origins = Origins::new(options).unwrap();
    let upload = Upload::start(&origins).await;
    upload.part(&origins, 0).await.unwrap();
    assert_eq!(origins.stats().retries, 0);
}

#[tokio::test]
async fn google_generations_are_conditions() {
    let fake = FakeOrigin::with(OriginConfig {
        dialect: Dialect::Gcs,
        token: Some("geheim".to_owned()),
        ..OriginConfig::default()
    });
    fake.create_bucket("bucket");
    let options = OriginOptions {
        gcs_endpoint: Some(fake.url()),
        gcs_skip_signature: true,
        retry_pause_ms: 1,
        ..OriginOptions::default()
    };
    let origins = Origins::new(options).unwrap();
    let error = origins.put("gs://bucket/x", Bytes::new(), PutHow::Create).await.unwrap_err();
    assert_names(&error, Code::PermissionDenied, &["gs://bucket/x", "GOOGLE_APPLICATION_CREDENTIALS"]);
    let wrong = PutHow::Replace(Version::new("etag:\"x\"").unwrap());
    let error = origins.put("gs://bucket/x", Bytes::new(), wrong).await.unwrap_err();
    assert_names(&error, Code::InvalidArgument, &["gs://bucket/x", "of another kind"]);
}

/// The time per byte stays what it is when parts grow: what is sent is handed on, not copied again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cost_of_a_part_grows_with_its_bytes_alone() {
    let (_fake, origins) = setup(Quirks::default());
    let id = origins.upload_start(URL).await.unwrap();
    let whole = Bytes::from(vec![7; 64 << 20]);
    let mut best = [Duration::MAX; 2];
    for _ in 0..3 {
        for (best, mib) in best.iter_mut().zip([8, 64]) {
            let part = whole.slice(..mib << 20);
            let start = Instant::now();
            origins.upload_part(URL, &id, 0, part).await.unwrap();
            *best = start.elapsed().min(*best);
        }
    }
    let [small, large] = best.map(|time| time.as_secs_f64());
    assert!(large < small * 8.0 * 4.0 + 0.1, "8 MiB took {small} s, 64 MiB {large} s");
    println!("{:.0} MB/s in parts of 64 MiB", 64.0 * 1.048_576 / large);
}

/// Every call can be awaited by a task, whatever it borrows.
#[tokio::test]
async fn calls_run_in_tasks() {
    let (_fake, origins) = setup(Quirks::default());
    let urls = vec![URL.to_owned()];
    let task = tokio::spawn(async move {
        origins.check_conditional_puts(URL).await?;
        origins.put(URL, Bytes::from_static(b"x"), PutHow::Create).await?;
        origins.verify(URL, 1, BlockChecksum::of(b"x")).await?;
        origins.read_small(URL, 10).await?;
        let id = origins.upload_start(URL).await?;
        let part = origins.upload_part(URL, &id, 0, Bytes::new()).await?;
        origins.upload_complete(URL, &id, &[part]).await?;
        origins.upload_abort(URL, &id).await?;
        origins.open_uploads("s3://bucket").await?;
        origins.list_folders("s3://bucket").await?;
        assert_eq!(origins.list_below("s3://bucket").await?.len(), 1);
        origins.delete(&urls).await
    });
    assert_eq!(task.await.unwrap().unwrap(), 1);
}
