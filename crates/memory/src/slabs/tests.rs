//! Named shared memory, used well and changed by others.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use longshore_types::Code;
use proptest::prelude::*;

use super::*;
use crate::Arena;

const MIB: u64 = 1 << 20;

/// A folder in shared memory, removed at the end.
fn place() -> tempfile::TempDir {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.unwrap()
}

fn session(place: &tempfile::TempDir) -> (SlabFolder, SessionFolder) {
    let folder = SlabFolder::open(&place.path().join("slabs")).unwrap();
    let session = folder.create_session("one").unwrap();
    (folder, session)
}

fn piece(session: &SessionFolder, arena: &Arena, index: u32, len_bytes: u64) -> longshore_types::Result<SlabPiece> {
    SlabPiece::create(session, PieceName { index, len_bytes }, arena.try_reserve(len_bytes).unwrap())
}

fn path_of(session: &SessionFolder, index: u32, len_bytes: u64) -> PathBuf {
    session.path().join(PieceName { index, len_bytes }.to_string())
}

fn record(slab: u32) -> SlabRecord {
    SlabRecord {
        slab,
        attempt: *b"0123456789abcdef",
        file: 7,
        slab_index: 9,
        length_bytes: 64 << 20,
        generation: 0x0102_0304_0506_0708,
    }
}

#[test]
fn a_folder_is_ours_alone() {
    let place = place();
    let path = place.path().join("a/slabs");
    let folder = SlabFolder::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let error = SlabFolder::open(&path).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    drop(folder);
    SlabFolder::open(&path).unwrap();
    let link = place.path().join("link");
    symlink(&path, &link).unwrap();
    assert_eq!(SlabFolder::open(&link).unwrap_err().code(), Code::PermissionDenied);
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(SlabFolder::open(&file).unwrap_err().code(), Code::PermissionDenied);
    let open = place.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o770)).unwrap();
    let error = SlabFolder::open(&open).unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    assert!(error.message().contains("0700"), "{error}");
}

#[test]
fn sessions_are_found_and_removed_links_are_not_followed() {
    let place = place();
    let (folder, session) = session(&place);
    let arena = Arena::new(8 * MIB);
    drop(piece(&session, &arena, 0, MIB).unwrap());
    let outside = place.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    symlink(&outside, folder.path().join("link")).unwrap();
    symlink(outside.join("precious"), session.path().join("piece-1-1048576")).unwrap();
    fs::write(folder.path().join(".hidden"), "").unwrap();
    let mut names = folder.sessions().unwrap();
    names.sort();
    assert_eq!(names, ["link", "one"]);
    folder.open_session("link").unwrap_err();
    folder.remove_session("link").unwrap_err();
    let names = session.pieces().unwrap();
    assert_eq!(names.len(), 2);
    SlabPiece::open(&session, names[1], None).unwrap_err();
    folder.remove_session("one").unwrap();
    assert!(!session.path().exists());
    assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "x");
}

#[test]
fn pieces_are_whole_before_anybody_has_them() {
    let place = place();
    let (_folder, session) = session(&place);
    let arena = Arena::new(128 * MIB);
    let made = piece(&session, &arena, 0, 70 * MIB).unwrap();
    let facts = fs::metadata(path_of(&session, 0, 70 * MIB)).unwrap();
    assert_eq!((facts.len(), facts.blocks() * 512), (70 * MIB, 70 * MIB));
    assert_eq!(facts.permissions().mode() & 0o777, 0o600);
    assert_eq!(arena.leased_bytes(), 70 * MIB);
    let file = OpenOptions::new().write(true).open(path_of(&session, 0, 70 * MIB)).unwrap();
    file.write_all_at(b"here", 69 * MIB).unwrap();
    let mut bytes = [1; 5];
    made.read(69 * MIB, &mut bytes).unwrap();
    assert_eq!(&bytes, b"here\0");
    assert_eq!(made.read(70 * MIB - 4, &mut bytes).unwrap_err().code(), Code::Internal);
    assert_eq!(made.read(u64::MAX, &mut bytes).unwrap_err().code(), Code::Internal);
    made.free().unwrap();
    assert_eq!(fs::metadata(path_of(&session, 0, 70 * MIB)).unwrap().blocks(), 0);
    drop(made);
    assert_eq!(arena.leased_bytes(), 0);
}

