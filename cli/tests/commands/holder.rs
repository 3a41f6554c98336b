//! Loaders that die and come back beside a holder, with clients attached throughout.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use longshore_memory::fdpass::recv_with_fds;
use longshore_proto::v1;
use longshore_testkit::{FakeCuda, fake_cuda::FakeCudaOptions};
use prost::Message;
use serde_json::Value;

use crate::support::{Bench, Daemon, eventually, json_of, safetensors, stderr};

const LOADER: [&str; 5] = ["loader", "--listen", "none", "--ops-listen", "none"];

fn start_holder(bench: &Bench) -> Daemon {
    Daemon::start(bench.command(&["holder"]), "holder is ready")
}

fn start_loader(bench: &Bench, more: &[&str]) -> Daemon {
    let mut command = bench.command(&LOADER);
    command.args(more);
    Daemon::start(command, "loader is ready")
}

/// A program that uses a model.
struct Client {
    lease: UnixStream,
    model: v1::LoadedModel,
    fds: Vec<OwnedFd>,
}

impl Client {
    fn attach(bench: &Bench, model_id: &str) -> Result<Client, String> {
        let mut lease = UnixStream::connect(bench.path("run/attach.sock")).unwrap();
        let request = v1::AttachRequest { model_id: model_id.to_owned() }.encode_to_vec();
        lease.write_all(&(request.len() as u32).to_le_bytes()).unwrap();
        lease.write_all(&request).unwrap();
        let mut length = [0; 4];
        lease.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u32::from_le_bytes(length) as usize];
        lease.read_exact(&mut answer).unwrap();
        let answer = v1::AttachResponse::decode(answer.as_slice()).unwrap();
        let Some(model) = answer.model else { return Err(answer.error_code) };
        let mut fds = Vec::new();
        while fds.len() < answer.fd_count as usize {
            assert_eq!(recv_with_fds(lease.as_fd(), &mut [0; 1], &mut fds).unwrap(), 1);
        }
        Ok(Client { lease, model, fds })
    }

    /// Every tensor against the file it came from.
    fn check(&self, file: &[u8]) {
        let region = std::fs::File::from(self.fds[0].try_clone().unwrap());
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let mut in_file = header;
        for tensor in &self.model.tensors {
            let mut bytes = vec![0; tensor.length_bytes as usize];
            region.read_exact_at(&mut bytes, tensor.offset_bytes).unwrap();
            assert!(bytes == file[in_file..in_file + bytes.len()], "{} differs", tensor.name);
            in_file += bytes.len();
        }
        assert_eq!(in_file, file.len());
    }
}

fn model_file(bench: &Bench, name: &str, size: usize) {
    std::fs::create_dir(bench.path(name)).unwrap();
    std::fs::write(bench.path(name).join("model.safetensors"), safetensors(size)).unwrap();
}

fn status(bench: &Bench) -> Value {
    bench.json(&["status", "--json"])["loader"].clone()
}

fn leases_of(status: &Value, id: &str) -> Option<u64> {
    let models = status["models"].as_array().unwrap();
    models.iter().find(|model| model["model_id"] == id).and_then(|model| model["leases"].as_u64())
}

