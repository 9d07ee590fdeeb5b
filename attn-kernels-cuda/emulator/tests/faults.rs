//! Every check finds what it is for, and leaves the same kernel alone where the fault is mended.

mod support;

use attn_cuda_emulator::{FindingKind, WarpOrder};
use attn_kernels_cuda::driver::DriverError;
use support::Kernel;

/// Runs both bodies in every order of warps: the first must be found out, the second must pass.
#[track_caller]
fn planted(kind: FindingKind, kernel: &Kernel<'_>, mended: &str) {
    for order in [
        WarpOrder::Forward,
        WarpOrder::Backward,
        WarpOrder::Seeded(7),
    ] {
        let ran = Kernel {
            order,
            ..kernel.clone()
        }
        .run();
        let Err(error) = ran.result.as_ref() else {
            panic!("{order:?}: nothing was found");
        };
        assert_eq!(error.code, DriverError::FINDING, "{order:?}: {error}");
        let finding = ran.finding().expect("a finding is kept");
        assert_eq!(finding.kind, kind, "{order:?}: {finding}");
        let ran = Kernel {
            order,
            body: mended,
            ..kernel.clone()
        }
        .run();
        assert_eq!(ran.result, Ok(()), "{order:?}: the mended kernel");
    }
}

fn body(body: &str) -> Kernel<'_> {
    Kernel {
        body,
        ..Kernel::default()
    }
}

// ---- addresses ----

#[test]
fn load_behind_the_end() {
    planted(
        FindingKind::OutOfBounds,
        &body("ld.global.u32 %r3, [%rd4+4096];"),
        "ld.global.u32 %r3, [%rd4+3584];",
    );
}

#[test]
fn load_before_the_start() {
    planted(
        FindingKind::OutOfBounds,
        &body("st.global.u32 [%rd5+-4], %r1;"),
        "st.global.u32 [%rd5+4], %r1;",
    );
}

#[test]
fn store_that_ends_behind_the_end() {
    planted(
        FindingKind::OutOfBounds,
        &body("mov.u64 %rd6, 1; add.s64 %rd7, %rd2, 4096; st.global.u64 [%rd7], %rd6;"),
        "mov.u64 %rd6, 1; add.s64 %rd7, %rd2, 4088; st.global.u64 [%rd7], %rd6;",
    );
}

#[test]
fn misaligned_vector() {
    planted(
        FindingKind::Misaligned,
        &body("ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd4];"),
        "add.s64 %rd6, %rd4, %rd3; add.s64 %rd6, %rd6, %rd3; add.s64 %rd6, %rd6, %rd3;
         ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd6];",
    );
}

#[test]
fn wild_address() {
    planted(
        FindingKind::Wild,
        &body("mov.u64 %rd6, 4096; ld.global.u32 %r3, [%rd6];"),
        "ld.global.u32 %r3, [%rd1];",
    );
}

#[test]
fn generic_address_of_nothing() {
    planted(
        FindingKind::Wild,
        &body("mov.u64 %rd6, 0; ld.u32 %r3, [%rd6];"),
        "ld.u32 %r3, [%rd1];",
    );
}

#[test]
fn shared_behind_the_end() {
    planted(
        FindingKind::OutOfBounds,
        &body(
            ".shared .align 4 .b8 tile[512]; mov.u64 %rd6, tile; add.s64 %rd6, %rd6, %rd3; st.shared.u32 [%rd6+4], %r1;",
        ),
        ".shared .align 4 .b8 tile[512]; mov.u64 %rd6, tile; add.s64 %rd6, %rd6, %rd3; st.shared.u32 [%rd6], %r1;",
    );
}

#[test]
fn dynamic_shared_memory_too_small() {
    let kernel = Kernel {
        module: ".extern .shared .align 16 .b8 tile[];",
        shared: 512,
        body: "mov.u64 %rd6, tile; add.s64 %rd6, %rd6, %rd3; st.shared.u32 [%rd6+4], %r1;",
        ..Kernel::default()
    };
    planted(
        FindingKind::OutOfBounds,
        &kernel,
        "mov.u64 %rd6, tile; add.s64 %rd6, %rd6, %rd3; st.shared.u32 [%rd6], %r1;",
    );
}

