//! Opening the folder: what an earlier process left is used or removed. Everything read here may have been written by
//! anybody: it is checked, and what is not right is discarded and counted.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use longshore_memory::slabs::{
    ControlPage, PieceName, SLAB_PIECE_BYTES_MAX, SlabFolder, SlabPages, SlabPiece, SlabState,
};
use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result, format_bytes};
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};

use super::budget::Budget;
use super::key::{SessionId, SessionName, SlabKey};
use super::shared::Shared;
use super::table::{Client, Growth, Held, Tables, Use};
use super::{SLAB_SESSIONS_MAX, SealedSlab, SlabEvent, SlabOptions, SlabPlans};

/// A session that was found, and its sealed slabs with their lengths.
struct Found {
    id: SessionId,
    held: Held,
    sealed: Vec<(u32, u64)>,
}

/// What finding them takes.
struct Search<'a> {
    folder: &'a SlabFolder,
    options: &'a SlabOptions,
    plans: &'a dyn SlabPlans,
    keys: HashSet<SlabKey>,
    lost: u64,
    unpaid_bytes: u64,
}

type Opened = (Arc<Shared>, Vec<SealedSlab>, mpsc::Receiver<SlabEvent>);

pub(super) fn open(options: SlabOptions, plans: Arc<dyn SlabPlans>) -> Result<Opened> {
    let folder = SlabFolder::open(&options.folder)?;
    let capacity = check(&options, folder.page_bytes())?;
    let mut search =
        Search { folder: &folder, options: &options, plans: &*plans, keys: HashSet::new(), lost: 0, unpaid_bytes: 0 };
    let found = search.sessions()?;
    let notes = notes(&folder, search.unpaid_bytes);
    let mut tables = Tables::default();
    tables.counts.lost = search.lost;
    let found_slabs: usize = found.iter().map(|found| found.held.slabs.len()).sum();
    // Every slab and every session has a place, so that sealing and ending never wait.
    let places = usize::try_from(capacity).unwrap_or(usize::MAX).max(found_slabs) + SLAB_SESSIONS_MAX + found.len();
    let (events, receiver) = mpsc::channel(places.min(tokio::sync::Semaphore::MAX_PERMITS));
    let shared = Arc::new(Shared {
        folder,
        memory: options.memory,
        budget: Budget { capacity },
        slab_bytes: options.slab_bytes,
        plans,
        notes,
        tables: Mutex::new(tables),
        grown: Condvar::new(),
        events,
        runtime: Handle::current(),
        is_closing: AtomicBool::new(false),
    });
    let recovered = take_over(&shared, found)?;
    wait_for_clients(&shared, options.return_grace);
    Ok((shared, recovered, receiver))
}

/// Slabs that fit in the memory.
fn check(options: &SlabOptions, page_bytes: u64) -> Result<u64> {
    let slab_bytes = options.slab_bytes;
    let wrong = |why: String| Err(Error::new(Code::InvalidArgument, why));
    if slab_bytes == 0 || !slab_bytes.is_multiple_of(page_bytes) || slab_bytes > SLAB_PIECE_BYTES_MAX {
        return wrong(format!("slabs of {slab_bytes} bytes are no pages of {page_bytes} bytes"));
    }
    match options.memory_bytes.min(options.memory.capacity_bytes()) / slab_bytes {
        0 => wrong(format!(
            "checkpoint memory of {} holds no slab of {}; raise --checkpoint-memory",
            format_bytes(options.memory_bytes),
            format_bytes(slab_bytes)
        )),
        // More records than a control page has are not of use to anybody.
        capacity => Ok(capacity.min(u64::from(u16::MAX))),
    }
}

fn notes(folder: &SlabFolder, unpaid_bytes: u64) -> Vec<String> {
    let path = folder.path().display();
    let mut notes = Vec::new();
    if folder.pages() == SlabPages::Disk {
        notes.push(format!(
            "the slab folder {path} is on a disk, not in memory: staging is slower; choose one in /dev/shm with \
             --checkpoint-slab-dir"
        ));
    }
    if let Some(advice) = longshore_memory::region_page_advice().filter(|_| folder.pages() == SlabPages::Tmpfs) {
        notes.push(advice);
    }
    if unpaid_bytes > 0 {
        notes.push(format!(
            "{} of slabs that an earlier process left are beyond the memory budget until they are flushed",
            format_bytes(unpaid_bytes)
        ));
    }
    for note in &notes {
        tracing::warn!("{note}");
    }
    notes
}

