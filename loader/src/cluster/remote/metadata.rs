//! Asks the owners of a URL for its manifest, and at last the origin itself.

use std::collections::HashMap;

use longshore_cluster::{Health, Member};
use longshore_origin::Origins;
use longshore_proto::v1::GetManifestRequest;
use longshore_proto::v1::worker_client::WorkerClient;
use longshore_proto::{MESSAGE_BYTES_MAX, convert, status};
use longshore_types::{Code, Error, Manifest, Result, Selection, redact_url};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use super::super::{Described, direct, more_telling};
use super::{Owners, RemoteOptions};
use crate::report::FallbackKind;

/// Most connections kept; beyond it all are dropped, and made again when needed.
const CHANNELS_MAX: usize = 1024;

pub(super) struct MetadataClient {
    origins: Origins,
    options: RemoteOptions,
    /// By address of the control service.
    channels: Mutex<HashMap<String, Channel>>,
}

/// What is asked for.
pub(super) struct Question<'a> {
    pub url: &'a str,
    pub selection: &'a Selection,
    pub revalidate: bool,
    /// Whether workers are configured: then to do without them is a fallback.
    pub has_workers: bool,
}

/// Why a worker gave no manifest.
struct Refusal {
    error: Error,
    /// Whether the worker itself spoke. Otherwise it could not be reached.
    has_answered: bool,
}

impl MetadataClient {
    pub(super) fn new(origins: Origins, options: RemoteOptions) -> Self {
        MetadataClient { origins, options, channels: Mutex::default() }
    }

    pub(super) async fn describe(
        &self,
        owners: &Owners,
        health: &Health,
        question: &Question<'_>,
    ) -> Result<Described> {
        // A path means this machine's files, whatever lies there on the workers' machines.
        let local = match Origins::local_path(question.url) {
            Some(_) => match direct::manifest(&self.origins, question.url, question.selection).await {
                Err(error) if matches!(error.code(), Code::NotFound | Code::PermissionDenied) => Some(error),
                Err(error) => return Err(error),
                Ok(manifest) => return Ok(Described { manifest, is_cached: false, fallbacks: Vec::new() }),
            },
            None => None,
        };
        let mut fallbacks = Vec::new();
        if let Some(error) = &local {
            fallbacks.push((FallbackKind::LocalFileUnreadable, error.to_string()));
        }
        let avoided = owners.avoided.iter().map(|owner| {
            (FallbackKind::WorkerAvoided, format!("{}: not asked for metadata, it failed a moment ago", owner.address))
        });
        fallbacks.extend(avoided);
        let mut last_refusal = None;
        for owner in &owners.to_ask {
            match self.ask(owner, question).await {
                Ok((manifest, is_cached)) => {
                    health.report_ok(owner.id());
                    return Ok(Described { manifest, is_cached, fallbacks });
                }
                Err(refusal) => {
                    if !refusal.has_answered {
                        health.report_failure(owner.id());
                    }
                    if is_final(&refusal) {
                        return Err(local.unwrap_or(refusal.error));
                    }
                    let detail = format!("{}: {}", owner.address, refusal.error);
                    fallbacks.push((FallbackKind::MetadataOwner, detail));
                    last_refusal = Some(refusal.error);
                }
            }
        }
        if let Some(error) = local {
            return Err(error);
        }
        match direct::manifest(&self.origins, question.url, question.selection).await {
            Ok(manifest) => {
                if question.has_workers {
                    fallbacks.push((FallbackKind::MetadataDirect, redact_url(question.url)));
                }
                Ok(Described { manifest, is_cached: false, fallbacks })
            }
            Err(error) => Err(more_telling(error, last_refusal)),
        }
    }

    async fn ask(&self, owner: &Member, question: &Question<'_>) -> Result<(Manifest, bool), Refusal> {
        let unreachable = |error| Refusal { error, has_answered: false };
        let channel = self.channel(&control_address(owner)).map_err(unreachable)?;
        let mut client = WorkerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut request = tonic::Request::new(GetManifestRequest {
            url: question.url.to_owned(),
            include: question.selection.include.clone(),
            revalidate: question.revalidate,
            forwarded: false,
        });
        let timeout = self.options.metadata_timeout;
        request.set_timeout(timeout);
        let answer = tokio::time::timeout(timeout, client.get_manifest(request)).await;
        let answer = answer.map_err(|_| {
            unreachable(Error::new(Code::Timeout, format!("no manifest within {} s", timeout.as_secs())))
        })?;
        let answer = answer.map_err(|failure| Refusal {
            has_answered: failure.metadata().contains_key(status::CODE_HEADER),
            error: status::from_status(&failure),
        })?;
        let answer = answer.into_inner();
        let broken = |reason: String| Refusal { error: Error::new(Code::Corrupt, reason), has_answered: true };
        let message = answer.manifest.ok_or_else(|| broken("an answer without a manifest".to_owned()))?;
        let manifest = convert::manifest_from_proto(message);
        Ok((manifest.map_err(|error| broken(format!("its manifest is not valid: {error}")))?, answer.cached))
    }

    fn channel(&self, address: &str) -> Result<Channel> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| {
            Error::new(Code::InvalidArgument, format!("{address:?} is no address of a control service: {error}"))
        })?;
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        let channel = endpoint.connect_timeout(self.options.connect_timeout).connect_lazy();
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// What the origin says through a worker is final; what a worker says of itself, or of its credentials, is not.
fn is_final(refusal: &Refusal) -> bool {
    refusal.has_answered
        && matches!(refusal.error.code(), Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition)
}

/// A worker that listens on every address says so; then the host is the one at which it was found.
fn control_address(member: &Member) -> String {
    let control = &member.identity.control;
    let found_at = member.address.rsplit_once(':').map_or(member.address.as_str(), |(host, _)| host);
    match control.rsplit_once(':') {
        Some(("0.0.0.0" | "[::]" | "", port)) => format!("{found_at}:{port}"),
        _ => control.clone(),
    }
}

#[cfg(test)]
mod tests {
    use longshore_cluster::{Identity, MemberId};

    use super::*;

    #[test]
    fn an_unspecified_control_address_is_at_the_host_where_the_worker_was_found() {
        let member = |control: &str| Member {
            identity: Identity {
                id: MemberId::from_bytes([1; 16]),
                weight: 1,
                data: "w:7070".into(),
                control: control.into(),
                unix_socket: None,
                host_id: String::new(),
                version: String::new(),
            },
            address: "node-3:7070".into(),
        };
        assert_eq!(control_address(&member("0.0.0.0:7071")), "node-3:7071");
        assert_eq!(control_address(&member("[::]:7071")), "node-3:7071");
        assert_eq!(control_address(&member("10.0.0.7:7071")), "10.0.0.7:7071");
    }
}