#[test]
fn shared_misaligned() {
    planted(
        FindingKind::Misaligned,
        &body(
            ".shared .align 16 .b8 tile[2048]; shl.b32 %r3, %r1, 3; mov.u64 %rd6, 1; mov.u64 %rd7, 2;
             st.shared.v2.u64 [%r3], {%rd6, %rd7};",
        ),
        ".shared .align 16 .b8 tile[2048]; shl.b32 %r3, %r1, 4; mov.u64 %rd6, 1; mov.u64 %rd7, 2;
         st.shared.v2.u64 [%r3], {%rd6, %rd7};",
    );
}

#[test]
fn local_behind_the_end() {
    planted(
        FindingKind::OutOfBounds,
        &body(".local .align 4 .b8 own[16]; mov.u64 %rd6, own; st.local.u32 [%rd6+16], %r1;"),
        ".local .align 4 .b8 own[16]; mov.u64 %rd6, own; st.local.u32 [%rd6+12], %r1;",
    );
}

#[test]
fn parameters_behind_the_end() {
    planted(
        FindingKind::OutOfBounds,
        &body("ld.param.u64 %rd6, [second+8];"),
        "ld.param.u64 %rd6, [second];",
    );
}

// ---- what nothing wrote ----

#[test]
fn global_memory_that_nothing_wrote() {
    planted(
        FindingKind::Unwritten,
        &body("ld.global.u32 %r3, [%rd5];"),
        "st.global.u32 [%rd5], %r1; ld.global.u32 %r3, [%rd5];",
    );
}

#[test]
fn half_a_word_that_nothing_wrote() {
    planted(
        FindingKind::Unwritten,
        &body("mov.b16 %rs1, 1; st.global.u16 [%rd5], %rs1; ld.global.u32 %r3, [%rd5];"),
        "mov.b16 %rs1, 1; st.global.u16 [%rd5], %rs1; ld.global.u16 %r3, [%rd5];",
    );
}

#[test]
fn shared_memory_that_nothing_wrote() {
    planted(
        FindingKind::Unwritten,
        &body(".shared .align 4 .b8 tile[512]; ld.shared.u32 %r3, [tile];"),
        ".shared .align 4 .b8 tile[512]; st.shared.u32 [tile], 5; bar.sync 0; ld.shared.u32 %r3, [tile];",
    );
}

#[test]
fn local_memory_that_nothing_wrote() {
    planted(
        FindingKind::Unwritten,
        &body(
            ".local .align 4 .b8 own[16]; mov.u64 %rd6, own; st.local.u32 [%rd6], %r1; ld.local.u32 %r3, [%rd6+4];",
        ),
        ".local .align 4 .b8 own[16]; mov.u64 %rd6, own; st.local.u32 [%rd6], %r1; ld.local.u32 %r3, [%rd6];",
    );
}

#[test]
fn shared_memory_of_the_block_before() {
    let kernel = Kernel {
        grid: 2,
        body: ".shared .align 4 .b8 tile[512]; setp.eq.u32 %p1, %r2, 0; @%p1 st.shared.u32 [tile], 5; bar.sync 0; ld.shared.u32 %r3, [tile];",
        ..Kernel::default()
    };
    planted(
        FindingKind::Unwritten,
        &kernel,
        ".shared .align 4 .b8 tile[512]; st.shared.u32 [tile], 5; bar.sync 0; ld.shared.u32 %r3, [tile];",
    );
}

#[test]
fn register_that_nothing_wrote_is_stored() {
    planted(
        FindingKind::Undefined,
        &body("add.s32 %r4, %r3, 1; st.global.u32 [%rd5], %r4;"),
        "mov.u32 %r3, 3; add.s32 %r4, %r3, 1; st.global.u32 [%rd5], %r4;",
    );
}

