//! The suite on plain arithmetic, and on faults that it must find.
#![cfg(feature = "conformance")]

use attn_core::conformance::{Group, Maths, Reference, run};
use attn_core::{
    Attention, AttentionShape, Backend, Causal, Element, Error, Host, HostView, HostViewMut,
    Kernels, Projection, Scale,
};

const MATHS: Maths = Maths {
    exp: f64::exp,
    sqrt: f64::sqrt,
};

attn_core::conformance_tests!(reference, Ok::<_, Error>(Reference { maths: MATHS }));

/// A wrong turn of a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    IgnoresMask,
    IgnoresCausal,
    CausalOffByOne,
    IgnoresBias,
    WrongScale,
    OtherFullyMaskedRule,
    SlightlyOff,
    ForgetsLastKey,
    ForgetsProjectionBias,
    NormalizesWithoutEpsilon,
    AcceptsAnyScratch,
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

const REFERENCE: Reference = Reference { maths: MATHS };

impl<T: Element> Kernels<T> for Faulty {
    fn project_scratch(&self, _: usize, _: usize, _: usize) -> usize {
        0
    }

    fn project(
        &self,
        call: &Projection<'_, Host, T>,
        out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        let bias = if self.0 == Fault::ForgetsProjectionBias {
            None
        } else {
            call.bias
        };
        REFERENCE.project(
            &Projection {
                input: call.input,
                kernel: call.kernel,
                bias,
                ..*call
            },
            out,
            scratch,
        )
    }

    fn normalize(
        &self,
        x: HostViewMut<'_, T>,
        scale: HostView<'_, T::Acc>,
        epsilon: f64,
    ) -> Result<(), Error> {
        let epsilon = if self.0 == Fault::NormalizesWithoutEpsilon {
            0.0
        } else {
            epsilon
        };
        REFERENCE.normalize(x, scale, epsilon)
    }

    fn attend_scratch(&self, _: &AttentionShape) -> usize {
        usize::from(self.0 == Fault::AcceptsAnyScratch)
    }

    fn attend(
        &self,
        mut call: Attention<'_, Host, T>,
        mut out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        match self.0 {
            Fault::IgnoresMask => call.visible.mask = None,
            Fault::IgnoresCausal => call.visible.causal = None,
            Fault::CausalOffByOne => {
                let shape = call.shape()?;
                let shift = |causal: Causal| {
                    Causal::offset(causal.shift(shape.query_length, shape.key_length) + 1)
                };
                call.visible.causal = call.visible.causal.map(shift);
            }
            Fault::IgnoresBias => call.scores.bias = None,
            Fault::WrongScale => call.scores.scale = Scale::Value(1.0),
            Fault::OtherFullyMaskedRule => {
                call.visible.fully_masked = match call.visible.fully_masked {
                    attn_core::FullyMasked::Zero => attn_core::FullyMasked::MeanOfValues,
                    attn_core::FullyMasked::MeanOfValues => attn_core::FullyMasked::Zero,
                };
            }
            Fault::ForgetsLastKey => {
                let keys = call.shape()?.key_length as isize;
                let queries = call.shape()?.query_length as isize;
                if call.visible.causal.is_none() && queries == 1 {
                    call.visible.causal = Some(Causal::offset(keys - 2));
                }
            }
            _ => {}
        }
        REFERENCE.attend(call, out.reborrow(), scratch)?;
        if self.0 == Fault::SlightlyOff {
            for x in out.buf_mut() {
                *x = T::from_f64(x.to_f64() * (1.0 + 1e-5));
            }
        }
        Ok(())
    }
}

/// Whether some group fails in `T`.
fn is_found<T: Element>(fault: Fault, groups: &[Group]) -> bool {
    groups
        .iter()
        .any(|&group| run::<T, _>(&Faulty(fault), group, &MATHS).is_err())
}

#[test]
fn every_fault_is_found() {
    let faults = [
        (Fault::IgnoresMask, Group::Mask),
        (Fault::IgnoresCausal, Group::Causal),
        (Fault::CausalOffByOne, Group::Causal),
        (Fault::IgnoresBias, Group::Bias),
        (Fault::WrongScale, Group::Plain),
        (Fault::OtherFullyMaskedRule, Group::Mask),
        (Fault::SlightlyOff, Group::Plain),
        (Fault::ForgetsLastKey, Group::Plain),
        (Fault::ForgetsProjectionBias, Group::Project),
        (Fault::NormalizesWithoutEpsilon, Group::Normalize),
        (Fault::AcceptsAnyScratch, Group::Bitwise),
    ];
    for (fault, group) in faults {
        assert!(is_found::<f32>(fault, &[group]), "{fault:?} in f32");
        assert!(is_found::<f64>(fault, &[group]), "{fault:?} in f64");
    }
}
