//! The Hugging Face layout: a repository at a revision, listed by the tree route, read by the resolve route.
//!
//! A revision name is turned into its commit once; the URLs of files carry that commit, so two revisions cannot mix,
//! and what was loaded by a branch and by its commit is one thing to every cache. The version of a file is `sha:<commit>/<etag>`, its ETag being the SHA-256 of a large file or the git id of a
//! small one, as listing and responses both tell.

mod api;
mod send;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use longshore_types::{Artifact, Code, Result, Version};
use reqwest::Method;

use crate::address::{Address, HubPlace};
use crate::backend::{Backend, Body, Page};
use crate::fault::{Attempt, Fault};
use crate::lane::Lane;
use crate::options::OriginOptions;
use crate::stats::{Counters, count};
use send::{Call, Reply, Sender};

/// The hub that `hf://` URLs name.
pub(crate) struct Hub {
    lane: Arc<Lane>,
    sender: Sender,
}

impl Hub {
    pub(crate) fn new(options: &OriginOptions, counters: Arc<Counters>) -> Result<Self> {
        let lane = Arc::new(Lane::new(options, counters));
        let sender = Sender::new(options, lane.clone())?;
        Ok(Hub { lane, sender })
    }

    /// The commit that a revision name stands for now.
    async fn commit(&self, place: &HubPlace, url: &str) -> Attempt<String> {
        let route = format!("api/models/{}/revision/{}", place.repo, api::encode_part(&place.revision));
        count(&self.lane.counters.list_requests, 1);
        let call = Call { doing: "resolve", url };
        let body = self.sender.json(&call, &self.sender.route(&route)).await?.0;
        api::commit_of(&body).ok_or_else(|| call.strange("it names no commit"))
    }

    fn resolve_route(&self, place: &HubPlace, revision: &str) -> String {
        let path = api::encode_path(&place.path);
        self.sender.route(&format!("{}/resolve/{}/{path}", place.repo, api::encode_part(revision)))
    }
}

#[async_trait]
impl Backend for Hub {
    async fn stat(&self, target: &Address) -> Attempt<Artifact> {
        let place = place_of(target)?;
        let url = target.to_string();
        if place.path.is_empty() {
            return Err(Fault::fatal(Code::NotFound, format!("{url} is a repository without files")));
        }
        count(&self.lane.counters.stat_requests, 1);
        let call = Call { doing: "look at", url: &url };
        let reply = self.sender.send(&call, Method::HEAD, &self.resolve_route(place, &place.revision), None).await?;
        let missing = |what: &str| call.strange(&format!("it has no {what} header"));
        let commit = reply.commit.as_deref().ok_or_else(|| missing("X-Repo-Commit"))?;
        if !api::is_commit(commit) {
            return Err(call.strange("its X-Repo-Commit is no commit"));
        }
        let etag = reply.etag.as_deref().ok_or_else(|| missing("ETag"))?;
        let size = reply.size_bytes.ok_or_else(|| missing("Content-Length"))?;
        let url = Address::Hub(place.at(commit)).to_string();
        Ok(Artifact::new(url, version(commit, etag)?, size)?)
    }

