//! Faults of rotary embeddings and of merged results that the suite must find.

use super::{MATHS, REFERENCE, next_up};
use attn_core::conformance::{Group, run};
use attn_core::{
    Attention, AttentionBackward, AttentionShape, Backend, Element, Error, Flat, Host, HostView,
    HostViewMut, Kernels, Merge, NormalizeBackward, Pairing, Partial, Positions, Projection,
    ProjectionBackward, RotaryScaling, RotaryTable, Rotate, bf16, f16,
};

/// A wrong turn of a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    OtherPairs,
    TurnsTheOtherWay,
    IgnoresInverse,
    IgnoresFirstPosition,
    IgnoresIds,
    IdsOfFirstEntry,
    IgnoresScaling,
    IgnoresAttentionFactor,
    IgnoresTruncate,
    TurnsAll,
    AnglesInF32,
    IgnoresTable,
    DependsOnRowsBeside,
    RotatesBeforeChecking,
    MergesByMean,
    IgnoresLargest,
    IgnoresSums,
    ForgetsLastPart,
    CountsEmptyParts,
    AnyStatistics,
    WeighsInBf16,
    MergesBeforeChecking,
}

/// The reference with a fault.
struct Faulty(Fault);

impl Backend for Faulty {
    type Storage = Host;
    type Error = Error;
    fn name(&self) -> &'static str {
        "faulty"
    }
}

impl<T: Element> Kernels<T> for Faulty {
    as_the_reference!(
        project,
        normalize,
        attend,
        project_backward,
        normalize_backward,
        attend_backward,
        project_scratch,
        attend_scratch,
        project_backward_scratch,
        attend_backward_scratch
    );

    fn rotate(&self, mut call: Rotate<'_, Host, T>) -> Result<(), Error> {
        match self.0 {
            Fault::RotatesBeforeChecking if call.shape().is_err() => {
                call.x.buf_mut().fill(T::default());
            }
            Fault::OtherPairs => {
                call.rotary.pairing = match call.rotary.pairing {
                    Pairing::HalfSplit => Pairing::Interleaved,
                    Pairing::Interleaved => Pairing::HalfSplit,
                }
            }
            Fault::TurnsTheOtherWay => call.inverse = !call.inverse,
            Fault::IgnoresInverse => call.inverse = false,
            Fault::IgnoresFirstPosition if matches!(call.positions, Positions::From(_)) => {
                call.positions = Positions::From(0);
            }
            Fault::IgnoresIds => call.positions = Positions::From(0),
            Fault::IgnoresScaling => call.rotary.scaling = RotaryScaling::None,
            Fault::TurnsAll => call.rotary.rotary_dim = None,
            Fault::IgnoresTable => call.table = None,
            _ => {}
        }
        change_scaling(self.0, &mut call.rotary.scaling);
        match self.0 {
            Fault::IdsOfFirstEntry => ids_of_first_entry(call),
            Fault::AnglesInF32 => angles_in_f32(call),
            Fault::DependsOnRowsBeside => {
                let is_alone = call.shape()?.length == 1;
                let Rotate { mut x, .. } = call;
                REFERENCE.rotate(Rotate {
                    x: x.reborrow(),
                    ..call
                })?;
                if is_alone {
                    next_up(&mut x);
                }
                Ok(())
            }
            _ => REFERENCE.rotate(call),
        }
    }

    fn merge(&self, mut call: Merge<'_, Host, T>) -> Result<(), Error> {
        if self.0 == Fault::MergesBeforeChecking && call.shape().is_err() {
            call.out.buf_mut().fill(T::default());
        }
        call.shape()?;
        let count = call.parts.len();
        let statistics: Vec<Vec<T::Acc>> = (call.parts.iter())
            .map(|part| changed(self.0, &part.statistics))
            .collect();
        let dims = *call.parts[0].statistics.shape();
        let mut parts = Vec::new();
        for (part, statistics) in call.parts.iter().zip(&statistics) {
            parts.push(Partial {
                out: part.out,
                statistics: HostView::new(statistics, &dims)?,
            });
        }
        if self.0 == Fault::ForgetsLastPart && count > 1 {
            parts.pop();
        }
        if self.0 == Fault::AnyStatistics {
            call.statistics = None;
        }
        REFERENCE.merge(Merge {
            parts: &parts,
            ..call
        })
    }
}

fn change_scaling(fault: Fault, scaling: &mut RotaryScaling) {
    if let RotaryScaling::Yarn {
        attention_factor,
        truncate,
        ..
    } = scaling
    {
        match fault {
            Fault::IgnoresAttentionFactor => *attention_factor = Some(1.0),
            Fault::IgnoresTruncate => *truncate = true,
            _ => {}
        }
    }
}

