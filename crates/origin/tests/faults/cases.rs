// The cases, included once for each way in which bytes are read: `read` is what differs.

use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use longshore_origin::{OriginOptions, Origins};
use longshore_testkit::origin::{FaultKind, Quirks, Verb};
use longshore_testkit::{Dialect, FakeOrigin, Fault, OriginConfig};
use longshore_types::{Artifact, Code, Error, Result};

const KEY: &str = "bucket/model/a.bin";
const URL: &str = "s3://bucket/model/a.bin";
const SIZE: u64 = (4 << 20) + 11;

fn options() -> OriginOptions {
    OriginOptions { attempts_max: 4, retry_pause_ms: 1, ..OriginOptions::default() }
}

fn origins_of(fake: &FakeOrigin) -> Origins {
    Origins::new(options_of(fake)).unwrap()
}

fn options_of(fake: &FakeOrigin) -> OriginOptions {
    OriginOptions {
        s3_endpoint: Some(fake.url()),
        s3_access_key_id: Some("key-id".to_owned()),
        s3_secret_access_key: Some("geheim".into()),
        ..options()
    }
}

/// Short limits, for what must time out.
fn impatient(fake: &FakeOrigin) -> Origins {
    let options = OriginOptions { first_byte_timeout_ms: 1000, stall_timeout_ms: 1000, ..options_of(fake) };
    Origins::new(options).unwrap()
}

/// An S3 double with one object, and its artifact.
async fn setup() -> (FakeOrigin, Origins, Arc<Artifact>) {
    setup_with(OriginConfig::default()).await
}

async fn setup_with(config: OriginConfig) -> (FakeOrigin, Origins, Arc<Artifact>) {
    let fake = FakeOrigin::with(config);
    fake.generate(KEY, 1, SIZE);
    let origins = origins_of(&fake);
    let artifact = Arc::new(origins.stat(URL).await.unwrap());
    fake.reset_counters();
    (fake, origins, artifact)
}

fn assert_says(error: &Error, code: Code, words: &[&str]) {
    assert_eq!(error.code(), code, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word:?} is missing in: {error}");
    }
    assert!(!format!("{error:?}").contains("geheim"), "a secret is in: {error:?}");
}

#[tokio::test]
async fn a_read_that_is_cut_off_goes_on_at_the_byte_reached() {
    let (fake, origins, artifact) = setup().await;
    fake.fault(Fault::new(FaultKind::CutAfter(1_000_003)).times(3));
    let bytes = read(&origins, &artifact, 5..SIZE).await.unwrap();
    assert!(bytes == fake.content(KEY).unwrap().read(5..SIZE));
    let starts: Vec<u64> = fake.counters().ranges(KEY).iter().map(|range| range.start).collect();
    assert_eq!(starts.len(), 4);
    assert!(starts.is_sorted() && starts[1] > 5, "each attempt starts where the one before ended: {starts:?}");
    assert!(fake.counters().bytes < SIZE + (2 << 20), "what had arrived was not fetched again");
    assert_eq!(origins.stats().retries, 3);
}

#[tokio::test]
async fn passing_failures_are_repeated() {
    for status in [500, 502, 503, 504, 429, 408] {
        let (fake, origins, artifact) = setup().await;
        fake.fault(Fault::new(FaultKind::Status(status)).times(2));
        let bytes = read(&origins, &artifact, 10..20).await.unwrap();
        assert_eq!(bytes, fake.content(KEY).unwrap().read(10..20), "{status}");
        assert_eq!(fake.counters().get, 3, "{status}");
        assert_eq!(origins.stats().retries, 2, "{status}");
    }
}

#[tokio::test]
async fn a_failure_that_stays_ends_with_the_budget() {
    let (fake, origins, artifact) = setup().await;
    fake.fault(Fault::new(FaultKind::Status(503)));
    let error = read(&origins, &artifact, 0..SIZE).await.unwrap_err();
    assert_says(&error, Code::Unavailable, &[URL, "503", "SlowDown", "gave up after 4 attempts"]);
    assert_eq!(fake.counters().get, 4, "the library below does not repeat by itself");
    assert_eq!(origins.stats().errors, 1);
}

