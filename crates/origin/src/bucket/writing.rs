//! The writing side of a bucket, whichever cloud it is in.

use async_trait::async_trait;
use longshore_types::{Code, Version};
use object_store::list::PaginatedListOptions;

use super::azure::AzureWriter;
use super::watch::{Exchange, Main};
use super::xml::{Place, XmlWriter};
use super::{Bucket, explain, key_of, listing, parse_path, version};
use crate::address::Address;
use crate::backend::Backend;
use crate::body::Body;
use crate::fault::{Attempt, Fault};
use crate::stats::count;
use crate::write::{Entries, Listed, OpenUpload, PartId, PutHow, PutOutcome, Summary, UploadId, UploadLimits, Writes};

const MIB: u64 = 1 << 20;

/// What S3 and Google allow alike.
const XML_LIMITS: UploadLimits = UploadLimits { part_bytes_min: 5 * MIB, part_bytes_max: 5 << 30, parts_max: 10_000 };
/// Azure's blocks.
const AZURE_LIMITS: UploadLimits = UploadLimits { part_bytes_min: MIB, part_bytes_max: 4000 * MIB, parts_max: 50_000 };

/// How a bucket is written to.
pub(super) enum Writer {
    Xml(Box<XmlWriter>),
    Azure(AzureWriter),
    /// It cannot be, for this reason.
    None(&'static str),
}

/// An object in the words of its store.
struct Object {
    key: String,
    url: String,
}

impl Object {
    fn of(target: &Address) -> Attempt<Object> {
        let (key, url) = (key_of(target)?, target.to_string());
        if key.is_empty() {
            return Err(Fault::fatal(Code::InvalidArgument, format!("{url} names no object")));
        }
        Ok(Object { key, url })
    }

    fn place(&self) -> Place<'_> {
        Place { key: &self.key, url: &self.url }
    }
}

impl Bucket {
    fn refuse<T>(&self, url: &str, reason: &str) -> Attempt<T> {
        Err(Fault::fatal(Code::Unsupported, format!("cannot write to {url}: {reason}")))
    }
}

#[async_trait]
impl Writes for Bucket {
    async fn put(&self, target: &Address, body: &Body, how: &PutHow) -> Attempt<PutOutcome> {
        let object = Object::of(target)?;
        match &self.writer {
            Writer::Xml(xml) => xml.put(object.place(), body, how).await,
            Writer::Azure(azure) => {
                let path = parse_path(&object.key, &object.url)?;
                azure.put(&self.call("write", &object.url), &path, body, how).await
            }
            Writer::None(reason) => self.refuse(&object.url, reason),
        }
    }

    async fn entries(&self, folder: &Address, one_level: bool, token: Option<&str>) -> Attempt<Entries> {
        let (key, url) = (key_of(folder)?, folder.to_string());
        count(&self.lane.counters.list_requests, 1);
        let Some(pages) = &self.pages else { return self.refuse(&url, "it cannot be listed in pages") };
        let prefix = if key.is_empty() { String::new() } else { format!("{key}/") };
        let mut options = PaginatedListOptions {
            page_token: token.map(str::to_owned),
            delimiter: one_level.then(|| "/".into()),
            ..PaginatedListOptions::default()
        };
        options.extensions.insert(Main);
        let exchange = Exchange::default();
        let prefix_given = (!prefix.is_empty()).then_some(prefix.as_str());
        let page = exchange.watch(pages.list_paginated(prefix_given, options)).await;
        let page = page.map_err(|error| explain::explain(&self.call("list", &url), error, &exchange))?;
        let raw = listing::parse(exchange.take_listing().as_deref());
        let mut entries = Entries { objects: Vec::new(), folders: Vec::new(), next: page.page_token };
        for meta in page.result.objects {
            let location = meta.location.as_ref();
            let Some(name) = location.strip_prefix(&prefix).filter(|name| !name.is_empty()) else { continue };
            if meta.size == 0 && raw.is_folder_marker(location) {
                continue;
            }
            let version = version::version_of(self.cloud, &meta, raw.generation(location), &url).ok();
            entries.objects.push(Listed {
                name: name.to_owned(),
                size_bytes: meta.size,
                version: version.filter(|version| !version::is_weak(version)),
                modified_ms: meta.last_modified.timestamp_millis().try_into().unwrap_or_default(),
            });
        }
        for folder in page.result.common_prefixes {
            if let Some(name) = folder.as_ref().strip_prefix(&prefix).filter(|name| !name.is_empty()) {
                entries.folders.push(name.to_owned());
            }
        }
        Ok(entries)
    }

