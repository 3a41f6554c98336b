#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_types::Code;
use longshore_types::checkpoint::Alias;
use longshore_types::header::SafetensorsHeader;
use proptest::prelude::*;

use super::*;

fn tensor(group: &str, name: &str, dtype: &str, shape: &[u64]) -> SaveTensor {
    SaveTensor {
        group: group.to_owned(),
        name: name.to_owned(),
        dtype: dtype.to_owned(),
        shape: shape.to_vec(),
        start: vec![],
        piece_shape: vec![],
    }
}

fn piece(name: &str, shape: &[u64], start: &[u64], extent: &[u64]) -> SaveTensor {
    SaveTensor { start: start.to_vec(), piece_shape: extent.to_vec(), ..tensor("", name, "F32", shape) }
}

fn rank(rank: u32, tensors: Vec<SaveTensor>) -> RankItems {
    RankItems { rank, tensors, ..RankItems::default() }
}

fn request(ranks: Vec<RankItems>) -> PlanRequest {
    PlanRequest {
        uri: "s3://bucket/run".to_owned(),
        step: 7,
        world_size: ranks.len().max(1) as u32,
        ranks,
        options: SaveOptions::default(),
        join_timeout_ms: 0,
    }
}

/// What the format library makes of a planned file.
fn accepted(file: &PlannedFile) -> Vec<(String, Vec<usize>)> {
    assert_eq!(file.header.len() % 8, 0, "{}", file.name);
    let mut image = file.header.clone();
    image.resize(file.size_bytes as usize, 0);
    let tensors = safetensors::SafeTensors::deserialize(&image).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&image).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let mut found: Vec<_> = tensors.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())).collect();
    found.sort();
    found
}

fn message(request: PlanRequest) -> String {
    let error = layout(request).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    error.message().to_owned()
}

#[test]
fn one_rank_one_file_that_the_format_library_accepts() {
    let plan = layout(request(vec![rank(
        0,
        vec![
            tensor("", "b\"\\é", "BOOL", &[3]),
            tensor("", "a", "BF16", &[2, 3]),
            tensor("", "scalar", "F64", &[]),
            tensor("", "none", "F32", &[4, 0]),
            tensor("optim", "a", "I64", &[2]),
        ],
    )]))
    .unwrap();
    plan.check().unwrap();
    let names: Vec<&str> = plan.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["model-00001-of-00001.safetensors", "optim/optim-00001-of-00001.safetensors"]);
    let order: Vec<&str> = plan.files[0].tensors.iter().map(|planned| planned.tensor.name.as_str()).collect();
    assert_eq!(order, ["scalar", "none", "a", "b\"\\é"], "wide dtypes first");
    for planned in plan.files.iter().flat_map(|file| &file.tensors) {
        let width = longshore_types::header::parse_dtype(&planned.tensor.dtype).unwrap().bitsize() as u64 / 8;
        assert_eq!(planned.offset_bytes % width, 0, "{}", planned.tensor.name);
    }
    let found = accepted(&plan.files[0]);
    assert!(found.contains(&("b\"\\é".to_owned(), vec![3])) && found.contains(&("a".to_owned(), vec![2, 3])));
    assert_eq!(
        plan.object_path(&plan.files[1]),
        format!("step-7/optim/optim-{}-00001-of-00001.safetensors", plan.attempt)
    );
    assert_eq!(plan.url(), "s3://bucket/run/step-7");
}

#[test]
fn what_all_ranks_have_is_written_once_and_shared_by_bytes() {
    let tensors: Vec<SaveTensor> = (0..40).map(|i| tensor("", &format!("t{i}"), "F32", &[100 + i])).collect();
    let ranks: Vec<RankItems> = (0..4).map(|r| rank(r, tensors.clone())).collect();
    let plan = layout(request(ranks.clone())).unwrap();
    plan.check().unwrap();
    assert_eq!(plan.files.iter().map(|file| file.tensors.len()).sum::<usize>(), 40);
    let shares: Vec<u64> = (0..4).map(|rank| plan.bytes_of(rank)).collect();
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    assert!(most - least < 1000, "{shares:?}");
    assert_eq!(plan.files[3].name, "model-00004-of-00004.safetensors");

    let mut given = request(ranks);
    given.options.as_given = true;
    let plan = layout(given).unwrap();
    assert_eq!(plan.files.len(), 1, "the lowest rank that has it writes it");
    assert_eq!(plan.files[0].rank, 0);
}

