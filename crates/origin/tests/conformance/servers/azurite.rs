//! azurite: Azure's blob service with its signatures.

use std::process::Command;
use std::sync::Arc;

use longshore_origin::{OriginOptions, Origins};
use object_store::ClientOptions;
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential, MicrosoftAzureBuilder};
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};

use super::{Server, free_address, system_program, through_store, tool};
use crate::prepared::{Capabilities, Prepared};

/// The account that every azurite has, with its published key.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

pub async fn azurite() -> Prepared {
    let address = free_address();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(system_program("node"));
    command.arg(tool("azurite/node_modules/azurite/dist/src/blob/main.js"));
    command.args(["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--blobHost", "127.0.0.1"]);
    command.args(["--blobPort", &address.port().to_string(), "-l"]).arg(folder.path().join("data"));
    let server = Server::start(command, address, &folder.path().join("log")).await;
    let endpoint = format!("{}/{ACCOUNT}", server.url());
    create_container(&endpoint).await;
    let store = MicrosoftAzureBuilder::new()
        .with_endpoint(endpoint.clone())
        .with_allow_http(true)
        .with_account(ACCOUNT)
        .with_access_key(KEY)
        .with_container_name("suite-container")
        .build()
        .unwrap();
    let (put, remove) = through_store(Arc::new(store), "suite");
    let options = OriginOptions {
        azure_endpoint: Some(endpoint),
        azure_account: Some(ACCOUNT.to_owned()),
        azure_access_key: Some(KEY.into()),
        ..OriginOptions::default()
    };
    Prepared {
        origins: Origins::new(options.clone()).unwrap(),
        options,
        prefix: "az://suite-container/suite".to_owned(),
        put,
        remove,
        // Azure's pages have 5000 entries.
        capabilities: Capabilities {
            page_size: 5000,
            // Blocks are dropped after a week, neither before nor on demand.
            lists_uploads: false,
            aborts: false,
            ..Capabilities::default()
        },
        _keep: Box::new((server, folder)),
    }
}

async fn create_container(endpoint: &str) {
    let credential = AzureCredential::AccessKey(AzureAccessKey::try_new(KEY).unwrap());
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.method_mut() = reqwest::Method::PUT;
    *request.uri_mut() = format!("{endpoint}/suite-container?restype=container").parse().unwrap();
    request.headers_mut().insert("content-length", "0".parse().unwrap());
    AzureAuthorizer::new(&credential, ACCOUNT).try_authorize(&mut request).unwrap();
    let client = ReqwestConnector::default().connect(&ClientOptions::new().with_allow_http(true)).unwrap();
    let response = client.execute(request).await.unwrap();
    assert!(response.status().is_success(), "azurite answered {} to the new container", response.status());
}