#[test]
fn register_written_by_other_lanes_only() {
    planted(
        FindingKind::Undefined,
        &body("setp.lt.u32 %p1, %r1, 5; @%p1 mov.u32 %r3, 1; st.global.u32 [%rd5], %r3;"),
        "setp.lt.u32 %p1, %r1, 5; @%p1 mov.u32 %r3, 1; @!%p1 mov.u32 %r3, 2; st.global.u32 [%rd5], %r3;",
    );
}

#[test]
fn predicate_that_nothing_wrote() {
    planted(
        FindingKind::Undefined,
        &body("@%p3 st.global.u32 [%rd5], %r1;"),
        "setp.eq.u32 %p3, %r1, %r1; @%p3 st.global.u32 [%rd5], %r1;",
    );
}

#[test]
fn address_that_nothing_wrote() {
    planted(
        FindingKind::Undefined,
        &body("st.global.u32 [%rd9], %r1;"),
        "mov.u64 %rd9, %rd5; st.global.u32 [%rd9], %r1;",
    );
}

#[test]
fn accumulator_that_nothing_wrote() {
    let product = "mov.u32 %r3, 0;
        mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r3, %r3}, {%r3}, {%f1, %f2, %f3, %f4};";
    let mended = format!(
        "mov.f32 %f1, 0f00000000; mov.f32 %f2, %f1; mov.f32 %f3, %f1; mov.f32 %f4, %f1; {product}"
    );
    planted(FindingKind::Undefined, &body(product), &mended);
}

// ---- races in shared memory ----

const TILE: &str = ".shared .align 16 .b8 tile[1024]; mov.u64 %rd6, tile; add.s64 %rd6, %rd6, %rd3;
    st.shared.u32 [%rd6], 9; bar.sync 0;";

#[track_caller]
fn planted_in_tile(kind: FindingKind, fault: &str, mended: &str) {
    planted(
        kind,
        &body(&format!("{TILE} {fault}")),
        &format!("{TILE} {mended}"),
    );
}

#[test]
fn read_after_write_between_warps() {
    planted_in_tile(
        FindingKind::SharedRace,
        "st.shared.u32 [%rd6], %r1; xor.b32 %r3, %r1, 32; shl.b32 %r3, %r3, 2; ld.shared.u32 %r4, [%r3];
         bar.sync 0; ld.shared.u32 %r4, [%r3];",
        "st.shared.u32 [%rd6], %r1; xor.b32 %r3, %r1, 32; shl.b32 %r3, %r3, 2; bar.sync 0; ld.shared.u32 %r4, [%r3];",
    );
}

#[test]
fn write_after_read_between_warps() {
    planted_in_tile(
        FindingKind::SharedRace,
        "st.shared.u32 [%rd6], %r1; bar.sync 0; xor.b32 %r3, %r1, 32; shl.b32 %r3, %r3, 2; ld.shared.u32 %r4, [%r3];
         st.shared.u32 [%rd6], %r4;",
        "st.shared.u32 [%rd6], %r1; bar.sync 0; xor.b32 %r3, %r1, 32; shl.b32 %r3, %r3, 2; ld.shared.u32 %r4, [%r3];
         bar.sync 0; st.shared.u32 [%rd6], %r4;",
    );
}

#[test]
fn write_after_write_between_warps() {
    planted_in_tile(
        FindingKind::SharedRace,
        "and.b32 %r3, %r1, 31; shl.b32 %r3, %r3, 2; st.shared.u32 [%r3], %r1;",
        // The same value from everyone does no harm.
        "and.b32 %r3, %r1, 31; shl.b32 %r3, %r3, 2; st.shared.u32 [%r3], 17;",
    );
}

#[test]
fn lanes_of_a_warp_without_syncwarp() {
    planted_in_tile(
        FindingKind::SharedRace,
        "st.shared.u32 [%rd6], %r1; xor.b32 %r3, %r1, 1; shl.b32 %r3, %r3, 2; ld.shared.u32 %r4, [%r3];",
        "st.shared.u32 [%rd6], %r1; xor.b32 %r3, %r1, 1; shl.b32 %r3, %r3, 2; bar.warp.sync -1; ld.shared.u32 %r4, [%r3];",
    );
}

