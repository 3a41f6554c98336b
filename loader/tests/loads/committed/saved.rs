//! Checkpoints in a fake origin, as a loader finds them: full ones, deltas, and ones that are wrong.

use std::collections::BTreeMap;

use longshore_loader::plan::Place;
use longshore_loader::{LoadRequest, LoadedModel};
use longshore_testkit::FakeOrigin;
use longshore_types::checkpoint::{
    AttemptId, ChunkRun, Commit, FilePlace, Parent, StoredFile, StoredObject, StoredPiece, StoredTensor,
};
use longshore_types::{BlockChecksum, CHUNK_BYTES};

/// Bytes in front of the one tensor of a file whose name ends with `.st`.
pub const HEADER: usize = 64;

pub fn attempt(step: u64) -> AttemptId {
    AttemptId::from_bytes([step as u8; 16])
}

/// A committed checkpoint, and what its files are.
#[derive(Clone)]
pub struct Saved {
    pub commit: Commit,
    pub files: BTreeMap<String, Vec<u8>>,
}

fn content(len: u64, seed: u64) -> Vec<u8> {
    (0..len).map(|at| ((at + 77 * seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn put(origin: &FakeOrigin, path: String, bytes: &[u8], of: AttemptId) -> StoredObject {
    origin.put(&format!("bucket/run/{path}"), bytes.to_vec());
    let (size_bytes, checksum) = (bytes.len() as u64, BlockChecksum::of(bytes));
    StoredObject { path, size_bytes, version: "etag:any".to_owned(), checksum, attempt: of }
}

fn stored(name: &str, bytes: &[u8], place: FilePlace) -> StoredFile {
    StoredFile {
        name: name.to_owned(),
        size_bytes: bytes.len() as u64,
        checksum: BlockChecksum::of(bytes),
        blocks: BlockChecksum::of_blocks(bytes),
        place,
    }
}

fn places(file: &StoredFile) -> Vec<(u32, u32)> {
    match &file.place {
        FilePlace::Object(object) => {
            (0..file.size_bytes.div_ceil(CHUNK_BYTES) as u32).map(|chunk| (*object, chunk)).collect()
        }
        FilePlace::Chunks(runs) => {
            runs.iter().flat_map(|run| (0..run.count).map(move |chunk| (run.object, run.first_chunk + chunk))).collect()
        }
    }
}

impl Saved {
    pub fn full(origin: &FakeOrigin, step: u64, files: &[(&str, u64)]) -> Saved {
        let id = attempt(step);
        let files: BTreeMap<String, Vec<u8>> = files
            .iter()
            .enumerate()
            .map(|(number, (name, len))| ((*name).to_owned(), content(*len, 10 * step + number as u64)))
            .collect();
        let object = |(name, bytes): (&String, &Vec<u8>)| put(origin, format!("step-{step}/{name}.{id}"), bytes, id);
        let file = |(object, (name, bytes)): (u32, (&String, &Vec<u8>))| stored(name, bytes, FilePlace::Object(object));
        let commit = Commit {
            attempt: id,
            step,
            epoch: 1,
            created_ms: 1,
            world_size: 1,
            parent: None,
            delta_depth: 0,
            objects: files.iter().map(object).collect(),
            files: (0..).zip(&files).map(file).collect(),
            tensors: (0..).zip(&files).filter_map(tensor).collect(),
            aliases: vec![],
            metadata: BTreeMap::new(),
        };
        Saved { commit, files }.committed(origin)
    }

    /// A checkpoint with some bytes changed: only their chunks are in its pack.
    pub fn delta(&self, origin: &FakeOrigin, step: u64, changes: &[(&str, u64)]) -> Saved {
        let id = attempt(step);
        let mut files = self.files.clone();
        let mut objects = self.commit.objects.clone();
        let pack_object = objects.len() as u32;
        let (mut pack, mut stored_files) = (Vec::new(), Vec::new());
        for file in &self.commit.files {
            let bytes = files.get_mut(&file.name).unwrap();
            let mut places = places(file);
            for (_, at) in changes.iter().filter(|(name, _)| *name == file.name) {
                bytes[*at as usize] ^= 0x55;
                let chunk = at / CHUNK_BYTES;
                let end = bytes.len().min(((chunk + 1) * CHUNK_BYTES) as usize);
                places[chunk as usize] = (pack_object, (pack.len() as u64 / CHUNK_BYTES) as u32);
                pack.extend_from_slice(&bytes[(chunk * CHUNK_BYTES) as usize..end]);
                pack.resize(pack.len().next_multiple_of(CHUNK_BYTES as usize), 0);
            }
            let run = |(object, first_chunk)| ChunkRun { object, first_chunk, count: 1 };
            let runs = places.into_iter().map(run).collect();
            stored_files.push(stored(&file.name, bytes, FilePlace::Chunks(runs)));
        }
        objects.push(put(origin, format!("step-{step}/delta-{id}-r0.pack"), &pack, id));
        let commit = Commit {
            attempt: id,
            step,
            parent: Some(Parent { step: self.commit.step, attempt: self.commit.attempt }),
            delta_depth: self.commit.delta_depth + 1,
            objects,
            files: stored_files,
            ..self.commit.clone()
        };
        Saved { commit, files }.committed(origin)
    }

    /// The same files, with two chunks of the first file mistaken for each other.
    pub fn with_swapped_chunks(&self, origin: &FakeOrigin, step: u64, one: usize, other: usize) -> Saved {
        let mut saved = self.clone();
        let file = &mut saved.commit.files[0];
        let mut places = places(file);
        places.swap(one, other);
        let run = |(object, first_chunk)| ChunkRun { object, first_chunk, count: 1 };
        file.place = FilePlace::Chunks(places.into_iter().map(run).collect());
        (saved.commit.attempt, saved.commit.step) = (attempt(step), step);
        saved.commit.parent = Some(Parent { step: self.commit.step, attempt: self.commit.attempt });
        saved.commit.delta_depth = 1;
        saved.committed(origin)
    }

    /// The tensors of the first two files as two pieces of one.
    pub fn with_joined_tensors(&self, origin: &FakeOrigin, step: u64) -> Saved {
        let mut saved = self.clone();
        let (mut pieces, mut start) = (Vec::new(), 0);
        for tensor in &self.commit.tensors {
            let piece = StoredPiece { start: vec![start], ..tensor.pieces[0].clone() };
            start += piece.length_bytes;
            pieces.push(piece);
        }
        saved.commit.tensors =
            vec![StoredTensor { name: "joined".to_owned(), dtype: "U8".to_owned(), shape: vec![start], pieces }];
        saved.commit.step = step;
        saved.committed(origin)
    }

    fn committed(self, origin: &FakeOrigin) -> Saved {
        let bytes = self.commit.to_bytes();
        Commit::parse(&bytes, "the test's own").unwrap();
        origin.put(&format!("bucket/run/step-{}/_CKPT.json", self.commit.step), bytes);
        self
    }

    pub fn request(&self, origin: &FakeOrigin) -> LoadRequest {
        LoadRequest::new(origin.model_url(&format!("bucket/run/step-{}", self.commit.step)))
    }

    /// The path of the object that a file is.
    pub fn object(&self, file: &str) -> String {
        let object = self.commit.objects.iter().find(|object| object.path.contains(file)).unwrap();
        format!("bucket/run/{}", object.path)
    }

    pub fn pack(&self) -> String {
        format!("bucket/run/{}", self.commit.objects.last().unwrap().path)
    }

    pub fn tensor_at(&self, file: &str, at: u64) -> &str {
        let file = self.commit.files.iter().position(|stored| stored.name == file).unwrap() as u32;
        self.commit.tensors_at(file, at..at + 1)[0]
    }
}

/// One tensor for each file whose name says so.
fn tensor((file, (name, bytes)): (u32, (&String, &Vec<u8>))) -> Option<StoredTensor> {
    let name = name.strip_suffix(".st")?;
    let length_bytes = (bytes.len() - HEADER) as u64;
    let piece = StoredPiece {
        file,
        offset_bytes: HEADER as u64,
        length_bytes,
        start: vec![0],
        shape: vec![length_bytes],
        checksum: BlockChecksum::of(&bytes[HEADER..]),
    };
    Some(StoredTensor { name: name.to_owned(), dtype: "U8".to_owned(), shape: vec![length_bytes], pieces: vec![piece] })
}

fn check(loaded: &LoadedModel, saved: &Saved, bytes: impl Fn(Place) -> Vec<u8>) {
    assert_eq!(loaded.tensors().len(), saved.commit.tensors.len());
    for placed in loaded.tensors() {
        let file = &saved.files[&format!("{}.st", placed.tensor.name)];
        assert!(bytes(placed.place) == file[HEADER..], "{} differs", placed.tensor.name);
    }
    for &(file, place) in &loaded.layout.files {
        let name = &loaded.manifest.files[file].name;
        assert!(bytes(place) == saved.files[name], "{name} differs");
    }
}

pub fn assert_is(loaded: &LoadedModel, saved: &Saved) {
    let region = loaded.regions[0].host_bytes().unwrap();
    check(loaded, saved, |place| {
        region[place.offset_bytes as usize..(place.offset_bytes + place.length_bytes) as usize].to_vec()
    });
}

pub fn assert_is_on_card(loaded: &LoadedModel, saved: &Saved) {
    check(loaded, saved, |place| {
        let mut bytes = vec![0; place.length_bytes as usize];
        loaded.regions[place.region as usize].read(place.offset_bytes, &mut bytes).unwrap();
        bytes
    });
}
