//! A few queries, for which a backend may have a way of its own, get what they get among many.

use super::super::super::arrays::Placed;
use super::super::super::cases::Placement;
use super::super::super::data::Numbers;
use super::super::{Broken, OnHost};
use super::{elements_between_gaps, in_case, same};
use crate::dropout::Dropout;
use crate::dtype::{Element, Scalar};
use crate::error::Error;
use crate::layout::{Dims, Layout};
use crate::mask::{FullyMasked, Mask};
use crate::position::Causal;
use crate::random::{Convention, Key};
use crate::request::Attention;
use crate::view::HostView;
use alloc::vec;
use alloc::vec::Vec;

/// More than are few.
const QUERIES: usize = 20;
const HEADS: usize = 2;
/// How many are asked for at once.
const COUNTS: [usize; 8] = [1, 2, 3, 4, 5, 7, 8, 9];
/// Number of the first of them, where there is no dropout.
const FIRST: usize = 11;
/// Depths of queries and keys, and of values.
const DEPTHS: [[usize; 2]; 7] = [
    [1, 3],
    [3, 1],
    [17, 16],
    [16, 129],
    [80, 17],
    [129, 80],
    [64, 64],
];
const KEYS: [usize; 6] = [0, 1, 63, 64, 65, 200];
/// The second is that of queries which are the heads that share a key.
const PLACEMENTS: [Placement; 4] = [
    Placement::Contiguous,
    Placement::HeadsMajor,
    Placement::Gaps,
    Placement::Transposed,
];

/// What a call has beside queries, keys and values.
#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    bias: bool,
    mask: Option<FullyMasked>,
    /// The offset for query 0.
    causal: Option<isize>,
    dropout: bool,
    /// Whether a few queries are asked for their weights and statistics too. (Many always are.)
    asked: bool,
}

fn parts() -> [Parts; 7] {
    let none = Parts::default();
    let asked = Parts {
        asked: true,
        ..none
    };
    [
        none,
        Parts {
            bias: true,
            ..asked
        },
        Parts {
            mask: Some(FullyMasked::MeanOfValues),
            ..asked
        },
        Parts {
            mask: Some(FullyMasked::Zero),
            causal: Some(50),
            ..none
        },
        Parts {
            causal: Some(-13),
            ..asked
        },
        Parts {
            dropout: true,
            ..none
        },
        Parts {
            bias: true,
            mask: Some(FullyMasked::MeanOfValues),
            causal: Some(60),
            dropout: true,
            asked: true,
        },
    ]
}

/// A call with many queries.
struct Setting<T: Element> {
    parts: Parts,
    placement: Placement,
    keys: usize,
    depths: [usize; 2],
    /// `[length, heads, depth]`.
    query: Placed<T>,
    key: Placed<T>,
    value: Placed<T>,
    /// `[heads, queries, keys]`.
    mask: Placed<u8>,
    bias: Placed<T::Acc>,
    dropout: Option<Dropout>,
}

/// What some queries get, row-major; of weights and statistics a list for each head.
struct Results<T: Element> {
    out: Vec<T>,
    weights: Vec<Vec<T::Acc>>,
    statistics: Vec<Vec<T::Acc>>,
}

impl<T: Element> Setting<T> {
    fn new(
        parts: Parts,
        placement: Placement,
        keys: usize,
        depths: [usize; 2],
    ) -> Result<Self, Error> {
        let mut numbers = Numbers::new("few queries");
        let mut placed = |length, depth| {
            let next = || T::from_f64(numbers.normal());
            Placed::new(placement, &[], [length, HEADS, depth], next)
        };
        let [depth, value_depth] = depths;
        let (query, key) = (placed(QUERIES, depth)?, placed(keys, depth)?);
        let value = placed(keys, value_depth)?;
        let scores = [HEADS, QUERIES, keys];
        let mut index = 0;
        let seen = || {
            index += 1;
            // Every third query sees nothing.
            let blind = ((index - 1) / keys).is_multiple_of(3);
            u8::from(!blind && numbers.uniform() < 0.6)
        };
        let mask = Placed::tensor(placement, &scores, 1, seen)?;
        let nan = T::Acc::from_f64(f64::NAN);
        let next = || T::Acc::from_f64(numbers.normal());
        let bias = Placed::tensor(placement, &scores, nan, next)?;
        let (key_of_bits, convention) = (Key::from_words([3, 4]), Convention::default());
        // Heads share it, and each word has its own counter: those of the first queries do not depend on what follows.
        let dropout = Dropout::new(key_of_bits, 0.3, T::DTYPE, true, convention)?;
        Ok(Self {
            parts,
            placement,
            keys,
            depths,
            query,
            key,
            value,
            mask,
            bias,
            dropout,
        })
    }

