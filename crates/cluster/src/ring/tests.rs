use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::member::Identity;

fn member(number: u64, weight: u64) -> Member {
    let mut bytes = [0u8; 16];
    bytes[..8].copy_from_slice(&point(&number.to_le_bytes()).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    with_id(MemberId::from_bytes(bytes), weight)
}

fn with_id(id: MemberId, weight: u64) -> Member {
    let identity = Identity {
        id,
        weight,
        data: "10.0.0.1:7070".into(),
        control: "10.0.0.1:7071".into(),
        unix_socket: None,
        host_id: "host".into(),
        version: "0".into(),
    };
    Member { identity, address: "10.0.0.1:7070".into() }
}

fn ids(owners: &[Arc<Member>]) -> Vec<MemberId> {
    owners.iter().map(|member| member.id()).collect()
}

/// The definition, word for word: no ring, no walk.
fn owners_by_definition(members: &[Member], key: &[u8], count: usize) -> Vec<MemberId> {
    let from = point(key);
    let distance = |member: &Member| {
        (0..TOKENS_PER_MEMBER).map(|index| token_point(member.id(), index).wrapping_sub(from)).min().unwrap()
    };
    let mut scaled: Vec<_> =
        members.iter().map(|member| (u128::from(distance(member)), u128::from(member.weight()), member.id())).collect();
    scaled.sort_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)).then(a.2.cmp(&b.2)));
    scaled.into_iter().take(count).map(|(_, _, id)| id).collect()
}

/// Shares of `keys` keys, relative to what the weights ask for.
fn relative_shares(members: &[Member], keys: u64) -> Vec<f64> {
    let ring = Ring::new(members);
    let mut counts: HashMap<MemberId, u64> = HashMap::new();
    for key in 0..keys {
        *counts.entry(ring.owners(&key.to_le_bytes(), 1)[0].id()).or_default() += 1;
    }
    let total: u64 = members.iter().map(Member::weight).sum();
    let share = |member: &Member| counts.get(&member.id()).copied().unwrap_or(0) as f64 / keys as f64;
    members.iter().map(|member| share(member) / (member.weight() as f64 / total as f64)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn owners_are_what_the_definition_says(
        weights in prop::collection::vec(prop_oneof![Just(1u64), 1..2000u64, 1..100_000u64], 1..6),
        keys in prop::collection::vec(any::<[u8; 16]>(), 8),
        count in 0..7usize,
    ) {
        let members: Vec<Member> = weights.iter().zip(0..).map(|(weight, number)| member(number, *weight)).collect();
        let ring = Ring::new(&members);
        for key in keys {
            prop_assert_eq!(ids(&ring.owners(&key, count)), owners_by_definition(&members, &key, count));
        }
    }

    #[test]
    fn removing_one_member_moves_only_its_chunks(
        weights in prop::collection::vec(prop_oneof![Just(512u64), 1..5000u64], 2..9),
        leaving in any::<prop::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let members: Vec<Member> = weights.iter().zip(seed..).map(|(weight, number)| member(number, *weight)).collect();
        let gone = leaving.get(&members).id();
        let rest: Vec<Member> = members.iter().filter(|member| member.id() != gone).cloned().collect();
        let (before, after) = (Ring::new(&members), Ring::new(&rest));
        for key in 0..500u64 {
            let key = (key ^ seed).to_le_bytes();
            let mut expected = ids(&before.owners(&key, members.len()));
            expected.retain(|id| *id != gone);
            prop_assert_eq!(ids(&after.owners(&key, rest.len())), expected, "all others keep their order");
        }
    }

    #[test]
    fn owners_are_distinct_and_do_not_depend_on_the_order_of_the_members(
        count in 1..12usize, asked in 0..15usize, key in any::<[u8; 16]>(), shift in any::<prop::sample::Index>(),
    ) {
        let mut members: Vec<Member> = (0..count as u64).map(|number| member(number, 1 + number % 3)).collect();
        let owners = ids(&Ring::new(&members).owners(&key, asked));
        prop_assert_eq!(owners.len(), asked.min(count));
        let distinct: std::collections::HashSet<_> = owners.iter().collect();
        prop_assert_eq!(distinct.len(), owners.len());
        members.rotate_left(shift.index(count));
        members.push(members[0].clone());
        prop_assert_eq!(ids(&Ring::new(&members).owners(&key, asked)), owners);
    }
}

#[test]
fn weights_hold_within_five_percent() {
    let clusters: [(&str, Vec<u64>); 5] = [
        ("three equal", vec![200; 3]),
        ("sixteen equal", vec![1000; 16]),
        ("one to eight", vec![1, 2, 4, 8]),
        ("mixed", vec![256, 256, 512, 1024, 4096, 4096]),
        ("one small among large", vec![64, 1024, 1024, 1024]),
    ];
    for (name, weights) in clusters {
        for start in [0u64, 1000, 2000] {
            let members: Vec<Member> =
                weights.iter().zip(start..).map(|(weight, number)| member(number, *weight)).collect();
            for (share, weight) in relative_shares(&members, 400_000).into_iter().zip(&weights) {
                assert!(
                    (share - 1.0).abs() < 0.05,
                    "{name}, start {start}: weight {weight} has {share:.3} of its share"
                );
            }
        }
    }
}

#[test]
fn a_new_member_takes_its_share_from_all() {
    let members: Vec<Member> = (0..5).map(|number| member(number, 100)).collect();
    let (before, after) = (Ring::new(&members[..4]), Ring::new(&members));
    let mut moved = 0;
    for key in 0..20_000u64 {
        let (old, new) = (before.owners(&key.to_le_bytes(), 1)[0].id(), after.owners(&key.to_le_bytes(), 1)[0].id());
        assert!(old == new || new == members[4].id());
        moved += u64::from(old != new);
    }
    assert!((3600..4400).contains(&moved), "{moved} of 20,000 chunks moved to a fifth of the capacity");
}

#[test]
fn no_members_own_nothing() {
    assert!(Ring::new(&[]).owners(b"key", 3).is_empty());
}

#[derive(serde::Deserialize)]
struct Golden {
    seed: String,
    tokens_per_member: u32,
    points: Vec<GoldenPoint>,
    clusters: Vec<GoldenCluster>,
}

#[derive(serde::Deserialize)]
struct GoldenPoint {
    bytes: String,
    point: String,
}

#[derive(serde::Deserialize)]
struct GoldenCluster {
    members: Vec<GoldenMember>,
    owners: Vec<GoldenOwners>,
}

#[derive(serde::Deserialize)]
struct GoldenMember {
    id: MemberId,
    weight: u64,
}

#[derive(serde::Deserialize)]
struct GoldenOwners {
    key: String,
    owners: Vec<MemberId>,
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn placement_equals_the_golden_vectors() {
    let golden: Golden = serde_json::from_str(include_str!("../../testdata/ring.json")).unwrap();
    assert_eq!(golden.seed, format!("{HASH_SEED:016x}"));
    assert_eq!(golden.tokens_per_member, TOKENS_PER_MEMBER);
    for vector in golden.points {
        assert_eq!(format!("{:016x}", point(&unhex(&vector.bytes))), vector.point);
    }
    for cluster in golden.clusters {
        let members: Vec<Member> = cluster.members.iter().map(|member| with_id(member.id, member.weight)).collect();
        let ring = Ring::new(&members);
        for vector in cluster.owners {
            assert_eq!(ids(&ring.owners(&unhex(&vector.key), 3)), vector.owners, "key {}", vector.key);
        }
    }
}
