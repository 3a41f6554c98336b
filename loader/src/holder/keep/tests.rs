use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::holder::memory::Memory;

const CARD: &str = "GPU-1";
const SIZE: u64 = 1 << 20;

/// Memory of a card as far as a holder can tell, which is counted while it lives.
struct Block {
    segments: Vec<OwnedSegment>,
    alive: Arc<AtomicUsize>,
}

impl Memory for Block {
    fn segments(&self) -> &[OwnedSegment] {
        &self.segments
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

fn file(len_bytes: u64) -> OwnedSegment {
    OwnedSegment { fd: tempfile::tempfile().unwrap().into(), len_bytes }
}

/// A holder whose card rounds up to 4 KiB and has no room for more than 1 GiB at once.
fn holder() -> (Arc<Holder>, u64, Arc<AtomicUsize>) {
    let alive = Arc::new(AtomicUsize::new(0));
    let counted = alive.clone();
    let make = move |_: &str, size_bytes: u64| -> Result<Box<dyn Memory>> {
        if size_bytes > 1 << 30 {
            return Err(Error::new(Code::Exhausted, "the card is full"));
        }
        counted.fetch_add(1, Ordering::SeqCst);
        let segments = vec![file(size_bytes.next_multiple_of(4096))];
        Ok(Box::new(Block { segments, alive: counted.clone() }))
    };
    let holder = Holder::new(Box::new(make));
    let session = holder.open_session(7).unwrap();
    (holder, session, alive)
}

fn publication(id: &str, regions: Vec<Part>) -> Publication {
    Publication { id: id.to_owned(), description: vec![1], record: vec![2], regions }
}

fn load(holder: &Holder, session: u64, id: &str) {
    holder.create(session, &format!("l-{id}"), CARD, SIZE).unwrap();
    let regions = vec![Part::Made(format!("l-{id}")), Part::Host(vec![file(10)])];
    holder.publish(session, publication(id, regions)).unwrap();
}

#[test]
fn memory_is_loading_then_published_then_forgotten_then_free() {
    let (holder, session, alive) = holder();
    let segments = holder.create(session, "l-a", CARD, SIZE - 5).unwrap();
    assert_eq!((segments.len(), segments[0].len_bytes), (1, SIZE));
    assert_eq!(holder.used_bytes(CARD), SIZE, "what was made counts, not what was asked for");
    holder.publish(session, publication("a", vec![Part::Made("l-a".into()), Part::Host(vec![file(10)])])).unwrap();
    assert_eq!((holder.used_bytes(CARD), holder.used_bytes(HOST)), (SIZE, 10));
    holder.release(session, "l-a");
    assert_eq!(holder.used_bytes(CARD), SIZE, "what is published is not released");

    let first = holder.lease("a").unwrap();
    let second = holder.lease("a").unwrap();
    assert_eq!((first.others, second.others), (0, 1));
    assert_eq!(holder.uses().leases("a"), 2);
    assert_eq!(holder.remove("a", Remove::IfUnleased), Removed::Leased);
    assert_eq!(holder.lease("a").unwrap().published().description, [1], "a refused removal changes nothing");
    assert_eq!(holder.remove("a", Remove::Forget), Removed::Leased);
    assert_eq!(holder.lease("a").err().unwrap().code(), Code::NotFound);
    assert!(holder.uses().models["a"].is_forgotten);
    assert_eq!(holder.adopt("a").unwrap().regions.len(), 2, "a new loader still has to know of it");
    drop(first);
    assert_eq!((alive.load(Ordering::SeqCst), holder.used_bytes(CARD)), (1, SIZE));
    drop(second);
    assert_eq!((alive.load(Ordering::SeqCst), holder.used_bytes(CARD), holder.used_bytes(HOST)), (0, 0, 0));
    assert_eq!(holder.remove("a", Remove::Forget), Removed::NotFound);
}

#[test]
fn a_change_is_told_when_the_memory_is_free() {
    let (holder, session, alive) = holder();
    load(&holder, session, "a");
    let lease = holder.lease("a").unwrap();
    holder.remove("a", Remove::Forget);
    let mut changes = holder.changes();
    changes.borrow_and_update();
    let alive_then = std::thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            while !changes.has_changed().unwrap() {
                std::thread::yield_now();
            }
            alive.load(Ordering::SeqCst)
        });
        drop(lease);
        waiting.join().unwrap()
    });
    assert_eq!(alive_then, 0);
}

