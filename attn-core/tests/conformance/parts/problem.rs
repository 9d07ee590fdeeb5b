//! Attention over numbers of 64 bits: scores, softmax, output.

use super::Fault;
use attn_core::dropout::KeepBits;
use attn_core::{
    Alignment, Attention, AttentionShape, Cached, Element, Error, FullyMasked, Host, HostView,
    HostViewMut, KeyValue, Layout, Place, Relative, Rows, Sequences, Stage, f16,
};
use core::ops::Range;

/// A query of a head of a batch entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowOf {
    pub(super) batch: usize,
    pub(super) head: usize,
    pub(super) query: usize,
}

/// The sequence of a query.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    queries: Range<usize>,
    keys: Range<usize>,
}

/// What came of a query. Lists are of `keys`.
pub(super) struct Solved {
    /// Keys that there are; none if the query belongs to no sequence.
    pub(super) keys: Range<usize>,
    pub(super) seen: Vec<bool>,
    /// The hyperbolic tangents of a softcap.
    pub(super) tanh: Vec<f64>,
    products: Vec<f64>,
    scaled: Vec<f64>,
    capped: Vec<f64>,
    scores: Vec<f64>,
    pub(super) weights: Vec<f64>,
    pub(super) sink: f64,
    pub(super) largest: f64,
    pub(super) total: f64,
}

/// A call and a fault in what is made of it.
pub(super) struct Problem<'a, T: Element> {
    pub(super) call: &'a Attention<'a, Host, T>,
    pub(super) shape: AttentionShape,
    fault: Fault,
    bits: Option<(KeepBits, f64)>,
    weights: attn_core::Dims,
}

/// Index of an element of `[batch..., length, heads, depth]`.
pub(super) fn at(layout: &Layout, [batch, row, head, column]: [usize; 4]) -> usize {
    let axes = layout.shape().rank() - 3;
    let strides = &layout.strides()[axes..];
    layout.base(axes, batch) + row * strides[0] + head * strides[1] + column * strides[2]
}

impl<'a, T: Element> Problem<'a, T> {
    pub(super) fn new(
        call: &'a Attention<'a, Host, T>,
        shape: AttentionShape,
        fault: Fault,
    ) -> Result<Self, Error> {
        let bits = match call.dropout {
            Some(dropout) => Some((dropout.bits(&shape)?, dropout.multiplier())),
            None => None,
        };
        Ok(Self {
            call,
            shape,
            fault,
            bits,
            weights: shape.weights(call.query.shape())?,
        })
    }

    pub(super) fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = RowOf> + use<T> {
        let shape = self.shape;
        (0..shape.batch * shape.num_heads * shape.query_length).map(move |n| RowOf {
            batch: n / shape.query_length / shape.num_heads,
            head: n / shape.query_length % shape.num_heads,
            query: n % shape.query_length,
        })
    }

    pub(super) fn key_head(&self, head: usize) -> usize {
        match self.has(Fault::HeadsInTurn) {
            true => head % self.shape.key_heads,
            false => head / (self.shape.num_heads / self.shape.key_heads),
        }
    }

    /// Number of the row among all of `[batch..., heads, query_length]`.
    fn number(&self, row: RowOf) -> usize {
        (row.batch * self.shape.num_heads + row.head) * self.shape.query_length + row.query
    }

    pub(super) fn write<A: Element>(
        &self,
        out: &mut HostViewMut<'_, A>,
        row: RowOf,
        numbers: &[f64],
    ) {
        let (layout, axes) = (*out.layout(), out.shape().rank() - 1);
        let start = layout.base(axes, self.number(row));
        for (n, &number) in numbers.iter().enumerate() {
            out.buf_mut()[start + n * layout.strides()[axes]] = A::from_f64(number);
        }
    }

    pub(super) fn set_out(
        &self,
        out: &mut HostViewMut<'_, T>,
        row: RowOf,
        column: usize,
        number: f64,
    ) {
        let index = at(out.layout(), [row.batch, row.query, row.head, column]);
        out.buf_mut()[index] = T::from_f64(number);
    }