#[test]
fn killed_loaders_are_replaced_under_attached_clients() {
    let bench = Bench::new();
    model_file(&bench, "second", 5 << 20);
    let file = std::fs::read(bench.path("model/model.safetensors")).unwrap();
    let _holder = start_holder(&bench);
    let mut loader = start_loader(&bench, &["--require-holder"]);
    let first = bench.json(&["load", "model", "--json"]);
    let id = first["model_id"].as_str().unwrap().to_owned();
    bench.json(&["load", "second", "--json"]);
    let client = Client::attach(&bench, &id).unwrap();
    assert_eq!(client.model.attach_socket, bench.path("run/attach.sock").to_str().unwrap());
    client.check(&file);

    for round in 1..=20 {
        // SIGKILL.
        drop(loader);
        let while_away = Client::attach(&bench, &id).unwrap();
        assert_eq!(while_away.model.leases, 1, "leases are the holder's");
        let command = bench.command(&[&LOADER[..], &["--require-holder"]].concat());
        loader = Daemon::start(command, "models were taken over from the holder");
        let seconds = loader.ready["seconds"].as_f64().unwrap();
        assert!(seconds < 1.0, "round {round}: {seconds} s");
        let now = status(&bench);
        assert_eq!(leases_of(&now, &id), Some(2), "{now}");
        assert_eq!((&now["holder"]["models_adopted"], &now["holder"]["process"]), (&2.into(), &true.into()));
        client.check(&file);
        let again = bench.json(&["load", "model", "--json"]);
        assert_eq!((&again["reattached"], again["model_id"].as_str()), (&true.into(), Some(id.as_str())));
        drop(while_away);
        eventually("a lease ends with its client", || leases_of(&status(&bench), &id) == Some(1));
    }
    let unloaded = bench.json(&["free", "model", "--json"]);
    assert_eq!(unloaded["models_unloaded"], 1);
    client.check(&file);
    assert_eq!(Client::attach(&bench, &id).err().unwrap(), "not_found");
    // What was forgotten under a lease is still paid for by the next loader.
    drop(loader);
    let _loader = start_loader(&bench, &[]);
    assert!(status(&bench)["arena_used_bytes"].as_u64().unwrap() > 24 << 20);
    drop(client.lease);
    eventually("its memory is free", || status(&bench)["arena_used_bytes"].as_u64().unwrap() < 8 << 20);
}

#[test]
fn a_loader_is_upgraded_without_anybody_noticing() {
    let bench = Bench::new();
    let file = std::fs::read(bench.path("model/model.safetensors")).unwrap();
    let holder = start_holder(&bench);
    let loader = start_loader(&bench, &[]);
    let id = bench.json(&["load", "model", "--json"])["model_id"].as_str().unwrap().to_owned();
    let client = Client::attach(&bench, &id).unwrap();
    assert_eq!(loader.terminate(), Some(0));
    Client::attach(&bench, &id).unwrap().check(&file);
    let _loader = start_loader(&bench, &[]);
    assert_eq!(bench.json(&["load", "model", "--json"])["reattached"], true);
    client.check(&file);
    assert_eq!(holder.terminate(), Some(0));
    client.check(&file);
    assert!(!bench.path("run/attach.sock").exists());
}

#[test]
fn models_leased_before_a_restart_are_not_evicted_after_it() {
    let bench = Bench::new();
    for name in ["b", "c", "d"] {
        model_file(&bench, name, 25 << 20);
    }
    let _holder = start_holder(&bench);
    let small = ["--memory", "64MiB"];
    let loader = start_loader(&bench, &small);
    let id = bench.json(&["load", "model", "--json"])["model_id"].as_str().unwrap().to_owned();
    let client = Client::attach(&bench, &id).unwrap();
    bench.json(&["load", "b", "--json"]);
    drop(loader);
    let _loader = start_loader(&bench, &small);
    for name in ["c", "d", "c"] {
        assert_eq!(bench.json(&["load", name, "--json"])["reattached"], false, "{name} makes room for the next one");
    }
    assert_eq!(leases_of(&status(&bench), &id), Some(1));
    let d = bench.json(&["load", "d", "--json"])["model_id"].as_str().unwrap().to_owned();
    let _second = Client::attach(&bench, &d).unwrap();
    let refused = bench.run(&["load", "c"]);
    assert_eq!(refused.status.code(), Some(8), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("1 lease"), "{}", stderr(&refused));
    client.check(&std::fs::read(bench.path("model/model.safetensors")).unwrap());
}

#[test]
fn a_holder_that_ends_takes_its_models_and_is_waited_for() {
    let bench = Bench::new();
    let file = std::fs::read(bench.path("model/model.safetensors")).unwrap();
    let holder = start_holder(&bench);
    let _loader = start_loader(&bench, &[]);
    let id = bench.json(&["load", "model", "--json"])["model_id"].as_str().unwrap().to_owned();
    let client = Client::attach(&bench, &id).unwrap();
    drop(holder);
    eventually("the models are gone", || status(&bench)["models"].as_array().unwrap().is_empty());
    let failed = bench.run(&["load", "model"]);
    assert_eq!(failed.status.code(), Some(9), "{}", stderr(&failed));
    assert!(stderr(&failed).contains("longshore holder"), "{}", stderr(&failed));
    client.check(&file);

    let holder = start_holder(&bench);
    eventually("loads work again", || bench.run(&["load", "model"]).status.success());
    let again = bench.json(&["load", "model", "--json"]);
    assert_ne!(again["model_id"].as_str(), Some(id.as_str()));
    Client::attach(&bench, again["model_id"].as_str().unwrap()).unwrap().check(&file);
    drop(holder);
}

