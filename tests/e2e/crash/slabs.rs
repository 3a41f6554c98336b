//! The loader is killed while slabs are sealed and flushed.

use longshore_proto::v1;
use longshore_tests::{SaveClient, Saving, SlabClient};
use longshore_types::Code;

use super::site::{MIB, RUN, STREAMS, Site, model, options};

#[test]
fn crash_after_the_plan_is_known_and_nobody_was_told() {
    let mut site = Site::dying_at("after_planned");
    let new = model(2);
    let killed = site.save_until_killed(&new);
    assert!(!killed.acks.staged);
    site.revive();
    // Nobody comes back: it is given up, and says so.
    let status = site.fails(&killed.attempt());
    assert!(status.error_message.contains("no rank"), "{status:?}");
    assert!(site.save(2, &new, options()).acks.committed);
    site.whole(2, &new);
}

#[test]
fn crash_after_the_plan_is_known_and_the_trainer_starts_again() {
    let mut site = Site::dying_at("after_planned");
    let new = model(2);
    let killed = site.save_until_killed(&new);
    site.revive();
    let mut client = site.client();
    let _slabs = killed.saving().stage(&mut client, 0).unwrap();
    site.commits(&killed.attempt(), &new);
}

#[test]
fn crash_before_the_sealed_slab_is_counted_uses_it() {
    let mut site = Site::dying_at("slab_sealed");
    let new = model(2);
    let mut killed = site.save_until_killed(&new);
    assert!(!killed.acks.local_durable);
    // The trainer is gone: the seal in the shared memory is enough.
    drop(killed.slabs.take());
    site.revive();
    site.commits(&killed.attempt(), &new);
}

/// Three files of a slab each.
fn in_files() -> v1::SaveOptions {
    v1::SaveOptions { file_bytes_max: 8 * MIB, ..options() }
}

#[test]
fn crash_with_slabs_that_were_not_sealed_is_told_as_lost_when_the_trainer_is_gone() {
    let mut site = Site::dying_at("slab_sealed@2");
    let new = model(2);
    let mut killed = site.save_with_until_killed(&new, in_files());
    assert!(killed.slabs.is_some() && !killed.acks.staged, "{:?}", killed.acks);
    drop(killed.slabs.take());
    site.revive();
    let status = site.fails(&killed.attempt());
    assert!(status.error_message.contains("rank 0") && status.error_message.contains("lost"), "{status:?}");
    assert!(status.ranks.iter().all(|rank| !rank.local_durable), "{status:?}");
}

#[test]
fn crash_with_slabs_that_were_not_sealed_and_a_trainer_that_comes_back() {
    let mut site = Site::dying_at("slab_sealed@2");
    let new = model(2);
    let killed = site.save_with_until_killed(&new, in_files());
    site.revive();
    come_back(&site, killed.saving(), killed.slabs.as_ref().unwrap());
    site.commits(&killed.attempt(), &new);
}

/// Says hello with the session, or with a new one when nothing was in its slabs, and copies what is missing.
pub fn come_back(site: &Site, saving: &Saving, old: &SlabClient) -> SlabClient {
    let mut client = site.client();
    client.start(&saving.plan, 0, saving.inline(0)).unwrap();
    let mut slabs = match SlabClient::begin(&site.sockets(), &old.session) {
        Err(error) if error.code() == Code::NotFound => client.slabs().unwrap(),
        other => other.unwrap(),
    };
    saving.fill(&mut slabs, 0).unwrap();
    let status = client.wait(saving.attempt(), v1::SaveState::LocalDurable, super::site::SOON).unwrap();
    assert!(status.ranks.iter().all(|rank| rank.local_durable), "{status:?}");
    slabs
}

#[test]
fn crash_before_the_flushed_record_flushes_the_slab_again() {
    let mut site = Site::dying_at("before_flushed_record");
    let new = model(2);
    let mut killed = site.save_until_killed(&new);
    assert!(!killed.acks.local_durable);
    drop(killed.slabs.take());
    site.revive();
    site.commits(&killed.attempt(), &new);
}

#[test]
fn crash_before_the_flushed_record_and_power_loss_is_told_as_lost() {
    let mut site = Site::dying_at("before_flushed_record");
    let mut killed = site.save_until_killed(&model(2));
    assert!(!killed.acks.local_durable);
    drop(killed.slabs.take());
    site.lose_memory();
    site.revive();
    let status = site.fails(&killed.attempt());
    assert!(status.error_message.contains("lost"), "{status:?}");
}

#[test]
fn crash_after_the_flushed_record_needs_no_memory_any_more() {
    let mut site = Site::dying_at("after_flushed_record");
    let new = model(2);
    let mut killed = site.save_until_killed(&new);
    drop(killed.slabs.take());
    site.lose_memory();
    site.revive();
    site.commits(&killed.attempt(), &new);
}

#[test]
fn crash_in_the_middle_of_many_slabs_goes_on_with_what_is_durable() {
    let mut site = Site::dying_at("after_flushed_record@2");
    let new = model(2);
    let killed = site.save_with_until_killed(&new, in_files());
    site.revive();
    let mut client = site.client();
    let saving = killed.saving();
    // What is durable is not copied again.
    let before = client.status(saving.attempt()).unwrap();
    assert!(before.bytes_durable > 0 && before.bytes_durable <= before.bytes_total, "{before:?}");
    come_back(&site, saving, killed.slabs.as_ref().unwrap());
    site.commits(saving.attempt(), &new);
}

#[test]
fn crash_between_the_mark_and_the_seal() {
    let mut site = Site::new();
    let new = model(2);
    let mut client = site.client();
    let saving = Saving::plan(&mut client, (RUN, 2), (&new, 1), options()).unwrap();
    client.start(&saving.plan, 0, saving.inline(0)).unwrap();
    let mut slabs = client.slabs().unwrap();
    let keys = saving.slabs(0, slabs.slab_bytes);
    let [key] = keys.as_slice() else { panic!("{keys:?}") };
    let grant = slabs.acquire(key.clone(), super::site::SOON).unwrap();
    slabs.copy(&grant, saving.content(key.file), 0, 1.0).unwrap();
    slabs.mark(grant.slab).unwrap();
    // The loader dies before it is told. The next one finds the mark.
    site.revive();
    site.commits(saving.attempt(), &new);
}

#[test]
fn crash_with_a_slab_that_is_half_copied_discards_it() {
    let mut site = Site::new();
    let new = model(2);
    let mut client = site.client();
    let saving = Saving::plan(&mut client, (RUN, 2), (&new, 1), options()).unwrap();
    client.start(&saving.plan, 0, saving.inline(0)).unwrap();
    let mut slabs = client.slabs().unwrap();
    let key = saving.slabs(0, slabs.slab_bytes).remove(0);
    let grant = slabs.acquire(key.clone(), super::site::SOON).unwrap();
    slabs.copy(&grant, saving.content(key.file), 0, 0.5).unwrap();
    drop(slabs);
    site.revive();
    let status = site.fails(saving.attempt());
    // Found after the restart, or told by the client's end a moment before the kill.
    let (found, told) = (status.error_message.contains("lost"), status.error_message.contains("went away"));
    assert!(found || told, "{status:?}");
    let mut again = SaveClient::connect(&site.sockets()).unwrap();
    assert!(again.saves().unwrap().iter().any(|save| save.attempt == saving.attempt()));
    site.sent_once_but_for(STREAMS);
}
