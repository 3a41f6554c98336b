//! What every origin must do that is written to.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use longshore_origin::{OriginOptions, Origins, PartId, PutHow, PutOutcome, UploadId, Verified};
use longshore_types::{Artifact, BlockChecksum, Code, Version};

use crate::prepared::Prepared;
use crate::suite::{assert_names, bytes_of};

/// As near to what S3 allows at least as each origin lets us.
const PART_WISH: u64 = 5 << 20;

async fn put(prepared: &Prepared, name: &str, text: &str, how: PutHow) -> PutOutcome {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    prepared.origins.put(&prepared.url(name), bytes, how).await.unwrap_or_else(|error| panic!("{name}: {error}"))
}

async fn read(prepared: &Prepared, name: &str) -> (Arc<Artifact>, Bytes) {
    prepared.origins.read_small(&prepared.url(name), 1 << 30).await.unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn written(outcome: PutOutcome) -> Version {
    match outcome {
        PutOutcome::Written(version) => version,
        PutOutcome::Conflict => panic!("nothing stood in the way of this put"),
    }
}

pub async fn puts_tell_the_version(prepared: &Prepared) {
    let version = written(put(prepared, "put/a.json", "one", PutHow::Overwrite).await);
    let (artifact, bytes) = read(prepared, "put/a.json").await;
    assert_eq!((artifact.version(), artifact.size_bytes(), &bytes[..]), (&version, 3, &b"one"[..]));
    let again = written(put(prepared, "put/a.json", "three", PutHow::Overwrite).await);
    assert_ne!(again, version);
    assert_eq!(read(prepared, "put/a.json").await.1, "three");
    // The first version is gone.
    let error = prepared.origins.read(&artifact, 0..3).try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let error = prepared.origins.read_small(&prepared.url("put/a.json"), 4).await.unwrap_err();
    assert_names(&error, Code::Exhausted, &["put/a.json", "5 bytes", "at most 4"]);
    written(put(prepared, "put/empty", "", PutHow::Overwrite).await);
    assert_eq!(read(prepared, "put/empty").await.1, "");
    written(put(prepared, "put/sub folder/a+b é%.txt", "odd", PutHow::Overwrite).await);
    assert_eq!(read(prepared, "put/sub folder/a+b é%.txt").await.1, "odd");
}

pub async fn create_finds_what_is_there(prepared: &Prepared) {
    let version = written(put(prepared, "create/_CKPT.json", "mine", PutHow::Create).await);
    let before = prepared.origins.stats().conflicts;
    assert_eq!(put(prepared, "create/_CKPT.json", "other", PutHow::Create).await, PutOutcome::Conflict);
    assert_eq!(prepared.origins.stats().conflicts, before + 1);
    let (artifact, bytes) = read(prepared, "create/_CKPT.json").await;
    assert_eq!((artifact.version(), &bytes[..]), (&version, &b"mine"[..]));
}

pub async fn one_of_many_creators_wins(prepared: &Prepared) {
    let puts = (0..8).map(|i| async move {
        let text = format!("writer {i}");
        (put(prepared, "race/x", &text, PutHow::Create).await, text)
    });
    let outcomes: Vec<_> = stream::iter(puts).buffer_unordered(8).collect().await;
    let winners: Vec<_> = outcomes.iter().filter(|(outcome, _)| *outcome != PutOutcome::Conflict).collect();
    let bytes = read(prepared, "race/x").await.1;
    if prepared.capabilities.creates_atomically {
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        assert_eq!(bytes, winners[0].1);
    }
}

pub async fn replace_wants_the_right_version(prepared: &Prepared) {
    let first = written(put(prepared, "replace/x", "1", PutHow::Create).await);
    let second = written(put(prepared, "replace/x", "22", PutHow::Replace(first.clone())).await);
    assert_ne!(first, second);
    assert_eq!(put(prepared, "replace/x", "333", PutHow::Replace(first.clone())).await, PutOutcome::Conflict);
    assert_eq!(read(prepared, "replace/x").await.1, "22");
    assert_eq!(put(prepared, "replace/none", "1", PutHow::Replace(first)).await, PutOutcome::Conflict);
    let none = prepared.origins.stat(&prepared.url("replace/none")).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound, "{none}");
}

pub async fn conditional_puts_are_checked(prepared: &Prepared) {
    let url = prepared.url("probed");
    prepared.origins.check_conditional_puts(&url).await.unwrap();
    assert_eq!(prepared.origins.list_below(&url).await.unwrap(), [], "nothing is left behind");
    let before = prepared.origins.stats().requests;
    prepared.origins.check_conditional_puts(&prepared.url("other")).await.unwrap();
    assert_eq!(prepared.origins.stats().requests, before, "it is asked once");
}

