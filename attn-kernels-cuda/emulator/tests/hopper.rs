//! The checks of what sm_90a adds: barrier objects, the copy engine, products of a warpgroup. Each finds a planted fault and leaves the
//! mended kernel alone.

mod support;

use attn_cuda_emulator::{Emulator, Finding, FindingKind, Options, WarpOrder};
use attn_kernels_cuda::driver::{Driver, DriverError, Image, Launch, TensorMap};
use half::bf16;

/// Rows and columns of the matrix in global memory.
const SIZE: usize = 64;

fn element(row: usize, column: usize) -> f32 {
    ((row * 7 + column * 3) % 13) as f32 - 6.0
}

/// A kernel of one warpgroup: `%rd1` is the output, `map` the tensor map of a 64 × 64 matrix, `tile` 8192 bytes for it, `full` and `empty`
/// barrier objects. `%p1` holds in thread 0.
fn ptx(body: &str) -> String {
    format!(
        "
.version 9.0
.target sm_90a
.address_size 64
.visible .entry kernel(.param .align 64 .b8 map[128], .param .u64 out)
{{
    .reg .pred %p<16>;
    .reg .b16 %rs<8>;
    .reg .b32 %r<64>;
    .reg .f32 %f<64>;
    .reg .b64 %rd<32>;
    .shared .align 1024 .b8 tile[8192];
    .shared .align 1024 .b8 other[8192];
    .shared .align 8 .b8 full[8];
    .shared .align 8 .b8 empty[8];
    ld.param.u64 %rd1, [out];
    mov.b64 %rd2, map;
    cvta.param.u64 %rd2, %rd2;
    mov.u32 %r1, %tid.x;
    mov.u32 %r10, 0;
    mov.u32 %r11, tile;
    mov.u32 %r12, other;
    setp.eq.u32 %p1, %r1, 0;
    {body}
    ret;
}}
"
    )
}

fn run(body: &str, order: WarpOrder) -> (Result<Vec<f32>, DriverError>, Option<Finding>) {
    let device = Emulator::new(Options {
        capability: (9, 0),
        order,
        panic_on_finding: false,
        ..Options::default()
    });
    let module = device
        .load(Image::Ptx(&ptx(body)))
        .expect("the module is understood");
    let matrix = device.allocate(2 * SIZE * SIZE).expect("there is memory");
    let bytes: Vec<u8> = (0..SIZE * SIZE)
        .flat_map(|at| bf16::from_f32(element(at / SIZE, at % SIZE)).to_le_bytes())
        .collect();
    device.upload(matrix, &bytes).expect("it is allocated");
    let out = device.allocate(4 * SIZE * SIZE).expect("there is memory");
    device
        .fill(out, 0, 4 * SIZE * SIZE)
        .expect("it is allocated");
    let map = device
        .tensor_map(&TensorMap {
            address: matrix,
            dims: [SIZE as u64, SIZE as u64, 1, 1],
            strides: [
                2 * SIZE as u64,
                2 * (SIZE * SIZE) as u64,
                2 * (SIZE * SIZE) as u64,
            ],
            box_dims: [64, 64, 1, 1],
            is_bf16: true,
        })
        .expect("a map that the copy engine can do");
    let map: Vec<u8> = map.iter().flat_map(|word| word.to_le_bytes()).collect();
    let launch = Launch {
        module,
        kernel: "kernel",
        grid: [1, 1, 1],
        block: [128, 1, 1],
        shared: 0,
        params: &[&map, &out.to_le_bytes()],
    };
    // SAFETY: the emulator checks every access.
    #[expect(unsafe_code, reason = "the launch of a device")]
    let result = unsafe { device.launch(&launch) };
    let finding = device.last_finding();
    let result = result.map(|()| {
        let mut bytes = vec![0; 4 * SIZE * SIZE];
        device.download(out, &mut bytes).expect("it is written");
        bytes
            .chunks_exact(4)
            .map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect()
    });
    (result, finding)
}

