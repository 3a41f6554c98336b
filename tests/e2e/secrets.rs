//! No secret shows, at whatever level the logs are.

use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::ModelSpec;
use longshore_testkit::{Dialect, FakeOrigin, Fault, FaultKind, OriginConfig};

use crate::common::{Embedded, load};

const SECRET: &str = "tip-top-secret-8341";

fn origins() -> Vec<FakeOrigin> {
    let key = || Some(("the-id".to_owned(), SECRET.to_owned()));
    let token = || Some(SECRET.to_owned());
    let s3 = OriginConfig { access_key: key(), ..OriginConfig::default() };
    let gcs = OriginConfig { dialect: Dialect::Gcs, token: token(), ..OriginConfig::default() };
    let hub =
        OriginConfig { dialect: Dialect::Hub, token: token(), redirects_large_files: true, ..OriginConfig::default() };
    [s3, gcs, hub].into_iter().map(FakeOrigin::with).collect()
}

fn assert_clean(what: &str, text: &str) {
    let line = text.lines().find(|line| line.contains(SECRET) || line.contains("X-Amz-Signature=fake"));
    assert_eq!(line, None, "{what} shows a secret");
}

#[test]
fn not_in_the_logs_errors_and_pages_of_the_daemons() {
    for origin in origins() {
        ModelSpec::small(1).build().put_into(&origin, "org/name");
        ModelSpec::small(2).build().put_into(&origin, "org/other");
        let spec = ClusterSpec::new(2, 1).origin(&origin).env("LONGSHORE_LOG_LEVEL", "trace");
        let cluster = Cluster::start(spec);
        load(&cluster, 0, &origin.model_url("org/name")).unwrap();
        origin.fault(Fault::new(FaultKind::Status(403)).any_verb());
        let error = load(&cluster, 0, &origin.model_url("org/other")).unwrap_err();
        assert_clean("the error", &format!("{error:?}"));
        let status = cluster.cli(0).args(["status", "--json"]).run();
        assert_clean("the status", &format!("{status}"));
        for daemon in cluster.workers().iter().chain(cluster.loaders()) {
            assert!(daemon.log().contains("TRACE"), "{} logs all it can", daemon.name());
            assert_clean(daemon.name(), &daemon.log());
            assert_clean(daemon.name(), &format!("{:?}", daemon.metrics().samples));
        }
    }
}

#[test]
fn not_in_what_the_command_line_prints() {
    for origin in origins() {
        ModelSpec::small(1).build().put_into(&origin, "org/name");
        let embedded = Embedded::with(&origin).env("LONGSHORE_LOG_LEVEL", "trace");
        let uri = origin.model_url("org/name");
        for args in [&["load", &uri, "--json"][..], &["stat", &uri], &["ls", &uri], &["load", &uri, "--print-config"]] {
            assert_clean("the output", &format!("{}", embedded.run(args)));
        }
        origin.fault(Fault::new(FaultKind::Status(403)).any_verb());
        assert_clean("the error", &format!("{}", embedded.run(&["ls", &uri, "--revalidate"])));
    }
}

#[test]
fn not_when_it_is_part_of_a_url() {
    let origin = FakeOrigin::speaking(Dialect::Http);
    origin.generate("files/model.gguf", 1, 1000);
    let with_user = origin.model_url("files/model.gguf").replace("http://", &format!("http://user:{SECRET}@"));
    let with_query = format!("{}?signature={SECRET}", origin.model_url("files/model.gguf"));
    let missing = with_query.replace("model.gguf", "missing.gguf");
    for uri in [with_user, with_query, missing] {
        let embedded = Embedded::new().env("LONGSHORE_LOG_LEVEL", "debug");
        let output = embedded.run(&["load", &uri, "--json", "--device", "host"]);
        // The command itself is part of the text, as the harness shows it; what it prints is what counts.
        assert_clean("stdout", &output.stdout);
        assert_clean("stderr", &output.stderr);
        let names =
            std::process::Command::new("grep").args(["-rl", SECRET]).arg(embedded.folder.path()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&names.stdout), "", "files in the cache folder hold it");
    }
}
