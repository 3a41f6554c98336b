//! The origin fails in every way it can while a save goes there.

use std::time::{Duration, Instant};

use longshore_proto::v1;
use longshore_testkit::origin::Verb;
use longshore_testkit::proxy::{FaultProxy, ProxyFaults};
use longshore_testkit::{Fault, FaultKind};
use longshore_tests::Saving;

use super::site::{RUN, SOON, Site, model, options};
use crate::common::wait_until;

/// Saves step after step, each with other faults; all end committed and whole.
fn all_commit(faults: &[(&str, Vec<Fault>)]) {
    let site = Site::new();
    for (step, (what, faults)) in (2..).zip(faults) {
        site.origin.clear_faults();
        site.origin.reset_counters();
        faults.iter().cloned().for_each(|fault| site.origin.fault(fault));
        let new = model(step);
        let saved = site.save(step, &new, options());
        assert!(saved.acks.committed, "{what}: {:?}", saved.error);
        let struck = site.origin.counters().faults;
        assert!(struck > 0, "{what}: no request was struck");
        site.origin.clear_faults();
        site.whole(step, &new);
        println!("{what}: {struck} faults");
    }
    site.former_is_whole();
    // One of which nobody was told is left to the sweep.
    let untold = u64::from(faults.iter().flat_map(|(_, faults)| faults).any(loses_an_upload));
    assert_eq!(site.origin.uploads().len() as u64, untold, "{:?}", site.origin.uploads());
    let swept = site.reader().sweep(RUN, Duration::from_millis(1)).unwrap();
    assert_eq!((swept.uploads_aborted, site.origin.uploads().len()), (untold, 0));
    site.former_is_whole();
}

fn loses_an_upload(fault: &Fault) -> bool {
    fault.kind == FaultKind::ReplyLost && fault.verb == Some(Verb::CreateUpload)
}

fn fault(kind: FaultKind, verb: Verb) -> Fault {
    Fault::new(kind).verb(verb).times(1)
}

#[test]
fn crash_of_the_reply_to_every_kind_of_write() {
    let lost = |verb| fault(FaultKind::ReplyLost, verb);
    all_commit(&[
        ("CreateMultipartUpload", vec![lost(Verb::CreateUpload)]),
        ("UploadPart", vec![lost(Verb::UploadPart).times(2)]),
        ("CompleteMultipartUpload", vec![lost(Verb::CompleteUpload)]),
        ("_CKPT.json", vec![lost(Verb::Put).on("*/_CKPT.json")]),
        ("_INTENT.json", vec![lost(Verb::Put).on("*/_INTENT.json")]),
        ("the index", vec![lost(Verb::Put).on("*.index.json")]),
    ]);
}

#[test]
fn crash_of_requests_with_500_and_503_and_cuts() {
    all_commit(&[
        ("500 on parts", vec![fault(FaultKind::Status(500), Verb::UploadPart).times(3)]),
        ("503 on everything", vec![Fault::new(FaultKind::Status(503)).any_verb().times(6)]),
        ("cut parts", vec![fault(FaultKind::CutAfter(1 << 20), Verb::UploadPart).times(2)]),
        ("an error in the body of complete", vec![fault(FaultKind::ErrorInBody, Verb::CompleteUpload)]),
        ("slow down", vec![fault(FaultKind::slow_down(1), Verb::UploadPart)]),
        ("500 on the commit", vec![fault(FaultKind::Status(500), Verb::Put).on("*/_CKPT.json").times(2)]),
    ]);
}

#[test]
fn crash_of_the_commit_with_412_and_409() {
    all_commit(&[
        ("412 on the commit", vec![fault(FaultKind::Status(412), Verb::Put).on("*/_CKPT.json")]),
        ("409 on the commit", vec![fault(FaultKind::Status(409), Verb::Put).on("*/_CKPT.json")]),
        ("412 on the intent", vec![fault(FaultKind::Status(412), Verb::Put).on("*/_INTENT.json")]),
        ("409 on the hint", vec![fault(FaultKind::Status(409), Verb::Put).on("*/_LATEST.json")]),
    ]);
}

