//! Local files into every kind of landing, cached and not.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use longshore_memory::direct::{DirectFile, residency};
use longshore_memory::{Arena, Claim, PinnedArena, RegionWriter};
use longshore_types::{BLOCK_BYTES, CHUNK_BYTES, ChunkKey, Version};
use rustix::fs::{Advice, fadvise};

use super::*;

/// One chunk, and a second one that ends within a block.
const FILE_BYTES: usize = (CHUNK_BYTES + 2 * BLOCK_BYTES) as usize + 1234;

/// A model's file, and what it was when it was resolved.
struct Model {
    _folder: tempfile::TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
    artifact: Arc<Artifact>,
}

impl Model {
    fn new() -> Model {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let bytes: Vec<u8> = (0..FILE_BYTES).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let mtime_ns = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
        let version = Version::new(format!("mtime:{}-{mtime_ns}-{}", metadata.size(), metadata.ino())).unwrap();
        let artifact = Artifact::new("file:///model", version, metadata.size()).unwrap();
        Model { _folder: folder, path, bytes, artifact: Arc::new(artifact) }
    }

    fn key(&self, index: u32) -> ChunkKey {
        ChunkKey::new(self.artifact.clone(), index).unwrap()
    }

    fn bytes(&self, wanted: &Wanted<'_>) -> &[u8] {
        let range = wanted.file_range();
        &self.bytes[range.start as usize..range.end as usize]
    }

    fn read(&self, files: &LocalFiles, wanted: &Wanted<'_>, landing: &mut Landing) -> Result<()> {
        files.read(&self.path, wanted, landing, &CancellationToken::new())
    }