    /// An element of what broadcasts to the weights.
    fn of_weights<A: attn_core::Scalar>(
        &self,
        view: &HostView<'_, A>,
        row: RowOf,
        key: usize,
    ) -> A {
        let view = view.broadcast_to("part", &self.weights).unwrap();
        let (layout, axes) = (view.layout(), view.shape().rank() - 1);
        view.buf()[layout.base(axes, self.number(row)) + key * layout.strides()[axes]]
    }

    fn sequence(&self, row: RowOf) -> Option<Sequence> {
        let whole = Sequence {
            queries: 0..self.shape.query_length,
            keys: 0..self.shape.key_length,
        };
        let found = match &self.call.visible.sequences {
            None => whole,
            Some(Sequences::Padded {
                key_lengths,
                query_lengths,
            }) => {
                let keys = key_lengths.buf()[row.batch] as usize;
                let queries = query_lengths.map_or(self.shape.query_length, |lengths| {
                    lengths.buf()[row.batch] as usize
                });
                let ignored = self.has(Fault::QueryLengthsIgnored);
                let queries = if ignored {
                    self.shape.query_length
                } else {
                    queries
                };
                let ignored = self.has(Fault::KeyLengthsIgnored)
                    || (self.has(Fault::TokensOfTheLongest) && keys > 0);
                let keys = if ignored { self.shape.key_length } else { keys };
                Sequence {
                    queries: 0..queries,
                    keys: 0..keys,
                }
            }
            Some(Sequences::Packed {
                query_starts,
                key_starts,
            }) => {
                let (queries, keys) = (query_starts.buf(), key_starts.buf());
                let range = |starts: &[i32], n: usize| starts[n] as usize..starts[n + 1] as usize;
                let mut all = 0..queries.len() - 1;
                let n = all.find(|&n| range(queries, n).contains(&row.query))?;
                let mut keys = range(keys, n);
                if self.has(Fault::KeyOffsetLost) {
                    keys = 0..keys.len();
                }
                Sequence {
                    queries: range(queries, n),
                    keys,
                }
            }
        };
        found.queries.contains(&row.query).then_some(found)
    }

    /// The position of a query, counted from the sequence's first key.
    fn position(&self, sequence: &Sequence, query: usize, alignment: Alignment) -> i128 {
        let lengths = match self.has(Fault::LengthsOfTheArray) {
            true => [self.shape.query_length, self.shape.key_length],
            false => [sequence.queries.len(), sequence.keys.len()],
        };
        let first = match self.has(Fault::QueryOffsetLost) {
            true => 0,
            false => sequence.queries.start,
        };
        let query = (query - first) as i128;
        match alignment {
            Alignment::TopLeft => query,
            Alignment::BottomRight => query + lengths[1] as i128 - lengths[0] as i128,
            Alignment::Offset(offset) => query + offset as i128,
        }
    }

    /// Tokens of a batch entry that a cache still has.
    fn held(&self, cached: &Cached<'_, Host, T>, sequence: &Sequence) -> Range<usize> {
        let rows = |shape: &attn_core::Dims| shape[shape.rank() - 3];
        let capacity = rows(&cached.key.shape("cache").unwrap());
        let first = match cached.place {
            Place::Ring if !self.has(Fault::RingWithLostTokens) => {
                sequence.keys.end.saturating_sub(capacity)
            }
            _ => 0,
        };
        first..sequence.keys.end
    }

    pub(super) fn key(&self, row: RowOf, key: usize) -> Vec<f64> {
        match &self.call.source {
            KeyValue::Dense { key: keys, .. } => self.dense(keys, row, key),
            KeyValue::Cached(cached) => self.cached(cached, &cached.key, row, key),
            _ => unreachable!("there is no other source"),
        }
    }

    pub(super) fn value(&self, row: RowOf, key: usize) -> Vec<f64> {
        match &self.call.source {
            KeyValue::Dense { value, .. } => self.dense(value, row, key),
            KeyValue::Cached(cached) => self.cached(cached, &cached.value, row, key),
            _ => unreachable!("there is no other source"),
        }
    }

