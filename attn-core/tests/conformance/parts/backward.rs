//! Gradients over numbers of 64 bits.

use super::Fault;
use super::problem::{Problem, RowOf, Solved, at};
use attn_core::{AttentionBackward, AttentionShape, Element, Error, Host, HostView, HostViewMut};

/// Sums, `[batch, length, heads, depth]`.
struct Sums {
    sizes: [usize; 3],
    sums: Vec<f64>,
}

impl Sums {
    fn new(batch: usize, sizes: [usize; 3]) -> Self {
        Self {
            sizes,
            sums: vec![0.0; batch * sizes.iter().product::<usize>()],
        }
    }

    fn at(&mut self, [batch, row, head, column]: [usize; 4]) -> &mut f64 {
        let [length, heads, depth] = self.sizes;
        &mut self.sums[((batch * length + row) * heads + head) * depth + column]
    }

    /// Writes what `takes` says of; `None` leaves all others as they were.
    fn write<T: Element>(
        mut self,
        out: &mut HostViewMut<'_, T>,
        batch: usize,
        takes: impl Fn(usize, usize) -> bool,
    ) {
        let [length, heads, depth] = self.sizes;
        let layout = *out.layout();
        for n in 0..batch * length * heads * depth {
            let (row, column) = (n / depth, n % depth);
            let (batch, row, head) = (row / heads / length, row / heads % length, row % heads);
            let place = [batch, row, head, column];
            if takes(batch, row) {
                out.buf_mut()[at(&layout, place)] = T::from_f64(*self.at(place));
            }
        }
    }
}

/// All gradients of a call.
struct Gradients {
    query: Sums,
    key: Sums,
    value: Sums,
    bias: Vec<f64>,
    relative: Vec<f64>,
    sinks: Vec<f64>,
}

pub(super) fn attend<T: Element>(
    fault: Fault,
    call: AttentionBackward<'_, Host, T>,
) -> Result<(), Error> {
    let shape = call.shape()?;
    call.call.check_contents(&shape)?;
    let problem = Problem::new(&call.call, shape, fault)?;
    let mut gradients = gradients(&problem, &shape, &call.d_out)?;
    let [mut d_query, mut d_key, mut d_value] = [call.d_query, call.d_key, call.d_value];
    // Rows that no sequence owns are left out by a fault.
    let owned = |batch: usize, query: usize| {
        let row = RowOf {
            batch,
            head: 0,
            query,
        };
        fault != Fault::OutsideLeftAsItWas || !problem.solve(row).keys.is_empty()
    };
    let all = |_, _| true;
    gradients.query.write(&mut d_query, shape.batch, owned);
    gradients.key.write(&mut d_key, shape.batch, all);
    gradients.value.write(&mut d_value, shape.batch, all);
    if let Some(mut d_bias) = call.d_bias {
        let weights = shape.weights(call.call.query.shape())?;
        let (layout, rank) = (*d_bias.layout(), d_bias.shape().rank());
        for n in 0..layout.elements() {
            d_bias.buf_mut()[layout.base(rank, n)] = T::Acc::default();
        }
        let layout = layout.broadcast_to("d_bias", &weights)?;
        for (n, d_score) in gradients.bias.iter().enumerate() {
            let sum = &mut d_bias.buf_mut()[layout.base(weights.rank(), n)];
            *sum = T::Acc::from_f64(sum.to_f64() + d_score);
        }
    }
    let flat = [
        (call.d_relative, &mut gradients.relative),
        (call.d_sinks, &mut gradients.sinks),
    ];
    for (out, sums) in flat {
        let Some(mut out) = out else { continue };
        for (out, sum) in out.buf_mut().iter_mut().zip(sums) {
            *out = T::Acc::from_f64(*sum);
        }
    }
    Ok(())
}

