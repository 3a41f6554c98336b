//! Keeps a loader in step with its holder: what clients gave back is free; and when a holder process ends, its models are
//! lost, and the next one is waited for.

use std::sync::{Arc, Weak};
use std::time::Duration;

use longshore_types::{Result, format_bytes};

use super::Shared;
use crate::holder::Link;
use crate::load::blocking;
use crate::registry::{Registry, TakenOver};

/// How often a holder that ended is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Follows the holder's changes until the registry is gone.
pub(super) fn follow(registry: &Arc<Registry>) {
    let mut changes = registry.holder().changes();
    let registry = Arc::downgrade(registry);
    tokio::spawn(async move {
        // The sender ends with the holder, which the registry keeps.
        while changes.changed().await.is_ok() {
            let Some(registry) = registry.upgrade() else { return };
            // Unmapping takes a while.
            let settled = tokio::task::spawn_blocking(move || registry.settle()).await;
            if let Err(error) = settled {
                tracing::error!(%error, "letting go of models that were given back broke off");
            }
        }
    });
}

/// Takes over what is held, and goes on waiting for the holder's end.
pub(super) async fn take_over(shared: &Arc<Shared>) -> Result<()> {
    let Some(link) = shared.registry.holder().link() else { return Ok(()) };
    // Looked at before: an end while models are taken over is not missed.
    let mut state = link.state();
    let epoch = state.borrow_and_update().epoch;
    take_over_now(shared).await?;
    let (weak, link) = (Arc::downgrade(shared), Arc::downgrade(link));
    tokio::spawn(async move {
        let mut epoch = epoch;
        while let Ok(lost) = state.wait_for(|state| state.epoch != epoch || !state.is_up).await.map(|state| *state) {
            let Some(shared) = weak.upgrade() else { return };
            lose(&shared, lost.epoch);
            drop(shared);
            match come_back(&weak, &link).await {
                Some(now) => epoch = now,
                None => return,
            }
        }
    });
    Ok(())
}

fn lose(shared: &Shared, epoch: u64) {
    let models = shared.registry.lose();
    shared.metrics.holder_losses.inc();
    tracing::error!(
        models,
        epoch,
        "the holder has ended and its models are lost; loads fail until it is started again"
    );
}

/// Waits for a holder and takes over what it has. Gives the connection's number, or nothing when the loader is gone.
async fn come_back(shared: &Weak<Shared>, link: &Weak<Link>) -> Option<u64> {
    let mut last = None;
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let again = link.upgrade()?;
        let connected = blocking(move || again.connect().map(|()| again.state().borrow().epoch)).await;
        let shared = shared.upgrade()?;
        let outcome = match connected {
            Ok(epoch) => take_over_now(&shared).await.map(|()| epoch),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(epoch) => {
                tracing::info!("the holder is back");
                return Some(epoch);
            }
            Err(error) if last.as_ref() == Some(&error.code()) => {}
            // A reason is told once.
            Err(error) => {
                tracing::warn!(%error, "there is no holder yet");
                last = Some(error.code());
            }
        }
    }
}

async fn take_over_now(shared: &Arc<Shared>) -> Result<()> {
    let (registry, devices) = (shared.registry.clone(), shared.node.devices.clone());
    let begun = std::time::Instant::now();
    let TakenOver { models, bytes, unknown, dropped } = blocking(move || registry.take_over(&devices)).await?;
    if models + unknown + dropped > 0 {
        let (bytes, seconds) = (format_bytes(bytes), begun.elapsed().as_secs_f64());
        tracing::info!(models, bytes, unknown, dropped, seconds, "models were taken over from the holder");
    }
    Ok(())
}