#[tokio::test]
async fn failures_that_stay_are_not_repeated() {
    for (status, code) in [
        (400, Code::InvalidArgument),
        (401, Code::Unauthenticated),
        (403, Code::PermissionDenied),
        (404, Code::NotFound),
    ] {
        let (fake, origins, artifact) = setup().await;
        fake.fault(Fault::new(FaultKind::Status(status)));
        let error = read(&origins, &artifact, 0..10).await.unwrap_err();
        assert_says(&error, code, &[URL]);
        assert_eq!(fake.counters().get, 1, "{status}");
    }
}

#[tokio::test]
async fn a_slow_origin_is_waited_for() {
    let (fake, _, artifact) = setup().await;
    let origins = impatient(&fake);
    fake.fault(Fault::new(FaultKind::BytesPerSecond(100_000)));
    // Longer than any of the limits.
    let bytes = read(&origins, &artifact, 0..200_000).await.unwrap();
    assert_eq!(bytes.len(), 200_000);
    assert_eq!(origins.stats().retries, 0, "slow is not stalled");
}

#[tokio::test]
async fn a_stalled_body_is_named_and_resumed() {
    let (fake, _, artifact) = setup().await;
    let origins = impatient(&fake);
    fake.fault(Fault::new(FaultKind::HangAfter(1_000_000)).times(1));
    let bytes = read(&origins, &artifact, 0..SIZE).await.unwrap();
    assert!(fake.content(KEY).unwrap().equals(&bytes));
    assert_eq!(origins.stats().retries, 1);

    fake.fault(Fault::new(FaultKind::HangAfter(0)));
    let error = read(&origins, &artifact, 7..SIZE).await.unwrap_err();
    assert_says(&error, Code::Timeout, &[URL, "stalled at byte 7", "1.0 s"]);
}

#[tokio::test]
async fn a_missing_first_byte_is_named() {
    let (fake, _, artifact) = setup().await;
    let origins = impatient(&fake);
    fake.fault(Fault::new(FaultKind::Hang).any_verb());
    let host = fake.address().to_string();
    let error = read(&origins, &artifact, 0..10).await.unwrap_err();
    assert_says(&error, Code::Timeout, &[URL, "no first byte within 1.0 s", &host]);
    let error = origins.stat(URL).await.unwrap_err();
    assert_says(&error, Code::Timeout, &[URL, "no first byte within 1.0 s", &host]);
}

#[tokio::test]
async fn an_unreachable_endpoint_is_named_soon() {
    let fake = FakeOrigin::start();
    let (origins, host) = (origins_of(&fake), fake.address().to_string());
    drop(fake);
    let started = Instant::now();
    let error = origins.resolve("s3://bucket/model").await.unwrap_err();
    assert_says(&error, Code::Unavailable, &["s3://bucket/model", "cannot connect", &host, "AWS_ENDPOINT_URL"]);
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(origins.stats().requests, 3, "an origin that never answered is given up soon");
}

#[tokio::test]
async fn a_connection_that_does_not_open_is_named() {
    // A listener that accepts nobody, with a full queue, answers no further connection.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let queue: Vec<_> =
        (0..8).map_while(|_| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()).collect();
    assert!(queue.len() < 8, "the queue does not fill up on this system");
    let origins = Origins::new(OriginOptions {
        s3_endpoint: Some(format!("http://{address}")),
        s3_skip_signature: true,
        connect_timeout_ms: 200,
        first_byte_timeout_ms: 10_000,
        ..options()
    })
    .unwrap();
    let error = origins.stat(URL).await.unwrap_err();
    assert_says(&error, Code::Timeout, &[URL, "connecting to", &address.to_string(), "0.2 s"]);
}