    /// Attention of the queries `first..first + count`.
    fn attend<B: OnHost<T>>(
        &self,
        backend: &B,
        [first, count]: [usize; 2],
        asked: bool,
    ) -> Result<Results<T>, Broken> {
        let parts = self.parts;
        let query = some(&self.query, 0, first, count)?;
        let mask = Mask::keep(some(&self.mask, 1, first, count)?);
        let bias = some(&self.bias, 1, first, count)?;
        let (nan, acc_nan) = (T::from_f64(f64::NAN), T::Acc::from_f64(f64::NAN));
        let of_rows = |columns| {
            let shape = [HEADS, count, columns];
            Placed::tensor(self.placement, &shape, acc_nan, || acc_nan)
        };
        let (mut weights, mut statistics) = (of_rows(self.keys)?, of_rows(2)?);
        let size = [count, HEADS, self.depths[1]];
        let mut out = Placed::new(self.placement, &[], size, || nan)?;
        let call = Attention::new(query, self.key.view()?, self.value.view()?)
            .with_bias(parts.bias.then_some(bias))
            .with_mask(parts.mask.map(|_| mask))
            .with_fully_masked(parts.mask.unwrap_or_default())
            .with_causal(parts.causal.map(|o| Causal::offset(o + first as isize)))
            .with_dropout(self.dropout.filter(|_| parts.dropout));
        let call = match asked {
            true => call
                .with_weights(Some(weights.view_mut()?))
                .with_statistics(Some(statistics.view_mut()?)),
            false => call,
        };
        let mut scratch = vec![acc_nan; backend.attend_scratch(&call.shape()?)];
        backend.attend(call, out.view_mut()?, &mut scratch)?;
        let of_heads = |placed: &Placed<T::Acc>, columns: usize| {
            let elements = elements_between_gaps(&placed.buffer, &placed.layout)?;
            let head = |head: usize| elements[head * count * columns..][..count * columns].to_vec();
            Ok::<_, Broken>((0..HEADS).map(head).collect())
        };
        Ok(Results {
            out: elements_between_gaps(&out.buffer, &out.layout)?,
            weights: of_heads(&weights, self.keys)?,
            statistics: of_heads(&statistics, 2)?,
        })
    }

    /// What is known of the queries `first..first + count` from all of them.
    fn compare(
        &self,
        all: &Results<T>,
        few: &Results<T>,
        [first, count]: [usize; 2],
    ) -> Result<(), Broken> {
        let row = HEADS * self.depths[1];
        same(&all.out[first * row..][..count * row], &few.out)?;
        if !self.parts.asked {
            return Ok(());
        }
        for (all, few, columns) in [
            (&all.weights, &few.weights, self.keys),
            (&all.statistics, &few.statistics, 2),
        ] {
            for (all, few) in all.iter().zip(few) {
                same(&all[first * columns..][..count * columns], few)?;
            }
        }
        Ok(())
    }
}

/// `first..first + count` of an axis.
fn some<T: Scalar>(
    placed: &Placed<T>,
    axis: usize,
    first: usize,
    count: usize,
) -> Result<HostView<'_, T>, Error> {
    let layout = &placed.layout;
    let (mut shape, strides) = (layout.shape().to_vec(), layout.strides());
    shape[axis] = count;
    let offset = layout.offset() + first * strides[axis];
    let layout = Layout::strided(offset, Dims::new(&shape)?, strides)?;
    HostView::with_layout(&placed.buffer, layout)
}

pub(super) fn alone_and_among_others<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for (d, depths) in DEPTHS.into_iter().enumerate() {
        for (p, parts) in parts().into_iter().enumerate() {
            let (keys, placement) = (KEYS[(d + p) % 6], PLACEMENTS[(d + 2 * p) % 4]);
            let setting = Setting::<T>::new(parts, placement, keys, depths)?;
            let all = setting.attend(backend, [0, QUERIES], true)?;
            for count in COUNTS {
                let queries = [if parts.dropout { 0 } else { FIRST }, count];
                let few = setting.attend(backend, queries, parts.asked)?;
                let case = (depths, parts, keys, placement, count);
                in_case(case, setting.compare(&all, &few, queries))?;
            }
        }
    }
    Ok(())
}