#[test]
fn syncwarp_between_warps_is_too_weak() {
    planted_in_tile(
        FindingKind::SharedRace,
        "st.shared.u32 [%rd6], %r1; xor.b32 %r3, %r1, 32; shl.b32 %r3, %r3, 2; bar.warp.sync -1; ld.shared.u32 %r4, [%r3];
         bar.sync 0; ld.shared.u32 %r4, [%r3];",
        "st.shared.u32 [%rd6], %r1; xor.b32 %r3, %r1, 32; shl.b32 %r3, %r3, 2; bar.sync 0; ld.shared.u32 %r4, [%r3];",
    );
}

#[test]
fn halves_of_a_word_are_told_apart() {
    planted_in_tile(
        FindingKind::SharedRace,
        "cvt.u16.u32 %rs1, %r1; shl.b32 %r3, %r1, 1; st.shared.u16 [%r3], %rs1; and.b32 %r4, %r3, -4; ld.shared.u32 %r5, [%r4];
         bar.sync 0; ld.shared.u32 %r5, [%r4];",
        "cvt.u16.u32 %rs1, %r1; shl.b32 %r3, %r1, 1; st.shared.u16 [%r3], %rs1; ld.shared.u16 %r5, [%r3];",
    );
}

#[test]
fn named_barrier_of_other_warps() {
    // Warps 0 and 1 write for each other, warps 2 and 3 too; the pairs have barriers of their own.
    let start =
        "shr.u32 %r3, %r1, 6; add.u32 %r3, %r3, 1; st.shared.u32 [%rd6], %r1; bar.sync %r3, 64;";
    planted_in_tile(
        FindingKind::SharedRace,
        &format!(
            "{start} xor.b32 %r4, %r1, 64; shl.b32 %r4, %r4, 2; ld.shared.u32 %r5, [%r4]; bar.sync 0; ld.shared.u32 %r5, [%r4];"
        ),
        &format!("{start} xor.b32 %r4, %r1, 32; shl.b32 %r4, %r4, 2; ld.shared.u32 %r5, [%r4];"),
    );
}

#[test]
fn arriving_does_not_let_read() {
    // Warps 0 and 1 produce, 2 and 3 consume; who only arrives learns nothing.
    let start = "setp.lt.u32 %p1, %r1, 64; and.b32 %r3, %r1, 63; shl.b32 %r3, %r3, 2; xor.b32 %r4, %r3, 128;
         @%p1 st.shared.u32 [%r3], %r1; @%p1 bra produce;
         bar.sync 1, 128; ld.shared.u32 %r5, [%r3]; bra done;
         produce: bar.arrive 1, 128;";
    planted_in_tile(
        FindingKind::SharedRace,
        &format!("{start} ld.shared.u32 %r5, [%r4]; done: bar.sync 0;"),
        &format!("{start} ld.shared.u32 %r5, [%r3]; done: bar.sync 0;"),
    );
}

#[test]
fn atomic_beside_ordinary() {
    planted_in_tile(
        FindingKind::SharedRace,
        "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [tile], 0; atom.shared.add.u32 %r3, [tile], 1;
         bar.sync 0; atom.shared.add.u32 %r3, [tile], 1;",
        "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [tile], 0; bar.sync 0; atom.shared.add.u32 %r3, [tile], 1;",
    );
}

// ---- races between blocks ----

#[test]
fn blocks_that_write_the_same() {
    let kernel = Kernel {
        grid: 2,
        body: "st.global.u32 [%rd5], %r2;",
        ..Kernel::default()
    };
    planted(
        FindingKind::GlobalRace,
        &kernel,
        "mul.wide.u32 %rd6, %r2, 512; add.s64 %rd6, %rd6, %rd5; st.global.u32 [%rd6], %r2;",
    );
}