#[track_caller]
fn planted(kind: FindingKind, fault: &str, mended: &str) {
    planted_any(&[kind], fault, mended);
}

/// The same where it depends on the order of warps what is seen of the fault first.
#[track_caller]
fn planted_any(kinds: &[FindingKind], fault: &str, mended: &str) {
    for order in [
        WarpOrder::Forward,
        WarpOrder::Backward,
        WarpOrder::Seeded(3),
    ] {
        let (result, finding) = run(fault, order);
        let error = result.expect_err("nothing was found");
        let finding = finding.unwrap_or_else(|| panic!("{order:?}: {error}"));
        assert!(kinds.contains(&finding.kind), "{order:?}: {finding}");
        let (result, _) = run(mended, order);
        if let Err(error) = result {
            panic!("{order:?}: the mended kernel: {error}");
        }
    }
}

const INIT: &str =
    "@%p1 mbarrier.init.shared::cta.b64 [full], 1; @%p1 mbarrier.init.shared::cta.b64 [empty], 4;
    @%p1 fence.mbarrier_init.release.cluster; bar.sync 0;";
const FETCH: &str = "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [full], 8192;
    @%p1 cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%r11], [%rd2, {%r10, %r10, %r10, %r10}], [full];";
const WAIT: &str = "{ .reg .pred done; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [full], 0; @!done bra AGAIN; }";
/// The sum of products of the tile with its own transpose, four steps of the inner index; `%f1` to `%f32`.
fn product(first: &str, second: &str) -> String {
    let mut text = format!(
        "cvt.u64.u32 %rd10, {first}; cvt.u64.u32 %rd11, {second}; shr.u64 %rd10, %rd10, 4; shr.u64 %rd11, %rd11, 4;
         mov.u64 %rd12, 0x4000004000010000; or.b64 %rd10, %rd10, %rd12; or.b64 %rd11, %rd11, %rd12;
         wgmma.fence.sync.aligned; setp.ne.u32 %p2, %r10, 0; setp.eq.u32 %p3, %r10, 0;"
    );
    let sums: Vec<String> = (1..=32).map(|n| format!("%f{n}")).collect();
    for step in 0..4 {
        text.push_str(&format!(
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{}}}, %rd10, %rd11, {}, 1, 1, 0, 0;
             add.s64 %rd10, %rd10, 2; add.s64 %rd11, %rd11, 2;",
            sums.join(", "),
            if step == 0 { "%p2" } else { "%p3" }
        ));
    }
    text.push_str("wgmma.commit_group.sync.aligned;");
    text
}
const WAIT_PRODUCT: &str = "wgmma.wait_group.sync.aligned 0;";

/// Writes the sums to the output, row by row.
fn store() -> String {
    let mut text = String::from(
        "shr.u32 %r20, %r1, 5; shl.b32 %r20, %r20, 4; and.b32 %r21, %r1, 31; shr.u32 %r22, %r21, 2; add.u32 %r20, %r20, %r22;
         and.b32 %r21, %r21, 3; shl.b32 %r21, %r21, 3; shl.b32 %r20, %r20, 8; add.u32 %r20, %r20, %r21;
         cvt.u64.u32 %rd20, %r20; add.s64 %rd20, %rd20, %rd1;",
    );
    for n in 0..32 {
        text.push_str(&format!(
            "st.global.f32 [%rd20+{}], %f{};",
            (n / 2 % 2) * 8 * 256 + (n / 4) * 32 + (n % 2) * 4,
            n + 1
        ));
    }
    text
}

#[test]
fn product_of_a_fetched_matrix_is_right() {
    let product = product("%r11", "%r11");
    let store = store();
    for order in [
        WarpOrder::Forward,
        WarpOrder::Backward,
        WarpOrder::Seeded(11),
    ] {
        let (result, _) = run(
            &format!("{INIT} {FETCH} {WAIT} {product} {WAIT_PRODUCT} {store}"),
            order,
        );
        let found = result.unwrap_or_else(|error| panic!("{error}"));
        for row in 0..SIZE {
            for column in 0..SIZE {
                let want: f32 = (0..SIZE)
                    .map(|inner| element(row, inner) * element(column, inner))
                    .sum();
                assert_eq!(found[row * SIZE + column], want, "({row}, {column})");
            }
        }
    }
}

