//! `longshore exec`: loads a model, then becomes the program that uses it.
//!
//! The lease is an open socket that the program inherits: the model stays in memory as long as the program (or a child
//! that has the socket too) lives, however it ends, and nobody has to let go of it.

use std::path::Path;
use std::process::Command;

use longshore_loader::LoadRequest;
use longshore_origin::Origins;
use longshore_proto::v1;
use longshore_runtime::env;
use longshore_types::{Code, Error, Result, redact_url};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio_util::sync::CancellationToken;

use crate::args::ExecArgs;
use crate::attach::{Attached, attach};
use crate::commands::Environment;
use crate::connect::{LoaderAddress, LoaderConnection, connect_loader, find_loader};
use crate::daemon::start::{self, PrivateLoader};
use crate::load::through_daemon;
use crate::output::Output;

/// A program that is ready to run, and the lease that it will inherit.
pub struct Prepared {
    command: Command,
    lease: Attached,
}

/// Loads the model and prepares the program. With no daemon it starts a private loader, which ends with the lease;
/// `environment` is what the flags of this command line say, for that loader.
///
/// # Errors
/// Those of the loader.
pub async fn prepare(
    args: ExecArgs,
    environment: &Environment,
    output: Output,
    token: CancellationToken,
) -> Result<Prepared> {
    let uri = Origins::new(args.node.origin.clone())?.canonical_url(&args.model)?;
    let parallel = args.parallel.parallel()?;
    let request = LoadRequest { device: args.device, include: args.include, parallel, ..LoadRequest::new(uri) };
    let (connection, private) = connect(&args.node, environment).await?;
    let address = connection.address.clone();
    let loaded = token.run_until_cancelled(load_and_attach(connection, &request, output)).await;
    let loaded = loaded.unwrap_or_else(|| Err(Error::new(Code::Cancelled, "the load was interrupted")));
    let lease = match (loaded, private) {
        (Ok(lease), _) => lease,
        (Err(error), Some(private)) => {
            private.terminate();
            return Err(error);
        }
        (Err(error), None) => return Err(error),
    };
    let mut arguments = args.command.into_iter();
    let program = arguments.next().ok_or_else(|| Error::new(Code::InvalidArgument, "no program was given"))?;
    let mut command = Command::new(program);
    command.args(arguments).envs(variables(&lease.model, &address));
    Ok(Prepared { command, lease })
}

impl Prepared {
    /// Becomes the program. Returns only when that fails.
    pub fn run(mut self) -> Error {
        use std::os::unix::process::CommandExt;
        // Inheriting the socket is the lease; the memory itself the program takes by attaching.
        if let Err(error) = fcntl_setfd(&self.lease.socket, FdFlags::empty()) {
            return Error::new(Code::Internal, format!("cannot pass the lease on: {error}"));
        }
        let error = self.command.exec();
        let program = self.command.get_program().to_string_lossy();
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            std::io::ErrorKind::PermissionDenied => Code::PermissionDenied,
            _ => Code::Internal,
        };
        Error::new(code, format!("cannot run {program:?}: {error}"))
    }
}

async fn connect(
    node: &crate::args::NodeArgs,
    environment: &Environment,
) -> Result<(LoaderConnection, Option<PrivateLoader>)> {
    if let Some(connection) = find_loader(node).await? {
        return Ok((connection, None));
    }
    let private = start::start(environment).await?;
    let connection = connect_loader(LoaderAddress::Unix(private.loader_socket.clone())).await?;
    Ok((connection, Some(private)))
}

async fn load_and_attach(connection: LoaderConnection, request: &LoadRequest, output: Output) -> Result<Attached> {
    let model = through_daemon(connection, request, output).await?;
    let attached = tokio::task::spawn_blocking(move || attach(Path::new(&model.attach_socket), &model.model_id)).await;
    attached.map_err(|error| Error::new(Code::Internal, format!("attaching broke off: {error}")))?
}

/// What the program gets to know.
fn variables(model: &v1::LoadedModel, loader: &LoaderAddress) -> [(&'static str, String); 6] {
    [
        (env::MODEL_ID, model.model_id.clone()),
        (env::MODEL_URI, redact_url(&model.uri)),
        (env::REVISION, model.revision.clone()),
        (env::ATTACH_SOCKET, model.attach_socket.clone()),
        (env::DEVICE, model.device.clone()),
        (env::LOADER, loader.to_string()),
    ]
}
