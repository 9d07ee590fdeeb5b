//! A user's modifiers give the bits of the tensors that say the same.

use attn_core::{Attention, AttentionShape, FullyMasked, HostView, HostViewMut, Kernels, Mask};
use attn_kernels_cpu::{At, AttendModified, Cpu, MaskMod, Modifiers, Row};
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

const BATCH: usize = 2;
const HEADS: usize = 4;
const KEY_HEADS: usize = 2;
const DEPTH: usize = 24;

/// Numbers between -1 and 1, another at each index.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Queries, keys and values of a call.
struct Arrays {
    queries: usize,
    keys: usize,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

impl Arrays {
    fn new(queries: usize, keys: usize) -> Self {
        Self {
            queries,
            keys,
            query: numbers(1, BATCH * queries * HEADS * DEPTH),
            key: numbers(2, BATCH * keys * KEY_HEADS * DEPTH),
            value: numbers(3, BATCH * keys * KEY_HEADS * DEPTH),
        }
    }

    /// The output of a call that `with` changes, under `modifiers`.
    fn attend<'a>(
        &'a self,
        modifiers: Modifiers<'_, f32>,
        with: impl FnOnce(Attention<'a, attn_core::Host, f32>) -> Attention<'a, attn_core::Host, f32>,
    ) -> Vec<f32> {
        let query = HostView::new(&self.query, &[BATCH, self.queries, HEADS, DEPTH]).unwrap();
        let shape = [BATCH, self.keys, KEY_HEADS, DEPTH];
        let key = HostView::new(&self.key, &shape).unwrap();
        let value = HostView::new(&self.value, &shape).unwrap();
        let cpu = Cpu::detect();
        let sizes = AttentionShape::of(query.shape(), key.shape(), value.shape()).unwrap();
        let mut scratch = vec![f32::NAN; Kernels::<f32>::attend_scratch(&cpu, &sizes)];
        let mut out = vec![0.0; self.query.len()];
        let view = HostViewMut::new(&mut out, query.shape()).unwrap();
        let call = with(Attention::new(query, key, value));
        cpu.attend_modified(call, modifiers, view, &mut scratch)
            .unwrap();
        out
    }

    fn weights(&self) -> [usize; 4] {
        [BATCH, HEADS, self.queries, self.keys]
    }

    /// Every place of the weights, row-major.
    fn places(&self) -> impl Iterator<Item = At> {
        let [_, heads, queries, keys] = self.weights();
        (0..BATCH * heads * queries * keys).map(move |n| At {
            batch: n / (heads * queries * keys),
            head: n / (queries * keys) % heads,
            query: n / keys % queries,
            key: n % keys,
        })
    }
}

/// One query of a decoding step, a few, and more than a tile.
const LENGTHS: [[usize; 2]; 3] = [[1, 200], [3, 70], [130, 150]];

#[test]
fn a_score_modifier_is_a_bias() {
    for [queries, keys] in LENGTHS {
        let arrays = Arrays::new(queries, keys);
        let added = |at: At| {
            (at.batch + 2 * at.head) as f32 * 0.25 - (at.query as f32 - at.key as f32).abs() * 0.125
        };
        let modify = |at: At, score: f32| score + added(at);
        let modified = arrays.attend(
            Modifiers {
                score: Some(&modify),
                ..Modifiers::default()
            },
            |call| call,
        );
        let bias: Vec<f32> = arrays.places().map(added).collect();
        let bias = HostView::new(&bias, &arrays.weights()).unwrap();
        let biased = {
            // The bias lives as long as the arrays of the call.
            let arrays = &arrays;
            arrays.attend(Modifiers::default(), |call| call.with_bias(Some(bias)))
        };
        assert_eq!(modified, biased, "{queries} queries, {keys} keys");
        assert_ne!(modified, arrays.attend(Modifiers::default(), |call| call));
    }
}

/// Every third key of the query's own block, differently for each head; some queries see nothing.
fn sees(at: At) -> bool {
    (at.key + at.query + at.head).is_multiple_of(3) && at.query % 7 != 5
}

#[test]
fn a_mask_modifier_is_a_mask() {
    for rule in [FullyMasked::MeanOfValues, FullyMasked::Zero] {
        for [queries, keys] in LENGTHS {
            let arrays = Arrays::new(queries, keys);
            let modifiers = Modifiers {
                mask: Some(&sees as &dyn MaskMod),
                ..Modifiers::default()
            };
            let modified = arrays.attend(modifiers, |call| call.with_fully_masked(rule));
            let bytes: Vec<u8> = arrays.places().map(|at| u8::from(sees(at))).collect();
            let mask = HostView::new(&bytes, &arrays.weights()).unwrap();
            let masked = {
                let arrays = &arrays;
                arrays.attend(Modifiers::default(), |call| {
                    call.with_mask(Some(Mask::keep(mask)))
                        .with_fully_masked(rule)
                })
            };
            assert_eq!(modified, masked, "{queries} queries, {keys} keys, {rule:?}");
        }
    }
}

/// Documents of 32 tokens, known by tile where a tile lies in one.
struct Documents {
    rows: AtomicUsize,
}

impl MaskMod for Documents {
    fn sees(&self, row: &Row, sees: &mut [bool]) {
        self.rows.fetch_add(1, Ordering::Relaxed);
        for (key, sees) in row.keys.clone().zip(sees) {
            *sees = key / 32 == row.query / 32;
        }
    }

    fn tile(&self, _: usize, _: usize, queries: Range<usize>, keys: Range<usize>) -> Option<bool> {
        let documents = |range: &Range<usize>| range.start / 32..range.end.div_ceil(32);
        let (of_queries, of_keys) = (documents(&queries), documents(&keys));
        let apart = of_queries.end <= of_keys.start || of_keys.end <= of_queries.start;
        let same = of_queries == of_keys && of_queries.len() == 1;
        (apart || same).then_some(same)
    }
}

#[test]
fn tiles_that_a_modifier_rules_out_are_not_looked_at() {
    let arrays = Arrays::new(256, 256);
    let documents = Documents {
        rows: AtomicUsize::new(0),
    };
    let known = Modifiers {
        mask: Some(&documents),
        ..Modifiers::default()
    };
    let by_tile = arrays.attend(known, |call| call.with_fully_masked(FullyMasked::Zero));
    let same = |at: At| at.key / 32 == at.query / 32;
    let by_key = Modifiers {
        mask: Some(&same),
        ..Modifiers::default()
    };
    let plain = arrays.attend(by_key, |call| call.with_fully_masked(FullyMasked::Zero));
    assert_eq!(by_tile, plain);
    // Each query meets one tile of keys that has its document, and is asked about it once.
    assert_eq!(documents.rows.into_inner(), BATCH * HEADS * 256);
}
