//! Requests that no daemon of ours makes: wrong ones fail alone, and nothing that is not there is touched.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;

use longshore_testkit::FakeCuda;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::cuda::keep::DeviceMemory;
use crate::cuda::probe::probe;
use crate::cuda::protocol::RUNS_MAX;
use crate::cuda::steps::{PACK_BYTES_MAX, Run, Step};

const PIECE_BYTES: u64 = 1 << 20;
const REGION_BYTES: u64 = 2 << 20;

struct Talk {
    socket: UnixStream,
    copier: JoinHandle<Result<()>>,
    memory: DeviceMemory,
    next_id: u64,
}

impl Talk {
    /// A copier with one page-locked piece and one region, number 1.
    fn start() -> Talk {
        FakeCuda::preload();
        let gpu = probe().unwrap().swap_remove(0).uuid;
        let (socket, theirs) = UnixStream::pair().unwrap();
        let copier = thread::spawn(move || copier_main(theirs.into()));
        let memory = DeviceMemory::create(&gpu, REGION_BYTES).unwrap();
        let mut talk = Talk { socket, copier, memory, next_id: 0 };
        let piece = memfd_create("piece", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&piece, PIECE_BYTES).unwrap();
        talk.segments(&[piece.as_fd()], &[PIECE_BYTES]);
        talk.ask(|id| Request::Start { id, gpu }).unwrap();
        talk.map(1).unwrap();
        talk
    }