#[test]
fn pieces_have_names_of_their_own_and_empty_ones_are_dropped() {
    let plan = layout(request(vec![
        rank(0, vec![piece("w", &[5, 2], &[0, 0], &[2, 2]), tensor("", "w#0", "F32", &[1])]),
        rank(1, vec![piece("w", &[5, 2], &[2, 0], &[3, 2])]),
        rank(2, vec![piece("w", &[5, 2], &[5, 0], &[0, 2])]),
    ]))
    .unwrap();
    plan.check().unwrap();
    assert_eq!(plan.files.len(), 2);
    assert_eq!(accepted(&plan.files[0]), [("w#0".to_owned(), vec![1]), ("w#0#".to_owned(), vec![2, 2])]);
    assert_eq!(accepted(&plan.files[1]), [("w#1".to_owned(), vec![3, 2])]);
    assert_eq!(plan.files[1].tensors[0].tensor.start, [2, 0]);
}

#[test]
fn what_does_not_make_a_checkpoint_is_refused_by_name() {
    let missing = message(request(vec![
        rank(0, vec![piece("w", &[6], &[0], &[2])]),
        rank(1, vec![piece("w", &[6], &[4], &[2])]),
    ]));
    assert!(missing.contains("\"w\"") && missing.contains("[2]"), "{missing}");
    let twice = message(request(vec![
        rank(0, vec![piece("w", &[6], &[0], &[4])]),
        rank(1, vec![piece("w", &[6], &[3], &[3])]),
    ]));
    assert!(twice.contains("more than one piece") && twice.contains("[3]"), "{twice}");
    for (what, tensors) in [
        ("F128", vec![tensor("", "a", "F128", &[1])]),
        ("control", vec![tensor("", "a\n", "F32", &[1])]),
        ("empty", vec![tensor("", "", "F32", &[1])]),
        ("..", vec![tensor("../x", "a", "F32", &[1])]),
        ("whole bytes", vec![tensor("", "a", "F64", &[u64::MAX, u64::MAX])]),
        ("larger", (0..40).map(|i| tensor("", &format!("t{i}"), "U8", &[1 << 60])).collect()),
        ("dtype", vec![tensor("", "a", "F32", &[1]), tensor("", "a", "F16", &[1])]),
        ("dimensions", vec![piece("a", &[1, 1], &[0], &[1])]),
        ("nothing to save", vec![]),
    ] {
        let text = message(request(vec![rank(0, tensors)]));
        assert!(text.contains(what), "{what}: {text}");
    }
    let file = |name: &str, size_bytes| SaveFile { name: name.to_owned(), size_bytes };
    for (what, files) in [
        ("reserved", vec![file("a/_CKPT.json", 1)]),
        ("twice", vec![file("a", 1), file("a", 1)]),
        ("folder", vec![file("a", 1), file("a/b", 1)]),
    ] {
        let text = message(request(vec![RankItems { files, ..rank(0, vec![]) }]));
        assert!(text.contains(what), "{what}: {text}");
    }
    let other = RankItems { files: vec![file("a", 2)], ..rank(1, vec![]) };
    assert!(
        message(request(vec![RankItems { files: vec![file("a", 1)], ..rank(0, vec![]) }, other]))
            .contains("2 on rank 1")
    );
    let alias =
        |name: &str, target: &str| Alias { group: String::new(), name: name.to_owned(), target: target.to_owned() };
    for (what, aliases) in [
        ("no rank gives", vec![alias("b", "x")]),
        ("both as a tensor", vec![alias("a", "a")]),
        ("stands for", vec![alias("b", "a"), alias("b", "c")]),
    ] {
        let tensors = vec![tensor("", "a", "F32", &[1]), tensor("", "c", "F32", &[1])];
        let text = message(request(vec![RankItems { aliases, ..rank(0, tensors) }]));
        assert!(text.contains(what), "{what}: {text}");
    }
    let mut indexed = request(vec![RankItems {
        files: vec![file("model.safetensors.index.json", 9)],
        ..rank(0, vec![tensor("", "a", "F32", &[1])])
    }]);
    layout(indexed.clone()).unwrap();
    indexed.options.hf_index = true;
    assert!(message(indexed).contains("made by the save"));
}