#[test]
fn a_piece_that_its_client_cuts_or_grows_is_an_error_and_no_signal() {
    let place = place();
    let (_folder, session) = session(&place);
    let arena = Arena::new(8 * MIB);
    let made = piece(&session, &arena, 0, 2 * MIB).unwrap();
    let file = OpenOptions::new().write(true).open(path_of(&session, 0, 2 * MIB)).unwrap();
    let mut bytes = vec![0; 4096];
    for (len, is_there) in [(0, false), (MIB + 1, false), (2 * MIB, true), (3 * MIB, true)] {
        file.set_len(len).unwrap();
        assert_eq!(made.check().is_ok(), len == 2 * MIB);
        let read = made.read(MIB, &mut bytes);
        assert_eq!(read.is_ok(), is_there, "{len}");
        assert!(read.is_ok() || read.unwrap_err().code() == Code::Corrupt);
        let name = PieceName { index: 0, len_bytes: 2 * MIB };
        assert_eq!(SlabPiece::open(&session, name, None).is_ok(), len == 2 * MIB);
    }
}

#[test]
fn no_room_is_said_before_anything_is_used() {
    let place = place();
    let (_folder, session) = session(&place);
    let arena = Arena::new(u64::MAX / 4);
    let error = piece(&session, &arena, 0, 1 << 50).unwrap_err();
    assert_eq!(error.code(), Code::Exhausted, "{error}");
    assert!(error.message().contains("--checkpoint-memory"), "{error}");
    assert_eq!((arena.leased_bytes(), session.pieces().unwrap().len()), (0, 0));
    let small = arena.try_reserve(1).unwrap();
    let error = SlabPiece::create(&session, PieceName { index: 0, len_bytes: MIB }, small).unwrap_err();
    assert_eq!(error.code(), Code::Internal);
}

/// Mounts a file system for one test; `None` without the right to.
struct Mounted(PathBuf);

impl Mounted {
    fn new(place: &tempfile::TempDir, kind: &str, options: &str) -> Option<Mounted> {
        let path = place.path().join("mount");
        fs::create_dir(&path).unwrap();
        let mount = Command::new("mount").args(["-t", kind, "-o", options, "none"]).arg(&path).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Mounted(path))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_file_system_is_an_error_and_no_signal() {
    let place = place();
    let Some(mount) = Mounted::new(&place, "tmpfs", "size=4m") else { return };
    let folder = SlabFolder::open(&mount.0.join("slabs")).unwrap();
    let session = folder.create_session("one").unwrap();
    let arena = Arena::new(64 * MIB);
    let error = piece(&session, &arena, 0, 8 * MIB).unwrap_err();
    assert_eq!(error.code(), Code::Exhausted, "{error}");
    // As if somebody else had taken the room after it was looked for.
    let file = session.file("race", true).unwrap();
    let error = super::piece::populate(&session, &file, 8 * MIB).unwrap_err();
    assert_eq!(error.code(), Code::Exhausted, "{error}");
    assert!(error.message().contains("remount"), "{error}");
}

#[test]
fn hugetlbfs_works_where_there_are_pages() {
    let place = place();
    let Some(mount) = Mounted::new(&place, "hugetlbfs", "pagesize=2M") else { return };
    let folder = SlabFolder::open(&mount.0.join("slabs")).unwrap();
    assert_eq!((folder.pages(), folder.page_bytes()), (SlabPages::Hugetlb, 2 * MIB));
    let session = folder.create_session("one").unwrap();
    let arena = Arena::new(u64::MAX / 4);
    let error = piece(&session, &arena, 9, 1 << 40).unwrap_err();
    assert_eq!(error.code(), Code::Exhausted, "{error}");
    assert!(error.message().contains("nr_hugepages"), "{error}");
    let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap();
    if free.trim().parse::<u64>().unwrap() < 4 {
        return;
    }
    let made = piece(&session, &arena, 0, 4 * MIB).unwrap();
    let mut bytes = [1; 16];
    made.read(4 * MIB - 16, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 16]);
    let page = ControlPage::create(&session, 64, arena.try_reserve(2 * MIB).unwrap()).unwrap();
    page.grant(&record(63)).unwrap();
    assert_eq!(page.record(63), Some((SlabState::Filling, record(63))));
    // A client that cuts the page gets no signal for us.
    OpenOptions::new().write(true).open(session.path().join("control")).unwrap().set_len(0).unwrap();
    assert_eq!(page.record(63), None);
    assert_eq!(page.grant(&record(63)).unwrap_err().code(), Code::Unavailable);
    assert_eq!(page.state_word(0).unwrap_err().code(), Code::Unavailable);
    made.free().unwrap();
}