    /// Drops the file from the page cache. False where its file system has no other place for it.
    fn forget(&self) -> bool {
        let file = File::open(&self.path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        residency(&file, 0..u64::MAX) == Some(0.0) && DirectFile::open(&self.path).unwrap().is_some()
    }
}

fn buffer(len: usize) -> Landing {
    let buffer = Arena::new(1 << 30).buffer(len, Duration::ZERO).unwrap();
    Landing::builder().buffer(buffer, std::iter::once(0..len).collect()).build().unwrap()
}

fn direct_bytes(ways: &Ways) -> u64 {
    ways.direct_uring_bytes + ways.direct_bytes
}

fn cached_bytes(ways: &Ways) -> u64 {
    ways.page_cache_bytes + ways.mapped_bytes
}

#[test]
fn chunks_land_in_page_locked_memory() {
    let model = Model::new();
    let arena = Arena::new(CHUNK_BYTES);
    let pinned = PinnedArena::create(CHUNK_BYTES, arena.try_reserve(CHUNK_BYTES).unwrap()).unwrap();
    for direct_io in [DirectIo::Never, DirectIo::Always] {
        let files = LocalFiles::new(direct_io);
        for index in [0, 1] {
            let key = model.key(index);
            let chunk = pinned.try_chunk(key.len_bytes(), None).unwrap();
            for first in [1, 0] {
                let Claim::Fill(window) = chunk.claim(first..u32::MAX) else { panic!("not missing") };
                let wanted = Wanted { key: &key, range: window.range_bytes(), expected: None };
                let mut landing = Landing::builder().block_window(window).build().unwrap();
                model.read(&files, &wanted, &mut landing).unwrap();
                landing.into_block_windows().into_iter().for_each(longshore_memory::BlockWindow::commit);
                assert!(chunk.bytes(wanted.range.clone()).unwrap() == model.bytes(&wanted));
            }
        }
        let ways = files.ways();
        assert_eq!(cached_bytes(&ways) + direct_bytes(&ways), FILE_BYTES as u64);
        assert_eq!(direct_bytes(&ways) + ways.declined_bytes > 0, direct_io == DirectIo::Always);
        files.check().unwrap();
    }
}

#[test]
fn pieces_land_in_a_region_wherever_they_lie() {
    let model = Model::new();
    let key = model.key(0);
    let wanted = Wanted { key: &key, range: BLOCK_BYTES..CHUNK_BYTES, expected: None };
    let (head, len) = (1000, wanted.len_bytes() as usize);
    for direct_io in [DirectIo::Never, DirectIo::Always] {
        let arena = Arena::new(64 << 20);
        let writer = RegionWriter::create("model", 20 << 20, arena.try_reserve(20 << 20).unwrap()).unwrap();
        let (first, second) = (writer.claim(256..5_000_256).unwrap(), writer.claim(6_000_128..20_000_000).unwrap());
        let rest = len - head - 5_000_000;
        let mut landing =
            Landing::builder().scratch(head).window(first).open_window(second).take(rest).build().unwrap();
        let files = LocalFiles::new(direct_io);
        model.read(&files, &wanted, &mut landing).unwrap();
        drop(landing);
        let region = writer.finish().unwrap();
        let expected = &model.bytes(&wanted)[head..];
        assert!(region.as_slice()[256..5_000_256] == expected[..5_000_000]);
        assert!(region.as_slice()[6_000_128..6_000_128 + rest] == expected[5_000_000..]);
        assert_eq!(cached_bytes(&files.ways()) + direct_bytes(&files.ways()), len as u64);
    }
}

#[test]
fn what_is_cached_is_copied_from_there_and_the_rest_is_read_from_the_disk() {
    let model = Model::new();
    let key = model.key(0);
    let wanted = Wanted { key: &key, range: 0..CHUNK_BYTES, expected: None };
    let read = || {
        let (files, mut landing) = (LocalFiles::new(DirectIo::Auto), buffer(CHUNK_BYTES as usize));
        model.read(&files, &wanted, &mut landing).unwrap();
        assert!(landing.into_buffers()[0][..] == *model.bytes(&wanted));
        files.ways()
    };
    let ways = read();
    assert_eq!((cached_bytes(&ways), direct_bytes(&ways)), (CHUNK_BYTES, 0));
    assert_eq!(ways.mapped_bytes > 0, cfg!(target_arch = "x86_64"), "{ways:?}");
    if !model.forget() {
        eprintln!("skipped: temporary files cannot be dropped from the page cache here");
        return;
    }
    assert_eq!((direct_bytes(&read()), cached_bytes(&read())), (CHUNK_BYTES, 0));
    // The second extent, and no more of it.
    let file = File::open(&model.path).unwrap();
    fadvise(&file, 0, None, Advice::Random).unwrap();
    file.read_exact_at(&mut vec![0; EXTENT_BYTES as usize], EXTENT_BYTES).unwrap();
    let ways = read();
    assert_eq!((cached_bytes(&ways), direct_bytes(&ways)), (EXTENT_BYTES, CHUNK_BYTES - EXTENT_BYTES));
    assert_eq!(ways.declined_bytes, 0);
}

#[test]
fn a_file_that_declines_direct_reads_is_read_through_the_page_cache_and_counted() {
    let model = Model::new();
    let key = model.key(1);
    let wanted = Wanted { key: &key, range: 0..key.len_bytes(), expected: None };
    let (files, mut landing) = (LocalFiles::new(DirectIo::Always), buffer(key.len_bytes() as usize));
    let file = files.open(&model.path, &model.artifact).unwrap();
    file.decline(&model.path, &std::io::Error::from_raw_os_error(rustix::io::Errno::INVAL.raw_os_error()));
    model.read(&files, &wanted, &mut landing).unwrap();
    assert!(landing.into_buffers()[0][..] == *model.bytes(&wanted));
    let bytes = key.len_bytes();
    assert_eq!(files.ways(), Ways { page_cache_bytes: bytes, declined_bytes: bytes, ..Ways::default() });
}

#[test]
fn a_file_that_changes_is_an_error_in_every_way() {
    for direct_io in [DirectIo::Never, DirectIo::Always, DirectIo::Auto] {
        let model = Model::new();
        let key = model.key(0);
        let wanted = Wanted { key: &key, range: 0..CHUNK_BYTES, expected: None };
        let files = LocalFiles::new(direct_io);
        model.read(&files, &wanted, &mut buffer(CHUNK_BYTES as usize)).unwrap();
        let file = File::options().write(true).open(&model.path).unwrap();
        file.set_len(CHUNK_BYTES / 2).unwrap();
        let again = model.read(&files, &wanted, &mut buffer(CHUNK_BYTES as usize));
        assert_eq!(again.unwrap_err().code(), Code::FailedPrecondition, "{direct_io:?}");
        assert_eq!(files.check().unwrap_err().code(), Code::FailedPrecondition);
        let anew = model.read(&LocalFiles::new(direct_io), &wanted, &mut buffer(CHUNK_BYTES as usize));
        assert_eq!(anew.unwrap_err().code(), Code::FailedPrecondition, "{direct_io:?}");
    }
}

#[test]
fn a_file_cut_short_under_its_mapping_is_left_to_a_read_that_says_so() {
    let model = Model::new();
    let files = LocalFiles::new(DirectIo::Auto);
    let file = files.open(&model.path, &model.artifact).unwrap();
    let mut landing = buffer(CHUNK_BYTES as usize);
    let is_mapped = file.read_mapped(&model.path, &(0..CHUNK_BYTES), &mut landing, 0);
    assert_eq!(is_mapped, cfg!(target_arch = "x86_64"));
    File::options().write(true).open(&model.path).unwrap().set_len(CHUNK_BYTES / 2).unwrap();
    assert!(!file.read_mapped(&model.path, &(0..CHUNK_BYTES), &mut landing, 0));
    let error = file.read_cached(&model.path, &(0..CHUNK_BYTES), &mut landing, 0).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
}

#[test]
fn another_file_under_the_name_is_found_when_it_is_opened_directly() {
    let model = Model::new();
    let key = model.key(0);
    let wanted = Wanted { key: &key, range: 0..CHUNK_BYTES, expected: None };
    let files = LocalFiles::new(DirectIo::Always);
    files.open(&model.path, &model.artifact).unwrap();
    let other = model.path.with_extension("new");
    fs::copy(&model.path, &other).unwrap();
    fs::rename(&other, &model.path).unwrap();
    if DirectFile::open(&model.path).unwrap().is_some() {
        let error = model.read(&files, &wanted, &mut buffer(CHUNK_BYTES as usize)).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
    }
}

#[test]
fn a_load_that_is_given_up_reads_nothing_more() {
    let model = Model::new();
    let key = model.key(0);
    let wanted = Wanted { key: &key, range: 0..CHUNK_BYTES, expected: None };
    let token = CancellationToken::new();
    token.cancel();
    let files = LocalFiles::new(DirectIo::Auto);
    let error = files.read(&model.path, &wanted, &mut buffer(CHUNK_BYTES as usize), &token).unwrap_err();
    assert_eq!((error.code(), files.ways()), (Code::Cancelled, Ways::default()));
    let missing = files.read(Path::new("/none"), &wanted, &mut buffer(5), &CancellationToken::new());
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
}

#[test]
fn what_is_cached_brings_nothing_else_from_the_disk_into_the_cache() {
    let model = Model::new();
    if !model.forget() {
        eprintln!("skipped: temporary files cannot be dropped from the page cache here");
        return;
    }
    let file = File::open(&model.path).unwrap();
    fadvise(&file, 0, None, Advice::Random).unwrap();
    // Most of the first extent: the rest of it comes by way of the cache.
    file.read_exact_at(&mut vec![0; EXTENT_BYTES as usize / 4 * 3], 0).unwrap();
    let key = model.key(0);
    let wanted = Wanted { key: &key, range: 0..CHUNK_BYTES, expected: None };
    let files = LocalFiles::new(DirectIo::Auto);
    model.read(&files, &wanted, &mut buffer(CHUNK_BYTES as usize)).unwrap();
    assert_eq!(cached_bytes(&files.ways()), EXTENT_BYTES);
    assert_eq!(residency(&file, EXTENT_BYTES..u64::MAX), Some(0.0));
}