#[test]
fn plans_from_clients_are_checked() {
    let good = layout(request(vec![
        RankItems {
            files: vec![SaveFile { name: "x".into(), size_bytes: 5 }],
            ..rank(0, vec![tensor("", "a", "F32", &[8])])
        },
        rank(1, vec![piece("w", &[4], &[0], &[4])]),
    ]))
    .unwrap();
    good.check().unwrap();
    let refused = |what: &str, change: fn(&mut SavePlan)| {
        let mut plan = good.clone();
        change(&mut plan);
        assert_eq!(plan.check().expect_err(what).code(), Code::InvalidArgument, "{what}");
    };
    refused("name", |plan| plan.files[0].name = "../x".to_owned());
    refused("twice", |plan| plan.files[1].name = plan.files[0].name.clone());
    refused("rank", |plan| plan.files[0].rank = 9);
    refused("size", |plan| plan.files[0].size_bytes += 1);
    refused("huge", |plan| plan.files[2].size_bytes = u64::MAX);
    refused("offset", |plan| plan.files[0].tensors[0].offset_bytes += 8);
    refused("far offset", |plan| plan.files[0].tensors[0].offset_bytes = u64::MAX);
    refused("far length", |plan| plan.files[0].tensors[0].length_bytes = u64::MAX);
    refused("shape", |plan| plan.files[0].tensors[0].tensor.shape = vec![9]);
    refused("header", |plan| plan.files[0].header[20] ^= 1);
    refused("no header", |plan| plan.files[0].header.clear());
    refused("piece", |plan| plan.files[1].tensors[0].tensor.start = vec![1]);
    refused("world", |plan| plan.world_size = 0);
    refused("files", |plan| plan.files.clear());
}

#[test]
fn files_are_cut_and_numbered() {
    let mut cut = request(vec![
        rank(0, (0..10).map(|i| tensor("", &format!("a{i}"), "U8", &[4000])).collect()),
        rank(1, vec![tensor("", "large", "U8", &[50_000]), tensor("x/y", "z", "U8", &[1])]),
    ]);
    cut.options.file_bytes_max = 10_000;
    let plan = layout(cut).unwrap();
    plan.check().unwrap();
    let model: Vec<_> = plan.files.iter().filter(|file| file.name.starts_with("model-")).collect();
    assert_eq!(model.len(), 6);
    for (number, file) in model.iter().enumerate() {
        assert_eq!(file.name, format!("model-{:05}-of-00006.safetensors", number + 1));
        assert!(file.size_bytes <= 10_000 || file.tensors.len() == 1, "{}", file.size_bytes);
        accepted(file);
    }
    assert_eq!(plan.files.last().unwrap().name, "x/y/y-00001-of-00001.safetensors");
}

#[test]
fn a_hundred_thousand_tensors_are_quick() {
    let tensors: Vec<SaveTensor> =
        (0..100_000).map(|i| tensor("", &format!("model.layers.{}.weight{i}", i % 97), "BF16", &[64, 3])).collect();
    let ranks: Vec<RankItems> = (0..4).map(|r| rank(r, tensors.clone())).collect();
    let request = request(ranks);
    let since = Instant::now();
    let plan = layout(request).unwrap();
    let laid_out = since.elapsed();
    plan.check().unwrap();
    assert_eq!(plan.files.iter().map(|file| file.tensors.len()).sum::<usize>(), 100_000);
    // Optimised builds take a tenth; the bound leaves room for a busy machine.
    assert!(laid_out < Duration::from_secs(10), "{laid_out:?}");
}

