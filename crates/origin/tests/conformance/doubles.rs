//! Origins that need no program: the servers of the test kit and the local disk.

use std::sync::Arc;

use longshore_origin::{OriginOptions, Origins};
use longshore_testkit::origin::Quirks;
use longshore_testkit::{Dialect, FakeOrigin, OriginConfig};

use crate::prepared::{Capabilities, Prepared, Put, Remove, of_folder};

/// Small, so that a few files make several pages.
const PAGE_SIZE: usize = 7;

pub async fn local() -> Prepared {
    let folder = tempfile::tempdir().unwrap();
    let (put, remove) = of_folder(folder.path());
    let options = OriginOptions::default();
    let origins = Origins::new(options.clone()).unwrap();
    let prefix = origins.canonical_url(folder.path().to_str().unwrap()).unwrap();
    // One walk lists everything.
    let capabilities = Capabilities { page_size: usize::MAX, ..Capabilities::default() };
    Prepared { origins, options, prefix, put, remove, capabilities, _keep: Box::new(folder) }
}

pub async fn fake(dialect: Dialect) -> Prepared {
    of(OriginConfig { dialect, page_size: PAGE_SIZE, ..OriginConfig::default() })
}

pub async fn redirecting_hub() -> Prepared {
    of(OriginConfig {
        dialect: Dialect::Hub,
        redirects_large_files: true,
        token: Some("hf_geheim".to_owned()),
        page_size: PAGE_SIZE,
        ..OriginConfig::default()
    })
}

pub async fn without_conditions() -> Prepared {
    let quirks = Quirks { ignores_conditions: true, ..Quirks::default() };
    let access_key = Some(("key-id".to_owned(), "geheim".to_owned()));
    of(OriginConfig { quirks, access_key, page_size: PAGE_SIZE, ..OriginConfig::default() })
}

pub async fn without_etags() -> Prepared {
    let quirks = Quirks { has_no_etag: true, ..Quirks::default() };
    let mut prepared = of(OriginConfig { dialect: Dialect::Http, quirks, ..OriginConfig::default() });
    // Last-Modified has seconds.
    prepared.capabilities.versions_are_exact = false;
    prepared
}

fn of(config: OriginConfig) -> Prepared {
    let fake = Arc::new(FakeOrigin::with(config.clone()));
    let mut options = OriginOptions { retry_pause_ms: 1, ..OriginOptions::default() };
    let root = match config.dialect {
        Dialect::S3 => {
            let (id, secret) = config.access_key.unwrap_or(("any".to_owned(), "any".to_owned()));
            options.s3_endpoint = Some(fake.url());
            options.s3_access_key_id = Some(id);
            options.s3_secret_access_key = Some(secret.as_str().into());
            "bucket"
        }
        Dialect::Gcs => {
            options.gcs_endpoint = Some(fake.url());
            options.gcs_skip_signature = true;
            "bucket"
        }
        Dialect::Hub => {
            options.hf_endpoint = Some(fake.url());
            options.hf_token = config.token.as_deref().map(Into::into);
            "org/name"
        }
        Dialect::Http => "files",
    };
    let is_hub = config.dialect == Dialect::Hub;
    if is_hub {
        // A repository without any file is none.
        fake.put(&format!("{root}/.gitattributes"), "x");
    } else {
        fake.create_bucket(root);
    }
    let prefix = match config.dialect {
        Dialect::Hub => "hf://org/name@main/suite".to_owned(),
        _ => fake.model_url(&format!("{root}/suite")),
    };
    let (for_put, for_remove) = (fake.clone(), fake.clone());
    let put: Put = Box::new(move |name, bytes| {
        for_put.put(&format!("{root}/suite/{name}"), bytes);
        Box::pin(async {})
    });
    let remove: Remove = Box::new(move |name| {
        assert!(for_remove.remove(&format!("{root}/suite/{name}")));
        Box::pin(async {})
    });
    let capabilities = Capabilities {
        // Commits stay, as in the real hub.
        keeps_versions: is_hub,
        urls_carry_commits: is_hub,
        folder_markers: matches!(config.dialect, Dialect::S3 | Dialect::Gcs),
        // The commit, then the tree.
        requests_of_folder: if is_hub { 2 } else { 1 },
        // What WebDAV lists is checked with each file; it has no pages.
        listing_has_versions: config.dialect != Dialect::Http,
        keeps_checksums: matches!(config.dialect, Dialect::S3 | Dialect::Gcs),
        page_size: if config.dialect == Dialect::Http { usize::MAX } else { config.page_size },
        ..Capabilities::default()
    };
    let origins = Origins::new(options.clone()).unwrap();
    Prepared { origins, options, prefix, put, remove, capabilities, _keep: Box::new(fake) }
}
