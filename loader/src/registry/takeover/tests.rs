use longshore_device::HostDevice;
use longshore_memory::{Arena, OwnedSegment};
use longshore_types::{Manifest, Selection};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::holder::{HolderHandle, Part, Publication};
use crate::metrics::Metrics;
use crate::plan::{Layout, SideFiles};
use crate::report::LoadReport;

const BYTES: u64 = 1 << 20;

/// A loader as far as memory goes; the holder outlives it.
struct Fixture {
    registry: Arc<Registry>,
    devices: Devices,
    arena: Arena,
}

impl Fixture {
    fn new(holder: &HolderHandle, capacity_bytes: u64) -> Fixture {
        let arena = Arena::new(capacity_bytes);
        let devices = Devices::new(vec![Arc::new(HostDevice::new(arena.clone()))]);
        let registry = Registry::new(Arc::new(Metrics::new().unwrap()), holder.clone());
        Fixture { registry, devices, arena }
    }

    fn load(&self, name: &str) {
        let model = self.model(name);
        let holding = self.registry.hold(&model).unwrap();
        self.registry.publish(model, holding).unwrap();
    }

    fn model(&self, name: &str) -> Model {
        let token = CancellationToken::new();
        let builder = self.registry.reserve(&*self.devices.all()[0], name, BYTES, &token).unwrap();
        let manifest = Manifest {
            url: format!("s3://b/{name}"),
            revision: "1".into(),
            files: vec![],
            tensors: vec![],
            skipped: vec![],
            warnings: vec![],
        };
        Model {
            id: ModelId::from_client(name),
            key: key(name),
            device_uuid: self.devices.all()[0].info().uuid,
            layout: Layout::new(&manifest, None, 256, SideFiles::WithTensors).unwrap(),
            manifest,
            regions: vec![builder.finish().unwrap()],
            report: LoadReport::default(),
        }
    }

    fn ids(&self) -> Vec<String> {
        self.registry.list().iter().map(|of| of.lease.model().id.to_string()).collect()
    }
}

fn key(name: &str) -> ModelKey {
    ModelKey {
        url: format!("s3://b/{name}"),
        revision: "1".into(),
        selection: Selection::default(),
        device: longshore_device::DeviceId::HOST,
        parallel: None,
    }
}

#[test]
fn a_new_loader_has_the_models_leases_and_order_of_the_old_one() {
    let holder = HolderHandle::local();
    let held = holder.in_process().unwrap();
    let old = Fixture::new(&holder, 10 * BYTES);
    for name in ["a", "b", "c", "forgotten"] {
        old.load(name);
    }
    let lease = held.lease("a").unwrap();
    let last = held.lease("forgotten").unwrap();
    drop(held.lease("b").unwrap());
    old.registry.forget(|model| model.id.as_str() == "forgotten").unwrap();
    drop(old);

    let new = Fixture::new(&holder, 4 * BYTES);
    let taken = new.registry.take_over(&new.devices).unwrap();
    assert_eq!(taken, TakenOver { models: 4, bytes: 4 * BYTES, unknown: 0, dropped: 0 });
    assert_eq!(new.ids(), ["a", "b", "c"]);
    assert_eq!(new.registry.find(&key("a")).unwrap().model().regions[0].host_bytes().unwrap().len() as u64, BYTES);
    assert!(new.registry.find(&key("forgotten")).is_none());
    assert_eq!(new.arena.used_bytes(), 4 * BYTES, "the forgotten one is paid for, too");
    new.load("d");
    assert_eq!(new.ids(), ["a", "b", "d"], "c was used before b; a is leased");
    new.load("e");
    new.registry.forget(|model| model.id.as_str() == "a").unwrap();
    let token = CancellationToken::new();
    let error = new.registry.reserve(&*new.devices.all()[0], "x", 3 * BYTES, &token).err().unwrap();
    for part in ["s3://b/a (1.0 MB, 1 lease)", "s3://b/forgotten (1.0 MB, 1 lease)"] {
        assert!(error.message().contains(part), "{error}");
    }
    drop((lease, last));
    new.registry.reserve(&*new.devices.all()[0], "x", 4 * BYTES, &token).unwrap();
    assert!(new.ids().is_empty());
}

