//! The emulator as a device of the backend.

use crate::{
    block::{Block, Counts, NamedBarrier, check_launch},
    clocks::Clocks,
    decode::{DecodeError, decode},
    finding::{Fault, Finding, FindingKind},
    global::Global,
    local::Local,
    module::{Module, Space},
    program::Program,
    report::Report,
    shared::Shared,
    warp::{Position, Warp},
};
use alloc::sync::Arc;
use attn_kernels_cuda::driver::{
    DeviceInfo, Driver, DriverError, Image, Launch, ModuleId, TensorMap,
};
use core::fmt;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// In which order the warps of a block have their turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarpOrder {
    /// From the first.
    Forward,
    /// From the last.
    Backward,
    /// In an order that changes every turn and is the same for the same number.
    Seeded(u64),
}

/// How an emulator is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The compute capability it claims.
    pub capability: (u32, u32),
    /// The order of warps.
    pub order: WarpOrder,
    /// Whether a finding is a panic with its whole report; else it is a [`DriverError`].
    pub panic_on_finding: bool,
    /// Bytes of global memory.
    pub memory: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            capability: (8, 0),
            order: WarpOrder::Forward,
            panic_on_finding: true,
            memory: 4 << 30,
        }
    }
}

/// `CUDA_ERROR_INVALID_VALUE`.
const INVALID_VALUE: i32 = 1;

struct Loaded {
    module: Module,
    globals: HashMap<String, u64>,
    programs: HashMap<String, Arc<Program>>,
}

struct State {
    global: Global,
    modules: Vec<Loaded>,
    launches: u64,
    reports: HashMap<String, Report>,
    last: Option<Finding>,
}