/// What is stored wrong is found and sent again, never committed.
#[test]
fn crash_of_bytes_on_their_way() {
    all_commit(&[
        ("a bit of a part in transit", vec![fault(FaultKind::FlipBit(1000), Verb::UploadPart)]),
        ("a bit of the commit in transit", vec![fault(FaultKind::FlipBit(100), Verb::Put).on("*/_CKPT.json")]),
    ]);
}

/// A save that the origin refuses waits, says why, is durable meanwhile, and goes on; also after a kill.
fn waits_for(faults: Vec<Fault>, says: &[&str]) {
    let mut site = Site::new();
    faults.into_iter().for_each(|fault| site.origin.fault(fault.on("bucket/run/step-2/*")));
    let new = model(2);
    let mut client = site.client();
    let saving = Saving::plan(&mut client, (RUN, 2), (&new, 1), options()).unwrap();
    let slabs = saving.stage(&mut client, 0).unwrap();
    let told = |status: &v1::SaveStatus| {
        status.state() == v1::SaveState::LocalDurable && says.iter().any(|word| status.waiting_for.contains(word))
    };
    let status = client.follow(saving.attempt(), SOON, told).unwrap();
    assert!(told(&status), "{status:?}");
    assert!(status.retries > 0, "{status:?}");
    drop(slabs);
    site.revive();
    site.client().follow(saving.attempt(), SOON, |status| !status.waiting_for.is_empty()).unwrap();
    site.origin.clear_faults();
    site.commits(saving.attempt(), &new);
}

#[test]
fn crash_of_credentials_that_expire() {
    waits_for(vec![Fault::new(FaultKind::expired_token()).any_verb()], &["expired", "credential", "answered 400"]);
}

#[test]
fn crash_of_a_quota() {
    let full = |verb| Fault::new(FaultKind::quota()).verb(verb);
    waits_for(vec![full(Verb::Put), full(Verb::CreateUpload), full(Verb::UploadPart)], &["QuotaExceeded", "quota"]);
}

#[test]
fn crash_of_the_origin_which_comes_back() {
    let origin = longshore_testkit::FakeOrigin::start();
    origin.create_bucket("bucket");
    let proxy = FaultProxy::start(&origin.address().to_string()).unwrap();
    let endpoint = format!("http://{}", proxy.address());
    let spec = super::site::spec(&origin)
        .loader_env("AWS_ENDPOINT_URL", &endpoint)
        .loader_env("LONGSHORE_ORIGIN_CONNECT_TIMEOUT_MS", "500");
    let cluster = longshore_testkit::Cluster::start(spec);
    let sockets = cluster.loader_socket(0).parent().unwrap().to_owned();
    let mut client = longshore_tests::SaveClient::connect(&sockets).unwrap();
    let new = model(2);
    let saving = Saving::plan(&mut client, (RUN, 2), (&new, 1), options()).unwrap();
    proxy.set(ProxyFaults { refuses: true, ..ProxyFaults::default() });
    proxy.cut_all();
    let _slabs = saving.stage(&mut client, 0).unwrap();
    let waits = |status: &v1::SaveStatus| {
        status.state() == v1::SaveState::LocalDurable && status.waiting_for.contains("origin") && status.retries > 1
    };
    let status = client.follow(saving.attempt(), SOON, waits).unwrap();
    assert!(waits(&status), "durable here, and says what it waits for: {status:?}");
    proxy.set(ProxyFaults::default());
    let back = Instant::now();
    let status = client.wait(saving.attempt(), v1::SaveState::Committed, SOON).unwrap();
    assert_eq!(status.state(), v1::SaveState::Committed, "{status:?}");
    println!("committed {:?} after the origin came back", back.elapsed());
    wait_until("requests have ended", || origin.wait_idle(Duration::from_secs(5)));
    crate::common::load_and_check(&cluster, 1, &format!("{RUN}/step-2"), &new);
}