#[test]
fn block_that_reads_what_another_wrote() {
    let kernel = Kernel {
        grid: 2,
        body: "setp.eq.u32 %p1, %r2, 0; @%p1 st.global.u32 [%rd5], %r1; @!%p1 ld.global.u32 %r3, [%rd5];",
        ..Kernel::default()
    };
    planted(
        FindingKind::GlobalRace,
        &kernel,
        "setp.eq.u32 %p1, %r2, 0; @%p1 st.global.u32 [%rd5], %r1; @!%p1 ld.global.u32 %r3, [%rd4];",
    );
}

#[test]
fn block_that_overwrites_what_another_read() {
    let kernel = Kernel {
        grid: 2,
        body: "setp.eq.u32 %p1, %r2, 0; @%p1 ld.global.u32 %r3, [%rd4]; @!%p1 st.global.u32 [%rd4], %r1;",
        ..Kernel::default()
    };
    planted(
        FindingKind::GlobalRace,
        &kernel,
        "setp.eq.u32 %p1, %r2, 0; @%p1 ld.global.u32 %r3, [%rd4]; @!%p1 st.global.u32 [%rd5], %r1;",
    );
}

#[test]
fn last_block_without_fence() {
    // Each block writes a word and counts itself; the last adds the words up.
    let kernel = |fence: &str| {
        format!(
            "setp.ne.u32 %p1, %r1, 0; @%p1 bra done;
             mul.wide.u32 %rd6, %r2, 4; add.s64 %rd6, %rd6, %rd2; st.global.u32 [%rd6], 7; {fence}
             atom.global.add.u32 %r3, [%rd1], 1; setp.ne.u32 %p2, %r3, 2; @%p2 bra done; {fence}
             ld.global.u32 %r4, [%rd2]; ld.global.u32 %r5, [%rd2+4]; ld.global.u32 %r6, [%rd2+8];
             done:"
        )
    };
    let (fault, mended) = (kernel(""), kernel("fence.acq_rel.gpu;"));
    let kernel = Kernel {
        grid: 3,
        input: vec![0; 16],
        body: &fault,
        ..Kernel::default()
    };
    planted(FindingKind::GlobalRace, &kernel, &mended);
}

#[test]
fn ordinary_beside_atomic_of_another_block() {
    let kernel = Kernel {
        grid: 2,
        input: vec![0; 256],
        body: "setp.eq.u32 %p1, %r2, 0; @%p1 red.global.add.u32 [%rd4], 1; @!%p1 st.global.u32 [%rd4], %r1;",
        ..Kernel::default()
    };
    planted(
        FindingKind::GlobalRace,
        &kernel,
        "setp.eq.u32 %p1, %r2, 0; @%p1 red.global.add.u32 [%rd4], 1; @!%p1 red.global.add.u32 [%rd4], %r1;",
    );
}

// ---- barriers and collectives ----

#[test]
fn barrier_of_part_of_a_warp() {
    planted(
        FindingKind::Divergence,
        &body("setp.lt.u32 %p1, %r1, 40; @!%p1 bra over; bar.sync 0; over:"),
        "setp.lt.u32 %p1, %r1, 40; @!%p1 bra over; mov.u32 %r3, 1; over: bar.sync 0;",
    );
}

#[test]
fn barrier_after_lanes_have_exited() {
    planted(
        FindingKind::Divergence,
        &body("setp.gt.u32 %p1, %r1, 100; @%p1 exit; bar.sync 0;"),
        "setp.gt.u32 %p1, %r1, 100; bar.sync 0; @%p1 exit;",
    );
}

#[test]
fn barrier_of_some_warps() {
    planted(
        FindingKind::Deadlock,
        &body("setp.lt.u32 %p1, %r1, 64; @!%p1 bra over; bar.sync 0; over:"),
        "setp.lt.u32 %p1, %r1, 64; @!%p1 bra over; bar.sync 0, 64; over:",
    );
}

#[test]
fn barriers_of_different_counts() {
    planted(
        FindingKind::Barrier,
        &body("setp.lt.u32 %p1, %r1, 64; selp.u32 %r3, 96, 128, %p1; bar.sync 1, %r3;"),
        "bar.sync 1, 128;",
    );
}