#[test]
fn what_does_not_fit_goes_unless_it_is_leased() {
    let holder = HolderHandle::local();
    let old = Fixture::new(&holder, 10 * BYTES);
    for name in ["a", "b", "c"] {
        old.load(name);
    }
    drop(old);
    let held = holder.in_process().unwrap();
    let leases = [held.lease("a").unwrap(), held.lease("b").unwrap()];
    let new = Fixture::new(&holder, BYTES);
    let taken = new.registry.take_over(&new.devices).unwrap();
    assert_eq!(taken, TakenOver { models: 1, bytes: BYTES, unknown: 1, dropped: 1 });
    let state = new.registry.holder_state();
    assert_eq!((state.models_adopted, state.unknown.len(), state.unknown[0].leases), (1, 1, 1));
    assert!(state.unknown[0].reason.contains("memory budget"), "{state:?}");
    let token = CancellationToken::new();
    let error = new.registry.reserve(&*new.devices.all()[0], "x", BYTES, &token).err().unwrap();
    assert!(error.message().contains("which this loader cannot use (1.0 MB, 1 lease)"), "{error}");
    drop(leases);
}

#[test]
fn what_cannot_be_read_is_kept_and_can_be_unloaded_by_its_id() {
    let holder = HolderHandle::local();
    let old = Fixture::new(&holder, 10 * BYTES);
    old.load("a");
    let stray = |id: &str, record: Vec<u8>| {
        let segment = OwnedSegment { fd: tempfile::tempfile().unwrap().into(), len_bytes: 7 };
        let regions = vec![Part::Host(vec![segment])];
        holder.publish(Publication { id: id.into(), description: vec![], record, regions }).unwrap();
    };
    let of_a = holder.adopt("a").unwrap().record;
    stray("garbage", b"no record".to_vec());
    stray("another", of_a);
    drop(old);
    let new = Fixture::new(&holder, 10 * BYTES);
    let taken = new.registry.take_over(&new.devices).unwrap();
    assert_eq!((taken.models, taken.unknown, taken.dropped), (1, 2, 0));
    assert!(holder.uses().models.contains_key("garbage"), "it is left alone");
    let done = new.registry.forget_unknown(&ModelId::from_client("garbage")).unwrap();
    assert_eq!(done, Forgotten { models: 1, bytes_freed: 7, bytes_leased: 0 });
    assert_eq!(new.registry.holder_state().unknown.len(), 1);
    assert!(!holder.uses().models.contains_key("garbage"));
    assert_eq!(new.registry.forget_unknown(&ModelId::from_client("a")).unwrap(), Forgotten::default());
}

#[test]
fn a_model_of_a_device_that_is_not_here_is_kept() {
    let holder = HolderHandle::local();
    let old = Fixture::new(&holder, 10 * BYTES);
    old.load("a");
    drop(old);
    let mut new = Fixture::new(&holder, 10 * BYTES);
    new.devices = Devices::new(vec![]);
    let taken = new.registry.take_over(&new.devices).unwrap();
    assert_eq!((taken.models, taken.unknown), (0, 1));
    assert!(new.registry.holder_state().unknown[0].reason.contains("not used by this loader"));
    assert!(holder.uses().models.contains_key("a"));
}

#[test]
fn what_was_held_before_a_loss_is_not_published_after_it() {
    let fixture = Fixture::new(&HolderHandle::local(), 10 * BYTES);
    fixture.load("a");
    let model = fixture.model("b");
    let holding = fixture.registry.hold(&model).unwrap();
    assert_eq!(fixture.registry.lose(), 1);
    assert_eq!(fixture.registry.publish(model, holding).err().unwrap().code(), Code::Unavailable);
    assert!(fixture.ids().is_empty() && fixture.arena.used_bytes() == 0);
}

#[test]
fn a_model_that_was_promised_waits_for_its_client() {
    let fixture = Fixture::new(&HolderHandle::local(), BYTES);
    let held = fixture.registry.holder().in_process().unwrap().clone();
    let token = CancellationToken::new();
    fixture.load("a");
    fixture.registry.get(&ModelId::from_client("a")).unwrap().promise();
    std::thread::scope(|scope| {
        let next = scope.spawn(|| fixture.registry.reserve(&*fixture.devices.all()[0], "x", BYTES, &token).map(drop));
        // The client of the first model comes meanwhile, and keeps it.
        let lease = held.lease("a").unwrap();
        let refused = next.join().unwrap().unwrap_err();
        assert_eq!(refused.code(), Code::Exhausted);
        drop(lease);
    });
    // It came and went: the promise is kept, and nobody waits for another one.
    let begun = std::time::Instant::now();
    fixture.registry.reserve(&*fixture.devices.all()[0], "x", BYTES, &token).unwrap();
    assert!(begun.elapsed() < super::super::PROMISE);
    // Nobody comes for this one: in the end it goes.
    fixture.load("b");
    fixture.registry.get(&ModelId::from_client("b")).unwrap().promise();
    fixture.registry.reserve(&*fixture.devices.all()[0], "x", BYTES, &token).unwrap();
    assert!(fixture.ids().is_empty());
}