    async fn delete(&self, target: &Address) -> Attempt<bool> {
        let object = Object::of(target)?;
        match &self.writer {
            Writer::Xml(xml) => xml.delete(object.place()).await,
            Writer::Azure(azure) => {
                let path = parse_path(&object.key, &object.url)?;
                azure.delete(&self.call("delete", &object.url), &path).await
            }
            Writer::None(reason) => self.refuse(&object.url, reason),
        }
    }

    fn upload_limits(&self) -> UploadLimits {
        if matches!(self.writer, Writer::Azure(_)) { AZURE_LIMITS } else { XML_LIMITS }
    }

    async fn upload_start(&self, target: &Address) -> Attempt<UploadId> {
        let object = Object::of(target)?;
        match &self.writer {
            Writer::Xml(xml) => xml.start(object.place()).await,
            Writer::Azure(azure) => Ok(azure.start()),
            Writer::None(reason) => self.refuse(&object.url, reason),
        }
    }

    async fn upload_part(&self, target: &Address, id: &UploadId, index: u32, body: &Body) -> Attempt<PartId> {
        let object = Object::of(target)?;
        match &self.writer {
            Writer::Xml(xml) => xml.part(object.place(), id, index, body).await,
            Writer::Azure(azure) => {
                let path = parse_path(&object.key, &object.url)?;
                azure.part(&self.call("send a part of", &object.url), &path, index, body).await
            }
            Writer::None(reason) => self.refuse(&object.url, reason),
        }
    }

    async fn upload_complete(&self, target: &Address, id: &UploadId, parts: &[PartId]) -> Attempt<Option<Version>> {
        let object = Object::of(target)?;
        match &self.writer {
            Writer::Xml(xml) => xml.complete(object.place(), id, parts).await,
            Writer::Azure(azure) => {
                let path = parse_path(&object.key, &object.url)?;
                azure.complete(&self.call("complete the upload of", &object.url), &path, parts).await
            }
            Writer::None(reason) => self.refuse(&object.url, reason),
        }
    }

    async fn upload_abort(&self, target: &Address, id: &UploadId) -> Attempt<()> {
        let object = Object::of(target)?;
        match &self.writer {
            Writer::Xml(xml) => xml.abort(object.place(), id).await,
            // Nothing can be dropped there before its time.
            Writer::Azure(_) => Ok(()),
            Writer::None(reason) => self.refuse(&object.url, reason),
        }
    }

    async fn open_uploads(&self, folder: &Address) -> Attempt<Option<Vec<OpenUpload>>> {
        let (key, url) = (key_of(folder)?, folder.to_string());
        let url_of = |name: &str| {
            longshore_types::names::check_relative(name, &url).ok()?;
            Some(folder.child(name))
        };
        match &self.writer {
            Writer::Xml(xml) => xml.open_uploads(Place { key: &key, url: &url }, url_of).await,
            Writer::Azure(_) => Ok(None),
            Writer::None(reason) => self.refuse(&url, reason),
        }
    }

    async fn summary(&self, target: &Address) -> Attempt<Summary> {
        if let Writer::Xml(xml) = &self.writer {
            return xml.summary(Object::of(target)?.place()).await;
        }
        let artifact = self.stat(target).await?;
        Ok(Summary { version: artifact.version().clone(), size_bytes: artifact.size_bytes(), checksum: None })
    }
}