#[test]
fn arrival_that_nobody_waits_for() {
    planted(
        FindingKind::Divergence,
        &body("setp.lt.u32 %p1, %r1, 32; @!%p1 bra over; bar.arrive 1, 64; over:"),
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra early; setp.lt.u32 %p1, %r1, 64; @!%p1 bra over; bar.sync 1, 64; bra over;
         early: bar.arrive 1, 64; over:",
    );
}

#[test]
fn shuffle_of_lanes_that_are_elsewhere() {
    planted(
        FindingKind::Divergence,
        &body(
            "and.b32 %r4, %r1, 1; setp.eq.u32 %p1, %r4, 0; @!%p1 bra over; shfl.sync.bfly.b32 %r3|%p2, %r1, 2, 31, -1; over:",
        ),
        "and.b32 %r4, %r1, 1; setp.eq.u32 %p1, %r4, 0; @!%p1 bra over; shfl.sync.bfly.b32 %r3|%p2, %r1, 2, 31, 0x55555555; over:",
    );
}

#[test]
fn shuffle_from_a_lane_outside_of_the_mask() {
    planted(
        FindingKind::Divergence,
        &body(
            "and.b32 %r4, %r1, 1; setp.eq.u32 %p1, %r4, 0; @!%p1 bra over; shfl.sync.bfly.b32 %r3|%p2, %r1, 1, 31, 0x55555555; over:",
        ),
        "shfl.sync.bfly.b32 %r3|%p2, %r1, 1, 31, -1;",
    );
}

#[test]
fn vote_of_lanes_that_have_exited() {
    planted(
        FindingKind::Divergence,
        &body(
            "and.b32 %r4, %r1, 31; setp.gt.u32 %p1, %r4, 20; @%p1 exit; vote.sync.ballot.b32 %r3, %p1, -1;",
        ),
        "and.b32 %r4, %r1, 31; setp.gt.u32 %p1, %r4, 20; vote.sync.ballot.b32 %r3, %p1, -1; @%p1 exit;",
    );
}

#[test]
fn matrix_product_of_part_of_a_warp() {
    let product = "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r3, %r3}, {%r3}, {%f1, %f2, %f3, %f4};";
    let start = "mov.u32 %r3, 0; mov.f32 %f1, 0f00000000; mov.f32 %f2, %f1; mov.f32 %f3, %f1; mov.f32 %f4, %f1;
                 setp.lt.u32 %p1, %r1, 16;";
    planted(
        FindingKind::Divergence,
        &body(&format!("{start} @%p1 bra over; {product} over:")),
        &format!("{start} @%p1 bra over; mov.u32 %r4, 1; over: {product}"),
    );
}

#[test]
fn waiting_for_another_block() {
    let kernel = Kernel {
        grid: 2,
        input: vec![0; 16],
        body: "setp.eq.u32 %p1, %r2, 1; @%p1 st.relaxed.gpu.global.u32 [%rd1], 1; @%p1 bra over;
               again: ld.relaxed.gpu.global.u32 %r3, [%rd1]; setp.eq.u32 %p2, %r3, 0; @%p2 bra again; over:",
        ..Kernel::default()
    };
    planted(
        FindingKind::Deadlock,
        &kernel,
        "setp.eq.u32 %p1, %r2, 0; @%p1 st.relaxed.gpu.global.u32 [%rd1], 1; @%p1 bra over;
         again: ld.relaxed.gpu.global.u32 %r3, [%rd1]; setp.eq.u32 %p2, %r3, 0; @%p2 bra again; over:",
    );
}

#[test]
fn trap() {
    planted(
        FindingKind::Trap,
        &body("setp.gt.u32 %p1, %r1, 100; @%p1 trap;"),
        "setp.gt.u32 %p1, %r1, 200; @%p1 trap;",
    );
}

// ---- asynchronous copies ----

const COPY: &str = ".shared .align 16 .b8 tile[2048]; shl.b32 %r3, %r1, 4; mul.wide.u32 %rd6, %r1, 16; add.s64 %rd6, %rd6, %rd1;";