/// The ids of the first batch entry serve all.
fn ids_of_first_entry<T: Element>(call: Rotate<'_, Host, T>) -> Result<(), Error> {
    let shape = call.shape()?;
    let Positions::Ids(ids) = &call.positions else {
        return REFERENCE.rotate(call);
    };
    let first: Vec<i32> = (0..ids.len())
        .map(|n| ids.buf()[n % shape.length])
        .collect();
    REFERENCE.rotate(Rotate {
        positions: Positions::Ids(Flat::new(first.as_slice())),
        ..call
    })
}

/// Angles as a product in `f32`, which far positions do not fit.
fn angles_in_f32<T: Element>(call: Rotate<'_, Host, T>) -> Result<(), Error> {
    let shape = call.shape()?;
    let Positions::From(first) = call.positions else {
        return REFERENCE.rotate(call);
    };
    if call.table.is_some() {
        return REFERENCE.rotate(call);
    }
    let frequencies = call.rotary.frequencies(shape.depth)?;
    let angles = (first..first + shape.length)
        .flat_map(|position| (0..shape.pairs).map(move |pair| (position, pair)))
        .map(|(position, pair)| f64::from(position as f32 * frequencies.of(pair) as f32));
    let angles: Vec<f64> = angles.collect();
    let factor = frequencies.attention_factor();
    let table = |of: fn(f64) -> f64| -> Vec<T::Acc> {
        angles
            .iter()
            .map(|angle| T::Acc::from_f64(factor * of(*angle)))
            .collect()
    };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    REFERENCE.rotate(Rotate {
        positions: Positions::From(0),
        table: Some(RotaryTable {
            cos: Flat::new(cos.as_slice()),
            sin: Flat::new(sin.as_slice()),
        }),
        ..call
    })
}

/// A part's statistics, row-major, with a fault.
fn changed<T: Element>(fault: Fault, statistics: &HostView<'_, T>) -> Vec<T> {
    let (layout, rank) = (statistics.layout(), statistics.shape().rank());
    let read = |n| statistics.buf()[layout.base(rank, n)].to_f64();
    let rows = layout.elements() / 2;
    let row = |row: usize| {
        let [m, l] = [read(2 * row), read(2 * row + 1)];
        let [m, l] = match fault {
            Fault::MergesByMean => [0.0, 1.0],
            Fault::IgnoresLargest if l != 0.0 => [0.0, l],
            Fault::IgnoresSums if l != 0.0 => [m, 1.0],
            Fault::CountsEmptyParts if l == 0.0 => [0.0, 1e-30],
            Fault::WeighsInBf16 => [m, bf16::from_f64(l).to_f64()],
            _ => [m, l],
        };
        [T::from_f64(m), T::from_f64(l)]
    };
    (0..rows).flat_map(row).collect()
}

fn is_found<T: Element>(fault: Fault, group: Group) -> bool {
    run::<T, _>(&Faulty(fault), group, &MATHS).is_err()
}

fn found_by<T: Element>(fault: Fault, group: Group) -> String {
    run::<T, _>(&Faulty(fault), group, &MATHS)
        .map_or_else(|failure| failure.case, |_| String::new())
}

faults_found! {
    other_pairs: OtherPairs by Rotary in f32, f64, f16, bf16;
    turns_the_other_way: TurnsTheOtherWay by Rotary in f32, f64, f16, bf16;
    ignores_inverse: IgnoresInverse by Rotary in f32, f64, f16, bf16;
    ignores_first_position: IgnoresFirstPosition by Rotary in f32, f64, f16, bf16;
    ignores_ids: IgnoresIds by Rotary in f32, f64, f16, bf16;
    ids_of_first_entry_serve_all: IdsOfFirstEntry by Rotary in f32, f64, f16, bf16;
    ignores_scaling: IgnoresScaling by Rotary in f32, f64, f16, bf16;
    ignores_attention_factor: IgnoresAttentionFactor by Rotary in f32, f64, f16, bf16;
    ignores_truncate: IgnoresTruncate by Rotary in f32, f64, f16, bf16;
    turns_all: TurnsAll by Rotary in f32, f64, f16, bf16;
    angles_are_in_f32: AnglesInF32 by Rotary in f32, f64, f16, bf16;
    ignores_table: IgnoresTable by Rotary in f32, f64, f16, bf16;
    merges_by_mean: MergesByMean by Merge in f32, f64, f16, bf16;
    ignores_largest: IgnoresLargest by Merge in f32, f64, f16, bf16;
    ignores_sums: IgnoresSums by Merge in f32, f64, f16, bf16;
    forgets_last_part: ForgetsLastPart by Merge in f32, f64, f16, bf16;
    counts_empty_parts: CountsEmptyParts by Merge in f32, f64, f16, bf16;
    any_statistics: AnyStatistics by Merge in f32, f64, f16, bf16;
    weighs_in_bf16: WeighsInBf16 by Merge in f32, f64, f16;
}

faults_found_by! {
    depends_on_rows_beside: DependsOnRowsBeside by Rotary "a row beside others";
    rotates_before_checking: RotatesBeforeChecking by Rotary "a rotation that does not fit";
    merges_before_checking: MergesBeforeChecking by Merge "parts that do not fit";
}
