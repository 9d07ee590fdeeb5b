//! Attention with the parts of a request that Flax's layers do not have.

use super::super::case::{PlaceCase, RowsCase, SinksCase};
use super::dropout::HALF;
use super::{Case, Placement};
use crate::mask::FullyMasked;
use crate::position::Alignment::{BottomRight, Offset, TopLeft};
use crate::position::Causal;
use crate::scores::Stage;
use alloc::vec;
use alloc::vec::Vec;

const ALIGNMENTS: [crate::Alignment; 4] = [TopLeft, BottomRight, Offset(3), Offset(-2)];

/// With both rules for a query that sees nothing.
fn with_both_rules(cases: Vec<Case>) -> Vec<Case> {
    let zero = |case: &Case| case.fully_masked == FullyMasked::MeanOfValues;
    let others: Vec<Case> = (cases.iter().filter(|case| zero(case)))
        .map(|case| case.clone().zero_if_blind())
        .collect();
    cases.into_iter().chain(others).collect()
}

pub(super) fn grouped() -> Vec<Case> {
    let mut cases = Vec::new();
    for (q, k, d) in [(1, 70, 16), (5, 130, 8), (66, 65, 16)] {
        for (batch, heads, key_heads) in [(&[][..], 4, 2), (&[2], 6, 3), (&[1, 2], 3, 1)] {
            cases.push(Case::new(q, k, d).batched(batch, heads).grouped(key_heads));
        }
    }
    let case = || Case::new(33, 70, 8).batched(&[2], 4).grouped(2);
    let strided = |placement| Case {
        placement,
        ..Case::new(5, 67, 8).batched(&[2], 4).grouped(2)
    };
    cases.extend([
        case().with_causal(Causal::bottom_right()),
        case().with_value_depth(19).with_bias(&[4, 33, 70], false),
        case().with_mask(&[2, 4, 33, 70], 0.5, true).with_weights(),
        case().with_mask(&[2, 4, 1, 70], 0.5, true).zero_if_blind(),
        case().with_dropout(HALF).with_statistics(),
        Case::new(1, 257, 64).batched(&[2], 8).grouped(1),
        Case::new(4, 130, 64)
            .batched(&[], 8)
            .grouped(2)
            .with_causal(Causal::bottom_right()),
        Case::new(130, 130, 32)
            .batched(&[], 2)
            .grouped(1)
            .with_causal(Causal::top_left()),
        strided(Placement::HeadsMajor).named("heads major"),
        strided(Placement::Gaps).named("gaps"),
        strided(Placement::Transposed).named("transposed"),
    ]);
    cases
}

pub(super) fn window() -> Vec<Case> {
    let mut cases = Vec::new();
    for alignment in ALIGNMENTS {
        for (q, k) in [(17, 17), (65, 130), (130, 65)] {
            for (left, right) in [(Some(5), Some(3)), (Some(64), None), (None, Some(1))] {
                cases.push(Case::new(q, k, 8).with_window(alignment, left, right));
            }
        }
        let case = Case::new(70, 140, 8).with_window(alignment, Some(20), Some(9));
        cases.push(
            case.with_causal(Causal::aligned(alignment))
                .with_statistics(),
        );
    }
    cases = with_both_rules(cases);
    let long = |left, right| Case::new(200, 400, 8).with_window(BottomRight, left, right);
    let few = |left, right| Case::new(3, 300, 16).with_window(BottomRight, left, right);
    cases.extend([
        Case::new(1, 1, 4).with_window(TopLeft, Some(0), Some(0)),
        Case::new(64, 64, 8)
            .with_window(TopLeft, Some(0), Some(0))
            .with_weights(),
        Case::new(70, 5, 4)
            .with_window(TopLeft, Some(2), Some(2))
            .with_weights(),
        Case::new(70, 5, 4)
            .with_window(TopLeft, Some(2), Some(2))
            .with_statistics()
            .zero_if_blind(),
        Case::new(40, 40, 4)
            .with_window(Offset(10_000), Some(7), Some(7))
            .with_statistics(),
        Case::new(40, 40, 4)
            .with_window(Offset(-10_000), Some(7), Some(7))
            .zero_if_blind(),
        Case::new(40, 40, 4).with_window(TopLeft, Some(usize::MAX), Some(usize::MAX)),
        Case::new(40, 40, 4).with_window(TopLeft, None, None),
        long(Some(63), Some(0)),
        long(Some(64), Some(0)).with_statistics().zero_if_blind(),
        long(Some(127), Some(64)).poisoned(),
        long(Some(3), Some(3)).poisoned(),
        few(Some(65), Some(0)),
        few(Some(63), None).zero_if_blind(),
        few(Some(1), Some(0)).batched(&[2], 4).grouped(2).poisoned(),
        few(Some(100), Some(0)).with_mask(&[300], 0.5, false),
        few(Some(100), Some(0))
            .with_mask(&[3, 300], 0.1, true)
            .zero_if_blind(),
        Case::new(90, 90, 8)
            .with_window(TopLeft, Some(30), Some(2))
            .with_mask(&[90, 90], 0.3, true)
            .with_bias(&[90, 90], true),
        Case::new(90, 90, 8)
            .batched(&[2], 2)
            .with_window(TopLeft, Some(30), Some(2))
            .with_dropout(HALF),
    ]);
    cases
}

