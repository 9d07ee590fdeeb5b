//! What the suite lets a backend refuse as a whole, these kernels compute.

use attn_core::conformance::{Group, Maths, run};
use attn_kernels_cpu::Cpu;

#[test]
fn every_rotation_and_merge_is_computed() {
    let maths = Maths {
        exp: f64::exp,
        sqrt: f64::sqrt,
    };
    for group in [Group::Rotary, Group::Merge] {
        let report = run::<f32, _>(&Cpu::detect(), group, &maths).expect("within the tolerance");
        assert!(report.cases > 0, "{group:?}");
        assert_eq!(report.refused, 0, "{group:?}");
    }
}
