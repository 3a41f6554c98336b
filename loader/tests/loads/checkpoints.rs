//! The service of checkpoints as its callers see it: over the unix socket, over TCP, inside a process.

use std::time::Duration;

use longshore_proto::v1::checkpoints_client::CheckpointsClient;
use longshore_proto::{status, v1};
use longshore_testkit::origin::Verb;
use longshore_testkit::{Fault, FaultKind};
use longshore_types::Code;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::daemon::Daemon;
use crate::fixture::Setup;

type Client = CheckpointsClient<Channel>;

async fn over_unix(daemon: &Daemon) -> Client {
    let endpoint = Endpoint::try_from(format!("unix://{}", daemon.loader_socket.display())).unwrap();
    CheckpointsClient::new(endpoint.connect().await.unwrap())
}

async fn over_tcp(daemon: &Daemon) -> Client {
    CheckpointsClient::connect(format!("http://{}", daemon.tcp)).await.unwrap()
}

fn code<T>(answer: Result<T, Status>) -> Code {
    status::from_status(&answer.err().unwrap()).code()
}

async fn daemon() -> Daemon {
    Daemon::start(Setup { workers: 1, ..Setup::default() }).await
}

/// A run below the daemon's own folder, and a file to save.
fn run_and_file(daemon: &Daemon) -> (String, String) {
    let file = daemon.folder.path().join("file");
    std::fs::write(&file, "content").unwrap();
    (format!("file://{}", daemon.folder.path().join("run").display()), file.to_str().unwrap().to_owned())
}

