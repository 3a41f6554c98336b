//! One writer, many readers: what readers see, and how waiting ends.

use std::thread;

use super::*;
use crate::Arena;

const LONG: Duration = Duration::from_secs(60);

fn pair(len: usize) -> (Appender, Prefix) {
    append_buffer(Arena::new(len as u64 + (1 << 20)).try_buffer(len).unwrap())
}

fn byte_at(at: usize) -> u8 {
    (at.wrapping_mul(31) >> 3) as u8
}

fn pattern(range: Range<usize>) -> Vec<u8> {
    range.map(byte_at).collect()
}

#[test]
fn readers_see_exactly_what_was_published() {
    let (mut appender, prefix) = pair(10);
    assert_eq!((prefix.len(), prefix.capacity(), prefix.is_empty(), prefix.is_finished()), (0, 10, true, false));
    appender.write(b"abc").unwrap();
    let early = prefix.get(0..3).unwrap();
    appender.spare()[..2].copy_from_slice(b"de");
    assert_eq!(prefix.len(), 3);
    assert!(prefix.get(0..4).is_none());
    appender.commit(2);
    assert_eq!((early, prefix.get(1..5).unwrap(), appender.remaining()), (&b"abc"[..], &b"bcde"[..], 5));
    assert!(prefix.get(Range { start: 4, end: 2 }).is_none());
    assert_eq!(prefix.get(5..5).unwrap(), b"");
    let error = appender.write(b"too long").unwrap_err();
    assert_eq!((error.code(), prefix.len()), (Code::Internal, 5));
    appender.finish();
    assert!(prefix.is_finished());
    assert_eq!(prefix.wait(5, Duration::ZERO).map_err(|error| error.code()), Ok(()));
    assert_eq!(prefix.wait(6, LONG).unwrap_err().code(), Code::Internal);
}

#[test]
#[should_panic(expected = "commit of 5 bytes")]
fn commit_beyond_the_end_is_caught() {
    let (mut appender, _prefix) = pair(4);
    appender.commit(5);
}

#[test]
fn many_readers_follow_one_writer() {
    let len = if cfg!(miri) { 600 } else { 3 << 20 };
    let (mut appender, prefix) = pair(len);
    thread::scope(|scope| {
        for reader in 0..4usize {
            let prefix = prefix.clone();
            scope.spawn(move || {
                let mut seen = 0;
                while seen < len {
                    let wanted = (seen + 97 * (reader + 1)).min(len);
                    prefix.wait(wanted, LONG).unwrap();
                    let published = prefix.len();
                    assert!(published >= wanted);
                    assert!(prefix.get(seen..published).unwrap() == pattern(seen..published), "torn bytes");
                    seen = published;
                }
            });
        }
        let mut at = 0;
        while at < len {
            let step = (at % 211 + 1).min(len - at);
            if at % 2 == 0 {
                appender.write(&pattern(at..at + step)).unwrap();
            } else {
                appender.spare()[..step].copy_from_slice(&pattern(at..at + step));
                appender.commit(step);
            }
            at += step;
        }
        appender.finish();
    });
    assert!(prefix.is_finished());
}

#[test]
fn failure_and_abandonment_reach_those_who_wait() {
    let (mut appender, prefix) = pair(8);
    appender.write(b"1234").unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| prefix.wait(8, LONG));
        appender.fail(Error::new(Code::Unavailable, "origin went away"));
        let error = waiting.join().unwrap().unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unavailable, "origin went away"));
    });
    // What was published before stays good.
    assert!(prefix.wait(4, Duration::ZERO).is_ok());
    assert_eq!(prefix.get(0..4).unwrap(), b"1234");
    assert!(!prefix.is_finished());

    let (appender, prefix) = pair(8);
    drop(appender);
    assert_eq!(prefix.wait(1, LONG).unwrap_err().code(), Code::Cancelled);
    assert_eq!(prefix.error().unwrap().code(), Code::Cancelled);
}

#[test]
fn waiting_ends_with_a_timeout() {
    let (_appender, prefix) = pair(8);
    assert_eq!(prefix.wait(1, Duration::from_millis(1)).unwrap_err().code(), Code::Timeout);
    assert_eq!(prefix.wait(1, Duration::ZERO).unwrap_err().code(), Code::Timeout);
}

#[cfg(not(miri))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_readers_follow_as_well() {
    const LEN: usize = 200_000;
    let (mut appender, prefix) = pair(LEN);
    assert_eq!(prefix.wait_async(1, Duration::from_millis(1)).await.unwrap_err().code(), Code::Timeout);
    let readers: Vec<_> = (1..5usize)
        .map(|reader| {
            let prefix = prefix.clone();
            tokio::spawn(async move {
                for wanted in (0..=LEN).step_by(1000 * reader) {
                    prefix.wait_async(wanted, LONG).await.unwrap();
                    assert!(prefix.get(0..wanted).unwrap().last().is_none_or(|last| *last == byte_at(wanted - 1)));
                }
                prefix.wait_async(LEN + 1, LONG).await.unwrap_err().code()
            })
        })
        .collect();
    let writer = tokio::task::spawn_blocking(move || {
        for at in (0..LEN).step_by(50) {
            appender.write(&pattern(at..at + 50)).unwrap();
        }
        appender.fail(Error::new(Code::Corrupt, "the end"));
    });
    writer.await.unwrap();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), Code::Corrupt);
    }
}

#[test]
fn the_buffer_returns_with_the_last_reader() {
    let arena = Arena::new(100);
    let (appender, prefix) = append_buffer(arena.try_buffer(100).unwrap());
    appender.finish();
    let other = prefix.clone();
    drop(prefix);
    assert_eq!(arena.leased_bytes(), 100);
    drop(other);
    assert_eq!(arena.leased_bytes(), 0);
}