    fn dense(&self, view: &HostView<'_, T>, row: RowOf, key: usize) -> Vec<f64> {
        let depth = view.shape()[view.shape().rank() - 1];
        let place = |column| [row.batch, key, self.key_head(row.head), column];
        let element = |column| view.buf()[at(view.layout(), place(column))].to_f64();
        (0..depth).map(element).collect()
    }

    fn cached(
        &self,
        cached: &Cached<'_, Host, T>,
        rows: &Rows<'_, Host, T>,
        row: RowOf,
        token: usize,
    ) -> Vec<f64> {
        let shape = rows.shape("cache").unwrap();
        let [count, heads, depth] = [3, 2, 1].map(|from_end| shape[shape.rank() - from_end]);
        let head = self.key_head(row.head);
        let [entry, place] = match &cached.place {
            Place::Contiguous => [row.batch, token],
            Place::Ring if self.has(Fault::RingFromItsStart) => {
                [row.batch, token - self.cached_start(count, row)]
            }
            Place::Ring => [row.batch, token % count],
            Place::Paged { table } => {
                let each = table.len() / self.shape.batch;
                let batch = if self.has(Fault::PagesOfFirstEntry) {
                    0
                } else {
                    row.batch
                };
                let page = match self.has(Fault::PagesInOrder) {
                    true => (batch * each + token / count) % shape[0],
                    // Pages of the first entry may be fewer.
                    false => table.buf()[batch * each + token / count].max(0) as usize,
                };
                [page, token % count]
            }
        };
        match rows {
            Rows::Plain(view) => (0..depth)
                .map(|column| view.buf()[at(view.layout(), [entry, place, head, column])].to_f64())
                .collect(),
            Rows::Int8 { values, scales } => {
                let head_of_scale = if self.has(Fault::FactorOfFirstHead) {
                    0
                } else {
                    head
                };
                let next = usize::from(self.has(Fault::FactorOfNextRow));
                let of_row = (entry * count + place) * heads + head_of_scale + next * heads;
                let scale = scales.buf()[of_row % scales.len()];
                let integer =
                    |column| values.buf()[at(values.layout(), [entry, place, head, column])];
                (0..depth)
                    .map(|column| f64::from(f32::from(integer(column)) * scale))
                    .collect()
            }
            Rows::Q8_0 { bytes } => {
                let byte = |n| bytes.buf()[at(bytes.layout(), [entry, place, head, n])];
                let number = |column: usize| {
                    let (block, n) = (column / 32, column % 32);
                    let of = if self.has(Fault::FactorOfFirstBlock) {
                        0
                    } else {
                        block
                    };
                    let scale = f16::from_le_bytes([byte(34 * of), byte(34 * of + 1)]);
                    let integer = byte(34 * block + 2 + n).cast_signed();
                    scale.to_f64() * f64::from(integer)
                };
                (0..depth).map(number).collect()
            }
            _ => unreachable!("there are no other rows"),
        }
    }

    fn cached_start(&self, capacity: usize, row: RowOf) -> usize {
        let end = self.sequence(row).map_or(0, |sequence| sequence.keys.end);
        end.saturating_sub(capacity)
    }