proptest! {
    #[test]
    fn random_shards_are_laid_out_without_loss(
        dims in prop::collection::vec((1u64..20, 1u64..5), 1..12),
        world in 1u32..5,
        copies in 1u32..3,
        file_bytes_max in 200u64..4000,
    ) {
        let dtypes = ["F64", "F32", "BF16", "U8"];
        let mut ranks: Vec<RankItems> = (0..world).map(|r| rank(r, vec![])).collect();
        for (number, &(rows, columns)) in dims.iter().enumerate() {
            let name = format!("t{number}");
            let dtype = dtypes[number % dtypes.len()];
            let per = rows.div_ceil(u64::from(world));
            for r in 0..world {
                let start = (u64::from(r) * per).min(rows);
                let extent = per.min(rows - start);
                for copy in 0..copies {
                    let holder = (r + copy) % world;
                    let shard = SaveTensor { dtype: dtype.to_owned(), ..piece(&name, &[rows, columns], &[start, 0], &[extent, columns]) };
                    ranks[holder as usize].tensors.push(shard);
                }
            }
        }
        let mut request = request(ranks);
        request.options.file_bytes_max = file_bytes_max;
        let plan = layout(request.clone()).unwrap();
        plan.check().unwrap();
        let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
        for file in &plan.files {
            accepted(file);
            let header = SafetensorsHeader::parse(&file.header, file.size_bytes, &file.name).unwrap();
            prop_assert_eq!(header.tensors.len(), file.tensors.len());
            for planned in &file.tensors {
                *bytes.entry(planned.tensor.name.clone()).or_default() += planned.length_bytes;
            }
        }
        for (number, &(rows, columns)) in dims.iter().enumerate() {
            let width = [8, 4, 2, 1][number % 4];
            prop_assert_eq!(bytes[&format!("t{number}")], rows * columns * width);
        }
        request.ranks.reverse();
        let again = layout(request).unwrap();
        prop_assert_eq!(again.files, plan.files, "the order of the calls does not matter");
    }
}

#[tokio::test]
async fn ranks_join_one_by_one_and_get_the_same_plan() {
    let planner = Arc::new(Planner::default());
    let mut calls = vec![];
    for r in 0..3 {
        let planner = Arc::clone(&planner);
        let part = PlanRequest { world_size: 3, ..request(vec![rank(r, vec![tensor("", "w", "F32", &[8])])]) };
        calls.push(tokio::spawn(async move { planner.plan(part).await }));
    }
    let mut plans = vec![];
    for call in calls {
        plans.push(call.await.unwrap().unwrap());
    }
    assert!(plans.windows(2).all(|pair| pair[0] == pair[1]));
    // The step can be planned again, as another attempt.
    let again = planner.plan(request(vec![rank(0, vec![tensor("", "w", "F32", &[8])])])).await.unwrap();
    assert_ne!(again.attempt, plans[0].attempt);
}

#[tokio::test]
async fn ranks_that_do_not_come_are_named_and_calls_can_be_repeated() {
    let planner = Arc::new(Planner::default());
    let part = |r: u32, wait| PlanRequest {
        world_size: 40,
        join_timeout_ms: wait,
        ..request(vec![rank(r, vec![tensor("", "w", "F32", &[8])])])
    };
    let error = planner.plan(part(1, 50)).await.unwrap_err();
    assert_eq!(error.code(), Code::Timeout);
    assert!(error.message().contains("rank 0, 2, 3") && error.message().contains("and 23 more of 40"), "{error}");
    // The call that timed out left: the rank may join again, and nothing is held for it.
    assert_eq!(planner.plan(part(1, 50)).await.unwrap_err().code(), Code::Timeout);
    assert_eq!(planner.waiting(), 0);
}

#[tokio::test]
async fn a_rank_twice_and_other_options_are_refused() {
    let planner = Arc::new(Planner::default());
    let part = |r: u32| PlanRequest { world_size: 3, ..request(vec![rank(r, vec![tensor("", "w", "F32", &[8])])]) };
    let waiting = tokio::spawn({
        let (planner, part) = (Arc::clone(&planner), part(0));
        async move { planner.plan(part).await }
    });
    while planner.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    let twice = planner.plan(part(0)).await.unwrap_err();
    assert!(twice.code() == Code::InvalidArgument && twice.message().contains("rank 0"), "{twice}");
    let mut other = part(1);
    other.options.keep = 3;
    let conflict = planner.plan(other).await.unwrap_err();
    assert_eq!(conflict.code(), Code::InvalidArgument);
    assert_eq!(waiting.await.unwrap().unwrap_err().code(), Code::InvalidArgument, "the others learn it at once");
    assert_eq!(planner.plan(request(vec![])).await.unwrap_err().code(), Code::InvalidArgument);
}