/// A device that interprets PTX and checks what it does.
pub struct Emulator {
    options: Options,
    info: DeviceInfo,
    state: Mutex<State>,
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Emulator {
    /// A device of its own.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let (major, minor) = options.capability;
        let shared = if major >= 9 { 227 << 10 } else { 163 << 10 };
        Self {
            info: DeviceInfo {
                name: format!("PTX emulator ({major}.{minor})"),
                capability: options.capability,
                multiprocessors: 4,
                shared_per_block: shared,
                driver_version: 0,
                wants_ptx: true,
            },
            state: Mutex::new(State {
                global: Global::new(options.memory),
                modules: Vec::new(),
                launches: 0,
                reports: HashMap::new(),
                last: None,
            }),
            options,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic with a finding leaves the state as it was found, which is what a test wants to look at.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocations that were not given back.
    #[must_use]
    pub fn allocations(&self) -> usize {
        self.state().global.alive()
    }

    /// Bytes in them.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.state().global.in_use()
    }

    /// Kernels that were launched.
    #[must_use]
    pub fn launches(&self) -> u64 {
        self.state().launches
    }

    /// The offset of the first byte of a range that nothing wrote, if there is one.
    ///
    /// # Errors
    ///
    /// [`DriverError::FINDING`] if the range is not within an allocation.
    pub fn unwritten(&self, address: u64, bytes: usize) -> Result<Option<usize>, DriverError> {
        let found = self.state().global.unwritten(address, bytes);
        found.map_err(|fault| self.host_error("unwritten", *fault))
    }

    /// Decodes every kernel of a module, as a launch of each would, and gives their names.
    ///
    /// # Errors
    ///
    /// [`DriverError::UNKNOWN_INSTRUCTION`] with the first that is not known.
    pub fn decode_all(&self, module: ModuleId) -> Result<Vec<String>, DriverError> {
        let mut names: Vec<String> = self
            .state()
            .modules
            .get(module.0 as usize)
            .map(|loaded| {
                let functions = loaded.module.functions.iter();
                functions
                    .filter(|(_, function)| function.is_entry)
                    .map(|(name, _)| name.clone())
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        for name in &names {
            self.program(module, name)?;
        }
        Ok(names)
    }

    /// What each kernel did, by its name.
    #[must_use]
    pub fn reports(&self) -> HashMap<String, Report> {
        self.state().reports.clone()
    }

    /// The last finding.
    #[must_use]
    pub fn last_finding(&self) -> Option<Finding> {
        self.state().last.clone()
    }

    fn host_error(&self, operation: &'static str, fault: Fault) -> DriverError {
        self.found(
            operation,
            Finding {
                kind: fault.kind,
                message: fault.message,
                kernel: String::new(),
                block: [0; 3],
                thread: None,
                place: format!("`{operation}` of the host"),
                text: String::new(),
                other: None,
            },
        )
    }

    fn found(&self, operation: &'static str, finding: Finding) -> DriverError {
        let text = finding.to_string();
        self.state().last = Some(finding);
        assert!(!self.options.panic_on_finding, "{text}");
        DriverError {
            operation,
            code: DriverError::FINDING,
            message: text,
        }
    }

    fn program(&self, id: ModuleId, kernel: &str) -> Result<Arc<Program>, DriverError> {
        let mut state = self.state();
        let loaded = state
            .modules
            .get_mut(id.0 as usize)
            .ok_or_else(|| DriverError {
                operation: "launch",
                code: DriverError::NO_KERNEL,
                message: format!("no module {}", id.0),
            })?;
        if let Some(program) = loaded.programs.get(kernel) {
            return Ok(Arc::clone(program));
        }
        let program = decode(&loaded.module, &loaded.globals, kernel).map_err(|error| {
            let (code, message) = match error {
                DecodeError::NoKernel(name) => {
                    (DriverError::NO_KERNEL, format!("no kernel `{name}`"))
                }
                DecodeError::Unknown { line, what } => (
                    DriverError::UNKNOWN_INSTRUCTION,
                    format!(
                        "`{kernel}`, PTX line {line}: {what}\n  {}",
                        line_of(&loaded.module.text, line)
                    ),
                ),
            };
            DriverError {
                operation: "launch",
                code,
                message,
            }
        })?;
        let program = Arc::new(program);
        loaded
            .programs
            .insert(kernel.to_owned(), Arc::clone(&program));
        Ok(program)
    }

    fn run(&self, launch: &Launch<'_>) -> Result<(), DriverError> {
        let program = self.program(launch.module, launch.kernel)?;
        let params = params(&program, launch.params)?;
        let start = program
            .static_shared
            .next_multiple_of(program.dynamic_shared_align);
        let total = start + launch.shared as usize;
        let finding = |kind, message: String| Finding {
            kind,
            message,
            kernel: launch.kernel.to_owned(),
            block: [0; 3],
            thread: None,
            place: String::new(),
            text: String::new(),
            other: None,
        };
        if let Err(fault) = check_launch(
            &program,
            launch.block,
            total,
            self.info.shared_per_block as usize,
        ) {
            return Err(self.found("launch", finding(fault.kind, fault.message)));
        }
        let blocks = launch.grid.iter().product::<u32>();
        if blocks == 0 {
            return Err(self.found(
                "launch",
                finding(FindingKind::Launch, "a grid without blocks".to_owned()),
            ));
        }
        let mut state = self.state();
        state.launches += 1;
        let (counts, result) = run_blocks(
            &mut state.global,
            &program,
            launch,
            &params,
            self.options.order,
        );
        state
            .reports
            .entry(launch.kernel.to_owned())
            .or_default()
            .add(&program, &counts, u64::from(blocks));
        let Err((located, block)) = result else {
            return Ok(());
        };
        let line = program
            .code
            .get(located.pc as usize)
            .map_or(0, |instruction| instruction.line);
        let finding = Finding {
            kind: located.fault.kind,
            message: located.fault.message,
            kernel: launch.kernel.to_owned(),
            block,
            thread: located
                .fault
                .lane
                .map(|lane| 32 * located.warp + lane as u32),
            place: program.place_of(located.pc as usize),
            other: located.fault.other.map(|pc| program.place_of(pc as usize)),
            text: line_of(&state.modules[launch.module.0 as usize].module.text, line),
        };
        drop(state);
        Err(self.found("launch", finding))
    }
}

type BlockResult = Result<(), (crate::block::Located, [u32; 3])>;

fn run_blocks(
    global: &mut Global,
    program: &Program,
    launch: &Launch<'_>,
    params: &[u8],
    order: WarpOrder,
) -> (Counts, BlockResult) {
    let [gx, gy, gz] = launch.grid;
    let threads = launch.block.iter().product::<u32>();
    let start = program
        .static_shared
        .next_multiple_of(program.dynamic_shared_align);
    let total = start + launch.shared as usize;
    let mut warps: Vec<Warp> = (0..threads.div_ceil(32))
        .map(|index| Warp::new(program, index))
        .collect();
    let count = program.code.len();
    let cell = program.shared_cell();
    global.begin_launch((gx * gy * gz) as usize);
    let mut block = Block {
        program,
        global,
        params,
        position: Position {
            block: [0; 3],
            grid: launch.grid,
            threads: launch.block,
            dynamic_start: start as u32,
            dynamic_shared: launch.shared,
            total_shared: total as u32,
        },
        number: 0,
        shared: Shared::default(),
        local: Local::default(),
        barriers: Vec::new(),
        counts: Counts {
            warps: vec![0; count],
            threads: vec![0; count],
            conflicts: vec![0; count],
        },
        released: 0,
        votes: Vec::new(),
        progress: 0,
        clock: 0,
        published: HashMap::new(),
        fenced: false,
        clocks: Clocks::default(),
        objects: HashMap::new(),
        boxes: Vec::new(),
        products: Vec::new(),
    };
    for number in 0..gx * gy * gz {
        let place = [number % gx, number / gx % gy, number / (gx * gy)];
        block.number = number;
        block.position.block = place;
        block.fenced = false;
        block.clock = 0;
        block.global.begin_block(number);
        block.shared.reset(total, cell, warps.len());
        block.clocks.reset(warps.len());
        block.objects.clear();
        block.boxes.clear();
        block.products.clear();
        block.products.resize_with(warps.len(), Default::default);
        block.local.reset(threads as usize, program.local);
        block.barriers.clear();
        block.barriers.resize(16, NamedBarrier::default());
        for warp in &mut warps {
            warp.begin(program, &block.position);
        }
        if let Err(located) = block.run(&mut warps, order) {
            return (block.counts, Err((located, place)));
        }
    }
    (block.counts, Ok(()))
}

/// The parameters as they lie in a kernel's memory.
fn params(program: &Program, given: &[&[u8]]) -> Result<Vec<u8>, DriverError> {
    let sizes: Vec<usize> = given.iter().map(|bytes| bytes.len()).collect();
    let wanted: Vec<usize> = program.params.iter().map(|&(size, _)| size).collect();
    if sizes != wanted {
        return Err(DriverError {
            operation: "launch",
            code: DriverError::NO_KERNEL,
            message: format!(
                "`{}` takes parameters of {wanted:?} bytes and gets {sizes:?}",
                program.name
            ),
        });
    }
    let mut bytes = Vec::new();
    for (one, &(_, align)) in given.iter().zip(&program.params) {
        bytes.resize(usize::next_multiple_of(bytes.len(), align), 0);
        bytes.extend_from_slice(one);
    }
    Ok(bytes)
}

/// A line of a text, without the blanks around it.
fn line_of(text: &str, line: u32) -> String {
    (line as usize)
        .checked_sub(1)
        .and_then(|index| text.lines().nth(index))
        .map_or_else(String::new, |line| line.trim().to_owned())
}

impl Driver for Emulator {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DriverError> {
        self.state()
            .global
            .allocate(bytes)
            .ok_or_else(|| DriverError {
                operation: "allocate",
                code: DriverError::OUT_OF_MEMORY,
                message: format!("out of memory: {bytes} bytes"),
            })
    }

    fn free(&self, address: u64) {
        let known = self.state().global.free(address);
        if !known {
            self.host_error(
                "free",
                Fault {
                    kind: FindingKind::Wild,
                    message: format!("{address:#x} is no allocation that is alive"),
                    lane: None,
                    other: None,
                },
            );
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<(), DriverError> {
        let done = self.state().global.upload(to, from);
        done.map_err(|fault| self.host_error("upload", *fault))
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DriverError> {
        let done = self.state().global.download(from, to);
        done.map_err(|fault| self.host_error("download", *fault))
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DriverError> {
        let done = self.state().global.copy(from, to, bytes);
        done.map_err(|fault| self.host_error("copy", *fault))
    }

    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), DriverError> {
        let done = self.state().global.fill(to, byte, bytes);
        done.map_err(|fault| self.host_error("fill", *fault))
    }

    fn load(&self, image: Image<'_>) -> Result<ModuleId, DriverError> {
        let refuse = |message: String| DriverError {
            operation: "load",
            code: DriverError::UNKNOWN_INSTRUCTION,
            message,
        };
        let Image::Ptx(text) = image else {
            return Err(refuse(
                "the emulator reads PTX, not machine code".to_owned(),
            ));
        };
        let module = Module::parse(text).map_err(refuse)?;
        let (major, minor) = self.options.capability;
        let target: u32 = module
            .target
            .trim_start_matches("sm_")
            .trim_end_matches(|c: char| c.is_ascii_alphabetic())
            .parse()
            .unwrap_or(0);
        if target > 10 * major + minor
            || (module.target.ends_with('a') && target != 10 * major + minor)
        {
            return Err(refuse(format!(
                "code for {} on a device of capability {major}.{minor}",
                module.target
            )));
        }
        let mut state = self.state();
        let mut globals = HashMap::new();
        for variable in &module.variables {
            if variable.space != Space::Global {
                continue;
            }
            let address = state
                .global
                .allocate_module(variable.size, &variable.bytes)
                .ok_or_else(|| refuse(format!("no memory for `{}`", variable.name)))?;
            globals.insert(variable.name.clone(), address);
        }
        state.modules.push(Loaded {
            module,
            globals,
            programs: HashMap::new(),
        });
        Ok(ModuleId(state.modules.len() as u64 - 1))
    }

    #[expect(
        unsafe_code,
        reason = "the trait's method is unsafe; every access is checked here"
    )]
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), DriverError> {
        self.run(launch)
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16], DriverError> {
        crate::bulk::encode(map).map_err(|message| DriverError {
            operation: "tensor_map",
            code: INVALID_VALUE,
            message,
        })
    }

    fn synchronize(&self) -> Result<(), DriverError> {
        Ok(())
    }
}
