//! What the next process finds.

use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

#[tokio::test]
async fn sealed_slabs_are_found_and_everything_else_is_free() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(16);
    let session = opened.hello().await;
    let id = session.id();
    for (number, index) in [(1, 0), (1, 1), (2, 0), (3, 0), (1, 999)] {
        let slab = fill(&session, key(number, index)).await;
        session.seal(slab).unwrap();
    }
    let flushed = opened.sealed().await;
    assert_eq!(*flushed.key(), key(1, 0));
    // Granted, filled, and sealed in the page without a word to the process: the last counts.
    acquire(&session, key(1, 5)).await.unwrap();
    let half = fill(&session, key(1, 6)).await;
    write_state(&session, half, 1);
    fill(&session, key(1, 7)).await;
    session.leave();
    opened.slabs.close();
    opened.slabs.release();
    drop(flushed);
    opened.kill();
    fixture.plans.durable.lock().insert(key(1, 0));
    fixture.plans.ended.lock().insert(attempt(3));

    let mut opened = fixture.open(16);
    let mut found: Vec<SlabKey> = opened.recovered.iter().map(|slab| *slab.key()).collect();
    found.sort();
    assert_eq!(found, [key(1, 1), key(1, 7), key(1, 999), key(2, 0)]);
    assert!(opened.recovered.iter().all(is_whole));
    let hello = SlabHello { uid: UID, session: Some(id), ..Default::default() };
    let other = SlabHello { uid: UID + 1, ..hello };
    assert_eq!(opened.slabs.hello(other).await.err().unwrap().code(), Code::PermissionDenied);
    let (session, welcome) = opened.slabs.hello(hello).await.unwrap();
    let mut sealed = welcome.sealed;
    sealed.sort();
    assert_eq!(sealed, found);
    assert_eq!(opened.slabs.hello(hello).await.err().unwrap().code(), Code::NotFound);
    // The same memory, and the rest of the save goes on in it.
    assert!(!session.pieces(0).is_empty());
    let granted = session.acquire(key(1, 0), SOON).await.unwrap();
    assert_eq!(granted, SlabGranted::AlreadyDurable { length_bytes: SLAB });
    for index in [5, 6] {
        let slab = fill(&session, key(1, index)).await;
        session.seal(slab).unwrap();
        assert!(is_whole(&opened.sealed().await));
    }
    // What is sealed and not durable is waited for, not granted again.
    {
        let waiting = session.acquire(key(2, 0), SOON);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        fixture.plans.durable.lock().insert(key(2, 0));
        opened.recovered.clear();
        assert!(matches!(waiting.await.unwrap(), SlabGranted::AlreadyDurable { .. }));
    }
    drop(session);
    eventually(|| fixture.arena.leased_bytes() == 0 && fixture.folders() == 0).await;
}

#[tokio::test]
async fn a_client_that_does_not_come_back_has_left() {
    let fixture = Fixture::new();
    let opened = fixture.open(8);
    let session = opened.hello().await;
    fill(&session, key(1, 0)).await;
    session.leave();
    opened.kill();
    let mut opened = fixture.try_open(8, Duration::from_millis(10)).unwrap();
    assert_eq!(opened.recovered.len(), 1);
    let SlabEvent::SessionClosed { lost, .. } = opened.events.recv().await.unwrap() else { panic!() };
    assert_eq!(lost, []);
    assert!(is_whole(&opened.recovered[0]));
    opened.recovered.clear();
    eventually(|| fixture.folders() == 0 && fixture.arena.leased_bytes() == 0).await;
}

#[tokio::test]
async fn closing_keeps_what_is_sealed_and_removes_what_is_idle() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(8);
    let (idle, busy) = (opened.hello().await, opened.hello().await);
    let slab = acquire(&idle, key(2, 0)).await.unwrap();
    idle.discard(slab).unwrap();
    let slab = fill(&busy, key(1, 0)).await;
    busy.seal(slab).unwrap();
    let sealed = opened.sealed().await;
    opened.slabs.close();
    opened.slabs.release();
    assert_eq!(busy.acquire(key(1, 1), SOON).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(opened.slabs.hello(SlabHello::default()).await.err().unwrap().code(), Code::Unavailable);
    drop(sealed);
    idle.leave();
    busy.leave();
    assert_eq!(fixture.folders(), 1);
    opened.kill();
    let opened = fixture.open(8);
    assert_eq!(opened.recovered.len(), 1);
    assert!(is_whole(&opened.recovered[0]));
}

