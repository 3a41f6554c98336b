//! A training process of the tests, to be killed: saves a generated model, and stands still where it is told to.
//!
//! `trainer SOCKETS URI STEP SEED BYTES STOP`, where STOP is `mid-copy`, `staged` or `end`. It prints the attempt first, then
//! where it stands, and waits for the end of its input.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use longshore_proto::v1;
use longshore_testkit::modelgen::ModelSpec;
use longshore_tests::{SaveClient, Saving};

const SOON: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [sockets, uri, step, seed, bytes, stop] = args.as_slice() else {
        anyhow::bail!("needs SOCKETS URI STEP SEED BYTES STOP")
    };
    let model = ModelSpec::sized(seed.parse()?, bytes.parse()?, 12).build();
    let mut client = SaveClient::connect(Path::new(sockets))?;
    let options = v1::SaveOptions { hf_index: true, ..Default::default() };
    let saving = Saving::plan(&mut client, (uri, step.parse()?), (&model, 1), options)?;
    say(saving.attempt())?;
    client.start(&saving.plan, 0, saving.inline(0))?;
    let mut slabs = client.slabs()?;
    let mut keys = saving.slabs(0, slabs.slab_bytes);
    let last = keys.pop().context("a save without slabs")?;
    for key in keys {
        saving.fill_one(&mut slabs, key)?;
    }
    if stop == "mid-copy" {
        let grant = slabs.acquire(last.clone(), SOON)?;
        let at = u64::from(last.slab_index) * slabs.slab_bytes;
        slabs.copy(&grant, saving.content(last.file), at, 0.5)?;
        return stand("mid-copy");
    }
    saving.fill_one(&mut slabs, last)?;
    let status = client.wait(saving.attempt(), v1::SaveState::Staged, SOON)?;
    ensure!(status.state() < v1::SaveState::Failed, "{status:?}");
    if stop == "staged" {
        return stand("staged");
    }
    let status = client.wait(saving.attempt(), v1::SaveState::Committed, SOON)?;
    ensure!(status.state() == v1::SaveState::Committed, "{status:?}");
    stand("end")
}

fn say(what: &str) -> anyhow::Result<()> {
    println!("{what}");
    Ok(std::io::stdout().flush()?)
}

fn stand(place: &str) -> anyhow::Result<()> {
    say(place)?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
