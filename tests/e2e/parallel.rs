//! Ranks of a group: each holds exactly its slices, together they are the model, and the origin is read once for all.

use longshore_proto::v1;
use longshore_proto::v1::parallel_rule::Rule;
use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::{Model, ModelSpec, TensorSpec, Transformer, dtype_bits};
use longshore_testkit::{Content, FakeCudaOptions, FakeOrigin};
use longshore_tests::{Attached, Client, Loaded};
use longshore_types::{Code, Result};

use crate::common::Embedded;
use crate::gpu::{Node, NodeSpec};

const URI: &str = "s3://bucket/model";
const RANKS: u32 = 8;
/// Four key and value heads for eight ranks: each is shared by two.
const SIZES: Transformer =
    Transformer { layers: 2, hidden: 1024, heads: 16, kv_heads: 4, inner: 1536, experts: 16, vocabulary: 8000 };

/// The same in small.
const SMALL: Transformer = Transformer { layers: 1, vocabulary: 80, ..SIZES };

/// What a test says of a tensor, in words of its own.
enum Slicing {
    Whole,
    /// Along a dimension, in parts of so many rows, each shared by so many ranks.
    Along(usize, Vec<(u64, u32)>),
    Expert(u32),
}

/// By name, without a pattern.
fn slicing(name: &str, shape: &[u64]) -> Slicing {
    let [q, k, v] = SIZES.qkv_rows();
    let words: Vec<&str> = name.split('.').collect();
    match words.as_slice() {
        [.., "experts", number, _, _] => Slicing::Expert(number.parse().unwrap()),
        [.., "qkv_proj", _] => Slicing::Along(0, vec![(q, 1), (k, 2), (v, 2)]),
        [.., "gate_up_proj", _] => Slicing::Along(0, vec![(SIZES.inner, 1), (SIZES.inner, 1)]),
        [.., "o_proj" | "down_proj", "weight"] => Slicing::Along(1, vec![(shape[1], 1)]),
        [.., "embed_tokens" | "lm_head", "weight"] => Slicing::Along(0, vec![(shape[0], 1)]),
        _ => Slicing::Whole,
    }
}

/// The same as the rules of a request.
fn rules() -> Vec<v1::ParallelRule> {
    let rule = |pattern: &str, rule| v1::ParallelRule { pattern: pattern.to_owned(), rule: Some(rule) };
    let split = |dim, parts: &[(u64, u32)]| {
        let parts = parts.iter().map(|&(size, replicas)| v1::FusedPart { size, replicas }).collect();
        Rule::Split(v1::Split { dim, parts })
    };
    let ([q, k, v], inner) = (SIZES.qkv_rows(), SIZES.inner);
    vec![
        rule("*.experts.{expert}.*", Rule::Expert(v1::Expert {})),
        rule("*.qkv_proj.*", split(0, &[(q, 1), (k, 2), (v, 2)])),
        rule("*.gate_up_proj.weight", split(0, &[(inner, 0), (inner, 0)])),
        rule("*.o_proj.weight", split(1, &[])),
        rule("*.down_proj.weight", split(1, &[])),
        rule("*norm.weight", Rule::Replicate(v1::Replicate {})),
        rule("*embed_tokens.weight", split(0, &[])),
        rule("lm_head.weight", split(0, &[])),
        rule("no.such.tensor", Rule::Replicate(v1::Replicate {})),
    ]
}

fn request(rank: u32) -> v1::LoadModelRequest {
    let parallel = Some(v1::Parallel { rank, world_size: RANKS, rules: rules() });
    v1::LoadModelRequest { uri: URI.to_owned(), device: "host".to_owned(), parallel, ..Default::default() }
}

fn load_rank(cluster: &Cluster, rank: u32) -> Result<Loaded> {
    Client::connect(&cluster.loader_socket(0))?.load_with(request(rank))
}

/// The rows along the dimension that a rank gets.
fn own_rows(parts: &[(u64, u32)], rank: u32) -> Vec<u64> {
    let mut rows = Vec::new();
    let mut start = 0;
    for &(size, replicas) in parts {
        let each = size * u64::from(replicas) / u64::from(RANKS);
        let first = start + each * u64::from(rank / replicas);
        rows.extend(first..first + each);
        start += size;
    }
    rows
}