#[track_caller]
fn planted_copy(kind: FindingKind, fault: &str, mended: &str) {
    planted(
        kind,
        &body(&format!("{COPY} {fault}")),
        &format!("{COPY} {mended}"),
    );
}

#[test]
fn copy_that_is_not_waited_for() {
    planted_copy(
        FindingKind::InFlight,
        "cp.async.cg.shared.global [%r3], [%rd6], 16; cp.async.commit_group; ld.shared.u32 %r4, [%r3]; cp.async.wait_group 0;",
        "cp.async.cg.shared.global [%r3], [%rd6], 16; cp.async.commit_group; cp.async.wait_group 0; ld.shared.u32 %r4, [%r3];",
    );
}

#[test]
fn wait_that_is_too_weak() {
    planted_copy(
        FindingKind::InFlight,
        "cp.async.cg.shared.global [%r3], [%rd6], 16; cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 %r4, [%r3];
         cp.async.wait_all;",
        "cp.async.cg.shared.global [%r3], [%rd6], 16; cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1;
         ld.shared.u32 %r4, [%r3];",
    );
}

#[test]
fn copy_in_flight_at_the_end() {
    planted_copy(
        FindingKind::InFlight,
        "cp.async.cg.shared.global [%r3], [%rd6], 16; cp.async.commit_group;",
        "cp.async.cg.shared.global [%r3], [%rd6], 16; cp.async.commit_group; cp.async.wait_all;",
    );
}

#[test]
fn copy_waited_for_by_another_thread_only() {
    planted_copy(
        FindingKind::SharedRace,
        "cp.async.cg.shared.global [%r3], [%rd6], 16; cp.async.wait_all; xor.b32 %r4, %r3, 512; bar.warp.sync -1;
         bar.sync 1, 128; ld.shared.u32 %r5, [%r3]; st.shared.u32 [%r4], %r5;",
        "cp.async.cg.shared.global [%r3], [%rd6], 16; cp.async.wait_all; xor.b32 %r4, %r3, 512; bar.sync 0; ld.shared.u32 %r5, [%r4];",
    );
}

#[test]
fn copy_over_what_is_still_read() {
    planted_copy(
        FindingKind::SharedRace,
        "st.shared.u32 [%r3], %r1; bar.sync 0; xor.b32 %r4, %r3, 512; ld.shared.u32 %r5, [%r4];
         cp.async.cg.shared.global [%r3], [%rd6], 16; cp.async.wait_all;",
        "st.shared.u32 [%r3], %r1; bar.sync 0; xor.b32 %r4, %r3, 512; ld.shared.u32 %r5, [%r4]; bar.sync 0;
         cp.async.cg.shared.global [%r3], [%rd6], 16; cp.async.wait_all;",
    );
}

#[test]
fn store_into_a_copy_under_way() {
    planted_copy(
        FindingKind::InFlight,
        "cp.async.cg.shared.global [%r3], [%rd6], 16; st.shared.u32 [%r3], %r1; cp.async.wait_all;",
        "cp.async.cg.shared.global [%r3], [%rd6], 16; cp.async.wait_all; st.shared.u32 [%r3], %r1;",
    );
}

// ---- launches ----

#[test]
fn more_threads_than_compiled_for() {
    let text = body("").ptx().replace(
        ".visible .entry kernel(.param .u64 first, .param .u64 second)",
        ".visible .entry kernel(.param .u64 first, .param .u64 second) .maxntid 64, 1, 1",
    );
    let device = attn_cuda_emulator::Emulator::new(attn_cuda_emulator::Options {
        panic_on_finding: false,
        ..Default::default()
    });
    use attn_kernels_cuda::driver::{Driver, Image, Launch};
    let module = device.load(Image::Ptx(&text)).expect("it is understood");
    let launch = |threads| {
        let launch = Launch {
            module,
            kernel: "kernel",
            grid: [1, 1, 1],
            block: [threads, 1, 1],
            shared: 0,
            params: &[&[0; 8], &[0; 8]],
        };
        // SAFETY: the emulator checks every access.
        #[expect(unsafe_code, reason = "the launch of a device")]
        let result = unsafe { device.launch(&launch) };
        result
    };
    assert_eq!(launch(64), Ok(()));
    assert_eq!(
        launch(128).expect_err("too many threads").code,
        DriverError::FINDING
    );
}

