//! What the suite lets a backend refuse as a whole, these kernels compute.

use attn_core::conformance::{Group, Maths, run};
use attn_core::{Element, Error, Host, Kernels, bf16, f16};
use attn_kernels_cpu::Cpu;

fn computes<T: Element>(group: Group)
where
    Cpu: Kernels<T, Error = Error, Storage = Host>,
{
    let maths = Maths {
        exp: f64::exp,
        sqrt: f64::sqrt,
    };
    let report = run::<T, _>(&Cpu::detect(), group, &maths).expect("within the tolerance");
    assert_eq!(report.refused, 0, "{group:?} in {}", T::DTYPE);
    assert!(report.cases > 0);
}

#[test]
fn every_rotation_and_merge_is_computed() {
    for group in [Group::Rotary, Group::Merge] {
        computes::<f32>(group);
        computes::<f64>(group);
        computes::<f16>(group);
        computes::<bf16>(group);
    }
}
