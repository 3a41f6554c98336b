//! s3s-fs: checks signatures; ignores `If-Match` on GET.

use std::process::Command;
use std::sync::Arc;

use longshore_origin::{OriginOptions, Origins};
use object_store::aws::AmazonS3Builder;

use super::{Server, free_address, through_store, tool};
use crate::prepared::{Capabilities, Prepared};

const KEY_ID: &str = "SUITEKEY";
const SECRET: &str = "geheim-suite-secret";

pub async fn s3s_fs() -> Prepared {
    let address = free_address();
    let folder = tempfile::tempdir().unwrap();
    // A folder of its root is a bucket.
    let root = folder.path().join("root");
    std::fs::create_dir_all(root.join("suite-bucket")).unwrap();
    let mut command = Command::new(tool("s3s-fs/bin/s3s-fs"));
    command.args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
    command.args(["--access-key", KEY_ID, "--secret-key", SECRET]).arg(&root);
    let server = Server::start(command, address, &folder.path().join("log")).await;
    let store = AmazonS3Builder::new()
        .with_endpoint(server.url())
        .with_allow_http(true)
        .with_bucket_name("suite-bucket")
        .with_access_key_id(KEY_ID)
        .with_secret_access_key(SECRET)
        .build()
        .unwrap();
    let (put, remove) = through_store(Arc::new(store), "suite");
    let options = OriginOptions {
        s3_endpoint: Some(server.url()),
        s3_access_key_id: Some(KEY_ID.to_owned()),
        s3_secret_access_key: Some(SECRET.into()),
        ..OriginOptions::default()
    };
    Prepared {
        origins: Origins::new(options.clone()).unwrap(),
        options,
        prefix: "s3://suite-bucket/suite".to_owned(),
        put,
        remove,
        capabilities: Capabilities {
            // Its listing gives no ETags; each object has to be asked.
            listing_has_versions: false,
            // It answers 500 when a key is a folder on its disk.
            folder_is_no_object: false,
            // It looks first and writes then.
            creates_atomically: false,
            // It answers 403 to the completion of an upload that is not there.
            knows_ended_uploads: false,
            // It answers 501.
            lists_uploads: false,
            ..Capabilities::default()
        },
        _keep: Box::new((server, folder)),
    }
}
