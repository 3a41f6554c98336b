//! Loads of checkpoints: every block is what the commit says, from whatever source, or the load fails and says where.

mod node;
mod saved;

use longshore_loader::parallel::{Parallel, ParallelRule, Rule};
use longshore_loader::{FallbackKind, LoadRequest, SourceTier};
use longshore_types::{CHUNK_BYTES, Code};

use self::saved::{Saved, assert_is, attempt};
use crate::fixture::{Fixture, Setup};
use crate::gpu::fixture as gpu;
use crate::workers::Behaviour;

/// A full checkpoint, and two deltas over it.
fn chain(origin: &longshore_testkit::FakeOrigin) -> [Saved; 3] {
    let full = Saved::full(origin, 1, &[("a.bin.st", 3 * CHUNK_BYTES + 12_345), ("b.bin.st", 100), ("side.json", 77)]);
    let one = full.delta(origin, 2, &[("a.bin.st", CHUNK_BYTES + 5), ("b.bin.st", 9)]);
    // The last chunk of the file, which is padded in the pack, and the first one.
    let two = one.delta(origin, 3, &[("a.bin.st", 3 * CHUNK_BYTES + 7), ("a.bin.st", 3)]);
    [full, one, two]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_checkpoints_and_deltas_are_equal_through_workers_and_without() {
    for workers in [0, 3] {
        let fixture = Fixture::new(Setup { workers, ..Setup::default() });
        for saved in chain(&fixture.origin) {
            let loaded = fixture.load(saved.request(&fixture.origin)).await.unwrap();
            assert_is(&loaded, &saved);
            let report = loaded.report();
            assert!(report.fallbacks.is_empty() && report.checksum_mismatches == 0, "{report:?}");
            assert_eq!(loaded.key.revision, format!("attempt:{}", saved.commit.attempt));
            assert!(loaded.manifest.files.iter().all(|file| file.checksums.is_none()), "of no use any more");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_at_the_origin_is_told_with_object_and_tensors() {
    for workers in [0, 2] {
        let fixture = Fixture::new(Setup { workers, ..Setup::default() });
        let [full, _, delta] = chain(&fixture.origin);
        let used = fixture.arena.used_bytes();
        // In the parent's object, in a chunk that the delta still uses.
        let object = full.object("a.bin.st");
        assert!(fixture.origin.flip_byte(&object, 2 * CHUNK_BYTES + 99));
        for saved in [&full, &delta] {
            let error = fixture.load(saved.request(&fixture.origin)).await.unwrap_err();
            assert_eq!(error.code(), Code::Corrupt, "{error}");
            let message = error.message();
            assert!(message.contains(&object) && message.contains("a.bin.st"), "{error}");
            assert!(message.contains(&format!("tensor {}", full.tensor_at("a.bin.st", 2 * CHUNK_BYTES))), "{error}");
            assert_eq!(fixture.arena.used_bytes(), used, "nothing half-loaded stays");
        }
        // What does not need that block is well.
        let some = LoadRequest { include: vec!["b.*".to_owned()], ..full.request(&fixture.origin) };
        assert_eq!(fixture.load(some).await.unwrap().manifest.files.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_a_pack_is_found_and_in_its_padding_too() {
    let fixture = Fixture::new(Setup { workers: 1, ..Setup::default() });
    let saved = Saved::full(&fixture.origin, 1, &[("a.bin.st", CHUNK_BYTES + 12_345)]);
    let delta = saved.delta(&fixture.origin, 2, &[("a.bin.st", CHUNK_BYTES + 7)]);
    let pack = delta.pack();
    for (at, is_read) in [(7, true), (12_345, true), (5 << 20, false)] {
        assert!(fixture.origin.flip_byte(&pack, at));
        let loaded = fixture.load(delta.request(&fixture.origin)).await;
        match loaded {
            Ok(loaded) => assert!(!is_read && loaded.report().checksum_mismatches == 0, "byte {at} was not missed"),
            Err(error) => {
                assert!(is_read && error.code() == Code::Corrupt && error.message().contains(&pack), "{error}")
            }
        }
        assert!(fixture.origin.flip_byte(&pack, at));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_with_another_content_is_told_what_is_right_and_then_passed_over() {
    let fixture = Fixture::new(Setup { workers: 2, ..Setup::default() });
    let saved = Saved::full(&fixture.origin, 1, &[("a.bin.st", 3 * CHUNK_BYTES)]);
    fixture.workers[0].set(Behaviour::WrongUntilTold);
    let loaded = fixture.load(saved.request(&fixture.origin)).await.unwrap();
    assert_is(&loaded, &saved);
    let report = loaded.report();
    assert!(report.checksum_mismatches >= 1 && report.fallbacks.is_empty(), "{report:?}");

    let saved = Saved::full(&fixture.origin, 2, &[("a.bin.st", 3 * CHUNK_BYTES)]);
    for behaviour in [Behaviour::Wrong, Behaviour::Corrupt] {
        fixture.workers[0].set(behaviour);
        let loaded = fixture.load(saved.request(&fixture.origin)).await.unwrap();
        assert_is(&loaded, &saved);
        let report = loaded.report();
        assert!(report.fallback_count(FallbackKind::WorkerCorrupt) >= 1, "{report:?}");
        assert_eq!(report.fallback_count(FallbackKind::OriginDirect), 0, "{report:?}");
        fixture.loader.unload(&loaded.id).await.unwrap();
    }
    // All of them: the origin has the last word.
    fixture.workers.iter().for_each(|worker| worker.set(Behaviour::Wrong));
    let loaded = fixture.load(saved.request(&fixture.origin)).await.unwrap();
    assert_is(&loaded, &saved);
    let report = loaded.report();
    assert_eq!(report.bytes_from(SourceTier::Origin), report.bytes, "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_chunk_maps_are_found_on_host_and_card_also_in_page_locked_memory() {
    let host = Fixture::new(Setup { workers: 1, ..Setup::default() });
    let card = gpu::Fixture::new(gpu::Setup::default());
    for (origin, is_card) in [(host.origin.clone(), false), (card.origin.clone(), true)] {
        let load = async |saved: &Saved| match is_card {
            true => card.load(&gpu::on(&saved.request(&origin), "cuda:0")).await,
            false => host.load(saved.request(&origin)).await,
        };
        let full = Saved::full(&origin, 1, &[("a.bin.st", 3 * CHUNK_BYTES)]);
        let loaded = load(&full).await.unwrap();
        if is_card {
            saved::assert_is_on_card(&loaded, &full);
        } else {
            assert_is(&loaded, &full);
        }
        card.loader.unload(&loaded.id).await.ok();
        host.loader.unload(&loaded.id).await.ok();
        // Chunks 1 and 2 change places. They lie in page-locked memory, and are what they were saved as.
        let wrong = full.with_swapped_chunks(&origin, 2, 1, 2);
        let error = load(&wrong).await.unwrap_err();
        assert_eq!(error.code(), Code::Corrupt, "{error}");
        assert!(error.message().contains(&full.object("a.bin.st")), "{error}");
        assert!(error.message().contains("tensor "), "{error}");
        // The right one is still good.
        let again = load(&full).await.unwrap();
        if is_card {
            saved::assert_is_on_card(&again, &full);
            assert!(again.report().bytes_from(SourceTier::Pinned) > 0, "{:?}", again.report());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flips_are_found_on_their_way_to_a_card_and_deltas_arrive() {
    let fixture = gpu::Fixture::new(gpu::Setup::default());
    for saved in chain(&fixture.origin) {
        let loaded = fixture.load(&gpu::on(&saved.request(&fixture.origin), "cuda:0")).await.unwrap();
        saved::assert_is_on_card(&loaded, &saved);
        fixture.loader.unload(&loaded.id).await.unwrap();
    }
    let saved = Saved::full(&fixture.origin, 9, &[("a.bin.st", 2 * CHUNK_BYTES)]);
    let object = saved.object("a.bin.st");
    fixture.origin.flip_byte(&object, CHUNK_BYTES + 3);
    let error = fixture.load(&gpu::on(&saved.request(&fixture.origin), "cuda:0")).await.unwrap_err();
    assert_eq!(error.code(), Code::Corrupt, "{error}");
    assert!(error.message().contains(&object) && error.message().contains("tensor "), "{error}");
    fixture.origin.flip_byte(&object, CHUNK_BYTES + 3);
    let loaded = fixture.load(&gpu::on(&saved.request(&fixture.origin), "cuda:0")).await.unwrap();
    saved::assert_is_on_card(&loaded, &saved);
    fixture.worker.set(Behaviour::Wrong);
    let saved = Saved::full(&fixture.origin, 10, &[("a.bin.st", 2 * CHUNK_BYTES)]);
    let loaded = fixture.load(&gpu::on(&saved.request(&fixture.origin), "cuda:0")).await.unwrap();
    saved::assert_is_on_card(&loaded, &saved);
    assert!(loaded.report().fallback_count(FallbackKind::WorkerCorrupt) >= 1, "{:?}", loaded.report());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_fails_for_the_blocks_that_it_reads_and_for_no_others() {
    let fixture = Fixture::new(Setup { workers: 1, ..Setup::default() });
    let saved = Saved::full(&fixture.origin, 1, &[("a.bin.st", 4 * CHUNK_BYTES)]);
    let rule = || vec![ParallelRule::new("*", Rule::Split { dim: 0, parts: vec![] }).unwrap()];
    let rank = |rank| LoadRequest {
        parallel: Some(Parallel::new(rank, 2, rule()).unwrap()),
        ..saved.request(&fixture.origin)
    };
    // The one tensor's second half.
    assert!(fixture.origin.flip_byte(&saved.object("a.bin.st"), 4 * CHUNK_BYTES - 5));
    let whole = &saved.files["a.bin.st"];
    let loaded = fixture.load(rank(0)).await.unwrap();
    let half = (whole.len() - saved::HEADER) / 2;
    let region = loaded.regions[0].host_bytes().unwrap();
    assert!(region[..half] == whole[saved::HEADER..saved::HEADER + half]);
    let error = fixture.load(rank(1)).await.unwrap_err();
    assert_eq!(error.code(), Code::Corrupt, "{error}");
    assert!(error.message().contains("tensor "), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tensors_in_pieces_are_delivered_by_piece_and_not_split() {
    let fixture = Fixture::new(Setup { workers: 1, ..Setup::default() });
    let saved = Saved::full(&fixture.origin, 1, &[("a.bin.st", CHUNK_BYTES), ("b.bin.st", CHUNK_BYTES)]);
    let saved = saved.with_joined_tensors(&fixture.origin, 2);
    let loaded = fixture.load(saved.request(&fixture.origin)).await.unwrap();
    let names: Vec<String> = loaded.tensors().map(|placed| placed.tensor.name.clone()).collect();
    assert_eq!(names, ["joined#0", "joined#1"]);
    let pieces: Vec<_> = loaded.tensors().map(|placed| placed.tensor.piece.clone().unwrap()).collect();
    let len = CHUNK_BYTES - saved::HEADER as u64;
    assert_eq!((pieces[0].start[0], pieces[1].start[0], pieces[1].of_shape[0]), (0, len, 2 * len));
    let rule = ParallelRule::new("joined*", Rule::Split { dim: 0, parts: vec![] }).unwrap();
    let parallel = Some(Parallel::new(0, 2, vec![rule]).unwrap());
    let split = LoadRequest { parallel, ..saved.request(&fixture.origin) };
    let error = fixture.load(split).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("joined#0") && error.message().contains("pieces"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_this_machine_are_compared_too() {
    let fixture = Fixture::new(Setup { workers: 0, ..Setup::default() });
    let folder = tempfile::tempdir().unwrap();
    let saved = chain(&fixture.origin);
    for object in fixture.origin.paths("bucket/run/") {
        let path = folder.path().join(object.strip_prefix("bucket/run/").unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let content = fixture.origin.content(&object).unwrap();
        std::fs::write(path, content.to_vec()).unwrap();
    }
    let request = |step: u64| LoadRequest::new(folder.path().join(format!("step-{step}")).to_str().unwrap());
    for saved in &saved {
        let loaded = fixture.load(request(saved.commit.step)).await.unwrap();
        assert_is(&loaded, saved);
        fixture.loader.unload(&loaded.id).await.unwrap();
    }
    let path = folder.path().join(saved[0].object("a.bin.st").strip_prefix("bucket/run/").unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[2 * CHUNK_BYTES as usize + 1] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    for step in 1..=3 {
        let error = fixture.load(request(step)).await.unwrap_err();
        assert_eq!(error.code(), Code::Corrupt, "{error}");
        assert!(error.message().contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
    }
    bytes.truncate(10);
    std::fs::write(&path, &bytes).unwrap();
    let error = fixture.load(request(1)).await.unwrap_err();
    assert_eq!(error.code(), Code::Corrupt, "{error}");
    let _ = attempt(1);
}
