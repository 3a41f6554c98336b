//! Deltas over a chain, and what retention leaves of their ancestors.

use super::plain::until_gone;
use super::*;

const URI: &str = "s3://bucket/run";

/// A model of five chunks, `changed` of which differ by the step.
fn content(step: u64, changed: &[usize]) -> Content {
    let mut content =
        Content::default().tensor("", "w", 1, 70 * MIB).file("config.json", format!("{{\"step\":{step}}}").as_bytes());
    for chunk in changed {
        let at = chunk * 16 * MIB + 5 * MIB;
        content.tensors[0].1[at..at + 100].copy_from_slice(&noise(step, 100));
    }
    content
}

fn delta(keep: u32, depth: u32) -> SaveOptions {
    SaveOptions { delta: true, keep, delta_depth_max: depth, ..SaveOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_deltas_stays_whole_while_its_ancestors_are_deleted() {
    let fake = server();
    let mut node = Node::new(&origins_of(&fake)).await;
    let mut depths = vec![];
    for step in 1..=6 {
        let content = content(step, &[1]);
        let attempt = node.save(URI, step, &delta(2, 3), &content).await;
        let status = node.committed(attempt).await;
        let commit = node.assert_whole(URI, step, &content).await;
        depths.push(commit.delta_depth);
        if commit.delta_depth > 0 {
            assert_eq!(commit.parent.unwrap().step, step - 1);
            assert!(commit.own_bytes() < 17 << 20, "{}", commit.own_bytes());
            assert!(status.bytes_unchanged > 50 << 20, "{status:?}");
        } else {
            assert!(step == 1 || status.notes.iter().any(|note| note.contains("in a row")), "{:?}", status.notes);
        }
        if step > 2 {
            until_gone(&node, URI, step - 2).await;
            let kept = super::deltas::content(step - 1, &[1]);
            node.assert_whole(URI, step - 1, &kept).await;
        }
        if step == 3 {
            node = node.restart().await;
        }
    }
    assert_eq!(depths, [0, 1, 2, 3, 0, 1]);
    let node = node.restart().await;
    // Only what the last two refer to is left, wherever it lies.
    let mut wanted = std::collections::BTreeSet::new();
    for step in [5, 6] {
        let commit = node.assert_whole(URI, step, &content(step, &[1])).await;
        wanted.extend(commit.objects.iter().map(|object| format!("bucket/run/{}", object.path)));
    }
    let left: Vec<String> = fake.paths("bucket/run/").into_iter().filter(|path| !path.contains("/_")).collect();
    assert_eq!(left.into_iter().collect::<std::collections::BTreeSet<_>>(), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_changed_is_a_delta_without_an_object_of_its_own() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    for step in [1, 2] {
        let content = content(9, &[]);
        let attempt = node.save(URI, step, &delta(0, 0), &content).await;
        node.committed(attempt).await;
        let commit = node.assert_whole(URI, step, &content).await;
        if step == 2 {
            assert!(commit.own_bytes() < 1000, "{}", commit.own_bytes());
        }
    }
    let deleted = node.catalog().delete(URI, 1).await.unwrap();
    assert_eq!(deleted.objects_kept, 1, "{deleted:?}");
    node.assert_whole(URI, 2, &content(9, &[])).await;
    let deleted = node.catalog().delete(URI, 2).await.unwrap();
    assert_eq!(deleted.objects_kept, 0);
    let left: Vec<String> = fake.paths("bucket/run/").into_iter().filter(|path| !path.contains("/_")).collect();
    assert!(left.is_empty(), "the ancestor's object goes with the last one that refers to it: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_layout_or_too_many_changes_make_a_full_checkpoint() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let steps = [
        (content(1, &[]), 0, ""),
        (content(2, &[0, 1, 2, 3, 4]), 1, ""),
        (content(3, &[1]), 0, "had changed"),
        (content(4, &[1]).tensor("", "v", 1, 100), 0, "another layout"),
    ];
    for (step, (content, depth, note)) in (1..).zip(steps) {
        let attempt = node.save(URI, step, &delta(0, 0), &content).await;
        let status = node.committed(attempt).await;
        let commit = node.assert_whole(URI, step, &content).await;
        assert_eq!(commit.delta_depth, depth, "step {step}: {:?}", status.notes);
        assert!(note.is_empty() || status.notes.iter().any(|found| found.contains(note)), "{:?}", status.notes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parent_of_a_delta_in_progress_keeps_its_objects() {
    let fake = server();
    let (node, other) = (Node::new(&origins_of(&fake)).await, Node::new(&origins_of(&fake)).await);
    let attempt = node.save(URI, 1, &delta(0, 0), &content(1, &[1])).await;
    node.committed(attempt).await;
    // The delta has chosen its parent and has not staged anything.
    let next = content(2, &[2]);
    let plan = node.plan(URI, 2, &delta(0, 0), &next).await;
    let images = next.images(&plan, 0);
    let inline = images.iter().filter(|(_, image)| image.len() <= 4 * MIB);
    let inline: Vec<_> = inline.map(|(file, image)| (*file, Bytes::from(image.clone()))).collect();
    node.engine.start(plan.clone(), 0, inline).await.unwrap();
    // Another save wants to keep only itself; then the parent is deleted by hand.
    let full = other.save(URI, 3, &SaveOptions { keep: 1, ..SaveOptions::default() }, &Content::small(1)).await;
    other.committed(full).await;
    let other = other.restart().await;
    assert!(node.catalog().get(URI, Some(1)).await.is_ok(), "retention leaves the parent");
    let deleted = other.catalog().delete(URI, 1).await.unwrap();
    assert!(deleted.objects_kept >= 1, "{deleted:?}");
    for (file, image) in images.iter().filter(|(_, image)| image.len() > 4 * MIB) {
        node.stage(&plan, *file, image).await;
    }
    node.committed(plan.attempt).await;
    let commit = node.assert_whole(URI, 2, &next).await;
    assert_eq!(commit.delta_depth, 1);
}