// ---- barrier objects ----

#[test]
fn barrier_object_that_is_none() {
    planted(
        FindingKind::Barrier,
        "@%p1 mbarrier.arrive.shared::cta.b64 _, [full];",
        "@%p1 mbarrier.init.shared::cta.b64 [full], 1; @%p1 mbarrier.arrive.shared::cta.b64 _, [full];",
    );
}

#[test]
fn barrier_object_used_before_others_know() {
    planted_any(
        &[FindingKind::SharedRace, FindingKind::Barrier],
        "@%p1 mbarrier.init.shared::cta.b64 [full], 1; setp.eq.u32 %p4, %r1, 64; @%p4 mbarrier.arrive.shared::cta.b64 _, [full];",
        "@%p1 mbarrier.init.shared::cta.b64 [full], 1; bar.sync 0; setp.eq.u32 %p4, %r1, 64; @%p4 mbarrier.arrive.shared::cta.b64 _, [full];",
    );
}

#[test]
fn more_arrivals_than_its_count() {
    planted(
        FindingKind::Barrier,
        "@%p1 mbarrier.init.shared::cta.b64 [full], 2; @%p1 mbarrier.arrive.shared::cta.b64 _, [full], 3;",
        "@%p1 mbarrier.init.shared::cta.b64 [full], 3; @%p1 mbarrier.arrive.shared::cta.b64 _, [full], 3;",
    );
}

#[test]
fn fewer_arrivals_than_its_count() {
    let kernel = |count| {
        format!(
            "@%p1 mbarrier.init.shared::cta.b64 [full], {count}; bar.sync 0; mbarrier.arrive.shared::cta.b64 _, [full]; {WAIT}"
        )
    };
    planted(FindingKind::Deadlock, &kernel(129), &kernel(128));
}

#[test]
fn wait_for_the_wrong_parity() {
    let kernel = |parity| {
        format!(
            "{INIT} {FETCH} {WAIT} {{ .reg .pred done; MORE: mbarrier.try_wait.parity.shared::cta.b64 done, [full], {parity}; @!done bra MORE; }}"
        )
    };
    planted(FindingKind::Deadlock, &kernel(1), &kernel(0));
}

#[test]
fn ordinary_write_to_a_barrier_object() {
    planted(
        FindingKind::Barrier,
        &format!("{INIT} @%p1 st.shared.u32 [full+4], %r1;"),
        &format!("{INIT} @%p1 st.shared.u32 [tile], %r1;"),
    );
}

#[test]
fn barrier_object_orders_what_came_before_the_arrival() {
    let write = "shl.b32 %r13, %r1, 2; add.u32 %r13, %r13, %r11; st.shared.u32 [%r13], 5;";
    let read = "xor.b32 %r14, %r1, 64; shl.b32 %r14, %r14, 2; add.u32 %r14, %r14, %r11; ld.shared.u32 %r15, [%r14];";
    let init = "@%p1 mbarrier.init.shared::cta.b64 [full], 128; shl.b32 %r13, %r1, 2; add.u32 %r13, %r13, %r11;
                st.shared.u32 [%r13], 4; bar.sync 0;";
    let arrive = "mbarrier.arrive.shared::cta.b64 _, [full];";
    planted(
        FindingKind::SharedRace,
        &format!("{init} {arrive} {WAIT} {write} {read} bar.sync 0; {read}"),
        &format!("{init} {write} {arrive} {WAIT} {read}"),
    );
}