    async fn list(&self, folder: &Address, token: Option<&str>) -> Attempt<Page> {
        let place = place_of(folder)?;
        let url = folder.to_string();
        // The token carries the commit, so that all pages are of one, even if the branch moves meanwhile.
        let (commit, page_url) = match token.and_then(|token| token.split_once(' ')) {
            Some((commit, next)) => (commit.to_owned(), next.to_owned()),
            None => {
                let commit = self.commit(place, &url).await?;
                let below =
                    if place.path.is_empty() { String::new() } else { format!("/{}", api::encode_path(&place.path)) };
                let route = format!("api/models/{}/tree/{commit}{below}?recursive=true&expand=false", place.repo);
                (commit, self.sender.route(&route))
            }
        };
        count(&self.lane.counters.list_requests, 1);
        let call = Call { doing: "list", url: &url };
        let (body, next) = match self.sender.json(&call, &page_url).await {
            Ok(answer) => answer,
            // The repository is there (its commit is known), so only the folder in it is not.
            Err(fault) if fault.code() == Code::NotFound && !place.path.is_empty() => {
                return Ok(Page { files: Vec::new(), next: None, revision: Some(commit) });
            }
            Err(fault) => return Err(fault),
        };
        let entries = api::files_of(&body).ok_or_else(|| call.strange("it is not a list of files"))?;
        let prefix = if place.path.is_empty() { String::new() } else { format!("{}/", place.path) };
        let folder = Address::Hub(place.at(&commit));
        let mut files = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(name) = entry.path.strip_prefix(&prefix).filter(|name| !name.is_empty()) else { continue };
            let artifact =
                Artifact::new(folder.child(name).to_string(), version(&commit, entry.etag())?, entry.size_bytes())?;
            files.push((name.to_owned(), artifact));
        }
        let next = next.map(|next| format!("{commit} {next}"));
        Ok(Page { files, next, revision: Some(commit) })
    }

    async fn open(&self, artifact: &Artifact, range: Range<u64>) -> Attempt<Body> {
        let url = artifact.url();
        let address = Address::parse(url)?;
        let place = place_of(&address)?;
        let (commit, etag) = parse_version(artifact)?;
        count(&self.lane.counters.read_requests, 1);
        let is_whole = range == (0..artifact.size_bytes());
        let call = Call { doing: "read", url };
        let asked = (!is_whole).then(|| range.clone());
        let reply = match self.sender.send(&call, Method::GET, &self.resolve_route(place, commit), asked).await {
            Ok(reply) => reply,
            Err(fault) if fault.code() == Code::NotFound => {
                let text =
                    format!("{url} is gone since it was resolved at version {}: {}", artifact.version(), fault.error);
                return Err(Fault::fatal(Code::NotFound, text));
            }
            Err(fault) => return Err(fault),
        };
        check_same(artifact, commit, etag, &reply)?;
        call.check_range(&reply, &range, is_whole)?;
        let url: Arc<str> = url.into();
        let body = reply.response.bytes_stream().map_err(move |error| {
            let cause = send::root_cause(&error.without_url());
            Fault::passing(Code::Unavailable, format!("the answer for {url} broke off: {cause}"))
        });
        Ok(body.boxed())
    }

    fn lane(&self) -> &Lane {
        &self.lane
    }
}

fn place_of(address: &Address) -> Attempt<&HubPlace> {
    match address {
        Address::Hub(place) => Ok(place),
        other => Err(Fault::fatal(Code::Internal, format!("{other} is not on a hub"))),
    }
}

fn version(commit: &str, etag: &str) -> Result<Version> {
    Version::new(format!("sha:{commit}/{etag}"))
}

fn parse_version(artifact: &Artifact) -> Attempt<(&str, &str)> {
    let parts = artifact.version().as_str().strip_prefix("sha:").and_then(|rest| rest.split_once('/'));
    parts.ok_or_else(|| {
        let text =
            format!("version {} of {} is not of the form sha:<commit>/<etag>", artifact.version(), artifact.url());
        Fault::fatal(Code::InvalidArgument, text)
    })
}

/// Compares what a response says of itself with the version that was resolved. A host that the hub redirects to has
/// ETags of its own, so only the size is known there unless the hub named the ETag in its redirect.
fn check_same(artifact: &Artifact, commit: &str, etag: &str, reply: &Reply) -> Attempt<()> {
    let is_other = |seen: Option<&str>, expected: &str| seen.is_some_and(|seen| seen != expected);
    let size_differs = reply.size_bytes.is_some_and(|size| size != artifact.size_bytes());
    if !is_other(reply.commit.as_deref(), commit) && !is_other(reply.etag.as_deref(), etag) && !size_differs {
        return Ok(());
    }
    let size = reply.size_bytes.map_or_else(|| "unknown".to_owned(), |size| size.to_string());
    let text = format!(
        "{} changed since it was resolved: it was {} of {} bytes and is sha:{}/{} of {size} bytes; resolve the model again",
        artifact.url(),
        artifact.version(),
        artifact.size_bytes(),
        reply.commit.as_deref().unwrap_or("?"),
        reply.etag.as_deref().unwrap_or("?")
    );
    Err(Fault::fatal(Code::FailedPrecondition, text))
}
