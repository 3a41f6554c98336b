//! The ring of worker processes, as the loader sees it: stub workers with real gRPC and data planes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use longshore_cluster::{Identity, Member, MemberId, Membership, Ring, View, host_id};
use longshore_loader::cluster::direct;
use longshore_loader::{Cluster, FallbackKind, RemoteCluster, RemoteOptions};
use longshore_origin::Origins;
use longshore_proto::v1::worker_server::{Worker, WorkerServer};
use longshore_proto::{convert, status, v1};
use longshore_testkit::FakeOrigin;
use longshore_testkit::modelgen::ModelSpec;
use longshore_types::{ChunkKey, Code, Error, Selection};
use longshore_wire::Endpoint;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::fixture::origin_options;

/// Answers for manifests, and for nothing else.
struct Stub {
    origins: Origins,
    fails_with: Option<Code>,
    asked: Arc<AtomicU64>,
}

type Stream<T> = Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Stub {
    type WarmStream = Stream<v1::WarmProgress>;

    async fn get_manifest(
        &self,
        request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<v1::GetManifestResponse>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(code) = self.fails_with {
            return Err(status::to_status(&Error::new(code, "the stub was told to fail")));
        }
        let request = request.into_inner();
        let selection = Selection::new(request.include).unwrap();
        let manifest = direct::manifest(&self.origins, &request.url, &selection).await;
        let manifest = manifest.map_err(|error| status::to_status(&error))?;
        let manifest = Some(convert::manifest_to_proto(&manifest));
        Ok(Response::new(v1::GetManifestResponse { manifest, cached: true }))
    }

    async fn stat(&self, _: Request<v1::StatRequest>) -> Result<Response<v1::StatResponse>, Status> {
        Err(Status::unimplemented("stub"))
    }

    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        Err(Status::unimplemented("stub"))
    }

    async fn warm(&self, _: Request<v1::WarmRequest>) -> Result<Response<Self::WarmStream>, Status> {
        Err(Status::unimplemented("stub"))
    }

    async fn free(&self, _: Request<v1::FreeRequest>) -> Result<Response<v1::FreeResponse>, Status> {
        Err(Status::unimplemented("stub"))
    }

    async fn get_status(&self, _: Request<v1::GetWorkerStatusRequest>) -> Result<Response<v1::WorkerStatus>, Status> {
        Err(Status::unimplemented("stub"))
    }
}

struct Fixed {
    view: Arc<View>,
    ring: Arc<Ring>,
    views: watch::Sender<Arc<View>>,
}

impl Fixed {
    fn of(members: Vec<Member>) -> Arc<Fixed> {
        let view = Arc::new(View { epoch: 1, members });
        Arc::new(Fixed { ring: Arc::new(Ring::new(&view.members)), views: watch::Sender::new(view.clone()), view })
    }
}

impl Membership for Fixed {
    fn view(&self) -> Arc<View> {
        self.view.clone()
    }

    fn ring(&self) -> Arc<Ring> {
        self.ring.clone()
    }

    fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.views.subscribe()
    }
}

fn member(number: u8, control: &str) -> Member {
    Member {
        identity: Identity {
            id: MemberId::from_bytes([number; 16]),
            weight: 1,
            data: format!("127.0.0.1:{number}"),
            control: control.to_owned(),
            unix_socket: None,
            host_id: "elsewhere".to_owned(),
            version: "0".to_owned(),
        },
        address: format!("127.0.0.1:{number}"),
    }
}

/// A worker's control service, and how often it was asked.
async fn stub(origins: &Origins, fails_with: Option<Code>) -> (String, Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(AtomicU64::new(0));
    let stub = Stub { origins: origins.clone(), fails_with, asked: asked.clone() };
    let server = tonic::transport::Server::builder().add_service(WorkerServer::new(stub));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, asked)
}

fn remote(members: Vec<Member>, origins: &Origins) -> Arc<RemoteCluster> {
    let options = RemoteOptions { connect_timeout: Duration::from_secs(1), metadata_timeout: Duration::from_secs(10) };
    RemoteCluster::new(Some(Fixed::of(members)), origins.clone(), options)
}

/// Whether that member is the first owner of a key.
fn owns_first(number: u8, members: &[Member], key: &str) -> bool {
    Ring::new(members).owners(key.as_bytes(), 1)[0].id() == MemberId::from_bytes([number; 16])
}

struct Bucket {
    origin: FakeOrigin,
    origins: Origins,
    url: String,
}

