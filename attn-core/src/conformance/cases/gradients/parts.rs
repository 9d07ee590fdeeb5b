//! Gradients with the parts of a request that Flax's layers do not have.

use super::super::super::case::SinksCase;
use super::super::dropout::HALF;
use super::super::parts::with_both_rules;
use super::super::{Case, Placement};
use crate::position::Alignment::{BottomRight, Offset, TopLeft};
use crate::position::Causal;
use alloc::vec;
use alloc::vec::Vec;

/// Two batch entries of two heads.
fn case(queries: usize, keys: usize) -> Case {
    Case::new(queries, keys, 8).batched(&[2], 2)
}

pub(in super::super) fn grouped() -> Vec<Case> {
    let strided = |placement| Case {
        placement,
        ..Case::new(5, 33, 8).batched(&[2], 4).grouped(2)
    };
    vec![
        Case::new(1, 70, 16).batched(&[], 4).grouped(2),
        Case::new(5, 7, 4).batched(&[2], 6).grouped(3),
        Case::new(33, 65, 8).batched(&[1, 2], 3).grouped(1),
        Case::new(66, 35, 16)
            .batched(&[], 4)
            .grouped(1)
            .with_value_depth(5),
        Case::new(35, 35, 8)
            .batched(&[2], 4)
            .grouped(2)
            .with_causal(Causal::top_left()),
        Case::new(17, 35, 8)
            .batched(&[2], 4)
            .grouped(2)
            .with_mask(&[2, 4, 17, 35], 0.5, true),
        Case::new(17, 35, 8)
            .batched(&[2], 4)
            .grouped(2)
            .with_bias(&[4, 1, 35], false),
        Case::new(17, 35, 8)
            .batched(&[], 4)
            .grouped(2)
            .with_dropout(HALF),
        strided(Placement::HeadsMajor).named("heads major"),
        strided(Placement::Gaps).named("gaps"),
    ]
}

pub(in super::super) fn window() -> Vec<Case> {
    let mut cases = Vec::new();
    for alignment in [TopLeft, BottomRight, Offset(-2)] {
        cases.extend([
            Case::new(17, 17, 8).with_window(alignment, Some(5), Some(3)),
            Case::new(40, 130, 8).with_window(alignment, Some(20), Some(0)),
            Case::new(70, 35, 5).with_window(alignment, Some(3), Some(1)),
        ]);
    }
    cases.extend([
        Case::new(35, 70, 8)
            .with_window(BottomRight, Some(9), None)
            .with_causal(Causal::bottom_right()),
        Case::new(66, 66, 8)
            .with_window(TopLeft, Some(30), Some(2))
            .with_mask(&[66, 66], 0.5, true)
            .with_bias(&[66, 66], false),
    ]);
    let mut cases = with_both_rules(cases);
    let few = Case::new(3, 200, 8).with_window(BottomRight, Some(65), Some(0));
    cases.extend([few.clone(), few.batched(&[2], 4).grouped(2).poisoned()]);
    cases
}

pub(in super::super) fn sequences() -> Vec<Case> {
    let (keys, queries): (&[i32], &[i32]) = (&[35, 0, 17], &[3, 20, 0]);
    let starts: &[i32] = &[0, 10, 10, 43, 70];
    let padded = || Case::new(20, 35, 8).batched(&[3], 2);
    let packed = || Case::new(70, 70, 8).batched(&[], 2).packed(starts, starts);
    let inner = || {
        Case::new(35, 70, 8)
            .batched(&[2], 1)
            .packed(&[2, 5, 30], &[7, 7, 60])
    };
    let mut cases = with_both_rules(vec![
        padded().padded(keys, None),
        padded()
            .padded(keys, Some(queries))
            .with_causal(Causal::bottom_right()),
        padded()
            .padded(keys, Some(queries))
            .with_window(BottomRight, Some(9), Some(2)),
        padded()
            .grouped(1)
            .padded(keys, Some(queries))
            .with_bias(&[3, 1, 20, 35], false),
        padded()
            .padded(keys, None)
            .with_mask(&[3, 1, 20, 35], 0.4, true),
        padded().padded(keys, Some(queries)).with_dropout(HALF),
        packed().with_causal(Causal::bottom_right()),
        packed().with_window(TopLeft, Some(9), Some(9)),
        packed(),
        inner(),
        Case::new(5, 7, 4).packed(&[3, 3], &[0, 7]),
    ]);
    cases.extend([
        padded().padded(keys, Some(queries)).poisoned(),
        inner().with_causal(Causal::bottom_right()).poisoned(),
    ]);
    cases
}