/// What a rank must hold of a tensor, as numpy's `take` gives it; `None` for an expert of another rank.
fn slice_of(model: &Model, name: &str, rank: u32) -> Option<(Vec<u64>, Vec<u8>)> {
    let tensor = model.tensor(name).unwrap();
    let bytes = || tensor.content.to_vec();
    match slicing(name, &tensor.shape) {
        Slicing::Whole => Some((tensor.shape.clone(), bytes())),
        Slicing::Expert(number) => (number / 2 == rank).then(|| (tensor.shape.clone(), bytes())),
        Slicing::Along(dim, parts) => {
            let own = own_rows(&parts, rank);
            let inner: u64 = tensor.shape[dim + 1..].iter().product::<u64>() * dtype_bits(&tensor.dtype) / 8;
            let whole = bytes();
            let mut taken = Vec::new();
            for matrix in whole.chunks((tensor.shape[dim] * inner) as usize) {
                for row in &own {
                    taken.extend_from_slice(&matrix[(row * inner) as usize..((row + 1) * inner) as usize]);
                }
            }
            let mut shape = tensor.shape.clone();
            shape[dim] = own.len() as u64;
            Some((shape, taken))
        }
    }
}

/// A model of what a rank must hold, so that everything is compared by the same means as a whole model.
fn model_of_rank(model: &Model, rank: u32) -> Model {
    let mut own = Model { files: model.files.clone(), tensors: Vec::new() };
    for tensor in &model.tensors {
        if let Some((shape, bytes)) = slice_of(model, &tensor.name, rank) {
            let mut tensor = tensor.clone();
            (tensor.shape, tensor.content) = (shape, Content::from(bytes));
            own.tensors.push(tensor);
        }
    }
    own
}

fn weight_files(model: &Model) -> impl Iterator<Item = &(String, Content)> {
    model.files.iter().filter(|(name, _)| name.ends_with(".safetensors"))
}

fn attach(loaded: &Loaded) -> Attached {
    Attached::attach(std::path::Path::new(&loaded.model.attach_socket), &loaded.model.model_id).unwrap()
}

#[test]
fn eight_ranks_hold_their_slices_and_the_origin_is_read_once() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::transformer(1, SIZES).shards(3).side_file("tokenizer.json", b"{}".to_vec()).build();
    model.put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(3, 1).origin(&origin));
    let mut experts = 0;
    let mut placed = 0;
    for rank in 0..RANKS {
        let loaded = load_rank(&cluster, rank).unwrap_or_else(|error| panic!("rank {rank}: {error}"));
        let wanted = model_of_rank(&model, rank);
        attach(&loaded).check(&wanted).unwrap_or_else(|error| panic!("rank {rank}: {error:#}"));
        assert_eq!(loaded.model.tensor_count as usize, wanted.tensors.len());
        let said = loaded.model.parallel.unwrap();
        assert_eq!((said.rank, said.world_size, said.rules.len()), (rank, RANKS, rules().len()));
        let warnings = loaded.model.warnings.join("\n");
        assert!(warnings.contains("no.such.tensor") && !warnings.contains("qkv_proj"), "{warnings}");
        experts += wanted.tensors.iter().filter(|tensor| tensor.name.contains(".experts.")).count();
        placed += wanted.tensor_bytes();
    }
    // Together they are the model: every expert once, and of everything that is split every row.
    assert_eq!(experts, model.tensors.iter().filter(|tensor| tensor.name.contains(".experts.")).count());
    for tensor in &model.tensors {
        if let Slicing::Along(dim, parts) = slicing(&tensor.name, &tensor.shape) {
            let mut rows: Vec<u64> = (0..RANKS).flat_map(|rank| own_rows(&parts, rank)).collect();
            rows.sort_unstable();
            rows.dedup();
            assert_eq!(rows, (0..tensor.shape[dim]).collect::<Vec<_>>(), "{}", tensor.name);
        }
    }
    assert!(placed < model.tensor_bytes() * 11 / 10, "what is replicated is small: {placed}");
    assert_eq!(origin.counters().bytes, model.size_bytes(), "1.00 x the checkpoint");
    let filled: f64 = cluster.workers().iter().map(|w| w.metrics().sum("longshore_worker_fill_bytes_total")).sum();
    assert_eq!(filled as u64, model.size_bytes(), "and each byte came into one worker");
}

