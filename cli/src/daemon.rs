//! `longshore worker` and `longshore loader`: the daemons.

mod private;
pub mod start;

use longshore_memory::{MountHelper, choose_shared_memory};
use longshore_origin::Origins;
use longshore_types::{Code, Error, Result};
use tokio_util::sync::CancellationToken;

use crate::args::{LoaderArgs, WorkerArgs};
use crate::output::Output;

/// Runs `worker`.
///
/// # Errors
/// What kept it from starting.
pub async fn worker(args: WorkerArgs, token: CancellationToken) -> Result<()> {
    if args.worker.unix_socket.is_some() {
        let chosen = tokio::task::spawn_blocking(choose_chunk_memory).await;
        chosen.map_err(|error| Error::new(Code::Internal, format!("choosing memory for chunks ended: {error}")))?;
    }
    longshore_worker::serve(args.worker, Origins::new(args.origin)?, token).await
}

/// Decides where memory comes from that others may read. This very program makes the private mount for a worker that may not;
/// where it cannot be found, the worker does without.
fn choose_chunk_memory() {
    let helper = std::env::current_exe().ok();
    let helper = helper.map(|program| MountHelper { program, args: vec!["huge-memory".into()] });
    choose_shared_memory(helper.as_ref());
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
