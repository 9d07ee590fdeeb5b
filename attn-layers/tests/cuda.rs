//! Layers on the CUDA kernels: on the host's arrays, case by case as recorded from Flax, and on arrays that stay on the device.
#![expect(
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core,
    reason = "a program has std"
)]

#[path = "../examples/replay/harness/mod.rs"]
mod harness;

use attn_cuda_emulator::{Emulator, Options};
use attn_layers::core::{View, ViewMut};
use attn_layers::cpu::Cpu;
use attn_layers::cuda::{Cuda, CudaDevice, CudaError, Device, DeviceBuffer};
use attn_layers::{
    Dense, Dims, HostView, HostViewMut, Inputs, MultiHeadDotProductAttentionF32, OwnedScratch,
    Params, Plan, Scratch,
};
use harness::{find_cases, replay};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A device, or the emulator where there is none.
fn device() -> CudaDevice {
    CudaDevice::new(0).unwrap_or_else(|_| {
        CudaDevice::with_driver(Arc::new(Emulator::new(Options {
            panic_on_finding: true,
            ..Options::default()
        })))
    })
}

/// The recorded cases whose number leaves this rest when divided by `of`: tests share them out among threads.
fn share(rest: usize, of: usize) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/cases");
    let cases = find_cases(&[folder]).expect("the committed cases are there");
    assert!(cases.len() >= 180, "only {} cases", cases.len());
    let numbered = cases.into_iter().enumerate();
    numbered
        .filter(|(number, _)| number % of == rest)
        .map(|(_, case)| case)
        .collect()
}

fn all_must_pass(cases: &[PathBuf]) {
    let cuda = Cuda::on(device());
    let failures: Vec<String> = cases
        .iter()
        .map(|case| replay(case, &cuda))
        .filter(|report| !report.passed())
        .map(|report| format!("{report} {}", report.to_json()))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} cases:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

#[test]
fn recorded_cases_pass_first_share() {
    all_must_pass(&share(0, 2));
}

#[test]
fn recorded_cases_pass_second_share() {
    all_must_pass(&share(1, 2));
}

const HEADS: usize = 2;
const FEATURES: usize = 16;
const LENGTH: usize = 9;

/// Numbers between -1 and 1.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// A dense layer's arrays on the device.
struct DeviceDense {
    kernel: DeviceBuffer<f32>,
    bias: DeviceBuffer<f32>,
}

impl DeviceDense {
    fn new(device: &CudaDevice, seed: u32) -> Result<Self, CudaError> {
        Ok(Self {
            kernel: device.upload(&numbers(FEATURES * FEATURES, seed))?,
            bias: device.upload(&numbers(FEATURES, seed + 100))?,
        })
    }

    fn split(&self) -> Result<Dense<'_, Device, f32>, CudaError> {
        let head = FEATURES / HEADS;
        Ok(Dense {
            kernel: View::new(&self.kernel, &[FEATURES, HEADS, head])?.into(),
            bias: Some(View::new(&self.bias, &[HEADS, head])?),
        })
    }

    fn joined(&self) -> Result<Dense<'_, Device, f32>, CudaError> {
        let head = FEATURES / HEADS;
        Ok(Dense {
            kernel: View::new(&self.kernel, &[HEADS, head, FEATURES])?.into(),
            bias: Some(View::new(&self.bias, &[FEATURES])?),
        })
    }
}

fn plan(layer: &MultiHeadDotProductAttentionF32) -> Plan {
    let shape = Dims::new(&[LENGTH, FEATURES]).expect("two axes");
    layer.plan(&shape, &shape, &shape).expect("sizes that fit")
}

