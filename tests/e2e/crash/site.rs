//! A loader that saves and is killed, another one that reads, and the origin between them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_proto::v1;
use longshore_testkit::FakeOrigin;
use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::{Model, ModelSpec};
use longshore_tests::{Acks, SaveClient, Saving, SlabClient};
use longshore_types::{Code, Error, Result};

use crate::common::{load, load_and_check};

pub const MIB: u64 = 1 << 20;
pub const RUN: &str = "s3://bucket/run";
/// For whatever must happen, on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);
/// Parts that are sent at once: a kill may cost as many.
pub const STREAMS: u64 = 2;
/// The loaders' roles.
const SAVER: usize = 0;
const READER: usize = 1;

/// A run with one committed checkpoint, step 1, which everything after that must leave alone.
pub struct Site {
    pub origin: FakeOrigin,
    pub cluster: Cluster,
    former: Model,
}

/// A trainer's view of a save during which the loader was killed.
#[derive(Default)]
pub struct Attempted {
    /// The plan, when it came to be.
    pub saving: Option<Saving>,
    /// What the loader said.
    pub acks: Acks,
    /// The shared memory, as the trainer holds it.
    pub slabs: Option<SlabClient>,
    /// Why the trainer could not go on.
    pub error: Option<Error>,
}

impl Attempted {
    pub fn saving(&self) -> &Saving {
        self.saving.as_ref().unwrap_or_else(|| panic!("there is no plan: {:?}", self.error))
    }

    pub fn attempt(&self) -> String {
        self.saving().attempt().to_owned()
    }
}

/// A model of 24 MiB or so that differs by seed.
pub fn model(seed: u64) -> Model {
    ModelSpec::sized(seed, 24 * MIB, 12).build()
}

pub fn options() -> v1::SaveOptions {
    v1::SaveOptions { hf_index: true, ..Default::default() }
}

/// What loaders are started with: small parts, little patience with trainers.
pub fn spec(origin: &FakeOrigin) -> ClusterSpec {
    ClusterSpec::new(0, 2)
        .origin(origin)
        .checkpoints()
        .env("LONGSHORE_ORIGIN_RETRY_PAUSE_MS", "20")
        .env("LONGSHORE_ORIGIN_RETRY_TIME_MS_MAX", "2000")
        .loader_args(&["--checkpoint-part-bytes", "5MiB", "--checkpoint-memory", "512MiB"])
        .loader_args(&["--checkpoint-uploads", &STREAMS.to_string(), "--checkpoint-resume-wait-ms", "2000"])
}

impl Site {
    pub fn new() -> Site {
        Site::with(|spec| spec)
    }

    pub fn with(change: impl FnOnce(ClusterSpec) -> ClusterSpec) -> Site {
        let origin = FakeOrigin::start();
        origin.create_bucket("bucket");
        let cluster = Cluster::start(change(spec(&origin)));
        let former = model(1);
        let site = Site { origin, cluster, former };
        let saved = site.save(1, &site.former.clone(), options());
        assert!(saved.acks.committed, "the first checkpoint: {:?}", saved.error);
        site.origin.reset_counters();
        site
    }

    /// A run whose loader kills itself at this point of the next save.
    pub fn dying_at(point: &str) -> Site {
        let mut site = Site::new();
        site.die_at(point);
        site
    }

    pub fn die_at(&mut self, point: &str) {
        assert!(self.cluster.loader(SAVER).start_again_to_die(point), "{point} is hit before anything is saved");
    }

    /// Sockets of the loader that saves.
    pub fn sockets(&self) -> PathBuf {
        self.cluster.loader_socket(SAVER).parent().unwrap().to_owned()
    }

    pub fn client(&self) -> SaveClient {
        SaveClient::connect(&self.sockets()).unwrap()
    }

    /// Saves by one rank, up to the end of the save or of the loader.
    pub fn save(&self, step: u64, model: &Model, options: v1::SaveOptions) -> Attempted {
        let mut attempted = Attempted::default();
        let outcome = self.try_save(&mut attempted, step, model, options);
        attempted.error = outcome.err();
        attempted
    }

    fn try_save(&self, at: &mut Attempted, step: u64, model: &Model, options: v1::SaveOptions) -> Result<()> {
        let mut client = SaveClient::connect(&self.sockets())?;
        let saving = Saving::plan(&mut client, (RUN, step), (model, 1), options)?;
        let saving = at.saving.insert(saving);
        client.start(&saving.plan, 0, saving.inline(0))?;
        let slabs = at.slabs.insert(client.slabs()?);
        saving.fill(slabs, 0)?;
        let last = client.follow(saving.attempt(), SOON, |status| {
            at.acks.see(status);
            status.state >= v1::SaveState::Committed as i32
        })?;
        match last.state() {
            v1::SaveState::Committed => Ok(()),
            state => Err(Error::new(Code::from_name(&last.error_code), format!("{state:?}: {}", last.error_message))),
        }
    }