impl Search<'_> {
    fn sessions(&mut self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for name in self.folder.sessions()? {
            // What has another name is not ours.
            let Some(parsed) = SessionName::parse(&name) else { continue };
            match self.session(&name, parsed) {
                Ok(Some(session)) if !session.sealed.is_empty() || found.len() < SLAB_SESSIONS_MAX => {
                    found.push(session)
                }
                Ok(_) => self.remove(&name),
                Err(error) => {
                    tracing::warn!(session = name, %error, "a session's slabs cannot be used");
                    self.lost += 1;
                    self.remove(&name);
                }
            }
        }
        Ok(found)
    }

    fn remove(&self, name: &str) {
        if let Err(error) = self.folder.remove_session(name) {
            tracing::warn!(%error, "a session's folder cannot be removed");
        }
    }

    /// `None` for one that is of no use to anybody.
    fn session(&mut self, name: &str, parsed: SessionName) -> Result<Option<Found>> {
        if parsed.slab_bytes != self.options.slab_bytes {
            return Ok(None);
        }
        let folder = self.folder.open_session(name)?;
        let control = ControlPage::open(&folder, None)?;
        let mut held = Held {
            name: name.to_owned(),
            uid: parsed.uid,
            client: Client::Away,
            control: Arc::new(control),
            pieces: Vec::new(),
            slabs: Vec::new(),
            is_closed_to_grants: false,
            generation: 0,
            expected_slabs: 0,
            clients: 0,
            growth: Growth::default(),
            queue: VecDeque::new(),
            next_ticket: 0,
            changed: Arc::new(Notify::new()),
            connections: 0,
            farewell: None,
            folder: Arc::new(folder),
        };
        self.pieces(&mut held)?;
        let sealed = self.records(&mut held);
        let may_return = !held.is_closed_to_grants && !held.pieces.is_empty();
        Ok((may_return || !sealed.is_empty()).then_some(Found { id: parsed.id, held, sealed }))
    }

    /// Pieces up to the first that is damaged. Memory that nobody pays for is used until it is flushed, and not again.
    fn pieces(&mut self, held: &mut Held) -> Result<()> {
        let slab_bytes = self.options.slab_bytes;
        for name in held.folder.pieces()? {
            let PieceName { len_bytes, .. } = name;
            let is_ours = len_bytes > 0 && len_bytes.is_multiple_of(slab_bytes) && len_bytes <= SLAB_PIECE_BYTES_MAX;
            let fits = held.slabs.len() as u64 + len_bytes / slab_bytes <= u64::from(held.control.slabs());
            if !is_ours || !fits {
                held.is_closed_to_grants = true;
                return Ok(());
            }
            let reservation = self.options.memory.try_reserve(len_bytes);
            let is_paid = reservation.is_some();
            match SlabPiece::open(&held.folder, name, reservation) {
                Ok(piece) => held.add_piece(Arc::new(piece), slab_bytes),
                Err(error) => {
                    tracing::warn!(session = held.name, %error, "a piece of a session is damaged");
                    held.is_closed_to_grants = true;
                    return Ok(());
                }
            }
            if !is_paid {
                held.is_closed_to_grants = true;
                self.unpaid_bytes = self.unpaid_bytes.saturating_add(len_bytes);
            }
        }
        Ok(())
    }

    /// Takes what is sealed, right and wanted; everything else is free.
    fn records(&mut self, held: &mut Held) -> Vec<(u32, u64)> {
        let mut sealed = Vec::new();
        for number in 0..held.slabs.len() as u32 {
            match self.wanted(&held.control, number, &held.name) {
                Some((key, length_bytes, generation)) => {
                    held.generation = held.generation.max(generation);
                    if let Some(slab) = held.slabs.get_mut(number as usize) {
                        slab.used = Use::Sealed { key };
                        sealed.push((number, length_bytes));
                    }
                }
                None => held.release(number),
            }
        }
        // A generation is only compared by eyes: that of a hostile page must not stop the count.
        held.generation = held.generation.min(u64::from(u32::MAX));
        sealed
    }

    fn wanted(&mut self, control: &ControlPage, number: u32, session: &str) -> Option<(SlabKey, u64, u64)> {
        let (state, record) = control.record(number)?;
        if state != SlabState::Sealed {
            self.lost += 1;
            return None;
        }
        let attempt = AttemptId::from_bytes(record.attempt);
        let key = SlabKey { attempt, file: record.file, slab_index: record.slab_index };
        let refuse = |why: &dyn std::fmt::Display| {
            tracing::info!(session, slab = number, %key, "a sealed slab is not used: {why}");
            None
        };
        let wanted = match self.plans.look_up(&key) {
            Ok(wanted) => wanted,
            Err(error) => return refuse(&error),
        };
        if wanted.is_durable {
            return refuse(&"it is durable already");
        }
        if wanted.length_bytes != record.length_bytes || record.length_bytes > self.options.slab_bytes {
            self.lost += 1;
            return refuse(&"its length is not that of the plan");
        }
        if !self.keys.insert(key) {
            self.lost += 1;
            return refuse(&"another slab holds the same");
        }
        Some((key, record.length_bytes, record.generation))
    }
}

fn take_over(shared: &Arc<Shared>, found: Vec<Found>) -> Result<Vec<SealedSlab>> {
    let mut recovered = Vec::new();
    let mut tables = shared.tables.lock();
    for Found { id, mut held, sealed } in found {
        held.farewell = Some(super::hello::farewell(shared)?);
        for (number, length_bytes) in sealed {
            let Some(slab) = held.slabs.get(number as usize).copied() else { continue };
            let (Use::Sealed { key }, Some(piece)) = (slab.used, held.pieces.get(slab.piece as usize)) else {
                continue;
            };
            tables.keys.insert(key, (id, number));
            recovered.push(SealedSlab {
                shared: shared.clone(),
                session: id,
                key,
                slab: number,
                piece: piece.clone(),
                offset_bytes: slab.offset_bytes,
                length_bytes,
            });
        }
        tables.sessions.insert(id, held);
    }
    Ok(recovered)
}

/// Clients that do not come back in time have left.
fn wait_for_clients(shared: &Arc<Shared>, grace: Duration) {
    let away: Vec<SessionId> = shared.tables.lock().sessions.keys().copied().collect();
    if away.is_empty() {
        return;
    }
    let shared_then = Arc::downgrade(shared);
    shared.runtime.spawn(async move {
        tokio::time::sleep(grace).await;
        if let Some(shared) = shared_then.upgrade() {
            away.into_iter().for_each(|id| shared.end(id, 0));
        }
    });
}