#[test]
fn eight_ranks_on_the_cards_of_a_node_fetch_each_block_once() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::transformer(6, SIZES).shards(3).build();
    model.put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(3, 0).origin(&origin));
    let cards = FakeCudaOptions { devices: RANKS, memory_mib: 128, ..FakeCudaOptions::default() };
    let node = Node::start(NodeSpec::new().cards(cards).envs(origin.client_env()).workers(&cluster));
    let load = |rank: u32| {
        let request = v1::LoadModelRequest { device: format!("cuda:{rank}"), ..request(rank) };
        node.client().load_with(request).unwrap_or_else(|error| node.fail(&format!("rank {rank}: {error}")))
    };
    // All at once, as the ranks of a server start.
    let loaded: Vec<Loaded> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..RANKS).map(|rank| scope.spawn(move || load(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut fetched = 0;
    let mut read = 0;
    for (rank, loaded) in (0..RANKS).zip(&loaded) {
        let wanted = model_of_rank(&model, rank);
        attach(loaded).check(&wanted).unwrap_or_else(|error| node.fail(&format!("rank {rank}: {error:#}")));
        let pinned = loaded.tier_bytes(v1::Tier::Pinned);
        let all = loaded.model.report.as_ref().unwrap().bytes_by_tier.iter().map(|of| of.bytes).sum::<u64>();
        fetched += all - pinned;
        read += all;
    }
    // Small files go to the host memory of each rank.
    let weights: u64 = weight_files(&model).map(|(_, content)| content.len_bytes()).sum();
    let fetched_once = weights + (model.size_bytes() - weights) * u64::from(RANKS);
    assert!((weights * 99 / 100..=fetched_once).contains(&fetched), "{fetched} bytes were fetched, of {fetched_once}");
    assert!(read > model.size_bytes() * 5 / 4, "the ranks read the same blocks of what is split by columns: {read}");
    assert_eq!(origin.counters().bytes, model.size_bytes(), "1.00 x the checkpoint");
}

#[test]
fn a_new_daemon_knows_the_ranks_of_the_one_before() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::transformer(7, SMALL).build();
    model.put_into(&origin, "bucket/model");
    let mut node = Node::start(NodeSpec::new().envs(origin.client_env()));
    let on_card = |rank: u32| v1::LoadModelRequest { device: "cuda:0".to_owned(), ..request(rank) };
    let before = node.client().load_with(on_card(3)).unwrap();
    node.loader.kill();
    node.loader.start_again();
    let after = node.client().load_with(on_card(3)).unwrap();
    assert!(after.model.reattached && after.model.model_id == before.model.model_id);
    assert_eq!((after.model.tensors == before.model.tensors, &after.model.parallel), (true, &before.model.parallel));
    attach(&after).check(&model_of_rank(&model, 3)).unwrap();
    let other = node.client().load_with(on_card(4)).unwrap();
    assert!(!other.model.reattached);
    attach(&other).check(&model_of_rank(&model, 4)).unwrap();
}

#[test]
fn a_rank_reads_no_blocks_that_only_others_need() {
    let origin = FakeOrigin::start();
    // Splits of the first dimension alone, whose pieces are whole blocks.
    let tensors = (0..4).map(|i| TensorSpec::new(format!("t{i}"), "U8", [64, 1 << 20])).collect();
    let model = ModelSpec::of(2, tensors).build();
    model.put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let split = Rule::Split(v1::Split { dim: 0, parts: vec![] });
    let rules = vec![v1::ParallelRule { pattern: "t*".to_owned(), rule: Some(split) }];
    let parallel = Some(v1::Parallel { rank: 5, world_size: 8, rules });
    let mut client = Client::connect(&cluster.loader_socket(0)).unwrap();
    let loaded = client.load_with(v1::LoadModelRequest { parallel, ..request(0) }).unwrap();
    let needed = model.tensor_bytes() / 8;
    assert_eq!(loaded.model.size_bytes / (1 << 20), needed / (1 << 20), "an eighth of the memory");
    let read = loaded.model.report.unwrap().bytes;
    // Each piece begins and ends within a block, because of the header in front.
    assert!(read <= needed + 5 * (1 << 20), "{read} bytes were read for {needed}");
}

#[test]
fn each_rank_is_a_model_of_its_own_in_memory() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::transformer(3, SMALL).build();
    model.put_into(&origin, "bucket/model");
    let mut cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let first = load_rank(&cluster, 3).unwrap();
    assert!(!first.model.reattached);
    let again = load_rank(&cluster, 3).unwrap();
    assert!(again.model.reattached && again.model.model_id == first.model.model_id);
    let whole = crate::common::load(&cluster, 0, URI).unwrap();
    assert!(!whole.model.reattached && whole.model.parallel.is_none());
    // With nobody to ask, a rank gets what it had before, and never what another one has.
    cluster.worker(0).kill();
    drop(origin);
    let mut client = Client::connect(&cluster.loader_socket(0)).unwrap();
    let kept = client.load_with(v1::LoadModelRequest { revalidate: true, ..request(3) }).unwrap();
    assert_eq!(kept.model.model_id, first.model.model_id);
    attach(&kept).check(&model_of_rank(&model, 3)).unwrap();
    let other = client.load_with(v1::LoadModelRequest { revalidate: true, ..request(4) }).unwrap_err();
    assert!(matches!(other.code(), Code::Unavailable | Code::Timeout), "{other}");
}