    fn sees(&self, row: RowOf, sequence: &Sequence, key: usize) -> bool {
        let visible = &self.call.visible;
        let local = (key - sequence.keys.start) as i128;
        if let Some(causal) = visible.causal {
            let lengths = match self.has(Fault::LengthsOfTheArray) {
                true => [self.shape.query_length, self.shape.key_length],
                false => [sequence.queries.len(), sequence.keys.len()],
            };
            let shift = causal.shift(lengths[0], lengths[1]);
            let position = self.position(sequence, row.query, Alignment::Offset(shift));
            let over = self.has(Fault::WindowWithoutCausal) && visible.window.is_some();
            if local > position && !over {
                return false;
            }
        }
        if let Some(window) = visible.window {
            let alignment = match (self.has(Fault::WindowAtTheOtherCorner), window.alignment) {
                (true, Alignment::BottomRight) => Alignment::TopLeft,
                (_, alignment) => alignment,
            };
            let position = self.position(sequence, row.query, alignment);
            let [more_left, more_right] = [Fault::LeftOffByOne, Fault::RightOffByOne]
                .map(|fault| i128::from(self.has(fault)));
            let before = window
                .left
                .is_some_and(|left| local < position - left as i128 - more_left);
            let after =
                (window.right).is_some_and(|right| local > position + right as i128 + more_right);
            if (before || after) && !self.has(Fault::WindowForgottenBackward) {
                return false;
            }
        }
        if let Some(segments) = &visible.segments {
            let batch = if self.has(Fault::SegmentsOfFirstEntry) {
                0
            } else {
                row.batch
            };
            let query = segments.queries.buf()[batch * self.shape.query_length + row.query];
            let key = segments.keys.buf()[batch * self.shape.key_length + key];
            let apart = match self.has(Fault::SegmentsInOrder) {
                true => key > query,
                false => key != query,
            };
            if apart && !self.has(Fault::SegmentsForgottenBackward) {
                return false;
            }
        }
        let mask_sees = |mask: &attn_core::Mask<'_, Host>| {
            (self.of_weights(mask.view(), row, key) != 0) == mask.set_means_keep()
        };
        self.block_is_seen(row, key) && visible.mask.as_ref().is_none_or(mask_sees)
    }

    fn block_is_seen(&self, row: RowOf, key: usize) -> bool {
        let Some(blocks) = self.call.visible.blocks else {
            return true;
        };
        if self.has(Fault::BlocksForgottenBackward) {
            return true;
        }
        let shape = blocks.shape(&self.weights).unwrap();
        let [of_queries, of_keys] = [2, 1].map(|from_end| shape[shape.rank() - from_end]);
        let [query, key] = match self.has(Fault::BlockSizesSwapped) {
            true => [row.query / blocks.key_block, key / blocks.query_block],
            false => [row.query / blocks.query_block, key / blocks.key_block],
        };
        let (query, key) = (query.min(of_queries - 1), key.min(of_keys - 1));
        let head = if self.has(Fault::BlocksOfFirstHead) {
            0
        } else {
            row.head
        };
        let keep = blocks.keep.broadcast_to("blocks", &shape).unwrap();
        let (layout, axes) = (keep.layout(), keep.shape().rank() - 1);
        let number = (row.batch * self.shape.num_heads + head) * of_queries + query;
        keep.buf()[layout.base(axes, number) + key * layout.strides()[axes]] != 0
    }

    /// What is added to a score beside a bias.
    fn added(&self, row: RowOf, sequence: &Sequence, key: usize) -> f64 {
        let scores = &self.call.scores;
        let local = (key - sequence.keys.start) as i128;
        let mut sum = 0.0;
        if let Some(alibi) = &scores.alibi {
            let position = self.position(sequence, row.query, alibi.alignment);
            let local = if self.has(Fault::AlibiAcrossSequences) {
                key as i128
            } else {
                local
            };
            let head = if self.has(Fault::AlibiOfFirstHead) {
                0
            } else {
                row.head
            };
            let distance = match self.has(Fault::AlibiWithSign) {
                true => position - local,
                false => (position - local).abs(),
            };
            sum -= alibi.slopes.buf()[head].to_f64() * distance as f64;
        }
        if let Some(relative) = &scores.relative {
            let column = self.column(relative, row, sequence, local);
            let head = if self.has(Fault::RelativeOfFirstHead) {
                0
            } else {
                row.head
            };
            let distances = relative.distances(self.shape.num_heads);
            sum += relative.table.buf()[head * distances + column].to_f64();
        }
        sum
    }

    fn column(
        &self,
        relative: &Relative<'_, Host, T>,
        row: RowOf,
        sequence: &Sequence,
        local: i128,
    ) -> usize {
        let position = self.position(sequence, row.query, relative.alignment);
        let distances = relative.distances(self.shape.num_heads) as i128;
        let distance = match self.has(Fault::RelativeReversed) {
            true => position - local,
            false => local - position,
        };
        let column = distance + relative.zero as i128;
        let column = match self.has(Fault::RelativeWithoutEnds) {
            true => column.rem_euclid(distances),
            false => column.clamp(0, distances - 1),
        };
        column as usize
    }

    /// The column of the table of relative positions for a key.
    pub(super) fn column_of(&self, row: RowOf, key: usize) -> Option<usize> {
        let (relative, sequence) = (self.call.scores.relative.as_ref()?, self.sequence(row)?);
        let local = (key - sequence.keys.start) as i128;
        Some(self.column(relative, row, &sequence, local))
    }

    pub(super) fn scale(&self) -> f64 {
        self.call.scores.scale.factor(self.shape.depth, f64::sqrt)
    }

    pub(super) fn is_zero_if_blind(&self) -> bool {
        self.call.visible.fully_masked == FullyMasked::Zero
    }

    pub(super) fn solve(&self, row: RowOf) -> Solved {
        let sequence = self.sequence(row);
        let sequence = match (sequence, self.has(Fault::SpansForgottenBackward)) {
            (Some(_), true) => Some(Sequence {
                queries: 0..self.shape.query_length,
                keys: 0..self.shape.key_length,
            }),
            (sequence, _) => sequence,
        };
        let is_outside = sequence.is_none();
        let sequence = sequence.unwrap_or(Sequence {
            queries: 0..0,
            keys: 0..0,
        });
        let keys = match &self.call.source {
            KeyValue::Cached(cached) => self.held(cached, &sequence),
            _ => sequence.keys.clone(),
        };
        let query: Vec<f64> = (0..self.shape.depth)
            .map(|column| {
                let view = &self.call.query;
                let place = [row.batch, row.query, row.head, column];
                view.buf()[at(view.layout(), place)].to_f64()
            })
            .collect();
        let mut solved = Solved {
            seen: (keys.clone())
                .map(|key| self.sees(row, &sequence, key))
                .collect(),
            tanh: Vec::new(),
            products: Vec::new(),
            scaled: Vec::new(),
            capped: Vec::new(),
            scores: Vec::new(),
            weights: Vec::new(),
            sink: 0.0,
            largest: 0.0,
            total: 0.0,
            keys: keys.clone(),
        };
        for key in keys {
            let of_key = self.key(row, key);
            solved.push(
                self,
                row,
                &sequence,
                key,
                query.iter().zip(&of_key).map(|(q, k)| q * k).sum(),
            );
        }
        self.softmax(row, &mut solved, is_outside);
        solved
    }

    fn softmax(&self, row: RowOf, solved: &mut Solved, is_outside: bool) {
        let fill = match self.is_zero_if_blind() {
            true => f64::NEG_INFINITY,
            false => lowest::<T::Acc>(),
        };
        let is_blind = !solved.seen.contains(&true);
        let head = if self.has(Fault::SinkOfFirstHead) {
            0
        } else {
            row.head
        };
        let forgotten = (is_outside && !self.has(Fault::SinkOutsideOfSequences))
            || (is_blind && self.has(Fault::SinkOfBlindRowsForgotten))
            || self.has(Fault::SinkForgottenBackward);
        let sink = self.call.scores.sinks.filter(|_| !forgotten);
        let sink = sink.map_or(f64::NEG_INFINITY, |sinks| sinks.buf()[head].to_f64());
        let mut scores: Vec<f64> = (solved.scores.iter().zip(&solved.seen))
            .map(|(&score, &seen)| if seen { score } else { fill })
            .collect();
        if is_blind && !is_outside && self.has(Fault::MeanOfAllKeys) && !self.is_zero_if_blind() {
            scores = vec![fill; self.shape.key_length];
            (solved.keys, solved.seen) = (0..scores.len(), vec![false; scores.len()]);
        }
        let of_largest = if self.has(Fault::SinkNotInLargest) {
            f64::NEG_INFINITY
        } else {
            sink
        };
        let largest = scores.iter().copied().fold(of_largest, f64::max);
        solved.largest = largest;
        if largest == f64::NEG_INFINITY {
            solved.weights = vec![0.0; scores.len()];
            return;
        }
        let of_sink = if sink == f64::NEG_INFINITY {
            0.0
        } else {
            (sink - largest).exp()
        };
        let exponentials: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let counted = if self.has(Fault::SinkNotInSum) {
            0.0
        } else {
            of_sink
        };
        solved.total = exponentials.iter().sum::<f64>() + counted;
        solved.weights = exponentials.iter().map(|e| e / solved.total).collect();
        solved.sink = of_sink / solved.total;
    }

    /// What a weight is multiplied with.
    pub(super) fn factor(&self, row: RowOf, key: usize) -> f64 {
        let Some((bits, multiplier)) = &self.bits else {
            return 1.0;
        };
        let kept = bits.keeps(row.batch * self.shape.num_heads + row.head, row.query, key);
        f64::from(u8::from(kept)) * multiplier
    }

    /// The columns of the output.
    pub(super) fn output(&self, row: RowOf, solved: &Solved) -> Vec<f64> {
        let mut sums = vec![0.0; self.shape.value_depth];
        for (n, key) in solved.keys.clone().enumerate() {
            let skipped = !solved.seen[n] && self.is_zero_if_blind();
            if !skipped || self.has(Fault::HiddenValuesTimesZero) {
                let weight = solved.weights[n] * self.factor(row, key);
                for (sum, value) in sums.iter_mut().zip(self.value(row, key)) {
                    *sum += weight * value;
                }
            }
        }
        sums
    }

    /// The weights, or scores at an earlier stage, of all keys.
    pub(super) fn stage(&self, solved: &Solved, stage: Stage) -> Vec<f64> {
        let other = self.is_zero_if_blind() == self.has(Fault::FillOfOtherRule);
        let fill = if other {
            lowest::<T::Acc>()
        } else {
            f64::NEG_INFINITY
        };
        let absent = if stage == Stage::Masked { fill } else { 0.0 };
        let absent = if self.has(Fault::AbsentScoresKept) {
            1.0
        } else {
            absent
        };
        let mut all = vec![absent; self.shape.key_length];
        for (n, key) in solved.keys.clone().enumerate() {
            let cleared = self.has(Fault::HiddenScoresCleared) && !solved.seen[n];
            all[key] = match stage {
                Stage::Scaled | Stage::Capped if cleared => 0.0,
                Stage::Scaled if self.has(Fault::UnscaledScores) => solved.products[n],
                Stage::Scaled => solved.scaled[n],
                Stage::Capped if self.has(Fault::CappedScoresWithBias) => solved.scores[n],
                Stage::Capped => solved.capped[n],
                Stage::Masked if solved.seen[n] => solved.scores[n],
                Stage::Masked => fill,
                Stage::Softmax => solved.weights[n],
            };
        }
        all
    }
}