#[tokio::test]
async fn less_memory_than_before_loses_nothing() {
    let fixture = Fixture::new();
    let opened = fixture.open(8);
    let session = opened.hello().await;
    let id = session.id();
    for index in 0..6 {
        fill(&session, key(1, index)).await;
    }
    session.leave();
    opened.kill();
    let mut opened = Fixture { arena: Arena::new(SLAB), ..fixture }.reopen(1);
    assert_eq!(opened.1.recovered.len(), 6);
    assert!(opened.1.recovered.iter().all(is_whole));
    assert!(opened.1.slabs.notes().iter().any(|note| note.contains("budget")));
    let hello = SlabHello { uid: UID, session: Some(id), ..Default::default() };
    assert_eq!(opened.1.slabs.hello(hello).await.err().unwrap().code(), Code::NotFound);
    opened.1.recovered.clear();
}

impl Fixture {
    fn reopen(self, slabs: u64) -> (Fixture, Opened) {
        let opened = self.open(slabs);
        (self, opened)
    }
}

#[tokio::test]
async fn folders_that_are_not_ours_stay_and_the_lock_holds() {
    let fixture = Fixture::new();
    let folder = fixture.place.path().join("slabs");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::create_dir(folder.join("other")).unwrap();
    let opened = fixture.open(4);
    assert_eq!(fixture.try_open(4, SOON).err().unwrap().code(), Code::FailedPrecondition);
    assert!(folder.join("other").exists());
    let small = fixture.try_open(0, SOON).err().unwrap();
    assert!(matches!(small.code(), Code::FailedPrecondition | Code::InvalidArgument));
    drop(opened);
}

/// What somebody does to the files of a session between two processes.
#[derive(Debug, Clone)]
enum Damage {
    Write { control: bool, at: u64, bytes: Vec<u8> },
    Cut { control: bool, len: u64 },
    Copy { from: u64, to: u64 },
    Remove { control: bool },
    Replace,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<bool>(), 0_u64..4096, prop::collection::vec(any::<u8>(), 1..200))
            .prop_map(|(control, at, bytes)| Damage::Write { control, at, bytes }),
        2 => (any::<bool>(), 0_u64..1 << 20).prop_map(|(control, len)| Damage::Cut { control, len }),
        2 => (0_u64..8, 0_u64..8).prop_map(|(from, to)| Damage::Copy { from, to }),
        1 => any::<bool>().prop_map(|control| Damage::Remove { control }),
        1 => Just(Damage::Replace),
    ]
}

impl Damage {
    fn inflict(&self, folder: &std::path::Path) {
        let pieces = || std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let piece = pieces().filter(|path| path.to_str().unwrap().contains("piece-")).min();
        let path = |control: bool| if control { Some(folder.join("control")) } else { piece.clone() };
        let open = |control| File::options().read(true).write(true).open(path(control)?).ok();
        match self {
            Damage::Write { control, at, bytes } => {
                open(*control).map(|file| file.write_all_at(bytes, *at));
            }
            Damage::Cut { control, len } => {
                open(*control).map(|file| file.set_len(*len));
            }
            Damage::Copy { from, to } => {
                let Some(file) = open(true) else { return };
                let mut record = [0; 128];
                if file.read_exact_at(&mut record, from * 128).is_ok() {
                    file.write_all_at(&record, to * 128).unwrap();
                }
            }
            Damage::Remove { control } => {
                path(*control).map(std::fs::remove_file);
            }
            Damage::Replace => {
                let control = folder.join("control");
                let _ = std::fs::remove_file(&control);
                std::os::unix::fs::symlink("/dev/zero", &control).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever is done to the files, the next process opens them, takes only what was granted, and works.
    #[test]
    fn damaged_files_are_no_danger(damages in prop::collection::vec(damage(), 1..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = Fixture::new();
            let mut opened = fixture.open(8);
            let (session, other) = (opened.hello().await, opened.hello().await);
            let folder = fixture.place.path().join("slabs").join(format!("{}.{UID}.{SLAB}", session.id()));
            for index in 0..4 {
                fill(&session, key(1, index)).await;
            }
            fill(&other, key(2, 0)).await;
            session.leave();
            other.leave();
            opened.kill();
            damages.iter().for_each(|damage| damage.inflict(&folder));
            opened = fixture.open(8);
            let theirs = opened.recovered.iter().filter(|slab| slab.key().attempt == attempt(2));
            assert_eq!(theirs.filter(|slab| is_whole(slab)).count(), 1);
            for slab in &opened.recovered {
                assert!(slab.key().file == 3 && slab.length_bytes() == SLAB, "{slab:?}");
                // The bytes are the client's affair, that there are any or an error is ours.
                let _ = slab.read(0, &mut [0; 4096]);
            }
            opened.recovered.clear();
            let session = opened.hello().await;
            let slab = fill(&session, key(3, 0)).await;
            session.seal(slab).unwrap();
            assert!(is_whole(&opened.sealed().await));
        });
    }
}