#[test]
fn one_holder_has_one_loader_and_a_required_one_must_be_there() {
    let bench = Bench::new();
    let missing = bench.run(&[&LOADER[..], &["--require-holder"]].concat());
    assert_eq!(missing.status.code(), Some(6));
    assert!(stderr(&missing).contains("start `longshore holder`"), "{}", stderr(&missing));

    let holder = start_holder(&bench);
    assert_eq!(bench.run(&["holder"]).status.code(), Some(6), "one holder a folder");
    let loader = start_loader(&bench, &[]);
    let other = bench.path("other");
    let socket = bench.path("run/holder.sock");
    let second =
        bench.command(&LOADER).arg("--socket-dir").arg(&other).arg("--holder-socket").arg(&socket).output().unwrap();
    assert_eq!(second.status.code(), Some(6), "{}", stderr(&second));
    assert!(stderr(&second).contains("process id"), "{}", stderr(&second));
    assert_eq!(loader.terminate(), Some(0));
    assert_eq!(holder.terminate(), Some(0));

    // Without a holder a loader serves the attach socket itself, and a holder that comes later is told.
    let loader = start_loader(&bench, &[]);
    assert_eq!(status(&bench)["holder"]["process"], false);
    let late = bench.run(&["holder"]);
    assert_eq!(late.status.code(), Some(6));
    assert!(stderr(&late).contains("start the holder before the loader"), "{}", stderr(&late));
    assert_eq!(loader.terminate(), Some(0));
}

#[test]
fn a_private_loader_minds_its_own_models() {
    let bench = Bench::new();
    let _holder = start_holder(&bench);
    let socket = bench.path("run/holder.sock");
    // No loader runs: the program gets one of its own, whatever the environment says of holders.
    let ran = bench
        .command(&["exec", "--model", "model", "--", "true"])
        .env("LONGSHORE_LOADER_HOLDER_SOCKET", &socket)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", stderr(&ran));
    let _loader = start_loader(&bench, &[]);
    assert_eq!(status(&bench)["holder"]["models_adopted"], 0);
}

#[test]
fn models_on_a_gpu_outlive_their_loader_by_uuid() {
    let bench = Bench::new();
    let cuda = FakeCuda::install(FakeCudaOptions { devices: 2, memory_mib: 256, ..FakeCudaOptions::default() });
    let with_cuda = |args: &[&str]| {
        let mut command = bench.command(args);
        command.envs(cuda.env());
        command
    };
    let holder = Daemon::start(with_cuda(&["holder"]), "holder is ready");
    let small = ["--memory", "512MiB", "--pinned-memory", "128MiB", "--fetches-max", "2"];
    let start = || Daemon::start(with_cuda(&[&LOADER[..], &small].concat()), "loader is ready");
    let loader = start();
    let first = json_of(&with_cuda(&["load", "model", "--device", "cuda:1", "--json"]).output().unwrap());
    let id = first["model_id"].as_str().unwrap().to_owned();
    let client = Client::attach(&bench, &id).unwrap();
    let uuid = client.model.device_uuid.clone();
    assert_eq!((client.model.regions.len(), client.model.regions[0].device == uuid), (2, true));
    let used = cuda.used_bytes(1);
    assert!(used >= 20 << 20);
    drop(loader);
    assert_eq!(cuda.used_bytes(1), used, "the loader had no part in keeping it");
    let loader = start();
    let now = status(&bench);
    assert_eq!((leases_of(&now, &id), &now["holder"]["models_adopted"]), (Some(1), &1.into()));
    let again = json_of(&with_cuda(&["load", "model", "--device", &uuid, "--json"]).output().unwrap());
    assert_eq!((&again["reattached"], again["model_id"].as_str()), (&true.into(), Some(id.as_str())));
    bench.json(&["free", "model", "--json"]);
    assert_eq!(cuda.used_bytes(1), used, "a client has it");
    drop(client);
    eventually("the memory of the card is free", || cuda.used_bytes(1) == 0);
    assert_eq!(loader.terminate(), Some(0));
    assert_eq!(holder.terminate(), Some(0));
}
