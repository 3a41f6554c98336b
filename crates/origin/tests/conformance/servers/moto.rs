//! moto: every conditional, ranges and paging as in S3; no credentials are checked.

use std::process::Command;
use std::sync::Arc;

use longshore_origin::{OriginOptions, Origins};
use object_store::aws::AmazonS3Builder;

use super::{Server, free_address, through_store, tool};
use crate::prepared::{Capabilities, Prepared, Put};

pub async fn moto() -> Prepared {
    let address = free_address();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(tool("moto/bin/moto_server"));
    command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
    let server = Server::start(command, address, &folder.path().join("log")).await;
    let bucket = format!("{}/suite-bucket", server.url());
    let client = reqwest::Client::new();
    client.put(&bucket).send().await.unwrap().error_for_status().unwrap();

    let store = AmazonS3Builder::new()
        .with_endpoint(server.url())
        .with_allow_http(true)
        .with_bucket_name("suite-bucket")
        .with_access_key_id("any")
        .with_secret_access_key("any")
        .build()
        .unwrap();
    let (put_file, remove) = through_store(Arc::new(store), "suite");
    // The store has no keys that end with a slash.
    let put: Put = Box::new(move |name, bytes| {
        if !name.ends_with('/') {
            return put_file(name, bytes);
        }
        let request = client.put(format!("{bucket}/suite/{name}")).body(bytes);
        Box::pin(async move {
            request.send().await.unwrap().error_for_status().unwrap();
        })
    });
    let options = OriginOptions {
        s3_endpoint: Some(server.url()),
        s3_access_key_id: Some("any".to_owned()),
        s3_secret_access_key: Some("any".into()),
        s3_region: Some("us-east-1".to_owned()),
        ..OriginOptions::default()
    };
    Prepared {
        origins: Origins::new(options.clone()).unwrap(),
        options,
        prefix: "s3://suite-bucket/suite".to_owned(),
        put,
        remove,
        capabilities: Capabilities {
            folder_markers: true,
            // It answers 500 to the completion of an upload that is not there.
            knows_ended_uploads: false,
            // All its uploads were begun in November 2010.
            tells_upload_times: false,
            ..Capabilities::default()
        },
        _keep: Box::new((server, folder)),
    }
}
