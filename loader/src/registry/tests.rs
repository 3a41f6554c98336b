use longshore_device::{Device, DeviceId, Devices, HostDevice};
use longshore_memory::Arena;
use longshore_types::{Code, Manifest, Selection};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::plan::{Layout, SideFiles};
use crate::report::LoadReport;

const MODEL_BYTES: u64 = 4 << 20;

struct Fixture {
    registry: Arc<Registry>,
    device: Arc<dyn Device>,
    token: CancellationToken,
}

impl Fixture {
    /// Room for three models.
    fn new() -> Fixture {
        let device = Arc::new(HostDevice::new(Arena::new(3 * MODEL_BYTES)));
        let device = Devices::new(vec![device]).all()[0].clone();
        let registry = Registry::new(Arc::new(Metrics::new().unwrap()), HolderHandle::local());
        Fixture { registry, device, token: CancellationToken::new() }
    }

    fn load(&self, name: &str) -> longshore_types::Result<Lease> {
        let builder = self.registry.reserve(&*self.device, name, MODEL_BYTES, &self.token)?;
        let manifest = Manifest {
            url: format!("s3://b/{name}"),
            revision: "1".into(),
            files: vec![],
            tensors: vec![],
            skipped: vec![],
            warnings: vec![],
        };
        let model = Model {
            id: ModelId::from_client(name),
            key: ModelKey {
                url: manifest.url.clone(),
                revision: "1".into(),
                selection: Selection::default(),
                device: DeviceId::HOST,
                parallel: None,
            },
            device_uuid: String::new(),
            layout: Layout::new(&manifest, None, 256, SideFiles::WithTensors)?,
            manifest,
            regions: vec![builder.finish()?],
            report: LoadReport::default(),
        };
        let holding = self.registry.hold(&model)?;
        self.registry.publish(model, holding)
    }

    fn ids(&self) -> Vec<String> {
        self.registry.list().iter().map(|of| of.lease.model().id.to_string()).collect()
    }
}

#[test]
fn the_least_recently_used_model_without_leases_goes_first() {
    let fixture = Fixture::new();
    let a = fixture.load("a").unwrap();
    drop(fixture.load("b").unwrap());
    drop(fixture.load("c").unwrap());
    fixture.registry.get(&ModelId::from_client("b")).unwrap().touch();
    drop(fixture.load("d").unwrap());
    assert_eq!(fixture.ids(), ["a", "b", "d"], "c was the least recently used, a is leased");
    drop(fixture.load("e").unwrap());
    assert_eq!(fixture.ids(), ["a", "d", "e"]);
    assert_eq!(a.model().size_bytes(), MODEL_BYTES);
}

#[test]
fn an_error_names_what_holds_the_memory_and_nothing_is_evicted_in_vain() {
    let fixture = Fixture::new();
    let _a = fixture.load("a").unwrap();
    let b = fixture.load("b").unwrap();
    let unloaded = fixture.registry.forget(|model| model.id.as_str() == "b").unwrap();
    assert_eq!(unloaded, Forgotten { models: 1, bytes_freed: 0, bytes_leased: MODEL_BYTES });
    drop(fixture.load("c").unwrap());
    let too_big = fixture.registry.reserve(&*fixture.device, "x", 2 * MODEL_BYTES, &fixture.token);
    let error = too_big.err().unwrap();
    assert_eq!(error.code(), Code::Exhausted);
    for part in ["s3://b/a (4.2 MB, 1 lease)", "s3://b/b (4.2 MB, 1 lease)", "s3://b/c (4.2 MB, 0 leases)"] {
        assert!(error.message().contains(part), "{error}");
    }
    assert_eq!(fixture.ids(), ["a", "c"], "evicting c would not have been enough");
    drop(b);
    fixture.registry.reserve(&*fixture.device, "x", 2 * MODEL_BYTES, &fixture.token).unwrap();
    assert_eq!(fixture.ids(), ["a"]);
}

#[test]
fn memory_that_is_about_to_be_free_is_waited_for() {
    let fixture = Fixture::new();
    let held: Vec<_> =
        (0..3).map(|_| fixture.registry.reserve(&*fixture.device, "x", MODEL_BYTES, &fixture.token).unwrap()).collect();
    assert_eq!(fixture.load("a").err().unwrap().code(), Code::Exhausted);
    let ending = fixture.registry.ending();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fixture.load("a").map(|_| ()));
        drop(held);
        drop(ending);
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn a_forgotten_model_lives_as_long_as_its_last_lease() {
    let fixture = Fixture::new();
    let lease = fixture.load("a").unwrap();
    let second = lease.clone();
    fixture.registry.forget(|_| true).unwrap();
    assert!(fixture.registry.get(&ModelId::from_client("a")).is_none());
    assert!(fixture.registry.find(&lease.model().key).is_none());
    drop(lease);
    assert!(fixture.device.info().used_bytes >= MODEL_BYTES);
    assert_eq!(second.model().regions[0].host_bytes().unwrap().len() as u64, MODEL_BYTES);
    drop(second);
    assert_eq!(fixture.device.info().used_bytes, 0);
}