fn gradients<T: Element>(
    problem: &Problem<'_, T>,
    shape: &AttentionShape,
    d_out: &HostView<'_, T>,
) -> Result<Gradients, Error> {
    let [queries, keys] = [shape.query_length, shape.key_length];
    let relative = problem
        .call
        .scores
        .relative
        .as_ref()
        .map_or(0, |relative| relative.table.len());
    let mut gradients = Gradients {
        query: Sums::new(shape.batch, [queries, shape.num_heads, shape.depth]),
        key: Sums::new(shape.batch, [keys, shape.key_heads, shape.depth]),
        value: Sums::new(shape.batch, [keys, shape.key_heads, shape.value_depth]),
        bias: vec![0.0; shape.batch * shape.num_heads * queries * keys],
        relative: vec![0.0; relative],
        sinks: vec![0.0; shape.num_heads],
    };
    for row in problem.rows() {
        let solved = problem.solve(row);
        let place = |column| [row.batch, row.query, row.head, column];
        let d_out: Vec<f64> = (0..shape.value_depth)
            .map(|column| d_out.buf()[at(d_out.layout(), place(column))].to_f64())
            .collect();
        gradients.add(problem, shape, row, &solved, &d_out);
    }
    Ok(gradients)
}

impl Gradients {
    fn add<T: Element>(
        &mut self,
        problem: &Problem<'_, T>,
        shape: &AttentionShape,
        row: RowOf,
        solved: &Solved,
        d_out: &[f64],
    ) {
        let key_head = problem.key_head(row.head);
        let first_of_group = row.head.is_multiple_of(shape.num_heads / shape.key_heads);
        let alone = problem.has(Fault::LastOfTheGroup) && !first_of_group;
        let met = |n: usize| solved.seen[n] || !problem.is_zero_if_blind();
        let keys = || solved.keys.clone().enumerate().filter(|(n, _)| met(*n));
        let d_weight = |key: usize| -> f64 {
            let value = problem.value(row, key);
            let sum: f64 = value.iter().zip(d_out).map(|(v, d)| v * d).sum();
            sum * problem.factor(row, key)
        };
        let d_weights: Vec<(usize, usize, f64)> =
            keys().map(|(n, key)| (n, key, d_weight(key))).collect();
        let delta: f64 = d_weights
            .iter()
            .map(|(n, _, d)| solved.weights[*n] * d)
            .sum();
        for &(n, key, d_weight) in &d_weights {
            let weight = solved.weights[n];
            if !alone {
                for (column, d_out) in d_out.iter().enumerate() {
                    let place = [row.batch, key, key_head, column];
                    *self.value.at(place) += weight * problem.factor(row, key) * d_out;
                }
            }
            if !solved.seen[n] {
                continue;
            }
            let d_score = weight * (d_weight - delta);
            self.add_to_parts(problem, shape, row, key, d_score);
            let slope = slope(problem, solved.tanh[n]);
            let d_product = d_score * slope * problem.scale();
            let of_key = problem.key(row, key);
            for (column, of_key) in of_key.iter().enumerate() {
                let query = [row.batch, row.query, row.head, column];
                *self.query.at(query) += d_product * of_key;
                let view = &problem.call.query;
                let of_query = view.buf()[at(view.layout(), query)].to_f64();
                if !alone {
                    *self.key.at([row.batch, key, key_head, column]) += d_product * of_query;
                }
            }
        }
        let sign = if problem.has(Fault::SinksWithOtherSign) {
            1.0
        } else {
            -1.0
        };
        if !problem.has(Fault::SinksOfLastEntry) || row.batch + 1 == shape.batch {
            self.sinks[row.head] += sign * solved.sink * delta;
        }
    }

    fn add_to_parts<T: Element>(
        &mut self,
        problem: &Problem<'_, T>,
        shape: &AttentionShape,
        row: RowOf,
        key: usize,
        d_score: f64,
    ) {
        let matrix = row.batch * shape.num_heads + row.head;
        self.bias[(matrix * shape.query_length + row.query) * shape.key_length + key] += d_score;
        let Some(column) = problem.column_of(row, key) else {
            return;
        };
        let distances = self.relative.len() / shape.num_heads;
        let column = match problem.has(Fault::TableColumnsReversed) {
            true => distances - 1 - column,
            false => column,
        };
        if !problem.has(Fault::TableOfLastEntry) || row.batch + 1 == shape.batch {
            self.relative[row.head * distances + column] += d_score;
        }
    }
}

/// The slope of a softcap, 1 without.
fn slope<T: Element>(problem: &Problem<'_, T>, tanh: f64) -> f64 {
    match problem.call.scores.softcap {
        Some(_) if problem.has(Fault::SlopeForgotten) => 1.0,
        Some(cap) if problem.has(Fault::SlopeOfTheScore) => 1.0 - (cap * tanh).powi(2),
        Some(_) => 1.0 - tanh * tanh,
        None => 1.0,
    }
}
