//! The standard environment variables of each store are enough to reach it. They belong to a whole process, so each
//! case runs in one of its own: this program again, with one test named.

// A helper of a test may fail it as the test itself may.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use longshore_origin::{OriginOptions, Origins};
use longshore_testkit::{Dialect, FakeOrigin, OriginConfig};

const URL_VARIABLE: &str = "TEST_MODEL_URL";

/// Runs `child_resolves` with exactly these variables of stores and gives what it printed, and whether it succeeded.
fn resolve_in_child(url: &str, variables: &[(String, String)]) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_resolves", "--ignored", "--nocapture"]).env(URL_VARIABLE, url);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["AWS_", "GOOGLE_", "AZURE_", "HF_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    let output = command.envs(variables.iter().cloned()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
#[ignore = "runs as a child process of the other tests"]
async fn child_resolves() {
    let url = std::env::var(URL_VARIABLE).unwrap();
    let resolved = Origins::new(OriginOptions::default()).unwrap().resolve(&url).await;
    assert_eq!(resolved.unwrap_or_else(|error| panic!("{error}")).files.len(), 1);
}

fn check(config: OriginConfig, path: &str, secret: &str) {
    let fake = FakeOrigin::with(config);
    fake.put(&format!("{path}/config.json"), "{}");
    // An endpoint that says http:// needs no further permission.
    let mut variables = fake.client_env();
    variables.retain(|(name, _)| !name.ends_with("_ALLOW_HTTP"));
    let url = fake.model_url(path);
    let (succeeded, output) = resolve_in_child(&url, &variables);
    assert!(succeeded, "{output}");
    for (_, value) in &mut variables {
        *value = value.replace(secret, "wrong-geheim");
    }
    let (succeeded, output) = resolve_in_child(&url, &variables);
    assert!(!succeeded && output.contains(&url), "{output}");
    assert!(!output.contains("wrong-geheim"), "a secret is in: {output}");
}

#[test]
fn aws_variables() {
    let access_key = Some(("key-id".to_owned(), "aws-geheim".to_owned()));
    check(OriginConfig { access_key, ..OriginConfig::default() }, "bucket/model", "aws-geheim");
}

#[test]
fn google_variables() {
    let token = Some("gcs-geheim".to_owned());
    check(OriginConfig { dialect: Dialect::Gcs, token, ..OriginConfig::default() }, "bucket/model", "gcs-geheim");
}

#[test]
fn hugging_face_variables() {
    let token = Some("hf_geheim".to_owned());
    check(OriginConfig { dialect: Dialect::Hub, token, ..OriginConfig::default() }, "org/name", "hf_geheim");
}
