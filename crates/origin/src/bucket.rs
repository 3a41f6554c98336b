//! S3, Google Cloud Storage, Azure and plain HTTP servers, through `object_store`.
//!
//! Its own retries are switched off: it would repeat inside our attempts, multiply them and hide them. What it keeps
//! to itself (status, error code, `Retry-After`, the raw listing) is seen by the HTTP layer in `watch.rs`.

mod azure;
mod build;
mod explain;
mod listing;
mod version;
mod watch;
mod writing;
mod xml;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use longshore_types::{Artifact, Code};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore};

use crate::address::{Address, Cloud};
use crate::backend::{Backend, Body, Opened, Page};
use crate::fault::{Attempt, Fault};
use crate::lane::Lane;
use crate::options::OriginOptions;
use crate::stats::{Counters, count};
use crate::write::Writes;
pub(crate) use build::check_options;
use explain::{Call, explain, explain_body};
use version::{if_match, is_same, version_of};
use watch::{Exchange, Main};
use writing::Writer;

/// Requests at a time for objects whose version the listing left out.
const STATS_AT_ONCE: usize = 16;

/// One bucket of a cloud store, or one HTTP server.
pub(crate) struct Bucket {
    lane: Arc<Lane>,
    /// `None` for a plain HTTP server.
    cloud: Option<Cloud>,
    store: Arc<dyn ObjectStore>,
    /// Listing page by page; HTTP servers have no pages.
    pages: Option<Arc<dyn PaginatedListStore>>,
    writer: Writer,
}

impl Bucket {
    pub(crate) fn cloud(
        cloud: Cloud,
        bucket: &str,
        options: &OriginOptions,
        counters: Arc<Counters>,
    ) -> longshore_types::Result<Self> {
        let lane = Arc::new(Lane::new(options, counters));
        let opened = build::cloud(cloud, bucket, options, lane.clone())?;
        let (store, pages, writer) = (opened.store, Some(opened.pages), opened.writer);
        Ok(Bucket { lane, cloud: Some(cloud), store, pages, writer })
    }

    pub(crate) fn web(server: &str, options: &OriginOptions, counters: Arc<Counters>) -> longshore_types::Result<Self> {
        let lane = Arc::new(Lane::new(options, counters));
        let store = build::web(server, options, lane.clone())?;
        Ok(Bucket { lane, cloud: None, store, pages: None, writer: Writer::None("it is a plain HTTP server") })
    }

    fn call<'a>(&self, doing: &'static str, url: &'a str) -> Call<'a> {
        Call { doing, url, cloud: self.cloud, limits: self.lane.limits }
    }

    /// The page of a listing, with what only the raw answer tells.
    async fn page(&self, folder: &Address, key: &str, token: Option<&str>) -> Attempt<(Vec<ObjectMeta>, Listed)> {
        let url = folder.to_string();
        let exchange = Exchange::default();
        let result = match &self.pages {
            Some(pages) => {
                // The slash keeps `model2/x` out of the listing of `model`.
                let prefix = if key.is_empty() { None } else { Some(format!("{key}/")) };
                let mut options = PaginatedListOptions { page_token: token.map(str::to_owned), ..Default::default() };
                options.extensions.insert(Main);
                exchange.watch(pages.list_paginated(prefix.as_deref(), options)).await.map(|page| {
                    let raw = exchange.take_listing();
                    (page.result.objects, Listed { raw: listing::parse(raw.as_deref()), next: page.page_token })
                })
            }
            None => {
                let prefix = parse_path(key, &url)?;
                let objects = exchange.watch(self.store.list(Some(&prefix)).try_collect()).await;
                objects.map(|objects: Vec<_>| (objects, Listed::default()))
            }
        };
        result.map_err(|error| explain(&self.call("list", &url), error, &exchange))
    }
}

#[derive(Default)]
struct Listed {
    raw: listing::Raw,
    next: Option<String>,
}

#[async_trait]
impl Backend for Bucket {
    async fn stat(&self, target: &Address) -> Attempt<Artifact> {
        let url = target.to_string();
        let key = key_of(target)?;
        if key.is_empty() {
            return Err(Fault::fatal(Code::NotFound, format!("{url} names no object")));
        }
        let path = parse_path(&key, &url)?;
        count(&self.lane.counters.stat_requests, 1);
        let mut options = GetOptions { head: true, ..GetOptions::default() };
        options.extensions.insert(Main);
        let exchange = Exchange::default();
        let result = exchange.watch(self.store.get_opts(&path, options)).await;
        let meta = result.map_err(|error| explain(&self.call("look at", &url), error, &exchange))?.meta;
        let version = version_of(self.cloud, &meta, None, &url)?;
        Ok(Artifact::new(url, version, meta.size)?)
    }

