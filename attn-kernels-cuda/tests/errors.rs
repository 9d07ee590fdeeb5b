//! What a device refuses is a typed error, nothing of the call is left on it, and the next call works.
#![expect(clippy::std_instead_of_alloc, reason = "a test has std")]

use attn_core::{Attention, Backend, Dims, Error, HostView, HostViewMut, Kernels, View, ViewMut};
use attn_cuda_emulator::{Emulator, Options};
use attn_kernels_cuda::driver::DriverError;
use attn_kernels_cuda::{Cuda, CudaDevice, CudaError, Device, DeviceBuffer};
use std::sync::Arc;

fn emulator(options: Options) -> (Arc<Emulator>, Cuda) {
    let emulator = Arc::new(Emulator::new(options));
    let driver: Arc<Emulator> = Arc::clone(&emulator);
    (emulator, Cuda::on(CudaDevice::with_driver(driver)))
}

/// Attention of queries over themselves.
fn attend(cuda: &Cuda, length: usize) -> Result<Vec<f32>, Error> {
    let shape = [length, 1, 8];
    let x = vec![0.5f32; length * 8];
    let view = HostView::new(&x, &shape)?;
    let mut out = vec![f32::NAN; x.len()];
    let to = HostViewMut::new(&mut out, &shape)?;
    cuda.attend(Attention::new(view, view, view), to, &mut [])?;
    Ok(out)
}

#[test]
fn without_memory_a_call_fails_leaves_nothing_and_the_next_works() {
    let (emulator, cuda) = emulator(Options {
        memory: 1 << 20,
        ..Options::default()
    });
    attend(&cuda, 4).unwrap();
    let alive = emulator.allocations();
    let error = attend(&cuda, 1 << 15).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Device {
                operation: "allocation",
                code: DriverError::OUT_OF_MEMORY,
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(
        cuda.last_error(),
        Some(CudaError::OutOfMemory { bytes }) if bytes >= 1 << 20
    ));
    assert_eq!(cuda.last_error(), None, "it is forgotten once it was told");
    assert_eq!(emulator.allocations(), alive);
    assert_eq!(attend(&cuda, 4).unwrap(), [0.5; 32]);
}

#[test]
fn a_wrong_call_leaves_nothing_on_the_device() {
    let (emulator, cuda) = emulator(Options::default());
    let x = vec![0.5f32; 32];
    let view = HostView::new(&x, &[4, 1, 8]).unwrap();
    let mut out = vec![7.0f32; 24];
    let to = HostViewMut::new(&mut out, &[3, 1, 8]).unwrap();
    let error = cuda
        .attend(Attention::new(view, view, view), to, &mut [])
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Shape {
                argument: "output",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(out, [7.0; 24]);
    assert_eq!(emulator.allocations(), 0);
    assert_eq!(
        cuda.last_error(),
        None,
        "an argument is no fault of the device"
    );
}

#[test]
fn a_device_too_old_is_named() {
    let (_, cuda) = emulator(Options {
        capability: (7, 5),
        ..Options::default()
    });
    let error = attend(&cuda, 4).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Device {
                operation: "loading code",
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(
        cuda.last_error(),
        Some(CudaError::NoCode {
            capability: (7, 5),
            ..
        })
    ));
}

/// One element, repeated along every axis.
fn repeated<'a>(
    buffer: &'a DeviceBuffer<f32>,
    shape: &[usize],
) -> Result<View<'a, Device, f32>, Error> {
    let layout = attn_core::Layout::strided(0, Dims::new(shape)?, &vec![0; shape.len()])?;
    View::with_layout(buffer, layout)
}

/// The error of a call with these shapes, into an output that is said to be long enough.
fn refused(device: &CudaDevice, queries: &[usize], keys: &[usize]) -> CudaError {
    let one = device.upload(&[1.0f32]).unwrap();
    let [query, key] = [queries, keys].map(|shape| repeated(&one, shape).unwrap());
    let call = Attention::new(query, key, key);
    let scratch = Kernels::<f32>::attend_scratch(device, &call.shape().unwrap());
    let mut scratch = device.buffer(scratch).unwrap();
    // SAFETY: the call is refused before anything is started, so nothing accesses that memory.
    #[expect(unsafe_code, reason = "no machine has memory of that length")]
    let mut out = unsafe { DeviceBuffer::<f32>::borrowed(256, queries.iter().product()) };
    let to = ViewMut::new(&mut out, queries).unwrap();
    device.attend(call, to, &mut scratch).unwrap_err()
}

#[test]
fn lengths_beyond_a_kernel_are_refused() {
    let (emulator, cuda) = emulator(Options::default());
    let (few, many) = ([1, 1, 1], [1 << 31, 1, 1]);
    for (queries, keys, wanted) in [(many, few, "query"), (few, many, "key")] {
        let error = refused(cuda.device(), &queries, &keys);
        assert!(
            matches!(error, CudaError::Core(Error::TooLarge { argument, .. }) if argument == wanted),
            "{error}"
        );
    }
    assert_eq!(emulator.launches(), 0);
}

#[test]
fn more_blocks_than_a_launch_has_are_refused() {
    let (emulator, cuda) = emulator(Options::default());
    let shape = [2, 1, (1 << 31) - 1, 1];
    let error = refused(cuda.device(), &shape, &shape);
    assert!(
        matches!(error, CudaError::Grid { got, limit } if got > limit && limit == (1 << 31) - 1),
        "{error}"
    );
    assert_eq!(emulator.launches(), 0);
}

#[test]
fn buffers_of_other_lengths_are_not_copied() {
    let (_, cuda) = emulator(Options::default());
    let buffer = cuda.device().upload(&[1.0f32, 2.0]).unwrap();
    let error = cuda.device().download(&buffer, &mut [0.0f32; 3]);
    assert!(matches!(
        error,
        Err(CudaError::Core(Error::Buffer {
            got: 3,
            wanted: 2,
            ..
        }))
    ));
}

#[test]
fn without_a_driver_the_error_says_what_to_install() {
    // On a machine with a device there is nothing to see.
    if let Err(error) = Cuda::new(0) {
        let words = error.to_string();
        assert!(
            matches!(
                error,
                CudaError::NoDriver { .. }
                    | CudaError::OldDriver { .. }
                    | CudaError::NoDevice { .. }
            ),
            "{words}"
        );
        assert!(
            words.contains("CPU backend") || words.contains("newer driver"),
            "{words}"
        );
    }
}

#[test]
fn a_number_beyond_all_devices_is_refused() {
    let error = Cuda::new(usize::MAX).unwrap_err();
    assert!(
        matches!(
            error,
            CudaError::NoDriver { .. }
                | CudaError::OldDriver { .. }
                | CudaError::NoDevice {
                    ordinal: usize::MAX,
                    ..
                }
        ),
        "{error}"
    );
}

#[test]
fn the_backend_names_itself() {
    let (_, cuda) = emulator(Options::default());
    assert_eq!(cuda.name(), "attn-kernels-cuda");
}
