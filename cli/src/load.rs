//! `longshore load`: asks the node's loader, or the one inside this process, and reports.

use std::sync::Arc;
use std::time::Instant;

use longshore_loader::{LoadProgress, LoadRequest};
use longshore_origin::Origins;
use longshore_proto::status::from_status;
use longshore_proto::v1;
use longshore_types::{Code, Error, Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::args::{LoadArgs, NodeArgs};
use crate::connect::{LoaderConnection, find_loader};
use crate::embedded;
use crate::node::Node;
use crate::output::{Output, json};
use crate::progress::Progress;
use crate::report::{LoadOutput, step_name};
use crate::trace;

/// Runs the command.
///
/// # Errors
/// Those of the loader.
pub async fn run(args: LoadArgs, output: Output, token: CancellationToken) -> Result<()> {
    let start = Instant::now();
    let request = LoadRequest {
        // Relative paths mean this process's folder, not the daemon's.
        uri: Origins::new(args.node.origin.clone())?.canonical_url(&args.uri)?,
        device: args.device,
        include: args.include,
        revalidate: args.revalidate,
        trace: args.trace.is_some(),
        parallel: args.parallel.parallel()?,
        ..LoadRequest::default()
    };
    let (loader, model, warnings) = match find_loader(&args.node).await? {
        Some(connection) => {
            let loader = connection.address.to_string();
            let loaded = token.run_until_cancelled(through_daemon(connection, &request, output)).await;
            (loader, loaded.unwrap_or_else(interrupted)?, Vec::new())
        }
        None => {
            let (model, warnings) = inside(&args.node, request, output, &token).await?;
            ("embedded".to_owned(), model, warnings)
        }
    };
    let mut result = LoadOutput::new(&model, start.elapsed().as_secs_f64(), loader);
    result.warnings.extend(warnings);
    if let Some(path) = &args.trace {
        trace::write(path, &model)?;
    }
    output.result(&json(&result)?, |text| result.write_text(text))
}

fn interrupted<T>() -> Result<T> {
    Err(Error::new(Code::Cancelled, "the load was interrupted"))
}

/// Loads through a loader daemon, showing its progress.
///
/// # Errors
/// Those of the loader.
pub async fn through_daemon(
    mut connection: LoaderConnection,
    request: &LoadRequest,
    output: Output,
) -> Result<v1::LoadedModel> {
    let message = v1::LoadModelRequest {
        uri: request.uri.clone(),
        device: request.device.to_string(),
        include: request.include.clone(),
        revalidate: request.revalidate,
        trace: request.trace,
        parallel: request.parallel.as_ref().map(v1::Parallel::from),
        allow_uncommitted: request.allow_uncommitted,
    };
    let failed = |status: tonic::Status| from_status(&status);
    let mut stream = connection.client.load_model(message).await.map_err(failed)?.into_inner();
    let mut progress = Progress::new(output);
    let mut model = None;
    while let Some(message) = stream.message().await.map_err(failed)? {
        match message.event {
            Some(v1::load_model_response::Event::Progress(at)) => {
                progress.update(step_name(at.step()), at.bytes_done, at.bytes_total);
            }
            Some(v1::load_model_response::Event::Model(loaded)) => model = Some(loaded),
            None => {}
        }
    }
    progress.finish();
    model.ok_or_else(|| Error::new(Code::Internal, "the loader ended its answer without a model"))
}

/// Loads inside this process: what stays is the cache.
async fn inside(
    args: &NodeArgs,
    request: LoadRequest,
    output: Output,
    token: &CancellationToken,
) -> Result<(v1::LoadedModel, Vec<String>)> {
    let node = Node::open(args, token).await?;
    let options = embedded::loader_options(args, &request.device)?;
    let (loader, about_devices) = embedded::open_loader(options, node.cluster.clone(), node.origins.clone()).await?;
    let (sender, mut seen) = watch::channel(LoadProgress::default());
    let mut progress = Progress::new(output);
    let loading = loader.load(request, Some(sender));
    tokio::pin!(loading);
    let loaded = loop {
        tokio::select! {
            loaded = &mut loading => break loaded,
            () = token.cancelled() => break interrupted(),
            Ok(()) = seen.changed() => {
                let at = *seen.borrow_and_update();
                progress.update(at.step.as_str(), at.bytes_done, at.bytes_total);
            }
        }
    };
    progress.finish();
    // After a failure nothing is waited for: a source that hangs must not keep who has given up.
    let message = loaded.map(|model: Arc<_>| embedded::to_message(&model))?;
    let warnings = node.warnings.iter().cloned().chain(about_devices).collect();
    node.close().await;
    Ok((message, warnings))
}