pub(in super::super) fn segments() -> Vec<Case> {
    let mut cases = with_both_rules(vec![
        case(5, 7).with_segments(2),
        case(33, 35).with_segments(4),
        case(33, 35).with_segments(20),
        case(35, 35)
            .with_segments(3)
            .with_causal(Causal::top_left()),
        case(17, 66)
            .grouped(1)
            .with_segments(3)
            .padded(&[66, 33], None),
    ]);
    cases.push(case(5, 40).with_segments(20).poisoned());
    cases
}

pub(in super::super) fn blocks() -> Vec<Case> {
    let mut cases = with_both_rules(vec![
        case(33, 70).with_blocks(&[2, 2, 3, 5], [16, 16], 0.5),
        case(33, 70).with_blocks(&[3, 5], [16, 16], 0.3),
        case(33, 70).with_blocks(&[2, 3, 1], [16, 70], 0.5),
        case(17, 130)
            .grouped(1)
            .with_blocks(&[2, 2, 5], [9, 31], 0.5),
        case(70, 70)
            .with_blocks(&[2, 2], [64, 64], 0.7)
            .with_causal(Causal::top_left()),
    ]);
    cases.push(case(5, 100).with_blocks(&[1, 7], [8, 16], 0.5).poisoned());
    cases
}

pub(in super::super) fn scores() -> Vec<Case> {
    let mut cases = Vec::new();
    for alignment in [TopLeft, BottomRight, Offset(3)] {
        cases.push(case(17, 33).with_alibi(alignment));
        cases.push(case(17, 33).with_relative(9, 4, alignment));
    }
    cases.extend([
        case(17, 33).with_softcap(0.5),
        case(33, 70).with_softcap(2.0),
        case(33, 70).with_softcap(50.0).sized(2.0),
        case(5, 33).with_softcap(3.0).with_scale(1.0),
        case(33, 35).with_relative(1, 0, TopLeft),
        case(17, 70)
            .with_relative(90, 60, BottomRight)
            .with_causal(Causal::bottom_right()),
        case(17, 35)
            .with_softcap(1.5)
            .with_bias(&[2, 2, 17, 35], false),
        case(17, 35)
            .with_softcap(1.0)
            .with_mask(&[17, 35], 0.5, true)
            .zero_if_blind(),
        case(17, 35)
            .with_relative(7, 3, TopLeft)
            .with_mask(&[17, 35], 0.5, true),
        case(35, 35)
            .grouped(1)
            .with_softcap(1.5)
            .with_alibi(TopLeft)
            .with_relative(21, 10, TopLeft)
            .with_bias(&[2, 1, 35, 35], false)
            .with_causal(Causal::top_left()),
        case(20, 35)
            .with_softcap(1.5)
            .with_alibi(BottomRight)
            .with_relative(21, 10, BottomRight)
            .padded(&[35, 17], Some(&[11, 20])),
        case(35, 35)
            .with_alibi(BottomRight)
            .with_relative(5, 2, BottomRight)
            .packed(&[0, 10, 33], &[0, 17, 35]),
        case(17, 35)
            .with_softcap(1.5)
            .with_relative(5, 2, TopLeft)
            .with_dropout(HALF),
    ]);
    cases
}

pub(in super::super) fn sinks() -> Vec<Case> {
    let near = SinksCase::Near;
    with_both_rules(vec![
        case(5, 7).with_sinks(near(0.0)),
        case(33, 35).with_sinks(near(3.0)),
        case(17, 70).grouped(1).with_sinks(near(-2.0)),
        case(17, 33).with_sinks(near(-1e4)),
        case(17, 33).with_sinks(SinksCase::Infinite),
        case(35, 35)
            .with_sinks(near(0.5))
            .with_causal(Causal::offset(-9)),
        case(17, 35)
            .with_sinks(near(0.0))
            .with_mask(&[17, 35], 0.3, true),
        case(20, 35)
            .with_sinks(near(0.5))
            .padded(&[35, 0], Some(&[20, 11])),
        case(17, 35)
            .with_sinks(near(0.5))
            .with_softcap(1.0)
            .with_bias(&[17, 35], false),
        case(17, 35).with_sinks(near(0.5)).with_dropout(HALF),
    ])
}
