use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use proptest::prelude::*;

use super::*;

const LEN: usize = 1 << 20;

fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

fn bytes(range: Range<usize>) -> Vec<u8> {
    range.map(byte).collect()
}

fn file() -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes(0..LEN)).unwrap();
    file
}

fn mapped(file: &File) -> MappedFile {
    MappedFile::new(file).unwrap().expect("this platform recovers")
}

proptest! {
    #[test]
    fn copies_are_what_was_asked_for_and_nothing_beside_it(
        offset in 0..LEN - 20_000,
        len in 0..20_000usize,
        place in 0..200usize,
    ) {
        let mapped = mapped(&file());
        let mut to = vec![0xff; place + len + 200];
        let target = &mut to[place..place + len];
        mapped.copy_streaming(offset as u64, target).unwrap();
        prop_assert_eq!(&to[place..place + len], &bytes(offset..offset + len)[..]);
        prop_assert!(to[..place].iter().chain(&to[place + len..]).all(|byte| *byte == 0xff));
    }
}

#[test]
fn beyond_the_end_there_is_nothing() {
    let mapped = mapped(&file());
    let mut to = [0; 100];
    for offset in [LEN as u64 - 99, LEN as u64, u64::MAX] {
        assert_eq!(mapped.copy_streaming(offset, &mut to).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
    mapped.copy_streaming(LEN as u64 - 100, &mut to).unwrap();
    mapped.copy_streaming(LEN as u64, &mut []).unwrap();
}

#[test]
fn what_cannot_be_mapped_is_an_error_and_an_empty_file_is_empty() {
    let empty = MappedFile::new(&tempfile::tempfile().unwrap()).unwrap().unwrap();
    empty.copy_streaming(0, &mut []).unwrap();
    assert!(empty.copy_streaming(0, &mut [0]).is_err());
    let folder = tempfile::tempdir().unwrap();
    assert!(MappedFile::new(&File::open(folder.path()).unwrap()).is_err());
}

#[test]
fn a_file_cut_short_under_the_mapping_is_an_error_and_what_is_left_is_there() {
    let left = 40_960;
    let file = file();
    let map = mapped(&file);
    file.set_len(left as u64).unwrap();
    let mut to = vec![0; LEN];
    // From everywhere in the routine: before the first whole line, within them, behind the last.
    for (at, len) in [(0, LEN), (left - 3, 5), (left, 1), (left - 64, 65), (left - 7, 700), (LEN - 1, 1)] {
        let error = map.copy_streaming(at as u64, &mut to[at..at + len]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{len} from {at}");
    }
    to.fill(0);
    map.copy_streaming(0, &mut to[..left]).unwrap();
    assert_eq!(to[..left], bytes(0..left));
}

#[test]
fn threads_recover_each_for_itself() {
    let (whole, cut) = (file(), file());
    let (whole, map) = (mapped(&whole), mapped(&cut));
    cut.set_len(0).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut to = vec![0; LEN];
                for _ in 0..50 {
                    assert!(map.copy_streaming(0, &mut to).is_err());
                    whole.copy_streaming(0, &mut to).unwrap();
                    assert_eq!(to[LEN - 1], byte(LEN - 1));
                }
            });
        }
    });
}

#[test]
fn what_is_written_meanwhile_is_seen() {
    let mut file = file();
    let map = mapped(&file);
    file.seek(SeekFrom::Start(5)).unwrap();
    file.write_all(b"new").unwrap();
    let mut to = [0; 8];
    map.copy_streaming(0, &mut to).unwrap();
    assert_eq!(&to, &[0, 1, 2, 3, 4, b'n', b'e', b'w']);
}

/// Names the way to end, for a process of its own.
const WAY: &str = "LONGSHORE_TEST_BUS";

/// What only a process of its own survives us telling: SIGBUS that is not the routine's ends it, as ever.
#[test]
fn any_other_sigbus_ends_the_process() {
    for way in ["touch", "send"] {
        let this = std::env::current_exe().unwrap();
        let name = "mapped::tests::ends_by_sigbus";
        let done = Command::new(this).args(["--exact", name, "--ignored"]).env(WAY, way).output().unwrap();
        assert_eq!(done.status.signal(), Some(libc::SIGBUS), "{way}: {done:?}");
    }
}

#[test]
#[ignore = "the child of any_other_sigbus_ends_the_process"]
fn ends_by_sigbus() {
    let file = file();
    let map = mapped(&file);
    file.set_len(0).unwrap();
    assert!(map.copy_streaming(0, &mut [0]).is_err());
    match std::env::var(WAY).unwrap().as_str() {
        "send" => {
            // The first of those that are sent only ends the handler that Rust programs start with.
            for _ in 0..2 {
                // SAFETY: a signal to this process.
                unsafe { libc::raise(libc::SIGBUS) };
            }
        }
        _ => {
            // SAFETY: none, as the test wants it: the page is not there.
            let byte = unsafe { map.memory.start().as_ptr().read_volatile() };
            eprintln!("{byte}");
        }
    }
}