pub(super) fn sequences() -> Vec<Case> {
    let padded = |q, k| Case::new(q, k, 8).batched(&[4], 2);
    let keys: &[i32] = &[70, 0, 1, 65];
    let queries: &[i32] = &[3, 35, 0, 20];
    let starts: &[i32] = &[0, 10, 10, 75, 140];
    let few: &[i32] = &[0, 1, 1, 3, 4];
    let (inner_queries, inner_keys): (&[i32], &[i32]) = (&[2, 5, 40, 60], &[7, 7, 90, 120]);
    let packed = || {
        Case::new(140, 140, 8)
            .batched(&[], 2)
            .packed(starts, starts)
    };
    let inner = || {
        Case::new(66, 130, 8)
            .batched(&[2], 1)
            .packed(inner_queries, inner_keys)
    };
    let cases = vec![
        padded(35, 70).padded(keys, None).with_statistics(),
        padded(35, 70).padded(keys, Some(queries)).with_statistics(),
        padded(35, 70).padded(keys, Some(queries)).with_weights(),
        padded(35, 70)
            .padded(keys, None)
            .with_causal(Causal::bottom_right()),
        padded(35, 70)
            .padded(keys, Some(queries))
            .with_causal(Causal::bottom_right()),
        padded(35, 70)
            .padded(keys, Some(queries))
            .with_causal(Causal::top_left()),
        padded(1, 70).padded(keys, None),
        padded(3, 70)
            .padded(keys, None)
            .with_causal(Causal::bottom_right()),
        padded(35, 70)
            .padded(keys, Some(queries))
            .with_window(BottomRight, Some(9), Some(2))
            .with_statistics(),
        padded(35, 70)
            .padded(keys, None)
            .with_mask(&[4, 1, 35, 70], 0.4, true),
        padded(35, 70)
            .grouped(1)
            .padded(keys, Some(queries))
            .with_bias(&[4, 1, 35, 70], false),
        padded(35, 70)
            .padded(keys, Some(queries))
            .with_dropout(HALF),
        packed().with_statistics(),
        packed().with_causal(Causal::bottom_right()).with_weights(),
        packed().with_causal(Causal::top_left()),
        packed().with_window(TopLeft, Some(20), Some(20)),
        packed().with_mask(&[140, 140], 0.3, true),
        inner().with_statistics(),
        inner().with_weights(),
        inner()
            .with_causal(Causal::bottom_right())
            .with_statistics(),
        inner().with_window(BottomRight, Some(30), Some(0)),
        Case::new(4, 140, 16)
            .batched(&[2], 2)
            .packed(few, starts)
            .with_causal(Causal::bottom_right()),
        Case::new(5, 7, 4).packed(&[0], &[0]).with_statistics(),
        Case::new(5, 7, 4)
            .packed(&[3, 3], &[0, 7])
            .with_statistics(),
    ];
    let mut cases = with_both_rules(cases);
    cases.extend([
        padded(35, 70)
            .padded(keys, Some(queries))
            .poisoned()
            .with_statistics(),
        padded(1, 70).padded(keys, None).poisoned(),
        padded(3, 130)
            .padded(&[70, 0, 130, 65], Some(&[3, 1, 2, 0]))
            .poisoned(),
        inner().with_causal(Causal::bottom_right()).poisoned(),
        packed()
            .with_window(BottomRight, Some(4), Some(0))
            .poisoned(),
        packed()
            .with_causal(Causal::offset(-3))
            .poisoned()
            .with_statistics(),
    ]);
    cases
}

