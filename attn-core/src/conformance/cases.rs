//! The cases of attention, by subject.

mod dropout;
mod gradients;
mod parts;

use super::Group;
use super::case::MaskCase;
use crate::mask::FullyMasked;
use crate::position::Causal;
use crate::scores::Scale;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

pub(super) use super::case::{Case, Placement};

const LENGTHS: [usize; 16] = [1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 130, 257];
const DEPTHS: [usize; 19] = [
    1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 32, 33, 64, 65, 80, 96, 128, 130, 256,
];

/// The cases of a group.
pub(super) fn of(group: Group) -> Vec<Case> {
    match group {
        Group::Plain => plain(),
        Group::Long => long(),
        Group::Causal => causal(),
        Group::Mask => mask(),
        Group::Bias => bias(),
        Group::Weights => weights(),
        Group::Strided => strided(),
        Group::Extreme => extreme(),
        Group::Dropout => dropout::forward(),
        Group::Grouped => parts::grouped(),
        Group::Window => parts::window(),
        Group::Sequences => parts::sequences(),
        Group::Segments => parts::segments(),
        Group::Blocks => parts::blocks(),
        Group::Scores => parts::scores(),
        Group::Sinks => parts::sinks(),
        Group::Stages => parts::stages(),
        Group::Caches => parts::caches(),
        Group::Gradients => gradients::plain(),
        Group::GradientsMasked => gradients::masked(),
        Group::GradientsBias => gradients::bias(),
        Group::GradientsStrided => gradients::strided(),
        Group::Project
        | Group::Normalize
        | Group::ProjectBackward
        | Group::NormalizeBackward
        | Group::Bitwise
        | Group::Errors => Vec::new(),
    }
}

/// Every length with some depth and every depth with some length: steps through the lists that are coprime to their sizes.
fn plain() -> Vec<Case> {
    let pairs = (0..LENGTHS.len() * 3).map(|i| {
        let case = Case::new(
            LENGTHS[i % 16],
            LENGTHS[(i * 7 + i / 16) % 16],
            DEPTHS[i * 5 % 19],
        );
        match i % 3 {
            0 => case,
            1 => Case {
                value_depth: DEPTHS[i * 11 % 19],
                ..case
            }
            .batched(&[2], 3),
            _ => case.batched(&[1, 2], 2),
        }
    });
    pairs.collect()
}

fn long() -> Vec<Case> {
    vec![
        Case::new(1, 1000, 64),
        Case::new(5, 1025, 33),
        Case::new(65, 4097, 64),
        Case {
            causal: Some(Causal::bottom_right()),
            ..Case::new(70, 4097, 32)
        }
        .named("causal"),
        Case::new(2, 4097, 256),
        Case::new(4097, 3, 8),
    ]
}

fn causal() -> Vec<Case> {
    let alignments = [
        ("top left", Causal::top_left()),
        ("bottom right", Causal::bottom_right()),
        ("offset 3", Causal::offset(3)),
        ("offset -2", Causal::offset(-2)),
        ("offset beyond", Causal::offset(10_000)),
        ("offset before", Causal::offset(-10_000)),
    ];
    let sizes = [
        (1, 1, 8),
        (17, 17, 16),
        (64, 64, 5),
        (65, 130, 32),
        (130, 65, 33),
        (200, 200, 64),
    ];
    let mut cases = Vec::new();
    for (name, causal) in alignments {
        for (q, k, d) in sizes {
            for fully_masked in [FullyMasked::MeanOfValues, FullyMasked::Zero] {
                let case = Case {
                    causal: Some(causal),
                    fully_masked,
                    ..Case::new(q, k, d)
                };
                cases.push(
                    case.named(name)
                        .named(if fully_masked == FullyMasked::Zero {
                            "zero"
                        } else {
                            "mean"
                        }),
                );
            }
        }
    }
    cases
}

fn mask() -> Vec<Case> {
    let (b, h) = (2, 3);
    let mut cases = Vec::new();
    for (q, k, d) in [(5, 7, 4), (66, 70, 16), (64, 192, 8)] {
        let shapes: [&[usize]; 9] = [
            &[],
            &[b, h, q, k],
            &[b, 1, 1, k],
            &[1, h, q, 1],
            &[q, k],
            &[k],
            &[1],
            &[b, 1, q, k],
            &[h, 1, k],
        ];
        for (i, shape) in shapes.into_iter().enumerate() {
            let fully_masked = if i % 2 == 0 {
                FullyMasked::MeanOfValues
            } else {
                FullyMasked::Zero
            };
            for (density, blind_rows, keep) in
                [(0.5, false, true), (0.2, true, false), (0.97, true, true)]
            {
                let mask = Some(MaskCase {
                    shape: shape.to_vec(),
                    density,
                    blind_rows,
                    keep,
                });
                let case = Case {
                    mask,
                    fully_masked,
                    ..Case::new(q, k, d).batched(&[b], h)
                };
                cases.push(case.named(&format!(
                    "mask {shape:?} {density} {blind_rows} {keep} {fully_masked:?}"
                )));
            }
        }
    }
    let both = MaskCase {
        shape: vec![70],
        density: 0.6,
        blind_rows: false,
        keep: true,
    };
    cases.push(
        Case {
            mask: Some(both),
            causal: Some(Causal::top_left()),
            ..Case::new(70, 70, 8)
        }
        .named("mask and causal"),
    );
    cases
}