/// An object in parts, of which the last is short.
struct Plan {
    bytes: Bytes,
    part_bytes: usize,
}

impl Plan {
    fn of(prepared: &Prepared, seed: u8, parts: u64, last_bytes: u64) -> Plan {
        let limits = prepared.origins.upload_limits(&prepared.prefix).unwrap();
        let part = limits.part_bytes(0, PART_WISH);
        assert!((limits.part_bytes_min..=limits.part_bytes_max).contains(&part));
        Plan { bytes: bytes_of(seed, ((parts - 1) * part + last_bytes) as usize).into(), part_bytes: part as usize }
    }

    fn part(&self, index: u32) -> Bytes {
        let start = index as usize * self.part_bytes;
        self.bytes.slice(start..(start + self.part_bytes).min(self.bytes.len()))
    }

    fn parts(&self) -> u32 {
        self.bytes.len().div_ceil(self.part_bytes) as u32
    }

    fn checksum(&self) -> BlockChecksum {
        BlockChecksum::of(&self.bytes)
    }
}

async fn send(origins: &Origins, url: &str, id: &UploadId, plan: &Plan, order: &[u32]) -> Vec<(u32, PartId)> {
    let sends = order.iter().map(|&index| async move {
        let part = origins.upload_part(url, id, index, plan.part(index)).await;
        (index, part.unwrap_or_else(|error| panic!("part {index} of {url}: {error}")))
    });
    stream::iter(sends).buffer_unordered(4).collect().await
}

/// The ids as a journal keeps them.
fn through_serde<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    serde_json::from_slice(&serde_json::to_vec(value).unwrap()).unwrap()
}

pub async fn upload_goes_on_after_a_restart(prepared: &Prepared) {
    let url = prepared.url("upload/model é.safetensors");
    let plan = Plan::of(prepared, 7, 3, 1000);
    let id = prepared.origins.upload_start(&url).await.unwrap();
    // Out of order, and one of them twice.
    let mut parts = send(&prepared.origins, &url, &id, &plan, &[2, 0]).await;
    let (id, kept): (UploadId, Vec<(u32, PartId)>) = (through_serde(&id), through_serde(&parts));
    let restarted = Origins::new(prepared.options.clone()).unwrap();
    parts = kept.into_iter().filter(|(index, _)| *index != 0).collect();
    parts.extend(send(&restarted, &url, &id, &plan, &[1, 0]).await);
    parts.sort_unstable_by_key(|(index, _)| *index);
    let parts: Vec<PartId> = parts.into_iter().map(|(_, part)| part).collect();
    assert_eq!(parts.len() as u32, plan.parts());
    let version = restarted.upload_complete(&url, &id, &parts).await.unwrap().unwrap();

    let (how, verified) = restarted.verify(&url, plan.bytes.len() as u64, plan.checksum()).await.unwrap();
    assert_eq!(verified, version);
    assert_eq!(how == Verified::ByStore, prepared.capabilities.keeps_checksums, "{how:?}");
    let stats = restarted.stats();
    assert_eq!(
        (stats.verified_by_store, stats.verified_by_reading),
        if how == Verified::ByStore { (1, 0) } else { (0, 1) }
    );
    assert_eq!(stats.bytes_written, (plan.part(0).len() + plan.part(1).len()) as u64);
    let (artifact, bytes) = read(prepared, "upload/model é.safetensors").await;
    assert_eq!(artifact.version(), &version);
    assert!(bytes == plan.bytes, "the object is what its parts are");

    // A completion whose answer was lost is sent again: it is done, whatever is said of it.
    if prepared.capabilities.knows_ended_uploads {
        if let Err(error) = restarted.upload_complete(&url, &id, &parts).await {
            panic!("the upload that was completed before: {error}");
        }
        restarted.upload_abort(&url, &id).await.unwrap();
    }
    restarted.verify(&url, plan.bytes.len() as u64, plan.checksum()).await.unwrap();
}

pub async fn small_upload_is_one_part(prepared: &Prepared) {
    for (name, len) in [("small/x", 5), ("small/empty", 0)] {
        let url = prepared.url(name);
        let bytes = Bytes::from(bytes_of(1, len));
        let id = prepared.origins.upload_start(&url).await.unwrap();
        let part = prepared.origins.upload_part(&url, &id, 0, bytes.clone()).await.unwrap();
        prepared.origins.upload_complete(&url, &id, &[part]).await.unwrap().unwrap();
        prepared.origins.verify(&url, len as u64, BlockChecksum::of(&bytes)).await.unwrap();
    }
}

