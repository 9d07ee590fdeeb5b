//! The cases of attention, by subject.

mod dropout;
mod gradients;

use super::Group;
use crate::mask::FullyMasked;
use crate::position::Causal;
use crate::random::Convention;
use crate::scores::Scale;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// How an array lies in its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// `[batch..., length, heads, depth]` without gaps.
    Contiguous,
    /// Stored as `[batch..., heads, length, depth]`.
    HeadsMajor,
    /// With gaps between heads, rows and at the start.
    Gaps,
    /// Depth before length: the last axis is not contiguous.
    Transposed,
}

/// A mask tensor.
#[derive(Debug, Clone)]
pub(super) struct MaskCase {
    /// Its shape, which broadcasts to `[batch..., heads, query_length, key_length]`.
    pub(super) shape: Vec<usize>,
    /// How much of it is seen.
    pub(super) density: f64,
    /// Whether every third row sees nothing.
    pub(super) blind_rows: bool,
    /// Whether a set byte means that the query sees the key.
    pub(super) keep: bool,
}

/// Dropout of weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct DropoutCase {
    pub(super) rate: f64,
    /// Whether all heads and batch entries share a mask.
    pub(super) shared: bool,
    pub(super) convention: Convention,
}

/// One call of attention.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// Its name in reports; the data depend on it.
    pub(super) name: String,
    /// Batch axes.
    pub(super) batch: Vec<usize>,
    /// Queries.
    pub(super) query_length: usize,
    /// Keys.
    pub(super) key_length: usize,
    /// Heads.
    pub(super) heads: usize,
    /// Depth of queries and keys.
    pub(super) depth: usize,
    /// Depth of values.
    pub(super) value_depth: usize,
    /// How the arrays lie.
    pub(super) placement: Placement,
    /// A causal mask.
    pub(super) causal: Option<Causal>,
    /// A mask tensor.
    pub(super) mask: Option<MaskCase>,
    /// An additive bias of this shape; with `true` some of it is -inf.
    pub(super) bias: Option<(Vec<usize>, bool)>,
    /// The factor on the scores.
    pub(super) scale: Scale,
    /// What a query gets that sees no key.
    pub(super) fully_masked: FullyMasked,
    /// Which weights are dropped.
    pub(super) dropout: Option<DropoutCase>,
    /// Whether weights are asked for.
    pub(super) weights: bool,
    /// Size of queries and keys.
    pub(super) size: f64,
}

impl Case {
    fn new(query_length: usize, key_length: usize, depth: usize) -> Self {
        Self {
            name: format!("q{query_length} k{key_length} d{depth}"),
            batch: Vec::new(),
            query_length,
            key_length,
            heads: 1,
            depth,
            value_depth: depth,
            placement: Placement::Contiguous,
            causal: None,
            mask: None,
            bias: None,
            scale: Scale::InverseSqrtDepth,
            fully_masked: FullyMasked::MeanOfValues,
            dropout: None,
            weights: false,
            size: 1.0,
        }
    }

    fn with_dropout(self, dropout: DropoutCase) -> Self {
        let case = Self {
            dropout: Some(dropout),
            ..self
        };
        case.named(&format!("{dropout:?}"))
    }

    fn with_mask(self, shape: &[usize], density: f64, blind_rows: bool) -> Self {
        let mask = MaskCase {
            shape: shape.to_vec(),
            density,
            blind_rows,
            keep: true,
        };
        let case = Self {
            mask: Some(mask),
            ..self
        };
        case.named(&format!("mask {shape:?} {density} {blind_rows}"))
    }

    fn with_causal(self, causal: Causal) -> Self {
        let case = Self {
            causal: Some(causal),
            ..self
        };
        case.named(&format!("{causal:?}"))
    }

    fn with_bias(self, shape: &[usize], infinite: bool) -> Self {
        let case = Self {
            bias: Some((shape.to_vec(), infinite)),
            ..self
        };
        case.named(&format!("bias {shape:?} infinite {infinite}"))
    }

    fn with_scale(self, scale: f64) -> Self {
        let case = Self {
            scale: Scale::Value(scale),
            ..self
        };
        case.named(&format!("scale {scale}"))
    }

    fn with_value_depth(self, value_depth: usize) -> Self {
        let case = Self {
            value_depth,
            ..self
        };
        case.named(&format!("value depth {value_depth}"))
    }

    fn zero_if_blind(self) -> Self {
        let case = Self {
            fully_masked: FullyMasked::Zero,
            ..self
        };
        case.named("zero")
    }

    fn sized(self, size: f64) -> Self {
        Self { size, ..self }.named(&format!("size {size}"))
    }

    fn named(mut self, what: &str) -> Self {
        self.name = format!("{} {what}", self.name);
        self
    }

    fn batched(mut self, batch: &[usize], heads: usize) -> Self {
        self.name = format!("{} batch {batch:?} heads {heads}", self.name);
        self.batch = batch.to_vec();
        self.heads = heads;
        self
    }
}

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
        Group::Gradients => gradients::plain(),
        Group::GradientsMasked => gradients::masked(),
        Group::GradientsBias => gradients::bias(),
        Group::GradientsStrided => gradients::strided(),
        Group::Project
        | Group::Normalize
        | Group::ProjectBackward
        | Group::NormalizeBackward
        | Group::Bitwise
        | Group::Rotary
        | Group::Merge
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