#[tokio::test]
async fn an_object_that_is_replaced_before_the_read_is_noticed() {
    for ignores_conditions in [false, true] {
        let quirks = Quirks { ignores_conditions, ..Quirks::default() };
        let (fake, origins, artifact) = setup_with(OriginConfig { quirks, ..OriginConfig::default() }).await;
        fake.fault(Fault::new(FaultKind::Replace).times(1));
        let error = read(&origins, &artifact, 0..SIZE).await.unwrap_err();
        let now = origins.stat(URL).await.unwrap();
        let (was, now) = (artifact.version().as_str(), now.version().as_str());
        assert_ne!(was, now);
        assert_says(&error, Code::FailedPrecondition, &[URL, was, now]);
    }
}

#[tokio::test]
async fn bytes_of_two_versions_never_mix() {
    for ignores_conditions in [false, true] {
        let quirks = Quirks { ignores_conditions, ..Quirks::default() };
        let (fake, origins, artifact) = setup_with(OriginConfig { quirks, ..OriginConfig::default() }).await;
        let old = fake.content(KEY).unwrap();
        // The first answer is cut off; before the second, the object changes.
        fake.fault(Fault::new(FaultKind::CutAfter(1_000_000)).times(1));
        fake.fault(Fault::new(FaultKind::Replace).skip(1).times(1));
        let mut stream = origins.read(&artifact, 0..SIZE);
        let mut reached = 0;
        let error = loop {
            match stream.next().await.expect("the read must not end as if all were well") {
                Ok(piece) => {
                    assert_eq!(old.first_difference(reached, &piece), None);
                    reached += piece.len() as u64;
                }
                Err(error) => break error,
            }
        };
        assert_says(&error, Code::FailedPrecondition, &[URL]);
        assert!(stream.next().await.is_none(), "nothing comes after an error");
    }
}

#[tokio::test]
async fn an_object_that_is_deleted_before_the_read_is_named() {
    let (fake, origins, artifact) = setup().await;
    fake.fault(Fault::new(FaultKind::Remove).times(1));
    let error = read(&origins, &artifact, 0..10).await.unwrap_err();
    assert_says(&error, Code::NotFound, &[URL, artifact.version().as_str(), "deleted"]);
}

#[tokio::test]
async fn a_server_without_ranges_is_read_whole_or_not_at_all() {
    let quirks = Quirks { ignores_ranges: true, ..Quirks::default() };
    let (fake, origins, artifact) = setup_with(OriginConfig { quirks, ..OriginConfig::default() }).await;
    assert!(fake.content(KEY).unwrap().equals(&read(&origins, &artifact, 0..SIZE).await.unwrap()));
    let error = read(&origins, &artifact, 1..SIZE).await.unwrap_err();
    assert_says(&error, Code::Unsupported, &[URL, "ignores byte ranges"]);
}

#[tokio::test]
async fn s3_credentials() {
    let access_key = Some(("right".to_owned(), "right-geheim".to_owned()));
    let fake = FakeOrigin::with(OriginConfig { access_key, ..OriginConfig::default() });
    fake.put(KEY, "bytes");
    let with = |id: Option<&str>, secret: Option<&str>| {
        Origins::new(OriginOptions {
            s3_endpoint: Some(fake.url()),
            s3_access_key_id: id.map(str::to_owned),
            s3_secret_access_key: secret.map(Into::into),
            s3_skip_signature: id.is_none(),
            ..options()
        })
        .unwrap()
    };
    assert!(with(Some("right"), Some("right-geheim")).resolve("s3://bucket/model").await.is_ok());
    for (id, code) in
        [(Some("right"), Code::Unauthenticated), (Some("wrong"), Code::Unauthenticated), (None, Code::PermissionDenied)]
    {
        let origins = with(id, id.map(|_| "wrong-geheim"));
        let error = origins.resolve("s3://bucket/model").await.unwrap_err();
        assert_says(&error, code, &["s3://bucket/model", "403", "AWS_ACCESS_KEY_ID"]);
        assert_eq!(origins.stats().requests, 1, "wrong credentials do not become right");
    }
    let error = with(Some("right"), Some("right-geheim")).resolve("s3://nowhere/model").await.unwrap_err();
    assert_says(&error, Code::NotFound, &["s3://nowhere/model", "no such bucket"]);
}

