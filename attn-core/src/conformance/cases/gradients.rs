//! Attention whose gradients are looked at. The oracle needs every score of a head for the gradient of one key, so
//! cases are smaller than those of the forward pass.

use super::super::case::DropoutCase;
use super::dropout::{HALF, kinds};
use super::{Case, Placement};
use crate::position::Causal;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

pub(super) fn plain() -> Vec<Case> {
    vec![
        Case::new(1, 1, 1),
        Case::new(1, 1, 33),
        Case::new(7, 1, 64),
        Case::new(1, 130, 16),
        Case::new(2, 3, 4).batched(&[2], 3),
        Case::new(3, 17, 128),
        Case::new(15, 2, 7).with_value_depth(13),
        Case::new(16, 16, 16).batched(&[1, 2], 2),
        Case::new(17, 33, 5).batched(&[3], 1).with_value_depth(1),
        Case::new(31, 15, 256),
        Case::new(33, 64, 17).with_value_depth(80),
        Case::new(63, 65, 32).batched(&[], 2),
        Case::new(64, 64, 64),
        Case::new(65, 127, 8).batched(&[2], 2),
        Case::new(127, 65, 3).with_value_depth(65),
        Case::new(130, 130, 13),
        Case::new(257, 5, 16),
        Case::new(5, 257, 16).with_value_depth(33),
        Case::new(3, 1025, 8),
        Case::new(1025, 3, 8),
        Case::new(17, 65, 8).with_scale(0.3),
        Case::new(17, 65, 8).with_scale(-0.25),
        Case::new(17, 65, 8).with_scale(0.0),
        Case::new(33, 70, 16).sized(2.0),
        Case::new(33, 70, 16).sized(1e-3),
        Case::new(5, 70, 8).sized(0.0),
        Case::new(0, 7, 4),
        Case::new(7, 0, 4),
        Case::new(7, 0, 4).zero_if_blind(),
        Case::new(3, 5, 4).batched(&[0], 2),
        Case::new(3, 5, 4).with_value_depth(0),
        Case::new(3, 5, 0).with_value_depth(4).with_scale(1.0),
    ]
}

pub(super) fn masked() -> Vec<Case> {
    let mut cases = Vec::new();
    for causal in [
        Causal::top_left(),
        Causal::bottom_right(),
        Causal::offset(-2),
    ] {
        for (q, k, d) in [(17, 17, 8), (40, 130, 16), (130, 40, 5)] {
            cases.push(Case::new(q, k, d).with_causal(causal));
            cases.push(Case::new(q, k, d).with_causal(causal).zero_if_blind());
        }
    }
    cases.push(Case::new(17, 70, 8).with_causal(Causal::offset(-10_000)));
    let (b, h, q, k) = (2, 2, 35, 70);
    let shapes: [&[usize]; 6] = [
        &[b, h, q, k],
        &[b, 1, 1, k],
        &[1, h, q, 1],
        &[k],
        &[h, 1, k],
        &[b, 1, q, k],
    ];
    for (shape, density) in shapes.into_iter().zip([0.5, 0.2, 0.9, 0.97, 0.5, 0.1]) {
        let case = || Case::new(q, k, 8).batched(&[b], h);
        cases.push(case().with_mask(shape, density, true));
        let zero = case().with_mask(shape, density, true).zero_if_blind();
        cases.push(zero);
    }
    let both = Case::new(70, 70, 8).with_mask(&[70], 0.6, false);
    cases.push(both.with_causal(Causal::top_left()));
    cases.extend(dropped());
    cases
}

fn dropped() -> Vec<Case> {
    let mut cases: Vec<Case> = kinds()
        .into_iter()
        .map(|dropout| Case::new(5, 9, 4).batched(&[2], 3).with_dropout(dropout))
        .collect();
    let case = || Case::new(35, 70, 8).batched(&[2], 2);
    let shared = DropoutCase {
        shared: true,
        rate: 0.1,
        ..HALF
    };
    cases.extend([
        case().with_dropout(HALF),
        case().with_dropout(shared).with_causal(Causal::top_left()),
        case().with_dropout(HALF).with_mask(&[35, 70], 0.5, true),
        case()
            .with_dropout(HALF)
            .with_mask(&[2, 1, 35, 70], 0.5, true)
            .zero_if_blind(),
        case().with_dropout(shared).with_scale(0.6),
        Case::new(7, 1, 8).with_dropout(HALF),
        Case::new(5, 7, 4).with_dropout(DropoutCase { rate: 1.0, ..HALF }),
    ]);
    cases
}

/// Every way in which a bias can be broadcast.
pub(super) fn bias() -> Vec<Case> {
    let (b, h) = (2, 2);
    let mut cases = Vec::new();
    for (q, k, d) in [(5, 7, 4), (35, 70, 8)] {
        let shapes: [&[usize]; 11] = [
            &[b, h, q, k],
            &[1, h, q, k],
            &[b, 1, q, k],
            &[b, h, 1, k],
            &[b, h, q, 1],
            &[h, 1, k],
            &[q, k],
            &[q, 1],
            &[k],
            &[b, 1, 1, 1],
            &[],
        ];
        for shape in shapes {
            cases.push(Case::new(q, k, d).batched(&[b], h).with_bias(shape, false));
        }
    }
    let case = || Case::new(35, 70, 8).batched(&[2], 2);
    cases.extend([
        case().with_bias(&[2, 2, 35, 70], true),
        case().with_bias(&[2, 1, 70], true),
        case()
            .with_bias(&[35, 70], true)
            .with_mask(&[35, 70], 0.5, true),
        case()
            .with_bias(&[35, 70], true)
            .with_mask(&[35, 70], 0.5, true)
            .zero_if_blind(),
        case()
            .with_bias(&[2, 35, 70], false)
            .with_causal(Causal::offset(-3)),
        case()
            .with_bias(&[2, 1, 35, 70], false)
            .with_dropout(HALF)
            .with_scale(0.4),
        Case::new(3, 1, 4).with_bias(&[3, 1], false),
        Case::new(0, 7, 4).with_bias(&[7], false),
    ]);
    cases
}

pub(super) fn strided() -> Vec<Case> {
    let mut cases = Vec::new();
    for placement in [
        Placement::HeadsMajor,
        Placement::Gaps,
        Placement::Transposed,
    ] {
        for (q, k, d) in [(5, 7, 3), (35, 70, 16)] {
            let case = Case {
                placement,
                ..Case::new(q, k, d).batched(&[2, 2], 2)
            };
            cases.push(case.named(&format!("{placement:?}")));
        }
        let case = Case {
            placement,
            ..Case::new(17, 33, 8).batched(&[2], 2)
        };
        cases.push(
            case.with_mask(&[2, 17, 33], 0.7, true)
                .with_bias(&[2, 1, 17, 33], false)
                .with_dropout(HALF)
                .named(&format!("{placement:?}")),
        );
    }
    cases
}
