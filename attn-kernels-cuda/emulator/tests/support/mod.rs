//! Small kernels written by hand, and their launch.

#![allow(dead_code, reason = "each test uses a part of it")]

use attn_cuda_emulator::{Emulator, Finding, Options, WarpOrder};
use attn_kernels_cuda::driver::{Driver, DriverError, Image, Launch};

/// A kernel of two addresses: its declarations (between module and kernel), target and body.
///
/// Registers: `%p`, `%rs`, `%r`, `%f`, `%rd`, `%fd`, `%q` (64-bit). `%rd1` and `%rd2` hold the addresses, `%r1` the thread, `%rd3` the
/// thread times four, `%rd4` and `%rd5` the addresses plus that, `%r2` the block.
#[derive(Debug, Clone)]
pub(crate) struct Kernel<'a> {
    pub(crate) target: &'a str,
    pub(crate) module: &'a str,
    pub(crate) body: &'a str,
    pub(crate) grid: u32,
    pub(crate) block: u32,
    pub(crate) shared: u32,
    /// Words of the first allocation, all written, and of the second, of which nothing is.
    pub(crate) input: Vec<u32>,
    pub(crate) output: usize,
    pub(crate) order: WarpOrder,
}

impl Default for Kernel<'_> {
    fn default() -> Self {
        Self {
            target: "sm_80",
            module: "",
            body: "",
            grid: 1,
            block: 128,
            shared: 0,
            input: (0..1024).collect(),
            output: 1024,
            order: WarpOrder::Forward,
        }
    }
}

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) device: Emulator,
    pub(crate) output: u64,
    pub(crate) result: Result<(), DriverError>,
}

impl Ran {
    /// The first words of the output.
    pub(crate) fn words(&self, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * count];
        self.device
            .download(self.output, &mut bytes)
            .expect("the output is written");
        bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect()
    }

    /// What was found.
    pub(crate) fn finding(&self) -> Option<Finding> {
        self.device.last_finding()
    }
}

impl Kernel<'_> {
    /// Its text.
    pub(crate) fn ptx(&self) -> String {
        format!(
            "
.version 9.0
.target {}
.address_size 64
{}
.visible .entry kernel(.param .u64 first, .param .u64 second)
{{
    .reg .pred %p<16>;
    .reg .b16 %rs<32>;
    .reg .b32 %r<64>;
    .reg .f32 %f<64>;
    .reg .b64 %rd<32>;
    .reg .f64 %fd<16>;
    ld.param.u64 %rd1, [first];
    ld.param.u64 %rd2, [second];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    {}
    ret;
}}
",
            self.target, self.module, self.body
        )
    }

    /// Runs it on a device of its own.
    pub(crate) fn run(&self) -> Ran {
        let device = Emulator::new(Options {
            capability: if self.target == "sm_90a" {
                (9, 0)
            } else {
                (8, 0)
            },
            order: self.order,
            panic_on_finding: false,
            ..Options::default()
        });
        let module = device
            .load(Image::Ptx(&self.ptx()))
            .expect("the module is understood");
        let input = device
            .allocate(4 * self.input.len())
            .expect("there is memory");
        let bytes: Vec<u8> = self
            .input
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        device
            .upload(input, &bytes)
            .expect("the input is allocated");
        let output = device.allocate(4 * self.output).expect("there is memory");
        let launch = Launch {
            module,
            kernel: "kernel",
            grid: [self.grid, 1, 1],
            block: [self.block, 1, 1],
            shared: self.shared,
            params: &[&input.to_le_bytes(), &output.to_le_bytes()],
        };
        // SAFETY: the emulator checks every access.
        #[expect(unsafe_code, reason = "the launch of a device")]
        let result = unsafe { device.launch(&launch) };
        Ran {
            device,
            output,
            result,
        }
    }
}
