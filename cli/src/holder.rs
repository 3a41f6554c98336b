//! `longshore holder`, which keeps models, and `longshore copier`, which copies to one GPU.

use std::os::fd::AsFd;

use longshore_device::cuda::copier_main;
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
    let failed = |error: std::io::Error| {
        Error::new(Code::Internal, format!("a copier has no standard input: {error}")).with_source(error)
    };
    copier_main(std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?)
}