#[test]
fn a_session_ends_with_what_it_did_not_publish() {
    let (holder, session, alive) = holder();
    load(&holder, session, "a");
    holder.create(session, "l-b", CARD, SIZE).unwrap();
    let error = holder.open_session(8).unwrap_err();
    assert!(error.code() == Code::FailedPrecondition && error.message().contains("process id 7"), "{error}");
    holder.close_session(session);
    assert_eq!((alive.load(Ordering::SeqCst), holder.used_bytes(CARD)), (1, SIZE), "a stays, b is gone");
    assert_eq!(holder.create(session, "l-c", CARD, SIZE).err().unwrap().code(), Code::Cancelled);
    assert_eq!(holder.publish(session, publication("c", vec![])).err().unwrap().code(), Code::Cancelled);
    assert_eq!(alive.load(Ordering::SeqCst), 1);

    let next = holder.open_session(8).unwrap();
    holder.close_session(session);
    holder.release(session, "l-d");
    holder.create(next, "l-d", CARD, SIZE).unwrap();
    holder.release(session, "l-d");
    assert_eq!(holder.used_bytes(CARD), 2 * SIZE, "an ended session has no say");
    assert_eq!(holder.list(), [Summary { id: "a".into(), bytes: vec![(CARD.into(), SIZE), (HOST.into(), 10)] }]);
    let lease = holder.lease("a").unwrap();
    drop(lease);
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_lost() {
    let (holder, session, alive) = holder();
    assert_eq!(holder.create(session, "l", CARD, 2 << 30).err().unwrap().code(), Code::Exhausted);
    assert_eq!(holder.used_bytes(CARD), 0);
    holder.create(session, "l", CARD, SIZE).unwrap();
    assert_eq!(holder.create(session, "l", CARD, SIZE).err().unwrap().code(), Code::Internal);
    assert_eq!((alive.load(Ordering::SeqCst), holder.used_bytes(CARD)), (1, SIZE));
    let twice = vec![Part::Made("l".into()), Part::Made("l".into())];
    assert_eq!(holder.publish(session, publication("a", twice)).err().unwrap().code(), Code::NotFound);
    let other = vec![Part::Made("l".into()), Part::Made("m".into())];
    assert_eq!(holder.publish(session, publication("a", other)).err().unwrap().code(), Code::NotFound);
    holder.publish(session, publication("a", vec![Part::Made("l".into())])).unwrap();
    assert_eq!(holder.publish(session, publication("a", vec![])).err().unwrap().code(), Code::Internal);
    assert_eq!(holder.remove("nonsense", Remove::IfUnleased), Removed::NotFound);
    assert_eq!(holder.remove("a", Remove::IfUnleased), Removed::Freed);
    assert_eq!((alive.load(Ordering::SeqCst), holder.used_bytes(CARD)), (0, 0));
}

#[test]
fn a_session_that_ends_while_memory_is_made_gets_none() {
    let (began, go) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    let (began, begins) = began;
    let (go, wait) = go;
    let (began, wait) = (Mutex::new(began), Mutex::new(wait));
    let make = move |_: &str, _: u64| -> Result<Box<dyn Memory>> {
        began.lock().send(()).unwrap();
        wait.lock().recv().unwrap();
        Ok(Box::new(vec![file(SIZE)]))
    };
    let holder = Holder::new(Box::new(make));
    let session = holder.open_session(1).unwrap();
    std::thread::scope(|scope| {
        let making = scope.spawn(|| holder.create(session, "l", CARD, SIZE));
        begins.recv().unwrap();
        assert_eq!(holder.used_bytes(CARD), SIZE, "it counts while it is made");
        holder.close_session(session);
        go.send(()).unwrap();
        assert_eq!(making.join().unwrap().err().unwrap().code(), Code::Cancelled);
    });
    assert_eq!(holder.used_bytes(CARD), 0);
}

#[test]
fn leases_and_removals_by_many_threads_add_up() {
    let (holder, session, alive) = holder();
    for id in 0..8 {
        load(&holder, session, &id.to_string());
    }
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let holder = &holder;
            scope.spawn(move || {
                for round in 0..200 {
                    let id = ((round + thread) % 8).to_string();
                    let Ok(lease) = holder.lease(&id) else { continue };
                    assert_ne!(holder.remove(&id, Remove::IfUnleased), Removed::Freed, "it is leased right here");
                    if round > 150 {
                        holder.remove(&id, Remove::Forget);
                    }
                    assert_eq!(lease.published().regions[0].bytes(), SIZE);
                }
            });
        }
    });
    for id in 0..8 {
        holder.remove(&id.to_string(), Remove::Forget);
    }
    assert_eq!((alive.load(Ordering::SeqCst), holder.used_bytes(CARD), holder.used_bytes(HOST)), (0, 0, 0));
}
