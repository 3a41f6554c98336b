//! The loader is killed around the acknowledgement that a save is durable on the node; power is lost.

use std::fs::OpenOptions;
use std::io::Write;

use longshore_proto::v1;

use super::site::{Site, cut, model};

#[test]
fn crash_before_a_rank_is_durable_is_made_good_without_the_trainer() {
    let mut site = Site::dying_at("before_rank_durable");
    let new = model(2);
    let mut killed = site.save_until_killed(&new);
    assert!(!killed.acks.local_durable, "said before it was recorded");
    drop(killed.slabs.take());
    site.lose_memory();
    site.revive();
    site.commits(&killed.attempt(), &new);
}

#[test]
fn crash_after_a_rank_is_durable_loses_nothing() {
    let mut site = Site::dying_at("after_rank_durable");
    let new = model(2);
    let mut killed = site.save_until_killed(&new);
    drop(killed.slabs.take());
    site.lose_memory();
    site.revive();
    let status = site.commits(&killed.attempt(), &new);
    assert!(status.ranks.iter().all(|rank| rank.local_durable), "{status:?}");
}

#[test]
fn crash_of_the_node_with_a_torn_record_at_the_end_of_the_journal() {
    let mut site = Site::dying_at("after_rank_durable");
    let new = model(2);
    let mut killed = site.save_until_killed(&new);
    drop(killed.slabs.take());
    site.lose_memory();
    // A record was being written: its length is there, and some of it.
    let journal = site.journal(&killed.attempt());
    let mut file = OpenOptions::new().append(true).open(journal).unwrap();
    file.write_all(&[60, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]).unwrap();
    site.revive();
    let status = site.commits(&killed.attempt(), &new);
    assert!(status.notes.iter().any(|note| note.contains("torn")), "{:?}", status.notes);
}

#[test]
fn crash_of_the_node_in_the_middle_of_the_flushed_record() {
    for keeps_memory in [true, false] {
        let mut site = Site::dying_at("after_flushed_record");
        // The origin takes nothing until the node has come back: the last record is that of the flush.
        site.origin.fault(
            longshore_testkit::Fault::new(longshore_testkit::FaultKind::Status(503)).any_verb().on("bucket/run/*"),
        );
        let new = model(2);
        let mut killed = site.save_until_killed(&new);
        site.origin.clear_faults();
        assert!(!killed.acks.local_durable);
        drop(killed.slabs.take());
        // The record was not synced as a whole: nothing was acknowledged on its account.
        cut(&site.journal(&killed.attempt()), 3);
        if keeps_memory {
            site.revive();
            let status = site.commits(&killed.attempt(), &new);
            assert!(status.notes.iter().any(|note| note.contains("torn")), "{:?}", status.notes);
        } else {
            site.lose_memory();
            site.revive();
            let status = site.fails(&killed.attempt());
            assert!(status.error_message.contains("lost"), "{status:?}");
        }
    }
}

#[test]
fn crash_of_the_node_before_the_plan_is_written_leaves_nothing() {
    let mut site = Site::dying_at("after_planned");
    let new = model(2);
    let killed = site.save_until_killed(&new);
    let journal = site.journal(&killed.attempt());
    let length = std::fs::metadata(&journal).unwrap().len();
    cut(&journal, length - 7);
    site.revive();
    let error = site.client().status(&killed.attempt()).unwrap_err();
    assert_eq!(error.code(), longshore_types::Code::NotFound, "{error}");
    assert!(!journal.exists(), "what was never acknowledged is removed");
    site.absent(2);
    site.former_is_whole();
}

#[test]
fn crash_right_after_local_durable_was_acknowledged() {
    let mut site = Site::new();
    // The origin takes nothing until the node has come back.
    site.origin.fault(
        longshore_testkit::Fault::new(longshore_testkit::FaultKind::Status(503)).any_verb().on("bucket/run/step-2/*"),
    );
    let new = model(2);
    let mut client = site.client();
    let saving =
        longshore_tests::Saving::plan(&mut client, (super::site::RUN, 2), (&new, 1), super::site::options()).unwrap();
    let slabs = saving.stage(&mut client, 0).unwrap();
    let status = client.wait(saving.attempt(), v1::SaveState::LocalDurable, super::site::SOON).unwrap();
    assert_eq!(status.state(), v1::SaveState::LocalDurable, "{status:?}");
    site.cluster.loader(0).kill();
    drop(slabs);
    site.lose_memory();
    site.origin.clear_faults();
    site.revive();
    site.commits(saving.attempt(), &new);
}