    async fn list(&self, folder: &Address, token: Option<&str>) -> Attempt<Page> {
        let key = key_of(folder)?;
        count(&self.lane.counters.list_requests, 1);
        let (objects, listed) = self.page(folder, &key, token).await?;
        let prefix = if key.is_empty() { String::new() } else { format!("{key}/") };
        let mut files = Vec::with_capacity(objects.len());
        let mut unversioned = Vec::new();
        for meta in objects {
            let location = meta.location.as_ref();
            let Some(name) = location.strip_prefix(&prefix).filter(|name| !name.is_empty()) else { continue };
            if meta.size == 0 && listed.raw.is_folder_marker(location) {
                continue;
            }
            let target = folder.child(name);
            let generation = listed.raw.generation(location);
            match version_of(self.cloud, &meta, generation, &target.to_string()) {
                // A time stamp of one second is a weak version: ask whether the object itself has a better one. And
                // what WebDAV lists is not always the ETag that its answers carry.
                Ok(version) if self.cloud.is_some() && !version::is_weak(&version) => {
                    files.push((name.to_owned(), Artifact::new(target.to_string(), version, meta.size)?));
                }
                _ => unversioned.push((name.to_owned(), target)),
            }
        }
        if !unversioned.is_empty() {
            count(&self.lane.counters.unversioned_listings, unversioned.len() as u64);
            let stats = stream::iter(unversioned).map(|(name, target)| async move {
                let artifact = self.stat(&target).await?;
                Ok::<_, Fault>((name, artifact))
            });
            files.extend(stats.buffered(STATS_AT_ONCE).try_collect::<Vec<_>>().await?);
        }
        Ok(Page { files, next: listed.next, revision: None })
    }

    async fn open(&self, artifact: &Artifact, range: Range<u64>) -> Attempt<Body> {
        let result = self.get(artifact, range, &Exchange::default()).await?;
        Ok(streamed(artifact, result))
    }

    async fn open_straight(&self, artifact: &Artifact, range: Range<u64>) -> Attempt<Opened> {
        let exchange = Exchange::straight();
        let result = self.get(artifact, range, &exchange).await?;
        Ok(match exchange.take_body() {
            Some(body) => Opened::Straight(body),
            None => Opened::Streamed(streamed(artifact, result)),
        })
    }

    fn lane(&self) -> &Lane {
        &self.lane
    }

    fn writer(&self) -> Option<&dyn Writes> {
        self.cloud.is_some().then_some(self as &dyn Writes)
    }
}

fn streamed(artifact: &Artifact, result: GetResult) -> Body {
    let url: Arc<str> = artifact.url().into();
    result.into_stream().map_err(move |error| explain_body(&url, &error)).boxed()
}

impl Bucket {
    /// The head of the answer to a ranged read, compared with the version that is wanted.
    async fn get(&self, artifact: &Artifact, range: Range<u64>, exchange: &Exchange) -> Attempt<GetResult> {
        let url = artifact.url();
        let address = Address::parse(url)?;
        let path = parse_path(&key_of(&address)?, url)?;
        count(&self.lane.counters.read_requests, 1);
        // Servers without ranges can still be read whole, so the header is left out where it says nothing.
        let is_whole = range == (0..artifact.size_bytes());
        let mut options = GetOptions {
            range: (!is_whole).then(|| GetRange::Bounded(range.clone())),
            if_match: if_match(artifact.version()),
            version: version::generation(artifact.version()),
            ..GetOptions::default()
        };
        options.extensions.insert(Main);
        let result = match exchange.watch(self.store.get_opts(&path, options)).await {
            Ok(result) => result,
            Err(_) if matches!(exchange.status(), Some(412 | 416)) => return Err(self.changed(artifact).await),
            Err(error) => {
                let fault = explain(&self.call("read", url), error, exchange);
                let is_gone = fault.code() == Code::NotFound && !exchange.seen().names_no_bucket();
                return Err(if is_gone { self.gone(artifact).await } else { fault });
            }
        };
        // Not every server honours If-Match, so what it sent is compared as well.
        if result.meta.size != artifact.size_bytes() || !is_same(self.cloud, &result.meta, artifact.version()) {
            let now = version_of(self.cloud, &result.meta, None, url).map(|version| version.to_string());
            let now = now.unwrap_or_else(|_| "without a version".to_owned());
            return Err(version::changed(artifact, &format!("{now} of {} bytes", result.meta.size)));
        }
        Ok(result)
    }

    /// The object is not what it was: asks for what it is now, so that the message can name both.
    async fn changed(&self, artifact: &Artifact) -> Fault {
        let now = match Address::parse(artifact.url()) {
            Ok(address) => self.stat(&address).await.map(|now| now.version().to_string()),
            Err(error) => Err(error.into()),
        };
        match now {
            Ok(now) => version::changed(artifact, &now),
            Err(fault) if fault.code() == Code::NotFound => version::gone(artifact),
            Err(_) => version::changed(artifact, "another one"),
        }
    }

    /// A read found nothing: the object was deleted, or only this generation of it.
    async fn gone(&self, artifact: &Artifact) -> Fault {
        match version::generation(artifact.version()) {
            Some(_) => self.changed(artifact).await,
            None => version::gone(artifact),
        }
    }
}

/// The key in its bucket, or the decoded path on its server.
fn key_of(address: &Address) -> Attempt<String> {
    match address {
        Address::Bucket { key, .. } => Ok(key.clone()),
        Address::Web { path, .. } => match percent_encoding::percent_decode_str(path).decode_utf8() {
            Ok(path) => Ok(path.into_owned()),
            Err(_) => Err(Fault::fatal(Code::InvalidArgument, format!("the path of {address} is not UTF-8"))),
        },
        other => Err(Fault::fatal(Code::Internal, format!("{other} is not in a bucket"))),
    }
}

fn parse_path(key: &str, url: &str) -> Attempt<Path> {
    Path::parse(key).map_err(|_| Fault::fatal(Code::InvalidArgument, format!("{url} is not a plain path")))
}