    fn segments(&self, fds: &[BorrowedFd<'_>], lens_bytes: &[u64]) {
        send(&self.socket, &Request::Segments { lens_bytes: lens_bytes.to_vec() }, fds).unwrap();
    }

    fn map(&mut self, region: u64) -> Result<Answer> {
        self.segments(&[self.memory.segments()[0].fd.as_fd()], &[REGION_BYTES]);
        self.ask(|id| Request::Map { id, region })
    }

    fn ask(&mut self, make: impl FnOnce(u64) -> Request) -> Result<Answer> {
        let id = self.next_id;
        self.next_id += 1;
        send(&self.socket, &make(id), &[]).unwrap();
        let reply = Receiver::new(&self.socket).receive::<Reply>().unwrap().unwrap();
        assert_eq!(reply.id, id);
        reply.result.map_err(Error::from)
    }

    fn copy(&mut self, steps: Vec<Step>) -> Result<Answer> {
        self.ask(|id| Request::Copy { id, region: 1, piece: 0, steps })
    }

    fn refused(&mut self, make: impl FnOnce(u64) -> Request) {
        assert_eq!(self.ask(make).unwrap_err().code(), Code::InvalidArgument);
    }

    fn end(self) -> Result<()> {
        drop(self.socket);
        self.copier.join().unwrap()
    }
}

fn run(from: u64, len: u64, to: u64) -> Run {
    Run { from, row_bytes: len, pitch_bytes: len, rows: 1, to }
}

#[test]
fn copies_stay_within_the_piece_and_the_region() {
    let mut talk = Talk::start();
    let wide = Run { from: 0, row_bytes: 1000, pitch_bytes: 2000, rows: 524, to: 0 };
    let wrong = [
        Step::Copy(run(PIECE_BYTES - 1, 2, 0)),
        Step::Copy(run(0, 2, REGION_BYTES - 1)),
        Step::Copy(run(u64::MAX, 2, 0)),
        Step::Copy(run(0, 2, u64::MAX)),
        Step::Copy(run(0, 0, 0)),
        Step::Copy(Run { rows: 0, ..wide }),
        Step::Copy(Run { rows: 525, ..wide }),
        Step::Copy(Run { rows: u64::MAX, ..wide }),
        Step::Copy(Run { pitch_bytes: 999, ..wide }),
        Step::Copy(Run { pitch_bytes: u64::MAX, ..wide }),
        Step::Pack(Vec::new()),
        Step::Pack(vec![run(0, 10, 0), run(0, 10, 9)]),
        Step::Pack(vec![run(0, 10, 0), run(0, 10, PACK_BYTES_MAX)]),
        Step::Pack(vec![run(PIECE_BYTES - 9, 10, 0)]),
        Step::Pack(vec![run(0, 10, REGION_BYTES - 9)]),
    ];
    for step in wrong {
        let message = format!("{step:?}");
        let error = talk.copy(vec![Step::Copy(run(0, 1, 0)), step]).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{message}");
    }
    let right = vec![Step::Copy(wide), Step::Pack(vec![run(0, 10, 0), run(20, 10, 256)]), Step::Copy(run(0, 1, 5))];
    assert_eq!(talk.copy(right).unwrap(), Answer::Done);
    let too_many = vec![Step::Copy(run(0, 1, 0)); RUNS_MAX + 1];
    assert_eq!(talk.copy(too_many).unwrap_err().code(), Code::InvalidArgument);
    talk.end().unwrap();
}

#[test]
fn what_is_not_there_is_refused() {
    let mut talk = Talk::start();
    talk.refused(|id| Request::Copy { id, region: 2, piece: 0, steps: Vec::new() });
    talk.refused(|id| Request::Copy { id, region: 1, piece: 1, steps: Vec::new() });
    talk.refused(|id| Request::Unmap { id, region: 2 });
    talk.refused(|id| Request::Zero { id, region: 2, ranges: Vec::new() });
    for (offset, len) in [(REGION_BYTES, 1), (0, 0), (u64::MAX, 1), (1, u64::MAX)] {
        talk.refused(|id| Request::Zero { id, region: 1, ranges: vec![(0, 1), (offset, len)] });
    }
    for (offset_bytes, len_bytes, piece) in [(REGION_BYTES, 1, 0), (0, PIECE_BYTES + 1, 0), (u64::MAX, 1, 0), (0, 1, 1)]
    {
        talk.refused(|id| Request::Read { id, region: 1, offset_bytes, len_bytes, piece });
    }
    // No descriptors, a number that is taken, a second start.
    talk.refused(|id| Request::Map { id, region: 3 });
    assert_eq!(talk.map(1).unwrap_err().code(), Code::InvalidArgument);
    talk.refused(|id| Request::Start { id, gpu: "GPU-x".into() });
    // Longer than the memory behind it, and no memory of a GPU at all.
    talk.segments(&[talk.memory.segments()[0].fd.as_fd()], &[REGION_BYTES * 2]);
    assert!(talk.ask(|id| Request::Map { id, region: 4 }).is_err());
    let file = tempfile::tempfile().unwrap();
    talk.segments(&[file.as_fd()], &[REGION_BYTES]);
    assert!(talk.ask(|id| Request::Map { id, region: 5 }).is_err());
    assert!(
        matches!(talk.ask(|id| Request::Info { id }).unwrap(), Answer::Memory { total_bytes, .. } if total_bytes > 0)
    );
    assert_eq!(talk.ask(|id| Request::Unmap { id, region: 1 }).unwrap(), Answer::Done);
    talk.refused(|id| Request::Unmap { id, region: 1 });
    talk.end().unwrap();
}

#[test]
fn descriptors_must_be_as_many_as_announced() {
    let talk = Talk::start();
    let file = tempfile::tempfile().unwrap();
    talk.segments(&[file.as_fd()], &[1, 2]);
    assert_eq!(talk.end().unwrap_err().code(), Code::Internal);
}

#[test]
fn page_locked_memory_must_be_as_long_as_announced() {
    FakeCuda::preload();
    let gpu = probe().unwrap().swap_remove(0).uuid;
    let (socket, theirs) = UnixStream::pair().unwrap();
    let copier = thread::spawn(move || copier_main(theirs.into()));
    let piece = memfd_create("short", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&piece, 4096).unwrap();
    send(&socket, &Request::Segments { lens_bytes: vec![PIECE_BYTES] }, &[piece.as_fd()]).unwrap();
    send(&socket, &Request::Start { id: 9, gpu }, &[]).unwrap();
    let reply = Receiver::new(&socket).receive::<Reply>().unwrap().unwrap();
    assert!(reply.id == 9 && reply.result.unwrap_err().message.contains("4096"));
    assert!(copier.join().unwrap().is_err());
}
