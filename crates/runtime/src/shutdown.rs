//! One token that SIGTERM and SIGINT cancel. A second signal ends the process at once.

use longshore_types::{Code, Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first SIGTERM or SIGINT cancels. Call it once, inside the tokio runtime.
///
/// A second signal exits with 128 + its number: the way out for who does not want to wait for the drain.
///
/// # Errors
/// [`Code::Internal`] when the handlers cannot be installed.
pub fn token() -> Result<CancellationToken> {
    let failed = |error: std::io::Error| {
        Error::new(Code::Internal, format!("cannot install signal handlers: {error}")).with_source(error)
    };
    let terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let token = CancellationToken::new();
    tokio::spawn(watch(terminate, interrupt, token.clone()));
    Ok(token)
}

async fn watch(mut terminate: Signal, mut interrupt: Signal, token: CancellationToken) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => ("SIGTERM", 128 + 15),
            _ = interrupt.recv() => ("SIGINT", 128 + 2),
        }
    };
    let (signal, _) = next().await;
    tracing::info!(signal, "shutting down; a second signal ends the process at once");
    token.cancel();
    let (_, exit_code) = next().await;
    std::process::exit(exit_code);
}
