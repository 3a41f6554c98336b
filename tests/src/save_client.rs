//! A client that saves: the Checkpoints service of a loader and its slab socket, called from a thread that may block.
//!
//! [`SaveClient`] speaks gRPC, [`SlabClient`] the slab socket, [`Saving`] brings a generated model through both.

mod content;
mod saving;
mod slabs;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use longshore_proto::v1::checkpoints_client::CheckpointsClient;
use longshore_proto::{MESSAGE_BYTES_MAX, status, v1};
use longshore_types::{Code, Error, Result};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

pub use content::{item_of, items_of, piece_content, plan_contents};
pub use saving::{Acks, Saving};
pub use slabs::SlabClient;

/// A connection to the Checkpoints service of a loader.
pub struct SaveClient {
    runtime: Runtime,
    client: CheckpointsClient<Channel>,
    folder: PathBuf,
}

impl SaveClient {
    /// Connects to the loader whose sockets are in that folder.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when nobody answers.
    pub fn connect(folder: &Path) -> Result<SaveClient> {
        let internal = |error: std::io::Error| Error::new(Code::Internal, error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(internal)?;
        let path = folder.join("loader.sock");
        let connector = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = runtime.block_on(endpoint.connect_with_connector(connector)).map_err(|error| {
            Error::new(Code::Unavailable, format!("no loader in {}: {error}", folder.display())).with_source(error)
        })?;
        let client = CheckpointsClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(SaveClient { runtime, client, folder: folder.to_owned() })
    }

    /// A new session at the loader's slab socket.
    ///
    /// # Errors
    /// As [`SlabClient::begin`].
    pub fn slabs(&self) -> Result<SlabClient> {
        SlabClient::begin(&self.folder, "")
    }

    /// Asks for a plan.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn plan(&mut self, request: v1::PlanSaveRequest) -> Result<v1::SavePlan> {
        let call = self.client.plan_save(request);
        answer(self.runtime.block_on(call))
    }

    /// Starts a rank's part; `inline` are contents by index of the file.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn start(&mut self, plan: &v1::SavePlan, rank: u32, inline: Vec<v1::InlineFile>) -> Result<v1::SaveStatus> {
        let call = self.client.start_save(v1::StartSaveRequest { plan: Some(plan.clone()), rank, inline });
        answer(self.runtime.block_on(call))
    }

    /// Follows a save until `is_enough`, or until it has ended; the last status.
    ///
    /// # Errors
    /// Those of the loader, and [`Code::Timeout`] with what the save waits for.
    pub fn follow(
        &mut self,
        attempt: &str,
        timeout: Duration,
        mut is_enough: impl FnMut(&v1::SaveStatus) -> bool,
    ) -> Result<v1::SaveStatus> {
        let client = &mut self.client;
        let mut last: Option<v1::SaveStatus> = None;
        let following = async {
            let stream = client.watch_save(v1::WatchSaveRequest { attempt: attempt.to_owned() }).await;
            let mut stream = answer(stream)?;
            while let Some(status) = stream.message().await.map_err(|error| status::from_status(&error))? {
                let done = is_enough(&status);
                last = Some(status);
                if done {
                    break;
                }
            }
            Ok(())
        };
        match self.runtime.block_on(async { tokio::time::timeout(timeout, following).await }) {
            Ok(followed) => followed?,
            Err(_) => return Err(Error::new(Code::Timeout, format!("after {timeout:?} the save is at {last:?}"))),
        }
        last.ok_or_else(|| Error::new(Code::Unavailable, "the loader ended before it told the status of the save"))
    }

    /// The status now.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn status(&mut self, attempt: &str) -> Result<v1::SaveStatus> {
        self.follow(attempt, Duration::from_secs(30), |_| true)
    }

    /// Waits until a save has reached a state; the last status is of another one when the save has ended before.
    ///
    /// # Errors
    /// As [`SaveClient::follow`].
    pub fn wait(&mut self, attempt: &str, state: v1::SaveState, timeout: Duration) -> Result<v1::SaveStatus> {
        self.follow(attempt, timeout, |status| status.state >= state as i32)
    }

    /// Gives a save up.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn cancel(&mut self, attempt: &str) -> Result<v1::SaveStatus> {
        let call = self.client.cancel_save(v1::CancelSaveRequest { attempt: attempt.to_owned() });
        answer(self.runtime.block_on(call))
    }

    /// Saves a folder of the node; the last status.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn save_folder(&mut self, request: v1::SaveFolderRequest) -> Result<v1::SaveStatus> {
        let client = &mut self.client;
        self.runtime.block_on(async {
            let mut stream = answer(client.save_folder(request).await)?;
            let mut last = None;
            while let Some(status) = stream.message().await.map_err(|error| status::from_status(&error))? {
                last = Some(status);
            }
            last.ok_or_else(|| Error::new(Code::Internal, "the stream of a save ended without a status"))
        })
    }

    /// The saves that the loader knows.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn saves(&mut self) -> Result<Vec<v1::SaveStatus>> {
        let call = self.client.list_saves(v1::ListSavesRequest {});
        answer(self.runtime.block_on(call)).map(|saves| saves.saves)
    }

    /// The checkpoints of a run.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn checkpoints(&mut self, uri: &str) -> Result<v1::ListCheckpointsResponse> {
        let call = self.client.list_checkpoints(v1::ListCheckpointsRequest { uri: uri.to_owned() });
        answer(self.runtime.block_on(call))
    }

    /// One checkpoint: that of a step, or the newest.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn checkpoint(&mut self, uri: &str, step: Option<u64>) -> Result<v1::Checkpoint> {
        let call = self.client.get_checkpoint(v1::GetCheckpointRequest { uri: uri.to_owned(), step });
        answer(self.runtime.block_on(call))
    }

    /// Deletes a checkpoint.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn delete(&mut self, uri: &str, step: u64) -> Result<v1::DeleteCheckpointResponse> {
        let call = self.client.delete_checkpoint(v1::DeleteCheckpointRequest { uri: uri.to_owned(), step });
        answer(self.runtime.block_on(call))
    }

    /// Removes what dead attempts left that are older than this.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn sweep(&mut self, uri: &str, older_than: Duration) -> Result<v1::SweepCheckpointsResponse> {
        let older_than_ms = u64::try_from(older_than.as_millis()).unwrap_or(u64::MAX);
        let request = v1::SweepCheckpointsRequest { uri: uri.to_owned(), older_than_ms };
        answer(self.runtime.block_on(self.client.sweep_checkpoints(request)))
    }

    /// Reads a checkpoint back from the origin; the last message.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn verify(&mut self, uri: &str, step: Option<u64>) -> Result<v1::VerifyCheckpointResponse> {
        let client = &mut self.client;
        self.runtime.block_on(async {
            let request = v1::VerifyCheckpointRequest { uri: uri.to_owned(), step };
            let mut stream = answer(client.verify_checkpoint(request).await)?;
            while let Some(message) = stream.message().await.map_err(|error| status::from_status(&error))? {
                if message.done {
                    return Ok(message);
                }
            }
            Err(Error::new(Code::Internal, "the stream of a verification ended before it was done"))
        })
    }
}

fn answer<T>(answered: std::result::Result<tonic::Response<T>, tonic::Status>) -> Result<T> {
    answered.map(tonic::Response::into_inner).map_err(|error| status::from_status(&error))
}