impl Solved {
    /// The scores of one more key.
    fn push<T: Element>(
        &mut self,
        problem: &Problem<'_, T>,
        row: RowOf,
        sequence: &Sequence,
        key: usize,
        product: f64,
    ) {
        let scores = &problem.call.scores;
        let bias = scores
            .bias
            .map_or(0.0, |bias| problem.of_weights(&bias, row, key).to_f64());
        let scaled = product * problem.scale();
        let (late, cap) = (problem.has(Fault::SoftcapAfterBias), scores.softcap);
        let before = if late { scaled + bias } else { scaled };
        let tanh = cap.map_or(0.0, |cap| (before / cap).tanh());
        let factor = if problem.has(Fault::SoftcapWithoutFactor) {
            1.0
        } else {
            cap.unwrap_or(1.0)
        };
        let capped = cap.map_or(before, |_| factor * tanh);
        let bias = if late { 0.0 } else { bias };
        self.products.push(product);
        self.scaled.push(scaled);
        self.tanh.push(tanh);
        self.capped.push(capped);
        self.scores
            .push(capped + bias + problem.added(row, sequence, key));
    }
}

/// The lowest finite number.
fn lowest<A: Element>() -> f64 {
    match size_of::<A>() {
        8 => f64::MIN,
        _ => f64::from(f32::MIN),
    }
}