async fn save(client: &mut Client, uri: &str, path: &str, step: u64) -> Vec<v1::SaveStatus> {
    let request = v1::SaveFolderRequest { uri: uri.into(), step, path: path.into(), options: None };
    let mut stream = client.save_folder(request).await.unwrap().into_inner();
    let mut statuses = Vec::new();
    while let Some(status) = stream.message().await.unwrap() {
        statuses.push(status);
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_saved_watched_listed_and_deleted_over_the_socket() {
    let daemon = daemon().await;
    let (uri, path) = run_and_file(&daemon);
    let mut client = over_unix(&daemon).await;
    let nothing = client.list_saves(v1::ListSavesRequest {}).await.unwrap().into_inner();
    assert_eq!(nothing.saves, []);
    assert!(!daemon.folder.path().join("spool").exists(), "nobody has saved: there is no folder");

    let statuses = save(&mut client, &uri, &path, 3).await;
    let last = statuses.last().unwrap();
    assert_eq!((last.state(), last.step, last.bytes_total), (v1::SaveState::Committed, 3, 7), "{statuses:?}");
    let watched = client.watch_save(v1::WatchSaveRequest { attempt: last.attempt.clone() }).await.unwrap();
    let watched = watched.into_inner().message().await.unwrap().unwrap();
    assert_eq!(watched.state(), v1::SaveState::Committed, "who comes late learns the end");

    let list = client.list_checkpoints(v1::ListCheckpointsRequest { uri: uri.clone() }).await.unwrap().into_inner();
    assert_eq!(list.checkpoints.iter().map(|summary| summary.step).collect::<Vec<_>>(), [3]);
    let newest = client.get_checkpoint(v1::GetCheckpointRequest { uri: uri.clone(), step: None }).await.unwrap();
    assert_eq!(newest.into_inner().files[0].name, "file");
    let verify = v1::VerifyCheckpointRequest { uri: uri.clone(), step: Some(3) };
    let mut verified = client.verify_checkpoint(verify).await.unwrap().into_inner();
    let mut last = v1::VerifyCheckpointResponse::default();
    while let Some(message) = verified.message().await.unwrap() {
        last = message;
    }
    assert_eq!((last.done, last.bytes_done, last.problem_count), (true, 7, 0), "{last:?}");

    client.delete_checkpoint(v1::DeleteCheckpointRequest { uri: uri.clone(), step: 3 }).await.unwrap();
    let gone = client.get_checkpoint(v1::GetCheckpointRequest { uri, step: Some(3) }).await;
    assert_eq!(code(gone), Code::NotFound);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_files_of_the_node_cannot_be_read_and_nothing_can_be_changed() {
    let daemon = daemon().await;
    let (uri, path) = run_and_file(&daemon);
    let saved = save(&mut over_unix(&daemon).await, &uri, &path, 1).await.pop().unwrap();
    let mut client = over_tcp(&daemon).await;

    let folder = v1::SaveFolderRequest { uri: "s3://bucket/run".into(), step: 1, path, options: None };
    assert_eq!(code(client.save_folder(folder).await), Code::PermissionDenied);
    let plan = Some(v1::SavePlan { uri: "s3://bucket/run".into(), ..v1::SavePlan::default() });
    assert_eq!(
        code(client.start_save(v1::StartSaveRequest { plan, ..Default::default() }).await),
        Code::PermissionDenied
    );
    let delete = v1::DeleteCheckpointRequest { uri: "s3://bucket/run".into(), step: 1 };
    assert_eq!(code(client.delete_checkpoint(delete).await), Code::PermissionDenied);
    let sweep = v1::SweepCheckpointsRequest { uri: "s3://bucket/run".into(), older_than_ms: 1 };
    assert_eq!(code(client.sweep_checkpoints(sweep).await), Code::PermissionDenied);
    let recover = v1::RecoverCheckpointRequest { uri: "s3://bucket/run".into(), step: 1 };
    assert_eq!(code(client.recover_checkpoint(recover).await), Code::PermissionDenied);
    let verify = v1::VerifyCheckpointRequest { uri: "s3://bucket/run".into(), step: None };
    assert_eq!(code(client.verify_checkpoint(verify).await), Code::PermissionDenied);
    let cancel = v1::CancelSaveRequest { attempt: saved.attempt.clone() };
    assert_eq!(code(client.cancel_save(cancel).await), Code::PermissionDenied);
    // However the folder is written.
    for uri in [uri.clone(), uri.trim_start_matches("file://").to_owned()] {
        let list = v1::ListCheckpointsRequest { uri: uri.clone() };
        assert_eq!(code(client.list_checkpoints(list).await), Code::PermissionDenied, "{uri}");
        let get = v1::GetCheckpointRequest { uri: uri.clone(), step: None };
        assert_eq!(code(client.get_checkpoint(get).await), Code::PermissionDenied, "{uri}");
        let plan = v1::PlanSaveRequest { uri, world_size: 1, ..Default::default() };
        assert_eq!(code(client.plan_save(plan).await), Code::PermissionDenied);
    }
    // How saves are doing can be seen.
    let saves = client.list_saves(v1::ListSavesRequest {}).await.unwrap().into_inner().saves;
    assert_eq!(saves[0].attempt, saved.attempt);
    assert!(client.watch_save(v1::WatchSaveRequest { attempt: saved.attempt }).await.is_ok());
    daemon.stop().await;
}

fn rank(rank: u32) -> v1::RankItems {
    let tensor = v1::SaveTensor {
        name: "w".into(),
        dtype: "U8".into(),
        shape: vec![8],
        start: vec![4 * u64::from(rank)],
        piece_shape: vec![4],
        ..Default::default()
    };
    let file = v1::SaveFile { name: format!("rank-{rank}.json"), size_bytes: 2 };
    v1::RankItems { rank, tensors: vec![tensor], files: vec![file], aliases: Vec::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_of_other_nodes_join_a_plan_over_tcp() {
    let daemon = daemon().await;
    let request = |number: u32| v1::PlanSaveRequest {
        uri: "s3://bucket/run/".into(),
        step: 7,
        world_size: 2,
        ranks: vec![rank(number)],
        ..Default::default()
    };
    let (mut here, mut there) = (over_unix(&daemon).await, over_tcp(&daemon).await);
    let (first, second) = tokio::join!(here.plan_save(request(0)), there.plan_save(request(1)));
    let (first, second) = (first.unwrap().into_inner(), second.unwrap().into_inner());
    assert_eq!(first, second);
    assert_eq!(first.uri, "s3://bucket/run");

    // A rank that does not come is named, within the deadline of the call or of the request.
    let alone = v1::PlanSaveRequest { join_timeout_ms: 50, ..request(1) };
    let missing = status::from_status(&here.plan_save(alone).await.unwrap_err());
    assert_eq!(missing.code(), Code::Timeout);
    let mut short = Request::new(request(1));
    short.set_timeout(Duration::from_millis(50));
    assert!(here.plan_save(short).await.is_err());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_is_told_when_the_loader_ends_before_the_save() {
    let daemon = daemon().await;
    let (_, path) = run_and_file(&daemon);
    let origin = daemon.fixture.origin.clone();
    origin.create_bucket("bucket");
    origin.fault(Fault::new(FaultKind::Hang).on("bucket/run/*").verb(Verb::Put));
    let mut client = over_unix(&daemon).await;
    let request = v1::SaveFolderRequest { uri: "s3://bucket/run".into(), step: 1, path, options: None };
    let mut stream = client.save_folder(request).await.unwrap().into_inner();
    let local = loop {
        let status = stream.message().await.unwrap().unwrap();
        if status.state() == v1::SaveState::LocalDurable {
            break status;
        }
    };
    // A deadline ends the watching, not the save.
    let mut short = Request::new(v1::WatchSaveRequest { attempt: local.attempt });
    short.set_timeout(Duration::from_millis(100));
    let mut watched = client.watch_save(short).await.unwrap().into_inner();
    let late = loop {
        match watched.message().await {
            Ok(message) => assert!(message.is_some(), "the save has not ended"),
            Err(status) => break status::from_status(&status),
        }
    };
    assert!(matches!(late.code(), Code::Timeout | Code::Cancelled), "{late}");

    let told = async {
        loop {
            match stream.message().await {
                Ok(message) => assert!(message.is_some(), "the save has not ended"),
                Err(status) => break status::from_status(&status),
            }
        }
    };
    let (told, ()) = tokio::join!(told, daemon.stop());
    assert_eq!(told.code(), Code::Unavailable, "{told}");
    assert!(told.message().contains("the next one"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_make_no_sense_say_so() {
    let daemon = daemon().await;
    let (uri, path) = run_and_file(&daemon);
    let mut client = over_unix(&daemon).await;
    let unknown = "0b8f4a52-3a4e-4c1e-9d52-0f4e5a6b7c8d";
    assert_eq!(code(client.watch_save(v1::WatchSaveRequest { attempt: unknown.into() }).await), Code::NotFound);
    let nonsense = v1::CancelSaveRequest { attempt: "../x".into() };
    assert_eq!(code(client.cancel_save(nonsense).await), Code::InvalidArgument);
    let relative = v1::SaveFolderRequest { uri: uri.clone(), path: "file".into(), ..Default::default() };
    assert_eq!(code(client.save_folder(relative).await), Code::InvalidArgument);
    let nowhere = v1::SaveFolderRequest { uri: String::new(), path, ..Default::default() };
    assert_eq!(code(client.save_folder(nowhere).await), Code::InvalidArgument);
    let plan = Some(v1::SavePlan { uri, attempt: unknown.into(), ..Default::default() });
    let large = v1::InlineFile { file: 0, content: vec![0; (4 << 20) + 1] };
    let inline = v1::StartSaveRequest { plan, rank: 0, inline: vec![large] };
    assert_eq!(code(client.start_save(inline).await), Code::InvalidArgument);
    daemon.stop().await;
}