fn bias() -> Vec<Case> {
    let (q, k, h) = (66, 70, 2);
    let mut cases = Vec::new();
    let shapes: [&[usize]; 5] = [&[2, h, q, k], &[h, 1, k], &[q, 1], &[1], &[1, h, q, k]];
    for shape in shapes {
        for infinite in [false, true] {
            let case = Case {
                bias: Some((shape.to_vec(), infinite)),
                ..Case::new(q, k, 16).batched(&[2], h)
            };
            cases.push(case.named(&format!("bias {shape:?} infinite {infinite}")));
        }
    }
    let mask = Some(MaskCase {
        shape: vec![q, k],
        density: 0.5,
        blind_rows: true,
        keep: true,
    });
    let case = Case {
        bias: Some((vec![q, k], true)),
        mask,
        ..Case::new(q, k, 16)
    };
    cases.push(case.clone().named("bias and mask"));
    cases.push(
        Case {
            fully_masked: FullyMasked::Zero,
            ..case
        }
        .named("bias and mask zero"),
    );
    for scale in [0.0, 1.0, 0.3, -0.25] {
        cases.push(
            Case {
                scale: Scale::Value(scale),
                ..Case::new(17, 65, 8)
            }
            .named(&format!("scale {scale}")),
        );
    }
    cases
}

fn weights() -> Vec<Case> {
    let mask = Some(MaskCase {
        shape: vec![66, 70],
        density: 0.5,
        blind_rows: true,
        keep: true,
    });
    vec![
        Case {
            weights: true,
            ..Case::new(3, 5, 4).batched(&[2], 2)
        },
        Case {
            weights: true,
            ..Case::new(70, 130, 16).batched(&[], 3)
        },
        Case {
            weights: true,
            causal: Some(Causal::top_left()),
            ..Case::new(100, 100, 8)
        }
        .named("causal"),
        Case {
            weights: true,
            mask: mask.clone(),
            ..Case::new(66, 70, 8)
        }
        .named("mask mean"),
        Case {
            weights: true,
            mask,
            fully_masked: FullyMasked::Zero,
            ..Case::new(66, 70, 8)
        }
        .named("mask zero"),
        Case {
            weights: true,
            value_depth: 0,
            ..Case::new(9, 70, 8)
        }
        .named("no values"),
    ]
}

fn strided() -> Vec<Case> {
    let mut cases = Vec::new();
    for placement in [
        Placement::HeadsMajor,
        Placement::Gaps,
        Placement::Transposed,
    ] {
        for (q, k, d) in [(5, 7, 3), (67, 130, 16)] {
            let case = Case {
                placement,
                ..Case::new(q, k, d).batched(&[2, 2], 3)
            };
            cases.push(case.named(&format!("{placement:?}")));
        }
        let (q, k, h) = (35, 70, 2);
        let mask = MaskCase {
            shape: vec![h, q, k],
            density: 0.7,
            blind_rows: true,
            keep: true,
        };
        let case = Case {
            placement,
            mask: Some(mask),
            bias: Some((vec![2, 1, q, k], false)),
            weights: true,
            ..Case::new(q, k, 8).batched(&[2], h)
        };
        cases.push(case.named(&format!("{placement:?} mask, bias, weights")));
    }
    cases
}

fn extreme() -> Vec<Case> {
    vec![
        Case {
            size: 5.0,
            ..Case::new(33, 130, 64)
        }
        .named("large scores"),
        Case {
            size: 0.0,
            ..Case::new(5, 70, 8)
        }
        .named("all equal"),
        Case {
            size: 1e-3,
            ..Case::new(5, 70, 8)
        }
        .named("small scores"),
        Case::new(0, 7, 4),
        Case::new(7, 0, 4),
        Case {
            fully_masked: FullyMasked::Zero,
            ..Case::new(7, 0, 4)
        }
        .named("zero"),
        Case::new(3, 5, 4).batched(&[0], 2),
        Case {
            value_depth: 0,
            ..Case::new(3, 5, 4)
        }
        .named("no values"),
        Case {
            depth: 0,
            scale: Scale::Value(1.0),
            ..Case::new(3, 5, 4)
        }
        .named("no depth"),
    ]
}
