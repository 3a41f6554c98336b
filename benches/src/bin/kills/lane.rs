//! One loader, one origin, one run: saves, kills, starts again, checks.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use longshore_proto::v1;
use longshore_testkit::FakeOrigin;
use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::{Model, ModelSpec, TensorSpec};
use longshore_tests::SaveClient;
use longshore_types::Code;

use crate::Args;
use crate::check;
use crate::life::{Life, STATES};
use crate::tally::Tally;

const MIB: u64 = 1 << 20;
const URI: &str = "s3://bucket/run";
const SOON: Duration = Duration::from_secs(120);
/// A kill may come up to this much after the time that a save takes.
const BEYOND: f64 = 1.25;

/// How often the state of a save is looked at.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// When a kill comes: so long after a state was reached, an index into [`STATES`].
struct Strike {
    state: usize,
    delay: Duration,
}

/// See the module.
pub struct Lane {
    origin: FakeOrigin,
    cluster: Cluster,
    tally: Tally,
    random: u64,
    streams: u64,
    mib: u64,
    step: u64,
    /// The newest committed step, which must stay as it is.
    former: Option<(u64, Model)>,
    /// How long a save takes that nobody disturbs: a moving mean.
    typical: Duration,
}

impl Lane {
    pub fn new(args: &Args, number: u64) -> anyhow::Result<Lane> {
        let origin = FakeOrigin::start();
        origin.create_bucket("bucket");
        let spec = ClusterSpec::new(0, 1)
            .origin(&origin)
            .checkpoints()
            .env("LONGSHORE_ORIGIN_RETRY_PAUSE_MS", "20")
            .env("LONGSHORE_LOG", "warn")
            .loader_args(&["--checkpoint-part-bytes", "5MiB", "--checkpoint-memory", "512MiB"])
            .loader_args(&["--checkpoint-uploads", &args.streams.to_string(), "--checkpoint-resume-wait-ms", "250"]);
        let random = args.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number + 1);
        let mut lane = Lane {
            origin,
            cluster: Cluster::start(spec),
            tally: Tally::default(),
            random,
            streams: args.streams,
            mib: args.mib,
            step: 0,
            former: None,
            typical: Duration::ZERO,
        };
        // The first times are not those of a warm process.
        for _ in 0..3 {
            lane.save_undisturbed()?;
        }
        Ok(lane)
    }

    pub fn into_tally(self) -> Tally {
        self.tally
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below.max(1)
    }

    /// Two objects of several parts or of one, and a small file.
    fn model(&self) -> Model {
        let share = self.mib * MIB / 4;
        let tensors = vec![
            TensorSpec::new("embed", "U8", [share]),
            TensorSpec::new("layer", "F32", [share / 2, 1]),
            TensorSpec::new("optim/moment", "F32", [share / 4, 1]),
        ];
        ModelSpec::of(self.step, tensors).build()
    }

    fn sockets(&self) -> PathBuf {
        self.cluster.loader_socket(0).with_file_name("")
    }

    fn save_undisturbed(&mut self) -> anyhow::Result<()> {
        self.step += 1;
        let (model, start) = (self.model(), Instant::now());
        let mut life = Life::default();
        life.live(&self.sockets(), (URI, self.step), &model, &AtomicUsize::new(0))?;
        anyhow::ensure!(life.acks.committed, "a save that nobody disturbs is not committed");
        self.typical = start.elapsed();
        self.former = Some((self.step, model));
        Ok(())
    }

    /// One kill, and what comes of it.
    pub fn iterate(&mut self) -> anyhow::Result<()> {
        self.step += 1;
        self.origin.reset_counters();
        let model = self.model();
        let strike = self.strike();
        let (mut life, state) = self.kill_amid(&model, strike);
        *self.tally.at_kill.entry(STATES[state]).or_default() += 1;
        let mut kills = 1;
        let session = life.slabs.as_ref().map(|slabs| slabs.session.clone());
        let stays = self.draw(2) == 0;
        if !stays {
            life.slabs = None;
        }
        let forgets = self.draw(5) == 0;
        self.clean_memory(session.as_deref(), forgets)?;
        while self.draw(4) == 0 && kills < 4 {
            // Again, while it starts or goes on.
            self.cluster.loader(0).spawn();
            let pause = self.draw(1 + 2 * self.typical.as_micros() as u64);
            std::thread::sleep(Duration::from_micros(pause));
            self.cluster.loader(0).kill();
            kills += 1;
        }
        let since = Instant::now();
        self.cluster.loader(0).start_again();
        self.tally.restarting += since.elapsed();
        self.tally.kills += kills;
        self.tally.iterations += 1;
        self.settle(&mut life, &model, stays)?;
        self.count_parts(kills);
        self.tidy();
        Ok(())
    }

    /// Half of the kills are spread over the time that a save takes, half over the states that it goes through: some of these
    /// are short.
    fn strike(&mut self) -> Strike {
        let share = self.draw(1 << 20) as f64 / f64::from(1 << 20);
        match self.draw(2) {
            0 => Strike { state: 0, delay: self.typical.mul_f64(BEYOND * share) },
            _ => Strike { state: self.draw(STATES.len() as u64) as usize, delay: self.typical.mul_f64(share / 8.0) },
        }
    }

    fn kill_amid(&mut self, model: &Model, strike: Strike) -> (Life, usize) {
        let (sockets, step, state) = (self.sockets(), self.step, AtomicUsize::new(0));
        let loader = self.cluster.loader(0);
        std::thread::scope(|scope| {
            let living = scope.spawn(|| {
                let mut life = Life::default();
                let start = Instant::now();
                let lived = life.live(&sockets, (URI, step), model, &state);
                (life, lived.is_ok().then(|| start.elapsed()))
            });
            while state.load(Ordering::Relaxed) < strike.state && !living.is_finished() {
                std::thread::sleep(LOOK_EVERY);
            }
            // When the kill strikes is what is tried here.
            std::thread::sleep(strike.delay);
            let at = state.load(Ordering::Relaxed);
            loader.kill();
            let (life, took) = living.join().unwrap_or_default();
            if let Some(took) = took {
                self.typical = (self.typical * 7 + took) / 8;
            }
            (life, at)
        })
    }

    /// Earlier trainers have let go of their memory; a power loss takes that of this one as well.
    fn clean_memory(&mut self, own: Option<&str>, forgets: bool) -> anyhow::Result<()> {
        self.tally.memory_losses += u64::from(forgets);
        for folder in sessions(&self.cluster.slab_folder(0)) {
            let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if forgets || own.is_none_or(|own| !name.starts_with(own)) {
                std::fs::remove_dir_all(folder)?;
            }
        }
        Ok(())
    }

    /// Waits for the end of the save, and checks what must hold.
    fn settle(&mut self, life: &mut Life, model: &Model, stays: bool) -> anyhow::Result<()> {
        let step = self.step;
        let ended = match &life.saving {
            None => "unplanned",
            Some(_) => self.end_of(life, stays)?,
        };
        *self.tally.ended.entry(ended).or_default() += 1;
        let attempt = life.saving.as_ref().map(|saving| saving.attempt().to_owned()).unwrap_or_default();
        let commit = match check::commit(&self.origin, step) {
            Ok(commit) => commit,
            Err(error) => {
                self.tally.torn += 1;
                self.tally.find(format!("step {step}: its commit is damaged: {error:#}"));
                None
            }
        };
        let is_committed = commit.as_ref().is_some_and(|commit| commit.attempt.to_string() == attempt);
        if (life.acks.local_durable || life.acks.committed) && !is_committed {
            self.tally.lost += 1;
            self.tally.find(format!("step {step}: {:?} was acknowledged, and it ended {ended}: {attempt}", life.acks));
        }
        if is_committed != (ended == "committed") {
            self.tally.untold += 1;
            self.tally.find(format!("step {step}: said to be {ended}, commit there: {is_committed}: {attempt}"));
        }
        if let Some(commit) = commit {
            match check::whole(&self.origin, &commit, model) {
                Ok(()) => self.tally.whole += 1,
                Err(error) => {
                    self.tally.torn += 1;
                    self.tally.find(format!("step {step}: committed, and {error:#}: {attempt}"));
                }
            }
        }
        self.check_former();
        if is_committed {
            self.former = Some((step, model.clone()));
        }
        Ok(())
    }

    fn check_former(&mut self) {
        let Some((step, model)) = &self.former else { return };
        let found = match check::commit(&self.origin, *step) {
            Ok(Some(commit)) => check::whole(&self.origin, &commit, model),
            Ok(None) => Err(anyhow::anyhow!("its commit is gone")),
            Err(error) => Err(error),
        };
        if let Err(error) = found {
            let what = format!("step {step}, which was committed before: {error:#}");
            self.tally.torn += 1;
            self.tally.find(what);
        }
    }

    fn end_of(&mut self, life: &mut Life, stays: bool) -> anyhow::Result<&'static str> {
        let sockets = self.sockets();
        let mut client = SaveClient::connect(&sockets)?;
        let attempt = life.saving.as_ref().map(|saving| saving.attempt().to_owned()).unwrap_or_default();
        let mut is_back = false;
        if stays {
            self.tally.comebacks += 1;
            match life.come_back(&sockets, &mut client) {
                Ok(()) => is_back = true,
                // It may have been given up before.
                Err(error) => {
                    let is_over = matches!(error.code(), Code::Unavailable | Code::FailedPrecondition | Code::NotFound);
                    anyhow::ensure!(is_over, "the trainer cannot come back: {error}");
                }
            }
        }
        let ended = self.ended(&mut client, life, &attempt)?;
        if is_back && ended != "committed" {
            self.tally.find(format!("step {}: its trainer came back and copied all, and it ended {ended}", self.step));
        }
        Ok(ended)
    }

    fn ended(&self, client: &mut SaveClient, life: &Life, attempt: &str) -> anyhow::Result<&'static str> {
        match client.wait(attempt, v1::SaveState::Committed, SOON) {
            Ok(status) => Ok(match status.state() {
                v1::SaveState::Committed => "committed",
                v1::SaveState::Failed if status.error_message.contains("lost") => "told_as_lost",
                v1::SaveState::Failed if status.error_message.contains("no rank") => "never_started",
                v1::SaveState::Failed if status.error_message.contains("went away") => "trainer_went_away",
                state => anyhow::bail!("{attempt} ended {state:?}: {}", status.error_message),
            }),
            Err(error) if error.code() == Code::NotFound && !life.is_started => Ok("never_started"),
            Err(error) if error.code() == Code::NotFound && !life.acks.local_durable => {
                let committed = check::commit(&self.origin, self.step)?.is_some();
                Ok(if committed { "committed" } else { "forgotten" })
            }
            Err(error) => {
                let log = self.cluster.loaders()[0].log_tail(30);
                anyhow::bail!("{attempt} does not end: {error}\n{log}")
            }
        }
    }

    fn count_parts(&mut self, kills: u64) {
        let counters = self.origin.counters();
        let again = counters.parts_again(&format!("{}/step-{}/*", check::RUN, self.step));
        self.tally.parts += counters.upload_part;
        self.tally.parts_again += again;
        self.tally.again_a_kill_max = self.tally.again_a_kill_max.max(again.div_ceil(kills));
        if again > kills * self.streams {
            let (step, streams) = (self.step, self.streams);
            self.tally.find(format!("step {step}: {again} parts came again after {kills} kills of {streams} streams"));
        }
    }

    /// What dead attempts left would fill the memory of the origin.
    fn tidy(&mut self) {
        let step = format!("{}/step-{}/", check::RUN, self.step);
        if self.origin.content(&format!("{step}{}", longshore_types::checkpoint::COMMIT_NAME)).is_none() {
            for path in self.origin.paths(&step) {
                self.origin.remove(&path);
            }
        }
        for upload in self.origin.uploads() {
            self.origin.forget_upload(&upload.path, &upload.id);
        }
        for path in self.origin.paths(&format!("{}/", check::RUN)) {
            let step = path.split('/').find_map(longshore_types::checkpoint::parse_step_folder);
            if step
                .is_some_and(|step| step + 5 < self.step && Some(step) != self.former.as_ref().map(|former| former.0))
            {
                self.origin.remove(&path);
            }
        }
    }
}

fn sessions(folder: &std::path::Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    // The slabs lie one folder deeper: it is named after the spool.
    let mut found = Vec::new();
    for entry in entries.filter(|entry| entry.path().is_dir()) {
        found.extend(std::fs::read_dir(entry.path()).into_iter().flatten().flatten().map(|inner| inner.path()));
    }
    found.retain(|path| path.is_dir());
    found
}
