//! The loader is killed around the moment in which a checkpoint becomes visible, and while old ones go.

use longshore_proto::v1;

use super::site::{RUN, Site, model, options};

/// Killed before anything is visible: uncommitted, and committed without the trainer after the restart.
fn goes_on_unseen(point: &str) {
    let mut site = Site::dying_at(point);
    let new = model(2);
    let mut killed = site.save_until_killed(&new);
    assert!(!killed.acks.committed);
    drop(killed.slabs.take());
    site.lose_memory();
    site.absent(2);
    assert_eq!(site.steps(), [1]);
    site.revive();
    site.commits(&killed.attempt(), &new);
    site.sent_once_but_for(0);
    assert_eq!(site.steps(), [1, 2]);
}

#[test]
fn crash_before_the_index() {
    goes_on_unseen("before_index");
}

#[test]
fn crash_between_index_and_commit() {
    goes_on_unseen("after_index");
}

#[test]
fn crash_before_the_commit() {
    goes_on_unseen("before_commit");
}

/// Killed when it is visible and the journal does not know: what is there is ours, and stays.
fn is_seen_at_once(point: &str) {
    let mut site = Site::dying_at(point);
    let new = model(2);
    let mut killed = site.save_until_killed(&new);
    drop(killed.slabs.take());
    site.lose_memory();
    // The loader is dead. Others find it by listing, and read it.
    assert_eq!(site.steps(), [1, 2]);
    let newest = site.reader().checkpoint(RUN, None).unwrap().summary.unwrap();
    assert_eq!((newest.step, newest.attempt), (2, killed.attempt()));
    site.whole(2, &new);
    let commit = site.origin.content("bucket/run/step-2/_CKPT.json").unwrap().to_vec();
    site.revive();
    site.commits(&killed.attempt(), &new);
    site.sent_once_but_for(0);
    let now = site.origin.content("bucket/run/step-2/_CKPT.json").unwrap().to_vec();
    assert_eq!(now, commit, "it is written once");
    let latest = site.origin.content("bucket/run/_LATEST.json").unwrap().to_vec();
    assert!(String::from_utf8(latest).unwrap().contains(&killed.attempt()), "the hint is moved after the restart");
}

#[test]
fn crash_after_the_commit_was_sent() {
    is_seen_at_once("commit_sent");
}

#[test]
fn crash_after_the_commit() {
    is_seen_at_once("after_commit");
}

#[test]
fn crash_between_commit_and_latest() {
    is_seen_at_once("before_latest");
}

fn keep_one() -> v1::SaveOptions {
    v1::SaveOptions { keep: 1, ..options() }
}

#[test]
fn crash_before_retention_deletes_nothing() {
    let mut site = Site::dying_at("before_retention");
    let new = model(2);
    let killed = site.save_with_until_killed(&new, keep_one());
    assert_eq!(site.steps(), [1, 2]);
    site.whole(2, &new);
    site.former_is_whole();
    site.revive();
    let status = site.end_of(&killed.attempt());
    assert_eq!(status.state(), v1::SaveState::Committed, "{status:?}");
    // The next save makes good for it.
    let third = model(3);
    assert!(site.save(3, &third, keep_one()).acks.committed);
    crate::common::wait_until("old checkpoints are deleted", || site.objects("step-1/").is_empty());
    crate::common::wait_until("old checkpoints are deleted", || site.objects("step-2/").is_empty());
    assert_eq!(site.steps(), [3]);
    site.whole(3, &third);
}

#[test]
fn crash_amid_retention_leaves_no_checkpoint_without_its_data() {
    let mut site = Site::dying_at("retention_commit_deleted");
    let new = model(2);
    site.save_with_until_killed(&new, keep_one());
    assert_eq!(site.steps(), [2], "its commit is gone first");
    assert!(!site.objects("step-1/").is_empty(), "the kill comes before its data are deleted");
    site.absent(1);
    site.whole(2, &new);
    site.revive();
    let third = model(3);
    assert!(site.save(3, &third, keep_one()).acks.committed);
    crate::common::wait_until("step 2 is deleted", || site.objects("step-2/").is_empty());
    // What is left of step 1 is no checkpoint: the sweep takes it.
    site.reader().sweep(RUN, std::time::Duration::from_millis(1)).unwrap();
    assert_eq!(site.objects("step-1/"), Vec::<String>::new());
    assert_eq!(site.steps(), [3]);
    site.whole(3, &third);
}