pub async fn aborted_upload_is_gone(prepared: &Prepared) {
    let url = prepared.url("abort/x");
    let id = prepared.origins.upload_start(&url).await.unwrap();
    let bytes = Bytes::from_static(b"part");
    let part = prepared.origins.upload_part(&url, &id, 0, bytes.clone()).await.unwrap();
    prepared.origins.upload_abort(&url, &id).await.unwrap();
    if prepared.capabilities.knows_ended_uploads {
        prepared.origins.upload_abort(&url, &id).await.unwrap();
    }
    if !prepared.capabilities.aborts {
        return;
    }
    if prepared.capabilities.knows_ended_uploads {
        assert_eq!(prepared.origins.upload_complete(&url, &id, &[part]).await.unwrap(), None);
        let error = prepared.origins.upload_part(&url, &id, 1, bytes).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
    }
    let error = prepared.origins.verify(&url, 4, BlockChecksum::of(b"part")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

pub async fn open_uploads_are_found(prepared: &Prepared) {
    let folder = prepared.url("open");
    let listed = prepared.origins.open_uploads(&folder).await.unwrap();
    if !prepared.capabilities.lists_uploads {
        return assert_eq!(listed, None);
    }
    assert_eq!(listed, Some(Vec::new()));
    let names = ["step-1/model a.safetensors", "step-1/optim/x", "step-2/y"];
    let mut urls = BTreeSet::new();
    for name in names {
        let url = format!("{folder}/{name}");
        prepared.origins.upload_start(&url).await.unwrap();
        urls.insert(prepared.origins.canonical_url(&url).unwrap());
    }
    // Its name only begins with that of the folder.
    let other = prepared.url("open2/z");
    let id = prepared.origins.upload_start(&other).await.unwrap();
    let fresh = Origins::new(prepared.options.clone()).unwrap();
    let open = fresh.open_uploads(&folder).await.unwrap().unwrap();
    assert_eq!(open.iter().map(|upload| upload.url.clone()).collect::<BTreeSet<_>>(), urls);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    assert!(prepared.origins.list_below(&folder).await.unwrap().is_empty(), "they are no objects");
    for upload in &open {
        let is_recent = now.abs_diff(upload.started_ms) < 3_600_000;
        assert!(is_recent || !prepared.capabilities.tells_upload_times, "{upload:?} at {now}");
        fresh.upload_abort(&upload.url, &upload.id).await.unwrap();
    }
    assert_eq!(fresh.open_uploads(&folder).await.unwrap(), Some(Vec::new()));
    fresh.upload_abort(&other, &id).await.unwrap();
}

pub async fn verify_finds_a_flipped_byte(prepared: &Prepared) {
    let url = prepared.url("verify/x");
    let mut bytes = bytes_of(3, 300_000);
    prepared.origins.put(&url, bytes.clone().into(), PutHow::Create).await.unwrap();
    let (size, checksum) = (bytes.len() as u64, BlockChecksum::of(&bytes));
    prepared.origins.verify(&url, size, checksum).await.unwrap();
    let error = prepared.origins.verify(&url, size + 1, checksum).await.unwrap_err();
    assert_names(&error, Code::Corrupt, &[&url, "300000", "300001"]);
    bytes[123_456] ^= 1;
    // Past our own calls, as whoever damages it would do it.
    prepared.put("verify/x", &bytes).await;
    let error = prepared.origins.verify(&url, size, checksum).await.unwrap_err();
    assert_names(&error, Code::Corrupt, &[&url, &checksum.to_string(), &BlockChecksum::of(&bytes).to_string()]);
    prepared.remove("verify/x").await;
    let error = prepared.origins.verify(&url, size, checksum).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

pub async fn written_objects_are_listed(prepared: &Prepared) {
    let folder = prepared.url("run");
    assert_eq!(prepared.origins.list_below(&folder).await.unwrap(), []);
    assert_eq!(prepared.origins.list_folders(&folder).await.unwrap(), Vec::<String>::new());
    let mut names: Vec<String> = (1..=12).map(|step| format!("step-{step}/_CKPT.json")).collect();
    names.extend(["_LATEST.json".to_owned(), "step-3/optim/x y.bin".to_owned()]);
    names.sort_unstable();
    let mut versions = Vec::new();
    for name in &names {
        versions.push(written(put(prepared, &format!("run/{name}"), name, PutHow::Create).await));
    }
    put(prepared, "run2/step-99/x", "other", PutHow::Create).await;
    let listed = prepared.origins.list_below(&folder).await.unwrap();
    assert_eq!(listed.iter().map(|object| &object.name).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    for (object, version) in listed.iter().zip(&versions) {
        assert_eq!(object.size_bytes, object.name.len() as u64);
        assert!(now.abs_diff(object.modified_ms) < 3_600_000, "{object:?} at {now}");
        assert!(object.version.as_ref().is_none_or(|listed| listed == version), "{object:?} is {version}");
        assert!(object.version.is_some() || !prepared.capabilities.listing_has_versions, "{object:?}");
    }
    let mut folders: Vec<String> = (1..=12).map(|step| format!("step-{step}")).collect();
    folders.sort_unstable();
    assert_eq!(prepared.origins.list_folders(&folder).await.unwrap(), folders);
}

pub async fn deleted_objects_are_gone(prepared: &Prepared) {
    let folder = prepared.url("del");
    let mut urls = Vec::new();
    for i in 0..40 {
        let name = format!("step-{}/part {i}", i % 3);
        put(prepared, &format!("del/{name}"), "x", PutHow::Create).await;
        urls.push(format!("{folder}/{name}"));
    }
    put(prepared, "del/kept", "x", PutHow::Create).await;
    assert_eq!(prepared.origins.delete(&urls).await.unwrap(), 40);
    // S3 does not tell whether something was there.
    let again = prepared.origins.delete(&urls).await.unwrap();
    assert!(again == 0 || again == 40, "{again}");
    let left = prepared.origins.list_below(&folder).await.unwrap();
    assert_eq!(left.iter().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["kept"]);
    assert_eq!(prepared.origins.list_folders(&folder).await.unwrap(), Vec::<String>::new());
    assert_eq!(prepared.origins.delete(&[]).await.unwrap(), 0);
}

pub async fn attempt_versions_are_read_unconditionally(prepared: &Prepared) {
    let name = "attempt/x";
    let version = || Version::new("attempt:0b5be4f3-7f9f-4a53-a4ac-3b2f0ba2a3e1").unwrap();
    put(prepared, name, "first", PutHow::Overwrite).await;
    let of_size = |size| Arc::new(Artifact::new(prepared.url(name), version(), size).unwrap());
    let read = |artifact: Arc<Artifact>| {
        let size = artifact.size_bytes();
        async move { prepared.origins.read(&artifact, 0..size).try_collect::<Vec<_>>().await.map(|all| all.concat()) }
    };
    assert_eq!(read(of_size(5)).await.unwrap(), b"first");
    put(prepared, name, "other", PutHow::Overwrite).await;
    assert_eq!(read(of_size(5)).await.unwrap(), b"other");
    let part: Vec<_> = prepared.origins.read(&of_size(5), 1..3).try_collect().await.unwrap();
    assert_eq!(part.concat(), b"th");
    for size in [4, 6] {
        let error = read(of_size(size)).await.unwrap_err();
        assert_names(&error, Code::FailedPrecondition, &[name, "attempt:0b5be4f3"]);
    }
}

pub async fn wrong_use_is_refused(prepared: &Prepared) {
    let url = prepared.url("wrong/x");
    let limits = prepared.origins.upload_limits(&url).unwrap();
    let id = prepared.origins.upload_start(&url).await.unwrap();
    let error = prepared.origins.upload_part(&url, &id, limits.parts_max, Bytes::new()).await.unwrap_err();
    assert_names(&error, Code::InvalidArgument, &[&url]);
    prepared.origins.upload_abort(&url, &id).await.unwrap();
    let error = prepared
        .origins
        .put(&prepared.prefix[..prepared.prefix.find("://").unwrap() + 3], Bytes::new(), PutHow::Create)
        .await;
    assert_eq!(error.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn origins_that_are_only_read_say_so() {
    let origins = Origins::new(OriginOptions::default()).unwrap();
    for url in ["http://127.0.0.1:1/x", "hf://org/name/x"] {
        let error = origins.put(url, Bytes::new(), PutHow::Create).await.unwrap_err();
        assert_names(&error, Code::Unsupported, &[url.split_once(':').unwrap().0, "s3://"]);
        assert_eq!(origins.upload_limits(url).unwrap_err().code(), Code::Unsupported);
        assert_eq!(origins.check_conditional_puts(url).await.unwrap_err().code(), Code::Unsupported);
    }
}
