//! Some ranks do not do their part; two attempts want the same step.

use std::time::Duration;

use longshore_proto::v1;
use longshore_tests::{SaveClient, Saving};

use super::site::{RUN, SOON, Site, model, options};

#[test]
fn crash_of_a_rank_that_never_seals_ends_with_its_name() {
    let site = Site::new();
    let new = model(2);
    let mut client = site.client();
    let options = v1::SaveOptions { stage_timeout_ms: 2500, ..options() };
    let saving = Saving::plan(&mut client, (RUN, 2), (&new, 3), options).unwrap();
    let _first = saving.stage(&mut client, 0).unwrap();
    let _second = saving.stage(&mut client, 1).unwrap();
    // The third takes its slab and stands still.
    client.start(&saving.plan, 2, saving.inline(2)).unwrap();
    let mut third = client.slabs().unwrap();
    let key = saving.slabs(2, third.slab_bytes).remove(0);
    third.acquire(key, SOON).unwrap();
    let status = site.fails(saving.attempt());
    assert_eq!(status.error_code, "timeout", "{status:?}");
    assert!(status.error_message.contains("rank 2") && !status.error_message.contains("rank 0"), "{status:?}");
    assert_eq!(status.ranks.iter().filter(|rank| rank.staged).count(), 2, "{status:?}");
    assert_eq!(site.steps(), [1]);
    drop(third);
    // The next try is not held up.
    assert!(site.save(2, &new, super::site::options()).acks.committed);
    site.whole(2, &new);
}

#[test]
fn crash_of_a_rank_that_was_never_started_ends_the_plan() {
    let site = Site::new();
    let request = v1::PlanSaveRequest {
        uri: RUN.to_owned(),
        step: 2,
        world_size: 2,
        ranks: vec![longshore_tests::save_client::items_of(&model(2), 2).remove(0)],
        options: Some(options()),
        join_timeout_ms: 800,
    };
    let error = site.client().plan(request).unwrap_err();
    assert_eq!(error.code(), longshore_types::Code::Timeout, "{error}");
    assert!(error.message().contains("rank 1") || error.message().contains('1'), "{error}");
    site.absent(2);
    site.former_is_whole();
}

#[test]
fn crash_of_one_of_two_ranks_of_which_the_other_is_durable() {
    let mut site = Site::dying_at("after_rank_durable");
    let new = model(2);
    let mut client = site.client();
    let saving = Saving::plan(&mut client, (RUN, 2), (&new, 2), options()).unwrap();
    let _ = saving.stage(&mut client, 0);
    site.cluster.loader(0).wait_killed(SOON);
    site.revive();
    // The second rank comes only now.
    let mut client = site.client();
    let _second = saving.stage(&mut client, 1).unwrap();
    site.commits(saving.attempt(), &new);
}

#[test]
fn crash_of_a_node_whose_place_another_attempt_has_taken() {
    let mut site = Site::dying_at("before_commit");
    let old = model(2);
    let killed = site.save_until_killed(&old);
    site.absent(2);
    // The other node saves the same step while this one is dead.
    let new = model(22);
    let mut other: SaveClient = site.reader();
    let saving = Saving::plan(&mut other, (RUN, 2), (&new, 1), options()).unwrap();
    let _slabs = saving.stage(&mut other, 0).unwrap();
    let status = other.wait(saving.attempt(), v1::SaveState::Committed, SOON).unwrap();
    assert_eq!(status.state(), v1::SaveState::Committed, "{status:?}");
    site.revive();
    let status = site.end_of(&killed.attempt());
    assert_eq!((status.state(), status.error_code.as_str()), (v1::SaveState::Failed, "failed_precondition"));
    assert!(status.error_message.contains(saving.attempt()), "{status:?}");
    site.whole(2, &new);
    site.former_is_whole();
    // What the dead attempt left goes with the sweep, and nothing else.
    site.reader().sweep(RUN, Duration::from_millis(1)).unwrap();
    assert_eq!(site.objects(&killed.attempt()), Vec::<String>::new());
    site.whole(2, &new);
}