#[tokio::test]
async fn gcs_credentials() {
    let token = Some("right-geheim".to_owned());
    let fake = FakeOrigin::with(OriginConfig { dialect: Dialect::Gcs, token, ..OriginConfig::default() });
    fake.put(KEY, "bytes");
    let with = |token: Option<&str>| {
        let option = token.map(|token| format!("google_bearer_token={token}").parse().unwrap());
        Origins::new(OriginOptions {
            gcs_endpoint: Some(fake.url()),
            gcs_skip_signature: token.is_none(),
            store_options: option.into_iter().collect(),
            ..options()
        })
        .unwrap()
    };
    assert!(with(Some("right-geheim")).resolve("gs://bucket/model").await.is_ok());
    let error = with(Some("wrong-geheim")).resolve("gs://bucket/model").await.unwrap_err();
    assert_says(&error, Code::Unauthenticated, &["gs://bucket/model", "401", "GOOGLE_APPLICATION_CREDENTIALS"]);
    let error = with(None).resolve("gs://bucket/model").await.unwrap_err();
    assert_says(&error, Code::PermissionDenied, &["gs://bucket/model", "403"]);
}

fn hub_of(fake: &FakeOrigin, token: Option<&str>) -> Origins {
    let options = OriginOptions { hf_endpoint: Some(fake.url()), hf_token: token.map(Into::into), ..options() };
    Origins::new(options).unwrap()
}

#[tokio::test]
async fn a_hub_token_opens_the_hub_and_goes_nowhere_else() {
    let fake = FakeOrigin::with(OriginConfig {
        dialect: Dialect::Hub,
        token: Some("hf_geheim".to_owned()),
        redirects_large_files: true,
        ..OriginConfig::default()
    });
    fake.generate("org/name/model.safetensors", 3, SIZE);
    let origins = hub_of(&fake, Some("hf_geheim"));
    let resolved = origins.resolve("hf://org/name").await.unwrap();
    assert_eq!(Some(resolved.revision.as_str()), fake.hub_commit("org/name").as_deref());
    let artifact = resolved.files[0].artifact.clone();
    assert!(artifact.version().as_str().starts_with(&format!("sha:{}/", resolved.revision)));
    // A body that breaks off is asked for again at the hub, whose signed redirects do not live long.
    fake.fault(Fault::new(FaultKind::CutAfter(1_000_000)).times(2));
    let bytes = read(&origins, &artifact, 0..SIZE).await.unwrap();
    assert!(fake.content("org/name/model.safetensors").unwrap().equals(&bytes));
    assert!(!fake.token_leaked());

    for token in [None, Some("wrong-geheim")] {
        let error = hub_of(&fake, token).resolve("hf://org/name").await.unwrap_err();
        let code = if token.is_some() { Code::Unauthenticated } else { Code::PermissionDenied };
        assert_says(&error, code, &["hf://org/name", "401", "HF_TOKEN"]);
    }
}

#[tokio::test]
async fn a_branch_and_its_commit_are_one_artifact_that_does_not_move() {
    let fake = FakeOrigin::speaking(Dialect::Hub);
    fake.put("org/name/sub/model.gguf", "old");
    fake.put("org/name/config.json", "{}");
    let origins = hub_of(&fake, None);
    let commit = fake.hub_commit("org/name").unwrap();
    let branch = origins.resolve("hf://org/name@main").await.unwrap();
    let at_commit = origins.resolve(&format!("hf://org/name@{commit}")).await.unwrap();
    assert_eq!(branch.url, "hf://org/name@main", "a model is called what it was asked for as");
    assert_eq!(branch.files, at_commit.files);
    let artifact = branch.files[1].artifact.clone();
    assert_eq!(artifact.url(), format!("hf://org/name@{commit}/sub/model.gguf"));
    let sub = origins.resolve("hf://org/name/sub").await.unwrap();
    let single = origins.resolve("hf://org/name/sub/model.gguf").await.unwrap();
    let stat = origins.stat("hf://org/name/sub/model.gguf").await.unwrap();
    assert!(sub.files[0].artifact == artifact && single.files[0].artifact == artifact && stat == *artifact);

    fake.put("org/name/sub/model.gguf", "new");
    assert_ne!(origins.stat("hf://org/name/sub/model.gguf").await.unwrap().url(), artifact.url());
    assert_eq!(origins.stat(artifact.url()).await.unwrap(), *artifact);
    assert_eq!(read(&origins, &artifact, 0..3).await.unwrap(), b"old");
}

