//! One load for all who ask for the same model at once.
//!
//! A flight ends early only when every caller has left. Its memory is announced as ending until it is really free, so
//! that the next load is not refused for it.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::load::LoadProgress;
use crate::model::{Model, ModelKey};
use crate::registry::{Ending, Lease, Registry};

/// The loads that run now. Lock order: flights before registry.
pub(crate) struct Flights {
    registry: Arc<Registry>,
    running: Mutex<HashMap<ModelKey, Flight>>,
    /// Signalled whenever a flight ends.
    ended: Notify,
}

/// How a flight ended, `None` before.
type Outcome = Option<Result<Lease>>;

struct Flight {
    callers: usize,
    number: u64,
    token: CancellationToken,
    progress: watch::Receiver<LoadProgress>,
    outcome: watch::Receiver<Outcome>,
    /// Set when the flight is given up; shared with the pilot, who drops it when the memory is free.
    ending: Arc<OnceLock<Ending>>,
}

/// A caller's seat in a flight. Leaving the last one cancels the load.
pub(crate) struct Seat {
    flights: Arc<Flights>,
    key: ModelKey,
    number: u64,
    pub progress: watch::Receiver<LoadProgress>,
    outcome: watch::Receiver<Outcome>,
}

/// The side of a flight that loads.
pub(crate) struct Pilot {
    flights: Arc<Flights>,
    key: ModelKey,
    number: u64,
    pub token: CancellationToken,
    pub progress: watch::Sender<LoadProgress>,
    outcome: watch::Sender<Outcome>,
    _ending: Arc<OnceLock<Ending>>,
}

/// What [`Flights::board`] found.
pub(crate) enum Boarding {
    /// The model is in memory.
    Loaded(Lease),
    /// It is being loaded; with a pilot, by this caller.
    Seat(Box<Seat>, Option<Pilot>),
}

/// Tells flights of one key apart, so that late guards of one do not touch the next.
static NEXT_FLIGHT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

impl Flights {
    pub(crate) fn new(registry: Arc<Registry>) -> Arc<Flights> {
        Arc::new(Flights { registry, running: Mutex::default(), ended: Notify::new() })
    }

    /// Joins the flight of `key`, or starts one unless the model is in memory. Both are decided under one
    /// lock, and [`Pilot::land`] publishes under it: a model is never loaded twice.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when `flights_max` loads run or wait already.
    pub(crate) fn board(self: &Arc<Self>, key: &ModelKey, flights_max: usize) -> Result<Boarding> {
        let mut running = self.running.lock();
        if let Some(lease) = self.registry.find(key) {
            return Ok(Boarding::Loaded(lease));
        }
        if let Some(flight) = running.get_mut(key) {
            flight.callers += 1;
            return Ok(Boarding::Seat(Box::new(self.seat(key, flight)), None));
        }
        if running.len() >= flights_max {
            return Err(Error::new(
                Code::Exhausted,
                format!("{flights_max} loads run or wait already, ask again later"),
            ));
        }
        let number = NEXT_FLIGHT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let token = CancellationToken::new();
        let (progress, progress_seen) = watch::channel(LoadProgress::default());
        let (outcome, outcome_seen) = watch::channel(None);
        let ending = Arc::new(OnceLock::new());
        let pilot = Pilot {
            flights: self.clone(),
            key: key.clone(),
            number,
            token: token.clone(),
            progress,
            outcome,
            _ending: ending.clone(),
        };
        let flight = Flight { callers: 1, number, token, progress: progress_seen, outcome: outcome_seen, ending };
        let seat = self.seat(key, &flight);
        running.insert(key.clone(), flight);
        Ok(Boarding::Seat(Box::new(seat), Some(pilot)))
    }

    /// Whether the model is in memory or on its way there.
    pub(crate) fn knows(&self, key: &ModelKey) -> bool {
        self.running.lock().contains_key(key) || self.registry.find(key).is_some()
    }

    /// Loads that run or wait.
    pub(crate) fn count(&self) -> usize {
        self.running.lock().len()
    }

    /// Waits until there are none.
    pub(crate) async fn idle(&self) {
        let mut ended = std::pin::pin!(self.ended.notified());
        loop {
            ended.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            ended.as_mut().await;
            ended.set(self.ended.notified());
        }
    }

    /// Cancels every flight: the daemon ends.
    pub(crate) fn cancel_all(&self) {
        self.running.lock().values().for_each(|flight| flight.token.cancel());
    }

    fn seat(self: &Arc<Self>, key: &ModelKey, flight: &Flight) -> Seat {
        Seat {
            flights: self.clone(),
            key: key.clone(),
            number: flight.number,
            progress: flight.progress.clone(),
            outcome: flight.outcome.clone(),
        }
    }

    fn remove(&self, key: &ModelKey, number: u64) {
        let mut running = self.running.lock();
        if running.get(key).is_some_and(|flight| flight.number == number) {
            running.remove(key);
        }
        self.ended.notify_waiters();
    }
}

impl Seat {
    /// Waits for the end of the flight.
    ///
    /// # Errors
    /// Why the load failed.
    pub(crate) async fn outcome(&mut self) -> Result<Lease> {
        let outcome = self.outcome.wait_for(Option::is_some).await;
        let outcome = outcome.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| Err(Error::new(Code::Internal, "the load ended without an answer")))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut running = self.flights.running.lock();
        let Some(flight) = running.get_mut(&self.key).filter(|flight| flight.number == self.number) else { return };
        flight.callers -= 1;
        if flight.callers == 0 {
            flight.ending.get_or_init(|| self.flights.registry.ending());
            flight.token.cancel();
            running.remove(&self.key);
            self.flights.ended.notify_waiters();
        }
    }
}

impl Pilot {
    /// Ends the flight, on a blocking thread: the holder may take its time.
    pub(crate) fn land(self, result: Result<Model>) {
        tokio::task::spawn_blocking(move || self.land_here(result));
    }

    /// Gives the model to the holder, then publishes under the lock that [`Flights::board`] decides under. A model that
    /// nobody waits for any more is dropped, because another flight may be loading it again.
    fn land_here(self, result: Result<Model>) {
        let registry = self.flights.registry.clone();
        let result = result.and_then(|model| registry.hold(&model).map(|holding| (model, holding)));
        let mut unwanted = None;
        let outcome = {
            let running = self.flights.running.lock();
            let is_current = running.get(&self.key).is_some_and(|flight| flight.number == self.number);
            match result {
                Ok((model, holding)) if is_current => registry.publish(model, holding),
                Ok((model, _)) => {
                    unwanted = Some(model);
                    Err(Error::new(Code::Cancelled, "every caller left before the load was done"))
                }
                Err(error) => Err(error),
            }
        };
        if let Some(model) = unwanted {
            registry.unhold(&model.id);
        }
        self.flights.remove(&self.key, self.number);
        // The channel holds a lease of its own until this side is gone: a caller that is done at once, and needs the
        // memory for another model, must wait for that and not be refused.
        let ending = registry.ending();
        self.outcome.send_replace(Some(outcome));
        drop(self);
        drop(ending);
    }
}

impl Drop for Pilot {
    /// After [`Pilot::land`] there is nothing left to remove; after a panic there is.
    fn drop(&mut self) {
        self.flights.remove(&self.key, self.number);
    }
}