    /// Saves step 2 until the loader has killed itself.
    pub fn save_until_killed(&mut self, model: &Model) -> Attempted {
        self.save_with_until_killed(model, options())
    }

    pub fn save_with_until_killed(&mut self, model: &Model, options: v1::SaveOptions) -> Attempted {
        let attempted = self.save(2, model, options);
        self.cluster.loader(SAVER).wait_killed(SOON);
        attempted
    }

    /// Starts the loader again over what the killed one left.
    pub fn revive(&mut self) {
        self.cluster.loader(SAVER).start_again_to_live();
    }

    /// A power loss: nothing in memory is left. The loader must not run.
    pub fn lose_memory(&self) {
        let folder = self.cluster.slab_folder(SAVER);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }

    pub fn journal(&self, attempt: &str) -> PathBuf {
        self.cluster.checkpoint_folder(SAVER).join("attempts").join(attempt).join("journal")
    }

    /// How a save ends.
    pub fn end_of(&self, attempt: &str) -> v1::SaveStatus {
        let ended = self.client().wait(attempt, v1::SaveState::Committed, SOON);
        ended.unwrap_or_else(|error| panic!("{error}\n{}", self.cluster.loaders()[SAVER].log_tail(40)))
    }

    /// Waits for the commit, and checks that it and the one before are whole; the last status.
    pub fn commits(&self, attempt: &str, model: &Model) -> v1::SaveStatus {
        let status = self.end_of(attempt);
        assert_eq!(status.state(), v1::SaveState::Committed, "{status:?}");
        self.whole(2, model);
        self.former_is_whole();
        self.sent_once_but_for(STREAMS);
        status
    }

    /// Waits for the failure, and checks that nothing of it is to be seen; the last status.
    pub fn fails(&self, attempt: &str) -> v1::SaveStatus {
        let status = self.end_of(attempt);
        assert_eq!(status.state(), v1::SaveState::Failed, "{status:?}");
        self.absent(2);
        self.former_is_whole();
        status
    }

    /// A checkpoint reads back from the origin, every byte of it.
    pub fn whole(&self, step: u64, model: &Model) {
        let uri = format!("{RUN}/step-{step}");
        load_and_check(&self.cluster, READER, &uri, model);
        let mut reader = longshore_tests::Client::connect(&self.cluster.loader_socket(READER)).unwrap();
        reader.unload(&uri).unwrap();
    }

    pub fn former_is_whole(&self) {
        self.whole(1, &self.former);
    }

    /// There is no such checkpoint, and a load says so.
    pub fn absent(&self, step: u64) {
        let uri = format!("{RUN}/step-{step}");
        let error = load(&self.cluster, READER, &uri).expect_err("what is not committed is not loaded");
        assert!(matches!(error.code(), Code::FailedPrecondition | Code::NotFound), "{}: {error}", error.code());
        assert!(self.origin.content(&format!("bucket/run/step-{step}/_CKPT.json")).is_none());
    }

    /// So many parts of step 2 came in a second time at most, and none a third time.
    pub fn sent_once_but_for(&self, parts: u64) {
        let counters = self.origin.counters();
        let again = counters.parts_again("bucket/run/step-2/*");
        assert!(again <= parts, "{again} parts were sent twice");
        for (path, key) in &counters.keys {
            let most = key.parts.values().map(|part| part.received).max().unwrap_or(0);
            assert!(most <= 2, "a part of {path} was sent {most} times");
        }
    }

    /// Objects at the origin whose path holds this.
    pub fn objects(&self, text: &str) -> Vec<String> {
        self.origin.paths("bucket/run/").into_iter().filter(|path| path.contains(text)).collect()
    }

    /// The committed steps, as a listing of the other node shows them.
    pub fn steps(&self) -> Vec<u64> {
        let mut client = SaveClient::connect(self.cluster.loader_socket(READER).parent().unwrap()).unwrap();
        client.checkpoints(RUN).unwrap().checkpoints.iter().map(|checkpoint| checkpoint.step).collect()
    }

    /// The other node, which has saved nothing.
    pub fn reader(&self) -> SaveClient {
        SaveClient::connect(self.cluster.loader_socket(READER).parent().unwrap()).unwrap()
    }
}

/// Cuts the end of a file off.
pub fn cut(path: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length.checked_sub(bytes).unwrap()).unwrap();
}
