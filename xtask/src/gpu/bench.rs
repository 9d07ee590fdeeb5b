//! Timing by the device's own events.

use crate::cases::{self, Case, Operation};
use crate::job::Job;
use anyhow::Result;
use attn_core::{DType, Element, bf16, f16};
use attn_kernels_cuda::CudaDevice;
use attn_kernels_cuda::cudarc::driver::sys::CUevent_flags;
use attn_kernels_cuda::cudarc::driver::{CudaContext, CudaStream};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Timed calls of a case, and the seconds after which no further one is started.
const CALLS: usize = 30;
const BUDGET_MS: f32 = 600.0;

pub(crate) fn run(prefixes: &[String], once: bool, json: Option<&Path>) -> Result<()> {
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let device = CudaDevice::on_stream(Arc::clone(&stream))?.with_split_decode(true);
    println!("{:?}", device.info());
    let wanted = |case: &Case| {
        prefixes.is_empty()
            || prefixes
                .iter()
                .any(|prefix| case.name().starts_with(prefix))
    };
    let mut results = Vec::new();
    for case in cases::all().into_iter().filter(wanted) {
        let timed = match case.dtype {
            DType::F32 => time::<f32>(&device, &stream, &case, once),
            DType::F64 => time::<f64>(&device, &stream, &case, once),
            DType::F16 => time::<f16>(&device, &stream, &case, once),
            DType::BF16 => time::<bf16>(&device, &stream, &case, once),
        };
        let mut result = case.to_json();
        match timed {
            Ok(times) => {
                let median = times[times.len() / 2];
                println!("{}", line(&case, median));
                result["ms"] = json!(median);
                result["ms_min"] = json!(times[0]);
            }
            Err(error) => {
                println!("{:36} FAILED {error:#}", case.name());
                result["error"] = json!(format!("{error:#}"));
            }
        }
        results.push(result);
        if let Some(path) = json {
            let all = json!({ "device": format!("{:?}", device.info()), "cases": results });
            std::fs::write(path, serde_json::to_vec_pretty(&all)?)?;
        }
    }
    Ok(())
}

fn line(case: &Case, ms: f32) -> String {
    let seconds = f64::from(ms) / 1e3;
    match case.operation {
        Operation::Decode => format!(
            "{:36} {ms:9.4} ms {:8.3} TB/s",
            case.name(),
            case.cache_bytes() / seconds / 1e12
        ),
        _ => format!(
            "{:36} {ms:9.4} ms {:8.1} TFLOP/s",
            case.name(),
            case.operations() / seconds / 1e12
        ),
    }
}

/// Milliseconds of the calls, sorted.
fn time<T: Element>(
    device: &CudaDevice,
    stream: &CudaStream,
    case: &Case,
    once: bool,
) -> Result<Vec<f32>> {
    let mut job = Job::<T>::new(device, case)?;
    let (warm, calls) = if once { (0, 1) } else { (3, CALLS) };
    for turn in 0..warm {
        job.start(device, turn)?;
    }
    device.synchronize()?;
    let mut times = Vec::new();
    for turn in 0..calls {
        let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let start = event()?;
        job.start(device, turn)?;
        let end = event()?;
        times.push(start.elapsed_ms(&end)?);
        if times.iter().sum::<f32>() > BUDGET_MS {
            break;
        }
    }
    times.sort_by(f32::total_cmp);
    Ok(times)
}