#[test]
fn one_lane_arrives_for_lanes_that_it_does_not_know_of() {
    // Lane 0 of each warp arrives for its warp; without `bar.warp.sync` it does not speak for the other lanes.
    let kernel = |sync: &str| {
        format!(
            "@%p1 mbarrier.init.shared::cta.b64 [full], 4; shl.b32 %r13, %r1, 2; add.u32 %r13, %r13, %r11;
             st.shared.u32 [%r13], 4; bar.sync 0; st.shared.u32 [%r13], 5; {sync}
             and.b32 %r16, %r1, 31; setp.eq.u32 %p5, %r16, 0; @%p5 mbarrier.arrive.shared::cta.b64 _, [full];
             {WAIT} xor.b32 %r14, %r1, 64; shl.b32 %r14, %r14, 2; add.u32 %r14, %r14, %r11; ld.shared.u32 %r15, [%r14];"
        )
    };
    planted(
        FindingKind::SharedRace,
        &kernel(""),
        &kernel("bar.warp.sync -1;"),
    );
}

// ---- the copy engine ----

const READ: &str = "shl.b32 %r13, %r1, 2; add.u32 %r13, %r13, %r11; ld.shared.u32 %r14, [%r13];";

#[test]
fn box_that_is_not_waited_for() {
    planted(
        FindingKind::InFlight,
        &format!("{INIT} {FETCH} bar.sync 0; {READ} {WAIT}"),
        &format!("{INIT} {FETCH} bar.sync 0; {WAIT} {READ}"),
    );
}

#[test]
fn box_in_flight_at_the_end() {
    planted(
        FindingKind::InFlight,
        &format!("{INIT} {FETCH}"),
        &format!("{INIT} {FETCH} {WAIT}"),
    );
}

#[test]
fn box_of_other_bytes_than_announced() {
    planted(
        FindingKind::Deadlock,
        &format!("{INIT} {} {WAIT}", FETCH.replace("8192", "8190")),
        &format!("{INIT} {FETCH} {WAIT}"),
    );
}

#[test]
fn box_at_a_misaligned_address() {
    planted(
        FindingKind::Misaligned,
        &format!("{INIT} add.u32 %r11, %r11, 64; {FETCH} {WAIT}"),
        &format!("{INIT} add.u32 %r11, %r11, 0; {FETCH} {WAIT}"),
    );
}

#[test]
fn box_without_fence_of_its_barrier_object() {
    planted(
        FindingKind::Proxy,
        &format!(
            "{} {FETCH} {WAIT}",
            INIT.replace("@%p1 fence.mbarrier_init.release.cluster;", "")
        ),
        &format!("{INIT} {FETCH} {WAIT}"),
    );
}

#[test]
fn box_over_what_is_still_read() {
    let again = "bar.warp.sync -1; @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [full], 8192;
        @%p1 cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%r11], [%rd2, {%r10, %r10, %r10, %r10}], [full];
        { .reg .pred done; MORE: mbarrier.try_wait.parity.shared::cta.b64 done, [full], 1; @!done bra MORE; }";
    let lane_0 = "bar.warp.sync -1; and.b32 %r16, %r1, 31; setp.eq.u32 %p5, %r16, 0; @%p5 mbarrier.arrive.shared::cta.b64 _, [empty];";
    let wait_empty = "@!%p1 bra ON; { .reg .pred done; LESS: mbarrier.try_wait.parity.shared::cta.b64 done, [empty], 0; @!done bra LESS; } ON:";
    // The reads of one warp and the copy of another: only the barrier object between them orders the two.
    planted(
        FindingKind::SharedRace,
        &format!("{INIT} {FETCH} {WAIT} {READ} bar.sync 1, 128; {READ} {again}"),
        &format!("{INIT} {FETCH} {WAIT} {READ} {lane_0} {wait_empty} {again}"),
    );
}

#[test]
fn no_tensor_map() {
    planted(
        FindingKind::Wild,
        &format!("{INIT} mov.u64 %rd2, %rd1; {FETCH} {WAIT}"),
        &format!("{INIT} {FETCH} {WAIT}"),
    );
}

// ---- products ----