/// Two layers, one after the other, whose arrays never leave the device between them.
fn two_layers_on_the_device(x: &[f32]) -> Result<Vec<f32>, CudaError> {
    let device = device();
    let layer = MultiHeadDotProductAttentionF32::new(HEADS);
    let plan = plan(&layer);
    let sizes = plan.scratch::<f32, _>(&device);
    let mut buffers = [
        device.buffer::<f32>(sizes.q)?,
        device.buffer(sizes.k)?,
        device.buffer(sizes.v)?,
        device.buffer(sizes.context)?,
    ];
    let mut tiles = device.buffer(sizes.tiles)?;
    let [q, k, v, context] = &mut buffers;
    let mut scratch = Scratch {
        q,
        k,
        v,
        context,
        tiles: &mut tiles,
    };
    let dense = [1, 2, 3, 4].map(|seed| DeviceDense::new(&device, seed));
    let [query, key, value, out] = dense;
    let (query, key, value, out) = (query?, key?, value?, out?);
    let params = Params {
        query: query.split()?,
        key: key.split()?,
        value: value.split()?,
        out: out.joined()?,
        query_ln: None,
        key_ln: None,
    };
    let shape = [LENGTH, FEATURES];
    let x = device.upload(x)?;
    let mut between = device.buffer(x_len())?;
    let mut y = device.buffer(x_len())?;
    let inputs = Inputs::self_attention(View::new(&x, &shape)?);
    let to = ViewMut::new(&mut between, &shape)?;
    layer.apply(&device, &plan, &params, inputs, to, &mut scratch)?;
    let inputs = Inputs::self_attention(View::new(&between, &shape)?);
    let to = ViewMut::new(&mut y, &shape)?;
    layer.apply(&device, &plan, &params, inputs, to, &mut scratch)?;
    let mut result = vec![0.0; x_len()];
    device.download(&y, &mut result)?;
    Ok(result)
}

const fn x_len() -> usize {
    LENGTH * FEATURES
}

/// The same on the CPU.
fn two_layers_on_the_host(x: &[f32]) -> attn_layers::Result<Vec<f32>> {
    let cpu = Cpu::portable();
    let layer = MultiHeadDotProductAttentionF32::new(HEADS);
    let plan = plan(&layer);
    let mut scratch = OwnedScratch::new(&plan.scratch::<f32, _>(&cpu))?;
    let head = FEATURES / HEADS;
    let kernels = [1, 2, 3, 4].map(|seed| numbers(FEATURES * FEATURES, seed));
    let biases = [1, 2, 3, 4].map(|seed| numbers(FEATURES, seed + 100));
    let split = |n: usize| -> attn_layers::Result<_> {
        Ok(Dense {
            kernel: HostView::new(&kernels[n], &[FEATURES, HEADS, head])?.into(),
            bias: Some(HostView::new(&biases[n], &[HEADS, head])?),
        })
    };
    let params = Params {
        query: split(0)?,
        key: split(1)?,
        value: split(2)?,
        out: Dense {
            kernel: HostView::new(&kernels[3], &[HEADS, head, FEATURES])?.into(),
            bias: Some(HostView::new(&biases[3], &[FEATURES])?),
        },
        query_ln: None,
        key_ln: None,
    };
    let shape = [LENGTH, FEATURES];
    let mut from = x.to_vec();
    for _ in 0..2 {
        let mut to = vec![0.0; x_len()];
        let inputs = Inputs::self_attention(HostView::new(&from, &shape)?);
        let out = HostViewMut::new(&mut to, &shape)?;
        layer.apply(&cpu, &plan, &params, inputs, out, &mut scratch.borrow())?;
        from = to;
    }
    Ok(from)
}

#[test]
fn arrays_stay_on_the_device_from_layer_to_layer() {
    let x = numbers(x_len(), 9);
    let got = two_layers_on_the_device(&x).expect("a device that computes");
    let wanted = two_layers_on_the_host(&x).expect("sizes that fit");
    let largest = wanted
        .iter()
        .fold(0.0f32, |largest, x| largest.max(x.abs()));
    for (index, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        // Both round 2 x 48 sums of 16 terms in their own order.
        let allowed = 100.0 * f32::EPSILON * largest;
        assert!(
            (got - wanted).abs() <= allowed,
            "{index}: {got} on the device, {wanted} on the host"
        );
    }
}