#[tokio::test]
async fn what_is_missing_on_a_hub_is_told_apart() {
    let fake = FakeOrigin::with(OriginConfig {
        dialect: Dialect::Hub,
        token: Some("hf_geheim".to_owned()),
        ..OriginConfig::default()
    });
    fake.put("org/name/config.json", "{}");
    let origins = hub_of(&fake, Some("hf_geheim"));
    for (url, words) in [
        ("hf://org/other", "no such repository"),
        ("hf://org/name@nowhere", "no such revision"),
        ("hf://org/name/x.safetensors", "no such file"),
    ] {
        let error = origins.resolve(url).await.unwrap_err();
        assert_says(&error, Code::NotFound, &[words]);
    }
    fake.fault(Fault::new(FaultKind::Status(503)).verb(Verb::List).times(2));
    assert_eq!(origins.resolve("hf://org/name").await.unwrap().files.len(), 1);
    assert_eq!(origins.stats().retries, 2);
}

#[tokio::test]
async fn only_the_page_that_failed_is_asked_for_again() {
    let fake = FakeOrigin::with(OriginConfig { page_size: 10, ..OriginConfig::default() });
    for i in 0..45 {
        fake.put(&format!("bucket/model/{i:02}"), "x");
    }
    let origins = origins_of(&fake);
    fake.fault(Fault::new(FaultKind::Status(503)).verb(Verb::List).skip(2).times(1));
    let resolved = origins.resolve("s3://bucket/model").await.unwrap();
    assert_eq!(resolved.files.len(), 45);
    let counters = fake.counters();
    assert_eq!((counters.list, counters.head, counters.get), (6, 0, 0));
}

#[tokio::test]
async fn a_dead_origin_is_not_hammered() {
    let (fake, _, artifact) = setup().await;
    let origins = Origins::new(OriginOptions {
        s3_endpoint: Some(fake.url()),
        s3_skip_signature: true,
        retry_time_ms_max: 2_000,
        ..options()
    })
    .unwrap();
    fake.fault(Fault::new(FaultKind::Status(503)));
    let started = Instant::now();
    let reads = (0..100).map(|i| read(&origins, &artifact, i..i + 1));
    let results = futures::future::join_all(reads).await;
    assert!(results.iter().all(Result::is_err));
    // A hundred first attempts, 64 retries at once, then eight a second: not 400.
    let allowed = 100 + 64 + 8 * (started.elapsed().as_secs() + 1);
    let got = fake.counters().get;
    assert!(got <= allowed, "{got} requests in {:?}", started.elapsed());
}

#[tokio::test]
async fn connections_are_bounded() {
    let (fake, _, artifact) = setup().await;
    let origins = Origins::new(OriginOptions {
        s3_endpoint: Some(fake.url()),
        s3_skip_signature: true,
        connections_max: 3,
        ..options()
    })
    .unwrap();
    fake.fault(Fault::new(FaultKind::LatencyMs(20)));
    let reads = (0..30).map(|i| read(&origins, &artifact, i * 1000..(i + 1) * 1000));
    assert!(futures::future::join_all(reads).await.iter().all(Result::is_ok));
    assert!(fake.counters().in_flight_max <= 3, "{} at a time", fake.counters().in_flight_max);
}

#[tokio::test]
async fn connections_are_used_again() {
    let (fake, origins, artifact) = setup().await;
    for i in 0..20 {
        read(&origins, &artifact, i * 100_000..(i + 1) * 100_000).await.unwrap();
    }
    // A connection whose last byte was handed out a moment ago may not be back yet when the next read starts.
    assert!(fake.counters().connections <= 3, "{} connections for 20 reads in a row", fake.counters().connections);
}