#[test]
fn sums_that_are_not_waited_for() {
    let product = product("%r11", "%r11");
    let store = store();
    planted(
        FindingKind::Undefined,
        &format!("{INIT} {FETCH} {WAIT} {product} {store} {WAIT_PRODUCT}"),
        &format!("{INIT} {FETCH} {WAIT} {product} {WAIT_PRODUCT} {store}"),
    );
}

#[test]
fn products_in_flight_at_the_end() {
    let product = product("%r11", "%r11");
    planted(
        FindingKind::InFlight,
        &format!("{INIT} {FETCH} {WAIT} {product}"),
        &format!("{INIT} {FETCH} {WAIT} {product} {WAIT_PRODUCT}"),
    );
}

#[test]
fn sum_that_is_overwritten_in_flight() {
    let product = product("%r11", "%r11");
    planted(
        FindingKind::InFlight,
        &format!("{INIT} {FETCH} {WAIT} {product} mov.f32 %f3, 0f00000000; {WAIT_PRODUCT}"),
        &format!("{INIT} {FETCH} {WAIT} {product} {WAIT_PRODUCT} mov.f32 %f3, 0f00000000;"),
    );
}

#[test]
fn factor_that_is_overwritten_in_flight() {
    let product = product("%r11", "%r11");
    planted_any(
        &[FindingKind::InFlight, FindingKind::SharedRace],
        &format!(
            "{INIT} {FETCH} {WAIT} {product} bar.sync 0; @%p1 st.shared.u32 [tile], %r1; {WAIT_PRODUCT}"
        ),
        &format!(
            "{INIT} {FETCH} {WAIT} {product} {WAIT_PRODUCT} bar.sync 0; @%p1 st.shared.u32 [tile], %r1;"
        ),
    );
}

#[test]
fn factor_that_nothing_fetched() {
    let product = product("%r11", "%r12");
    let right = self::product("%r11", "%r11");
    planted(
        FindingKind::Unwritten,
        &format!("{INIT} {FETCH} {WAIT} {product} {WAIT_PRODUCT}"),
        &format!("{INIT} {FETCH} {WAIT} {right} {WAIT_PRODUCT}"),
    );
}

/// Every thread writes 64 bytes of `other`.
fn fill() -> String {
    let mut text = String::from("shl.b32 %r13, %r1, 6; add.u32 %r13, %r13, %r12;");
    for part in 0..4 {
        text.push_str(&format!(
            "st.shared.v4.u32 [%r13+{}], {{%r10, %r10, %r10, %r10}};",
            16 * part
        ));
    }
    text
}

#[test]
fn ordinary_writes_without_proxy_fence() {
    let fill = fill();
    let product = product("%r12", "%r12");
    planted(
        FindingKind::Proxy,
        &format!("{fill} bar.sync 0; {product} {WAIT_PRODUCT}"),
        &format!("{fill} fence.proxy.async.shared::cta; bar.sync 0; {product} {WAIT_PRODUCT}"),
    );
}

#[test]
fn fence_of_some_threads_only() {
    let fill = fill();
    let product = product("%r12", "%r12");
    planted(
        FindingKind::Proxy,
        &format!("{fill} @%p1 fence.proxy.async.shared::cta; bar.sync 0; {product} {WAIT_PRODUCT}"),
        // After a barrier one thread's fence covers what it knows of.
        &format!(
            "{fill} bar.sync 0; @%p1 fence.proxy.async.shared::cta; bar.sync 0; {product} {WAIT_PRODUCT}"
        ),
    );
}

#[test]
fn ordinary_writes_without_barrier() {
    let fill = fill();
    let product = product("%r12", "%r12");
    planted_any(
        &[FindingKind::InFlight, FindingKind::SharedRace],
        &format!(
            "{fill} bar.sync 0; {fill} fence.proxy.async.shared::cta; {product} {WAIT_PRODUCT}"
        )
        .replacen("%r10, %r10, %r10, %r10", "%r11, %r10, %r10, %r10", 1),
        &format!(
            "{fill} bar.sync 0; {fill} fence.proxy.async.shared::cta; bar.sync 0; {product} {WAIT_PRODUCT}"
        ),
    );
}
