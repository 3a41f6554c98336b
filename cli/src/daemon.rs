//! `longshore worker` and `longshore loader`: the daemons.

mod private;
pub mod start;

use longshore_origin::Origins;
use longshore_types::Result;
use tokio_util::sync::CancellationToken;

use crate::args::{LoaderArgs, WorkerArgs};
use crate::output::Output;

/// Runs `worker`.
///
/// # Errors
/// What kept it from starting.
pub async fn worker(args: WorkerArgs, token: CancellationToken) -> Result<()> {
    longshore_worker::serve(args.worker, Origins::new(args.origin)?, token).await
}

/// Runs `loader`.
///
/// # Errors
/// What kept it from starting.
pub async fn loader(args: LoaderArgs, output: Output, token: CancellationToken) -> Result<()> {
    match args.private {
        true => private::run(args, output, token).await,
        false => longshore_loader::serve(args.loader, token).await,
    }
}
