//! Page-locked memory that is made when it is first needed.
//!
//! Allocating tens of GiB takes seconds, which a process that has other things to answer does not spend before it answers
//! them. The first who needs the memory makes it, the others wait.

use std::sync::{Arc, OnceLock};

use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;

use super::{PinnedArena, PinnedStats};

/// A [`PinnedArena`] now or later. A clone is the same one.
#[derive(Clone)]
pub struct PinnedSource {
    shared: Arc<Shared>,
}

struct Shared {
    capacity_bytes: u64,
    make: Mutex<Option<Make>>,
    made: OnceLock<Result<PinnedArena>>,
}

type Make = Box<dyn FnOnce() -> Result<PinnedArena> + Send>;

impl PinnedSource {
    /// `make` is called at most once, by the first who asks. It makes `capacity_bytes`.
    pub fn new(capacity_bytes: u64, make: impl FnOnce() -> Result<PinnedArena> + Send + 'static) -> PinnedSource {
        let make = Mutex::new(Some(Box::new(make) as Make));
        PinnedSource { shared: Arc::new(Shared { capacity_bytes, make, made: OnceLock::new() }) }
    }

    /// The memory. Blocks while it is being made.
    ///
    /// # Errors
    /// Why it could not be made; the same for everybody who asks later.
    pub fn get(&self) -> Result<PinnedArena> {
        let make = || match self.shared.make.lock().take() {
            Some(make) => make(),
            None => Err(Error::new(Code::Internal, "allocating page-locked memory broke off")),
        };
        self.shared.made.get_or_init(make).clone()
    }

    /// The memory if it is there; never waits.
    pub fn peek(&self) -> Option<PinnedArena> {
        self.shared.made.get()?.as_ref().ok().cloned()
    }

    /// All slots, also before they are there.
    pub fn capacity_bytes(&self) -> u64 {
        self.shared.capacity_bytes
    }

    /// What it is made of and how much of it is in use; `None` before it is there.
    pub fn stats(&self) -> Option<PinnedStats> {
        self.peek().map(|arena| arena.stats())
    }
}

impl From<PinnedArena> for PinnedSource {
    /// Memory that is there.
    fn from(arena: PinnedArena) -> PinnedSource {
        let capacity_bytes = arena.stats().capacity_bytes;
        let made = OnceLock::from(Ok(arena));
        PinnedSource { shared: Arc::new(Shared { capacity_bytes, make: Mutex::new(None), made }) }
    }
}

impl std::fmt::Debug for PinnedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.peek() {
            Some(arena) => arena.fmt(f),
            None => write!(f, "PinnedSource({} bytes to be made)", self.shared.capacity_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::Arena;

    #[test]
    fn it_is_made_once_however_many_ask_and_not_before() {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let reservation = Arena::new(64 << 20).try_reserve(16 << 20).unwrap();
        let source = PinnedSource::new(16 << 20, move || {
            MADE.fetch_add(1, Ordering::Relaxed);
            PinnedArena::create(16 << 20, reservation)
        });
        assert_eq!((MADE.load(Ordering::Relaxed), source.stats()), (0, None));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| source.get().unwrap());
            }
        });
        assert_eq!((MADE.load(Ordering::Relaxed), source.stats().unwrap().used_bytes), (1, 0));
    }

    #[test]
    fn a_failure_stays_one() {
        let source = PinnedSource::new(1, || Err(Error::new(Code::Exhausted, "no memory")));
        for _ in 0..2 {
            assert_eq!(source.get().unwrap_err().code(), Code::Exhausted);
        }
        assert!(source.peek().is_none());
    }
}