#[test]
fn more_shared_memory_than_there_is() {
    let kernel = Kernel {
        shared: 200 << 10,
        ..Kernel::default()
    };
    let ran = kernel.run();
    assert!(ran.result.is_err());
    assert_eq!(
        ran.finding().map(|finding| finding.kind),
        Some(FindingKind::Launch)
    );
}

#[test]
fn unknown_instructions_are_named() {
    let ran = body("frobnicate.sync %r3, %r1;").run();
    let error = ran.result.expect_err("nobody knows it");
    assert_eq!(error.code, DriverError::UNKNOWN_INSTRUCTION);
    assert!(error.message.contains("frobnicate"), "{error}");
}

#[test]
fn parameters_of_another_size() {
    use attn_kernels_cuda::driver::{Driver, Image, Launch};
    let device = attn_cuda_emulator::Emulator::new(Default::default());
    let module = device
        .load(Image::Ptx(&body("").ptx()))
        .expect("it is understood");
    let launch = Launch {
        module,
        kernel: "kernel",
        grid: [1, 1, 1],
        block: [32, 1, 1],
        shared: 0,
        params: &[&[0; 8], &[0; 4]],
    };
    // SAFETY: the emulator checks every access.
    #[expect(unsafe_code, reason = "the launch of a device")]
    let result = unsafe { device.launch(&launch) };
    assert_eq!(
        result.expect_err("a parameter is too small").code,
        DriverError::NO_KERNEL
    );
}

// ---- the host ----

#[test]
fn memory_that_was_given_back() {
    use attn_kernels_cuda::driver::Driver;
    let device = attn_cuda_emulator::Emulator::new(attn_cuda_emulator::Options {
        panic_on_finding: false,
        ..Default::default()
    });
    let memory = device.allocate(64).expect("there is memory");
    assert_eq!(device.upload(memory, &[1; 64]), Ok(()));
    device.free(memory);
    assert_eq!(device.allocations(), 0);
    assert!(device.download(memory, &mut [0; 64]).is_err());
    let finding = device.last_finding().expect("it is found");
    assert_eq!(finding.kind, FindingKind::UseAfterFree, "{finding}");
}

#[test]
fn output_that_is_not_wholly_written() {
    use attn_kernels_cuda::driver::Driver;
    let ran = Kernel {
        block: 64,
        body: "st.global.u32 [%rd5], %r1;",
        ..Kernel::default()
    }
    .run();
    assert_eq!(ran.result, Ok(()));
    assert_eq!(ran.device.unwritten(ran.output, 256), Ok(None));
    assert_eq!(ran.device.unwritten(ran.output, 260), Ok(Some(256)));
    assert!(ran.device.download(ran.output, &mut [0; 260]).is_err());
    assert_eq!(ran.words(64), (0..64).collect::<Vec<_>>());
}

#[test]
fn memory_has_an_end() {
    use attn_kernels_cuda::driver::Driver;
    let device = attn_cuda_emulator::Emulator::new(attn_cuda_emulator::Options {
        memory: 1000,
        ..Default::default()
    });
    let first = device.allocate(600).expect("there is memory");
    let error = device.allocate(600).expect_err("there is no more");
    assert_eq!(error.code, DriverError::OUT_OF_MEMORY);
    device.free(first);
    assert!(device.allocate(600).is_ok());
}

#[test]
#[should_panic(expected = "read of bytes that nothing wrote")]
fn findings_panic_if_they_are_asked_to() {
    use attn_kernels_cuda::driver::Driver;
    let device = attn_cuda_emulator::Emulator::new(Default::default());
    let memory = device.allocate(4).expect("there is memory");
    let _ = device.download(memory, &mut [0; 4]);
}