pub(super) fn segments() -> Vec<Case> {
    let case = |q, k| Case::new(q, k, 8).batched(&[2], 2);
    let cases = vec![
        case(5, 7).with_segments(2),
        case(1, 130).with_segments(3),
        case(66, 70).with_segments(1),
        case(66, 70).with_segments(4).with_statistics(),
        case(66, 70).with_segments(40).with_weights(),
        case(70, 70)
            .with_segments(3)
            .with_causal(Causal::top_left()),
        case(66, 130)
            .grouped(1)
            .with_segments(3)
            .with_window(BottomRight, Some(40), Some(0)),
        case(66, 70)
            .with_segments(3)
            .with_mask(&[66, 70], 0.5, true),
        case(66, 70)
            .with_segments(3)
            .padded(&[70, 33], None)
            .with_bias(&[66, 70], false),
    ];
    let mut cases = with_both_rules(cases);
    cases.extend([
        case(5, 70).with_segments(20).poisoned(),
        case(20, 130).with_segments(50).poisoned().with_statistics(),
    ]);
    cases
}

pub(super) fn blocks() -> Vec<Case> {
    let case = |q, k| Case::new(q, k, 8).batched(&[2], 2);
    let cases = vec![
        case(66, 70).with_blocks(&[2, 2, 5, 5], [16, 16], 0.5),
        case(66, 70)
            .with_blocks(&[5, 5], [16, 16], 0.3)
            .with_statistics(),
        case(66, 70).with_blocks(&[2, 1, 1, 5], [66, 16], 0.5),
        case(66, 70).with_blocks(&[2, 5, 1], [16, 70], 0.5),
        case(66, 70).with_blocks(&[], [16, 16], 0.5),
        case(5, 7).with_blocks(&[5, 7], [1, 1], 0.5).with_weights(),
        case(3, 260).with_blocks(&[1, 5], [64, 64], 0.5),
        case(130, 200)
            .with_blocks(&[3, 4], [64, 64], 0.5)
            .with_causal(Causal::bottom_right()),
        case(130, 200)
            .grouped(1)
            .with_blocks(&[2, 5, 7], [27, 31], 0.5)
            .with_window(BottomRight, Some(90), Some(0)),
        case(66, 70)
            .with_blocks(&[5, 5], [16, 16], 0.6)
            .with_mask(&[66, 70], 0.5, true),
        case(66, 70).with_blocks(&[1, 1], [1000, 1000], 1.0),
        case(66, 70)
            .with_blocks(&[5, 5], [16, 16], 0.5)
            .padded(&[70, 40], Some(&[66, 9])),
    ];
    let mut cases = with_both_rules(cases);
    cases.extend([
        case(5, 200).with_blocks(&[1, 13], [8, 16], 0.5).poisoned(),
        case(66, 200)
            .with_blocks(&[2, 1, 4], [70, 64], 0.5)
            .poisoned()
            .with_statistics(),
    ]);
    cases
}

