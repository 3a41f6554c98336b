//! `longshore holder`, which keeps models, and what a loader starts for itself: `longshore copier`, which copies to one
//! GPU, and `longshore huge-memory`, which mounts for it.

use std::os::fd::{AsFd, OwnedFd};

use longshore_device::cuda::copier_main;
use longshore_memory::mount_helper_main;
use longshore_types::{Code, Error, Result};
use tokio_util::sync::CancellationToken;

use crate::args::HolderArgs;

/// Runs `holder`.
///
/// # Errors
/// What kept it from starting.
pub async fn run(args: HolderArgs, token: CancellationToken) -> Result<()> {
    longshore_loader::serve_holder(args.holder, token).await
}

/// Runs `copier`: its socket is standard input. It ends with it, and so with the loader.
///
/// # Errors
/// What ended it before.
pub fn copier() -> Result<()> {
    copier_main(standard_input("a copier")?)
}

/// Runs `huge-memory`: its socket is standard input. The process must have one thread.
///
/// # Errors
/// When there was nobody to answer.
pub fn huge_memory() -> Result<()> {
    mount_helper_main(standard_input("who makes a private mount")?)
}

fn standard_input(who: &str) -> Result<OwnedFd> {
    std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Error::new(Code::Internal, format!("{who} has no standard input: {error}")).with_source(error))
}