fn bucket() -> Bucket {
    let origin = FakeOrigin::start();
    ModelSpec::small(1).build().put_into(&origin, "bucket/m");
    let origins = Origins::new(origin_options(&origin)).unwrap();
    Bucket { url: origin.model_url("bucket/m"), origin, origins }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_of_the_url_describes_the_model() {
    let bucket = bucket();
    let (one, asked_one) = stub(&bucket.origins, None).await;
    let (two, asked_two) = stub(&bucket.origins, None).await;
    let cluster = remote(vec![member(1, &one), member(2, &two)], &bucket.origins);
    for _ in 0..3 {
        let described = cluster.describe(&bucket.url, &Selection::default(), false).await.unwrap();
        assert!(described.is_cached && described.fallbacks.is_empty());
        assert_eq!(described.manifest.url, bucket.url);
    }
    let asked = [asked_one.load(Ordering::SeqCst), asked_two.load(Ordering::SeqCst)];
    assert!(asked == [3, 0] || asked == [0, 3], "one owner, always the same: {asked:?}");
    let missing = cluster.describe("s3://bucket/none", &Selection::default(), false).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "what the origin says through a worker is final");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_and_failing_owners_are_passed_over_and_at_last_the_origin_is_asked() {
    let bucket = bucket();
    let (failing, asked) = stub(&bucket.origins, Some(Code::Internal)).await;
    let members = vec![member(1, "127.0.0.1:1"), member(2, &failing)];
    let cluster = remote(members.clone(), &bucket.origins);
    let described = cluster.describe(&bucket.url, &Selection::default(), false).await.unwrap();
    let kinds: Vec<FallbackKind> = described.fallbacks.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [FallbackKind::MetadataOwner, FallbackKind::MetadataOwner, FallbackKind::MetadataDirect]);
    assert!(!described.is_cached && asked.load(Ordering::SeqCst) == 1);
    let reachable: Vec<bool> = cluster.members().iter().map(|member| member.is_reachable).collect();
    assert_eq!(reachable, [false, true], "a worker that answers with an error can be reached");
    // The one that could not be reached is left alone for a while.
    let again = cluster.describe(&bucket.url, &Selection::default(), false).await.unwrap();
    let kinds: Vec<FallbackKind> = again.fallbacks.iter().map(|(kind, _)| *kind).collect();
    let owner_is_avoided = kinds.first() == Some(&FallbackKind::WorkerAvoided);
    assert_eq!(kinds[usize::from(owner_is_avoided)..], [FallbackKind::MetadataOwner, FallbackKind::MetadataDirect]);
    assert_eq!(owner_is_avoided, owns_first(1, &members, &bucket.url), "{:?}", again.fallbacks);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_access_of_the_worker_is_no_verdict_and_no_workers_is_no_fallback() {
    let bucket = bucket();
    let (address, _) = stub(&bucket.origins, Some(Code::Unauthenticated)).await;
    let cluster = remote(vec![member(1, &address)], &bucket.origins);
    let described = cluster.describe(&bucket.url, &Selection::default(), false).await.unwrap();
    assert_eq!(described.fallbacks.len(), 2);
    let options = RemoteOptions { connect_timeout: Duration::from_secs(1), metadata_timeout: Duration::from_secs(1) };
    let alone = RemoteCluster::new(None, bucket.origins.clone(), options);
    let described = alone.describe(&bucket.url, &Selection::default(), false).await.unwrap();
    assert!(described.fallbacks.is_empty() && !alone.has_workers() && alone.members().is_empty());
    drop(bucket.origin);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_means_the_files_of_this_machine() {
    let bucket = bucket();
    let (address, asked) = stub(&bucket.origins, Some(Code::NotFound)).await;
    let cluster = remote(vec![member(1, &address)], &bucket.origins);
    let folder = tempfile::tempdir().unwrap();
    ModelSpec::small(1).build().write_to(folder.path()).unwrap();
    let url = format!("file://{}", folder.path().display());
    let described = cluster.describe(&url, &Selection::default(), false).await.unwrap();
    assert!(described.fallbacks.is_empty() && asked.load(Ordering::SeqCst) == 0);
    let error = cluster.describe(&format!("{url}/none"), &Selection::default(), false).await.unwrap_err();
    assert_eq!((error.code(), asked.load(Ordering::SeqCst)), (Code::NotFound, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_on_this_host_are_asked_over_their_socket_and_suspects_not_at_all() {
    let bucket = bucket();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("w.sock");
    let mut here = member(1, "127.0.0.1:1");
    here.identity.host_id = host_id();
    here.identity.unix_socket = Some(socket.clone());
    let cluster = remote(vec![here, member(2, "127.0.0.1:1")], &bucket.origins);
    let version = longshore_types::Version::new("etag:\"1\"").unwrap();
    let artifact = Arc::new(longshore_types::Artifact::new(&*bucket.url, version, 1 << 30).unwrap());
    let keys: Vec<ChunkKey> = ChunkKey::all(&artifact).collect();
    let is_unix = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Unix(_));
    let sources = |key| cluster.sources(key).to_ask;
    assert!(keys.iter().all(|key| sources(key).iter().all(|source| !is_unix(&source.endpoint))), "no socket yet");

    std::fs::write(&socket, "").unwrap();
    let here_first = keys.iter().filter(|key| is_unix(&sources(key)[0].endpoint)).count();
    assert!(here_first > 0 && here_first < keys.len(), "each owns a part");

    let suspect = sources(&keys[0]).into_iter().find(|source| is_unix(&source.endpoint)).unwrap();
    cluster.report(&suspect, false);
    let avoided = keys.iter().filter(|key| cluster.sources(key).avoided == ["127.0.0.1:1"]).count();
    assert_eq!(avoided, here_first, "told for what it owns, and for nothing else");
    assert!(keys.iter().all(|key| sources(key).iter().all(|source| !is_unix(&source.endpoint))));
    cluster.report(&suspect, true);
    assert_eq!(sources(&keys[0]).len(), 2);
}