#[test]
fn records_are_read_back_by_the_next_process() {
    let place = place();
    let (_folder, session) = session(&place);
    let arena = Arena::new(MIB);
    let page = ControlPage::create(&session, 40, arena.try_reserve(2 * 4096).unwrap()).unwrap();
    page.grant(&record(0)).unwrap();
    page.grant(&record(39)).unwrap();
    assert_eq!(page.grant(&record(64)).unwrap_err().code(), Code::Internal);
    let client = OpenOptions::new().read(true).write(true).open(session.path().join("control")).unwrap();
    client.write_all_at(&2_u32.to_le_bytes(), 39 * 128).unwrap();
    drop(page);
    let page = ControlPage::open(&session, None).unwrap();
    assert_eq!(page.slabs(), 64);
    assert_eq!(page.record(0), Some((SlabState::Filling, record(0))));
    assert_eq!(page.record(39), Some((SlabState::Sealed, record(39))));
    assert_eq!((page.record(1), page.record(1000)), (None, None));
    assert_eq!((page.state_word(39).unwrap(), page.state_word(1).unwrap()), (2, 0));
    page.release(39).unwrap();
    assert_eq!((page.record(39), page.state_word(39).unwrap()), (None, 0));
    // Cut by the client: free, or an error, and nothing else.
    client.set_len(100).unwrap();
    assert_eq!(page.record(0), None);
    assert_eq!(page.state_word(0).unwrap(), 1);
    assert_eq!(page.state_word(1).unwrap_err().code(), Code::Unavailable);
    assert_eq!(ControlPage::open(&session, None).unwrap_err().code(), Code::Corrupt);
    client.set_len(1 << 40).unwrap();
    assert_eq!(ControlPage::open(&session, None).unwrap_err().code(), Code::Corrupt);
}

#[test]
fn the_layout_of_a_record_is_fixed() {
    let bytes = record(3).encode(SlabState::Filling);
    assert_eq!(bytes[..8], [1, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(&bytes[8..24], b"0123456789abcdef");
    assert_eq!(bytes[24..48], [7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
    let checksum = longshore_types::BlockChecksum::of(&bytes[4..48]).0;
    assert_eq!(bytes[48..56], checksum.to_le_bytes());
    assert!(bytes[56..].iter().all(|byte| *byte == 0));
}

proptest! {
    /// Whatever a client does to a record: it is what the daemon wrote, sealed or not, or it is nothing.
    #[test]
    fn a_record_is_whole_or_nothing(
        changes in prop::collection::vec((0_usize..128, any::<u8>()), 1..20),
        slab in 0_u32..4,
        sealed in any::<bool>(),
    ) {
        let state = if sealed { SlabState::Sealed } else { SlabState::Filling };
        let mut bytes = record(2).encode(state);
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        match SlabRecord::decode(&bytes, slab) {
            None => {}
            Some((_, read)) => {
                prop_assert_eq!(slab, 2);
                prop_assert_eq!(read, record(2));
            }
        }
    }

    /// Every single byte of what the checksum covers, changed in any way, makes the record nothing.
    #[test]
    fn each_changed_byte_is_noticed(at in 4_usize..56, change in 1_u8..=255) {
        let mut bytes = record(2).encode(SlabState::Sealed);
        bytes[at] ^= change;
        prop_assert_eq!(SlabRecord::decode(&bytes, 2), None);
    }

    #[test]
    fn noise_is_nothing(bytes in prop::collection::vec(any::<u8>(), 128), slab in any::<u32>()) {
        let bytes: [u8; 128] = bytes.try_into().unwrap();
        prop_assert_eq!(SlabRecord::decode(&bytes, slab), None);
    }
}