pub(super) fn scores() -> Vec<Case> {
    let case = |q, k| Case::new(q, k, 8).batched(&[2], 2);
    let mut cases = Vec::new();
    for alignment in ALIGNMENTS {
        cases.push(case(17, 33).with_alibi(alignment).with_statistics());
        cases.push(
            case(17, 33)
                .with_relative(9, 4, alignment)
                .with_statistics(),
        );
    }
    cases.extend([
        case(17, 33).with_softcap(0.5),
        case(66, 70).with_softcap(2.0).with_statistics(),
        case(66, 70).with_softcap(50.0).sized(4.0),
        case(5, 130).with_softcap(1e-3),
        case(5, 130).with_softcap(1e4),
        case(1, 70).with_softcap(3.0).with_scale(1.0),
        case(66, 70)
            .with_alibi(BottomRight)
            .with_causal(Causal::bottom_right()),
        case(1, 300).grouped(1).with_alibi(BottomRight),
        case(66, 70).with_relative(1, 0, TopLeft),
        case(66, 130)
            .with_relative(200, 120, BottomRight)
            .with_causal(Causal::bottom_right()),
        case(1, 300).with_relative(33, 32, BottomRight),
        case(66, 70)
            .with_softcap(1.5)
            .with_bias(&[2, 2, 66, 70], false),
        case(66, 70).with_alibi(TopLeft).with_bias(&[66, 70], true),
        case(5, 70)
            .with_relative(7, 3, TopLeft)
            .with_bias(&[5, 70], true),
        case(66, 70)
            .with_relative(7, 3, TopLeft)
            .with_mask(&[66, 70], 0.5, true),
        case(66, 70)
            .with_softcap(1.0)
            .with_mask(&[66, 70], 0.5, true)
            .zero_if_blind(),
        case(66, 70)
            .with_alibi(Offset(2))
            .with_mask(&[66, 70], 0.5, true)
            .with_weights(),
        case(70, 70)
            .grouped(1)
            .with_softcap(1.5)
            .with_alibi(TopLeft)
            .with_relative(21, 10, TopLeft)
            .with_bias(&[2, 1, 70, 70], false)
            .with_causal(Causal::top_left())
            .with_statistics(),
        case(40, 70)
            .with_softcap(1.5)
            .with_alibi(BottomRight)
            .with_relative(21, 10, BottomRight)
            .padded(&[70, 33], Some(&[20, 40]))
            .with_mask(&[40, 70], 0.7, true)
            .zero_if_blind(),
        case(70, 70)
            .with_alibi(BottomRight)
            .with_relative(5, 2, BottomRight)
            .packed(&[0, 20, 66], &[0, 33, 70]),
        case(35, 70)
            .with_softcap(1.5)
            .with_alibi(TopLeft)
            .with_dropout(HALF),
    ]);
    cases
}

pub(super) fn sinks() -> Vec<Case> {
    let case = |q, k| Case::new(q, k, 8).batched(&[2], 4);
    let near = SinksCase::Near;
    let cases = vec![
        case(17, 33).with_sinks(near(0.0)).with_statistics(),
        case(66, 70).with_sinks(near(3.0)).with_weights(),
        case(5, 130).with_sinks(near(-2.0)).with_statistics(),
        case(1, 300).grouped(2).with_sinks(near(1.0)),
        case(66, 70).with_sinks(near(30.0)).with_statistics(),
        case(17, 33).with_sinks(near(-1e4)).with_statistics(),
        case(66, 70)
            .with_sinks(SinksCase::Infinite)
            .with_statistics(),
        case(70, 70)
            .with_sinks(near(0.5))
            .with_causal(Causal::top_left()),
        case(66, 70)
            .with_sinks(near(0.0))
            .with_mask(&[66, 70], 0.3, true)
            .with_statistics(),
        case(5, 70)
            .with_sinks(near(0.0))
            .with_mask(&[5, 70], 0.3, true)
            .with_statistics(),
        case(66, 70)
            .with_sinks(SinksCase::Infinite)
            .with_mask(&[66, 70], 0.3, true),
        case(66, 70)
            .with_sinks(near(1.0))
            .with_causal(Causal::offset(-9))
            .with_statistics(),
        case(7, 0).with_sinks(near(0.5)).with_statistics(),
        case(130, 70)
            .with_sinks(near(0.0))
            .with_window(BottomRight, Some(8), Some(0))
            .with_statistics(),
        case(35, 70)
            .with_sinks(near(0.5))
            .padded(&[70, 0], Some(&[35, 20]))
            .with_statistics(),
        case(66, 70)
            .with_sinks(near(0.5))
            .with_softcap(1.0)
            .with_bias(&[66, 70], true),
        case(35, 70).with_sinks(near(0.5)).with_dropout(HALF),
    ];
    with_both_rules(cases)
}

pub(super) fn stages() -> Vec<Case> {
    let case = |q, k| Case::new(q, k, 8).batched(&[2], 4);
    let mut cases = Vec::new();
    for stage in [Stage::Scaled, Stage::Capped, Stage::Masked] {
        cases.extend([
            case(5, 7).with_stage(stage),
            case(66, 70)
                .grouped(2)
                .with_softcap(1.5)
                .with_bias(&[66, 70], false)
                .with_stage(stage),
            case(66, 70)
                .with_causal(Causal::bottom_right())
                .with_stage(stage),
            case(3, 130)
                .with_softcap(2.0)
                .with_mask(&[3, 130], 0.4, true)
                .with_stage(stage),
            case(66, 70)
                .with_window(TopLeft, Some(9), Some(4))
                .with_stage(stage)
                .with_statistics(),
            case(35, 70)
                .with_softcap(1.5)
                .padded(&[70, 20], Some(&[35, 11]))
                .with_causal(Causal::bottom_right())
                .with_stage(stage),
            case(66, 70)
                .packed(&[0, 20, 60], &[0, 5, 70])
                .with_alibi(TopLeft)
                .with_stage(stage),
            case(17, 33)
                .with_sinks(SinksCase::Near(0.0))
                .with_stage(stage),
            case(5, 70).with_bias(&[5, 70], true).with_stage(stage),
        ]);
    }
    with_both_rules(cases)
}

