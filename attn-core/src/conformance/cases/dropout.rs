//! Attention that drops weights.

use super::super::case::DropoutCase;
use super::Case;
use crate::position::Causal;
use crate::random::{Convention, Counters, DefaultWidth};
use alloc::vec;
use alloc::vec::Vec;

pub(super) const HALF: DropoutCase = DropoutCase {
    rate: 0.5,
    shared: false,
    convention: Convention {
        counters: Counters::PerElement,
        width: DefaultWidth::Bits32,
    },
};

/// Every way in which JAX draws, for masks of each head's own and for shared ones.
pub(super) fn kinds() -> Vec<DropoutCase> {
    let mut kinds = Vec::new();
    for (rate, shared) in [(0.1, true), (0.5, false)] {
        for counters in [Counters::PerElement, Counters::SplitInHalves] {
            for width in [DefaultWidth::Bits32, DefaultWidth::Bits64] {
                kinds.push(DropoutCase {
                    rate,
                    shared,
                    convention: Convention { counters, width },
                });
            }
        }
    }
    kinds
}

pub(super) fn forward() -> Vec<Case> {
    let mut cases = Vec::new();
    for dropout in kinds() {
        // An odd number of words is where halves differ.
        for (q, k, d) in [(1, 1, 4), (3, 5, 4), (66, 70, 16)] {
            cases.push(Case::new(q, k, d).batched(&[2], 3).with_dropout(dropout));
        }
    }
    cases.extend([
        Case::new(130, 257, 33).with_dropout(HALF),
        Case::new(5, 1025, 8).with_dropout(HALF),
        Case::new(66, 70, 8)
            .batched(&[2, 2], 2)
            .with_value_depth(5)
            .with_dropout(DropoutCase { rate: 0.9, ..HALF }),
        Case::new(5, 7, 4).with_dropout(DropoutCase { rate: 1.0, ..HALF }),
        Case::new(66, 70, 4)
            .batched(&[2], 1)
            .with_dropout(DropoutCase {
                rate: 1.0,
                shared: true,
                ..HALF
            }),
    ]);
    cases.extend(beside_others());
    cases
}

/// Dropout beside every other part of a request.
fn beside_others() -> Vec<Case> {
    let case = || Case::new(66, 70, 8).batched(&[2], 2).with_dropout(HALF);
    vec![
        Case {
            weights: true,
            ..case()
        }
        .named("weights"),
        case().with_causal(Causal::bottom_right()),
        case().with_causal(Causal::offset(-3)),
        case().with_causal(Causal::offset(-3)).zero_if_blind(),
        case().with_mask(&[2, 1, 66, 70], 0.5, true),
        case().with_mask(&[2, 1, 66, 70], 0.5, true).zero_if_blind(),
        case().with_bias(&[2, 1, 70], false),
        case().with_bias(&[66, 70], true).with_scale(0.7),
        Case {
            weights: true,
            ..case().with_mask(&[70], 0.7, false)
        }
        .named("weights"),
    ]
}
