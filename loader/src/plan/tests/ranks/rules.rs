//! What rules refuse, and how they decide.

use super::*;

#[test]
fn a_tensor_that_does_not_fit_its_rule_is_named_with_the_reason() {
    let refused = |case: Case, world_size| {
        let error = plan_of(&[case], Seat { rank: 0, world_size }).unwrap_err();
        assert_eq!(error.code(), longshore_types::Code::InvalidArgument);
        let text = error.to_string();
        assert!(text.contains("tensor \"the.tensor\""), "{text}");
        text
    };
    let case = |shape: &[u64], rule| Case::new("the.tensor", Dtype::F16, shape, rule);
    let text = refused(case(&[1000, 64], split(0)), 16);
    assert!(text.contains("dimension 0 of [1000, 64] cannot be cut into 16 equal pieces, for a world of 16"), "{text}");
    let text = refused(case(&[2, 48], fused(1, &[(32, 1), (16, 2)])), 12);
    assert!(text.contains("has a part of 32 that cannot be cut into 12"), "{text}");
    let text = refused(case(&[7], fused(0, &[(4, 1), (3, 2)])), 4);
    assert!(
        text.contains("a part of 3") && text.contains("2 equal pieces, for a world of 4 with 2 replicas"),
        "{text}"
    );
    let text = refused(case(&[48], fused(0, &[(32, 1), (8, 1)])), 4);
    assert!(text.contains("the rule's parts together, 32 + 8"), "{text}");
    let text = refused(case(&[48], fused(0, &[(u64::MAX, 1), (49, 1)])), 1);
    assert!(text.contains("parts together"), "{text}");
    let text = refused(case(&[48], split(1)), 4);
    assert!(text.contains("no dimension 1 in the shape [48]"), "{text}");
    let text = refused(case(&[], split(0)), 2);
    assert!(text.contains("no dimension 0 in the shape []"), "{text}");
    let text = refused(Case { dtype: None, ..case(&[8], split(0)) }, 2);
    assert!(text.contains("dtype \"F3\" is unknown"), "{text}");
    let text = refused(Case { dtype: Some(Dtype::F4), ..case(&[6, 2, 3], split(0)) }, 4);
    assert!(text.contains("cannot be cut into 4"), "{text}");
    let text = refused(Case { dtype: Some(Dtype::F4), ..case(&[2, 6], split(1)) }, 2);
    assert!(text.contains("whole bytes of F4"), "{text}");
}

#[test]
fn bytes_of_an_unknown_dtype_and_scalars_go_to_every_rank() {
    let unknown = Case { dtype: None, ..Case::new("raw", Dtype::U8, &[3, 5], Rule::Replicate) };
    let scalar = Case::new("scalar", Dtype::F32, &[], Rule::Replicate);
    for rank in 0..2 {
        check_bytes(&[unknown.clone(), scalar.clone()], Seat { rank, world_size: 2 });
    }
}

#[test]
fn dimensions_that_overflow_when_multiplied_are_no_danger_in_an_empty_tensor() {
    let empty = Case::new("empty", Dtype::F64, &[0, 1 << 62, 1 << 62], split(1));
    let plan = plan_of(&[empty], Seat { rank: 1, world_size: 2 }).unwrap();
    assert_eq!(plan.layout.tensors[0].shape.as_deref(), Some(&[0, 1 << 61, 1 << 62][..]));
    assert!(plan.chunks.is_empty());
}

#[test]
fn pieces_without_a_pattern_are_bounded() {
    let rows = (1 << 20) / 2;
    let uneven = |name: &str, rows| Case::new(name, Dtype::U8, &[rows, 6], fused(1, &[(4, 1), (2, 1)]));
    let seat = Seat { rank: 0, world_size: 2 };
    assert_eq!(copies_of(&[uneven("a", rows)], seat).unwrap().len(), 1 << 20);
    let error = plan_of(&[uneven("a", rows), uneven("b", 2)], seat).unwrap_err().to_string();
    assert!(error.contains("tensor \"b\"") && error.contains("1048576 separate pieces"), "{error}");
}

#[test]
fn experts_are_dealt_out_in_runs() {
    let experts = |numbers: &[u32]| -> Vec<Case> {
        let name = |number: &u32| format!("experts.{number}.w");
        numbers.iter().map(|number| Case::new(&name(number), Dtype::U8, &[2], Rule::Expert)).collect()
    };
    let held = |rank| {
        let cases = experts(&[3, 0, 1, 2]);
        let plan = plan_of(&cases, Seat { rank, world_size: 2 }).unwrap();
        plan.layout.tensors.iter().map(|of| cases[of.tensor].name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(held(0), ["experts.0.w", "experts.1.w"]);
    assert_eq!(held(1), ["experts.3.w", "experts.2.w"]);
    let refused =
        |numbers: &[u32]| plan_of(&experts(numbers), Seat { rank: 0, world_size: 2 }).unwrap_err().to_string();
    assert!(refused(&[0, 1, 3]).contains("expert 2 is missing among those up to 3"));
    assert!(refused(&[1, 2]).contains("expert 0 is missing"));
    assert!(refused(&[4_000_000_000]).contains("expert 0 is missing"));
    assert!(refused(&[0, 1, 2]).contains("3 experts cannot be dealt out evenly to a world of 2"));
    let huge = Case::new("experts.99999999999.w", Dtype::U8, &[2], Rule::Expert);
    let error = plan_of(&[huge], Seat { rank: 0, world_size: 2 }).unwrap_err().to_string();
    assert!(error.contains("names no expert"), "{error}");
}

#[test]
fn the_first_rule_decides_and_one_that_decides_nothing_is_a_warning() {
    let cases = [
        Case::new("a.weight", Dtype::U8, &[4], Rule::Replicate),
        Case::new("b.weight", Dtype::U8, &[4], Rule::Replicate),
        Case::new("c.bias", Dtype::U8, &[4], Rule::Replicate),
    ];
    let rule = |pattern: &str, rule| ParallelRule::new(pattern, rule).unwrap();
    let rules = vec![
        rule("a.*", Rule::Replicate),
        rule("*.weight", split(0)),
        rule("b.*", Rule::Replicate),
        rule("*.{expert}.*", Rule::Expert),
    ];
    let parallel = Parallel::new(0, 2, rules).unwrap();
    let plan = Plan::new(&manifest_of(&cases, 8), Some(&parallel), 256, SideFiles::WithTensors).unwrap();
    let lengths: Vec<u64> = plan.layout.tensors.iter().map(|of| of.place.length_bytes).collect();
    assert_eq!(lengths, [4, 2, 4]);
    let warnings = &plan.layout.warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("\"b.*\"") && warnings[1].contains("\"*.{expert}.*\""), "{warnings:?}");
}