const CONTIGUOUS: PlaceCase = PlaceCase::Contiguous { spare: 9 };
const RING: PlaceCase = PlaceCase::Ring { capacity: 48 };
const PAGED: PlaceCase = PlaceCase::Paged {
    page_size: 16,
    shared: 1,
};

pub(super) fn caches() -> Vec<Case> {
    use RowsCase::{Int8, Plain, Q8_0};
    let case = |q, k| Case::new(q, k, 64).batched(&[2], 4).grouped(2);
    let mut cases = Vec::new();
    for place in [CONTIGUOUS, RING, PAGED] {
        for key in [Plain, Int8, Q8_0] {
            for value in [Plain, Int8, Q8_0] {
                cases.push(
                    case(1, 70)
                        .padded(&[70, 33], None)
                        .with_cache(place, key, value),
                );
            }
        }
        for rows in [Plain, Int8, Q8_0] {
            let prefill = case(20, 70)
                .padded(&[65, 20], None)
                .with_cache(place, rows, rows);
            cases.push(
                prefill
                    .with_causal(Causal::bottom_right())
                    .with_statistics(),
            );
            let few = case(3, 130)
                .padded(&[130, 1], Some(&[3, 1]))
                .with_cache(place, rows, rows);
            cases.push(few.with_causal(Causal::bottom_right()).with_weights());
        }
        cases.extend([
            case(1, 70).with_cache(place, Plain, Plain),
            case(66, 130)
                .with_cache(place, Plain, Plain)
                .with_causal(Causal::bottom_right()),
            case(5, 130)
                .padded(&[128, 0], None)
                .with_cache(place, Plain, Plain)
                .with_causal(Causal::bottom_right())
                .with_window(BottomRight, Some(20), Some(0))
                .with_statistics(),
            case(5, 130)
                .padded(&[129, 64], None)
                .with_cache(place, Int8, Plain)
                .with_causal(Causal::bottom_right())
                .with_softcap(2.0)
                .with_alibi(BottomRight)
                .with_sinks(SinksCase::Near(0.5)),
            case(5, 70)
                .padded(&[70, 64], None)
                .with_cache(place, Plain, Q8_0)
                .with_mask(&[5, 70], 0.5, true),
            case(5, 70)
                .padded(&[70, 64], None)
                .with_cache(place, Plain, Plain)
                .with_stage(Stage::Masked),
            case(5, 70)
                .padded(&[70, 64], None)
                .with_cache(place, Plain, Plain)
                .with_stage(Stage::Scaled),
            Case::new(2, 20, 32)
                .with_value_depth(96)
                .with_cache(place, Q8_0, Q8_0),
            Case::new(2, 20, 5)
                .with_value_depth(7)
                .with_cache(place, Int8, Plain),
        ]);
    }
    cases.extend([
        case(2, 300).with_cache(PlaceCase::Ring { capacity: 1 }, Plain, Plain),
        case(2, 300).padded(&[300, 257], None).with_cache(
            PlaceCase::Ring { capacity: 256 },
            Plain,
            Int8,
        ),
        case(2, 70).padded(&[70, 66], None).with_cache(
            PlaceCase::Paged {
                page_size: 1,
                shared: 65,
            },
            Plain,
            Plain,
        ),
        case(2, 300).padded(&[300, 255], None).with_cache(
            PlaceCase::Paged {
                page_size: 64,
                shared: 0,
            },
            Q8_0,
            Plain,
        ),
        case(2, 300).padded(&[300, 255], None).with_cache(
            PlaceCase::Paged {
                page_size: 100,
                shared: 2,
            },
            Plain,
            Q8_0,
        ),
    ]);
    cases
}
