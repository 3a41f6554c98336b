//! The loader is killed while objects go to the origin.

use std::time::Duration;

use super::site::{RUN, STREAMS, Site, model};
use super::slabs::come_back;

#[test]
fn crash_after_the_intent() {
    let mut site = Site::dying_at("after_intent");
    let new = model(2);
    let killed = site.save_until_killed(&new);
    assert_eq!(site.objects("step-2/_INTENT.json").len(), 1);
    site.absent(2);
    site.revive();
    // The kill may have come before the copy was done.
    if let Some(slabs) = &killed.slabs {
        come_back(&site, killed.saving(), slabs);
    } else {
        killed.saving().stage(&mut site.client(), 0).map(drop).unwrap();
    }
    site.commits(&killed.attempt(), &new);
}

#[test]
fn crash_after_an_upload_was_created_leaves_one_to_the_sweep() {
    let mut site = Site::dying_at("upload_created");
    let new = model(2);
    let killed = site.save_until_killed(&new);
    let orphan = site.origin.uploads();
    assert_eq!(orphan.len(), 1, "{orphan:?}");
    site.revive();
    if let Some(slabs) = &killed.slabs {
        come_back(&site, killed.saving(), slabs);
    } else {
        killed.saving().stage(&mut site.client(), 0).map(drop).unwrap();
    }
    site.commits(&killed.attempt(), &new);
    // The journal never heard of the first one.
    assert_eq!(site.origin.uploads().len(), 1, "{:?}", site.origin.uploads());
    let swept = site.reader().sweep(RUN, Duration::from_millis(1)).unwrap();
    assert_eq!((swept.uploads_aborted, site.origin.uploads().len()), (1, 0), "{swept:?}");
    site.whole(2, &new);
    site.former_is_whole();
}

#[test]
fn crash_after_a_part_sends_that_one_again_and_no_other() {
    for part in 1..=3 {
        let mut site = Site::dying_at(&format!("part_done@{part}"));
        let new = model(2);
        let mut killed = site.save_until_killed(&new);
        drop(killed.slabs.take());
        site.revive();
        site.commits(&killed.attempt(), &new);
        let again = site.origin.counters().parts_again("bucket/run/step-2/*");
        assert!((1..=STREAMS).contains(&again), "part {part}: {again} were sent again");
    }
}

#[test]
fn crash_before_complete() {
    no_part_again("before_complete");
}

#[test]
fn crash_after_complete_was_sent() {
    no_part_again("complete_sent");
}

#[test]
fn crash_before_the_verified_record() {
    // The first is that of the file which came along.
    no_part_again("before_verified_record@2");
}

/// All parts are in the journal: none is sent again.
fn no_part_again(point: &str) {
    let mut site = Site::dying_at(point);
    let new = model(2);
    let mut killed = site.save_until_killed(&new);
    drop(killed.slabs.take());
    site.lose_memory();
    site.absent(2);
    site.revive();
    site.commits(&killed.attempt(), &new);
    site.sent_once_but_for(0);
    assert_eq!(site.origin.uploads().len(), 0, "{:?}", site.origin.uploads());
}

#[test]
fn crash_after_complete_and_the_origin_forgot_the_upload() {
    let mut site = Site::dying_at("before_complete");
    let new = model(2);
    let mut killed = site.save_until_killed(&new);
    drop(killed.slabs.take());
    // As the rules of a bucket do with old ones.
    for upload in site.origin.uploads() {
        assert!(site.origin.forget_upload(&upload.path, &upload.id));
    }
    site.revive();
    let status = site.end_of(&killed.attempt());
    assert_eq!(status.state(), longshore_proto::v1::SaveState::Committed, "{status:?}");
    assert!(status.notes.iter().any(|note| note.contains("uploaded again")), "{:?}", status.notes);
    site.whole(2, &new);
    site.former_is_whole();
}

#[test]
fn crash_again_and_again_in_the_same_save() {
    let mut site = Site::dying_at("part_done");
    let new = model(2);
    let mut killed = site.save_until_killed(&new);
    drop(killed.slabs.take());
    let points = ["part_done@2", "part_done", "before_complete", "complete_sent", "before_commit", "commit_sent"];
    for point in points {
        // It may die before it is ready: it goes on by itself.
        site.cluster.loader(0).start_again_to_die(point);
        site.cluster.loader(0).wait_killed(super::site::SOON);
    }
    site.revive();
    let status = site.end_of(&killed.attempt());
    assert_eq!(status.state(), longshore_proto::v1::SaveState::Committed, "{status:?}");
    site.whole(2, &new);
    site.former_is_whole();
    let again = site.origin.counters().parts_again("bucket/run/step-2/*");
    assert!(again <= 3 * STREAMS, "three kills amid parts, and {again} sent twice");
}