#[test]
fn what_cannot_be_split_is_an_error_that_names_the_tensor() {
    let origin = FakeOrigin::start();
    ModelSpec::of(4, vec![TensorSpec::new("odd.weight", "F16", [30, 64])]).build().put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let mut client = Client::connect(&cluster.loader_socket(0)).unwrap();
    let mut refused = |parallel: v1::Parallel| {
        let error = client.load_with(v1::LoadModelRequest { parallel: Some(parallel), ..request(0) }).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        error.to_string()
    };
    let split = |dim| Rule::Split(v1::Split { dim, parts: vec![] });
    let rule = |rule| vec![v1::ParallelRule { pattern: "*.weight".to_owned(), rule: Some(rule) }];
    let text = refused(v1::Parallel { rank: 0, world_size: 8, rules: rule(split(0)) });
    for part in ["\"odd.weight\"", "\"*.weight\"", "dimension 0", "[30, 64]", "8 equal pieces"] {
        assert!(text.contains(part), "{part} in: {text}");
    }
    assert!(refused(v1::Parallel { rank: 8, world_size: 8, rules: vec![] }).contains("ranks are 0 to 7"));
    assert!(refused(v1::Parallel { rank: 0, world_size: 0, rules: vec![] }).contains("world size of 0"));
    assert!(
        refused(v1::Parallel { rank: 0, world_size: 1, rules: vec![Default::default(); 300] }).contains("300 rules")
    );
    assert!(refused(v1::Parallel { rank: 0, world_size: 2, rules: rule(split(9)) }).contains("no dimension 9"));
    let status = client.status().unwrap();
    assert_eq!((status.models.len(), status.loads_in_flight), (0, 0), "nothing is left of them");
}

const RULES_FILE: &str = r#"
[[rule]]
pattern = "*.experts.{expert}.*"
expert = true

[[rule]]
pattern = "*.qkv_proj.*"
split = 0
parts = [1024, { size = 256, replicas = 2 }, { size = 256, replicas = 2 }]

[[rule]]
pattern = "*.gate_up_proj.weight"
split = 0
parts = [1536, 1536]

[[rule]]
pattern = "*.o_proj.weight"
split = 1

[[rule]]
pattern = "*.down_proj.weight"
split = 1

[[rule]]
pattern = "*embed_tokens.weight"
split = 0

[[rule]]
pattern = "lm_head.weight"
split = 0
"#;

#[test]
fn the_command_line_reads_rules_from_a_file() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::transformer(5, SMALL).build();
    model.put_into(&origin, "bucket/model");
    let embedded = Embedded::with(&origin);
    let file = embedded.folder.path().join("rules.toml");
    std::fs::write(&file, RULES_FILE).unwrap();
    let rules = file.to_str().unwrap();
    let wanted = model_of_rank(&model, 6);

    let group = ["--device", "host", "--world-size", "8", "--parallel-rules"];
    let with = |front: &[&str], rules: &str, rank: &str, back: &[&str]| {
        embedded.run(&[front, &group, &[rules, "--rank", rank], back].concat())
    };
    let check = env!("CARGO_BIN_EXE_attach-check");
    let output = with(&["exec", "--model", URI], rules, "6", &["--", check]);
    assert!(output.success(), "{output}");
    crate::common::check_found(&output.json(), &wanted);

    let output = with(&["load", URI, "--json"], rules, "6", &[]);
    assert!(output.success(), "{output}");
    assert_eq!(output.json()["tensors"].as_u64(), Some(wanted.tensors.len() as u64), "{output}");
    assert_eq!(output.json()["warnings"].as_array().map(Vec::len), Some(0), "{output}");

    // The usual names are known; here some of them match nothing, which is said.
    let output = with(&["load", URI, "--json"], "llama", "1", &[]);
    assert!(output.success() && output.json()["warnings"].to_string().contains("*.k_proj.weight"), "{output}");

    let failed = |output: longshore_testkit::cluster::CliOutput, text: &str| {
        let all = format!("{output}");
        assert!(output.code() == 2 && all.contains(text), "{text}: {all}");
    };
    failed(embedded.run(&["load", URI, "--rank", "0"]), "give all three or none");
    failed(with(&["load", URI], rules, "8", &[]), "ranks are 0 to 7");
    std::fs::write(&file, "[[rule]]\npattern = \"*norm.weight\"\nsplit = 1\n").unwrap();
    failed(with(&["load", URI], rules, "0", &[]), "no dimension 1 in the shape [1024]");
    std::fs::write(&file, "[[rule]]\npattern = \"*\"\nsplitt = 1\n").unwrap();
    failed(with(&["load", URI], rules, "0", &[]), "splitt");
}
