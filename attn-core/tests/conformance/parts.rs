//! Faults of the parts of a request that Flax's layers do not have, planted in attention written once more, which the suite must find.

#[path = "parts/backward.rs"]
mod backward;
#[path = "parts/problem.rs"]
mod problem;

use super::{MATHS, REFERENCE};
use attn_core::conformance::{Group, run};
use attn_core::{
    Attention, AttentionBackward, AttentionShape, Backend, Element, Error, Features, Host,
    HostView, HostViewMut, Kernels, NormalizeBackward, Projection, ProjectionBackward, bf16,
};
use problem::Problem;

/// A wrong turn of a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    HeadsInTurn,
    LeftOffByOne,
    RightOffByOne,
    WindowAtTheOtherCorner,
    WindowWithoutCausal,
    KeyOffsetLost,
    LengthsOfTheArray,
    QueryLengthsIgnored,
    KeyLengthsIgnored,
    QueryOffsetLost,
    MeanOfAllKeys,
    SegmentsOfFirstEntry,
    SegmentsInOrder,
    BlockSizesSwapped,
    BlocksOfFirstHead,
    SoftcapAfterBias,
    SoftcapWithoutFactor,
    AlibiWithSign,
    AlibiOfFirstHead,
    AlibiAcrossSequences,
    RelativeReversed,
    RelativeWithoutEnds,
    RelativeOfFirstHead,
    SinkNotInSum,
    SinkNotInLargest,
    SinkOfFirstHead,
    SinkOfBlindRowsForgotten,
    SinkOutsideOfSequences,
    UnscaledScores,
    CappedScoresWithBias,
    HiddenScoresCleared,
    AbsentScoresKept,
    FillOfOtherRule,
    PagesInOrder,
    PagesOfFirstEntry,
    RingFromItsStart,
    RingWithLostTokens,
    TokensOfTheLongest,
    FactorOfFirstHead,
    FactorOfFirstBlock,
    FactorOfNextRow,
    HiddenValuesTimesZero,
    LastOfTheGroup,
    SlopeForgotten,
    SlopeOfTheScore,
    TableOfLastEntry,
    TableColumnsReversed,
    SinksWithOtherSign,
    SinksOfLastEntry,
    OutsideLeftAsItWas,
    WindowForgottenBackward,
    SegmentsForgottenBackward,
    BlocksForgottenBackward,
    SpansForgottenBackward,
    SinkForgottenBackward,
}

impl Fault {
    /// What of it the forward pass has.
    const fn forward(self) -> Self {
        match self {
            Self::WindowForgottenBackward
            | Self::SegmentsForgottenBackward
            | Self::BlocksForgottenBackward
            | Self::SpansForgottenBackward
            | Self::SinkForgottenBackward => Self::None,
            fault => fault,
        }
    }
}

/// Attention by loops over numbers of 64 bits, with a fault.
struct Loops(Fault);

impl Backend for Loops {
    type Storage = Host;
    type Error = Error;
    fn name(&self) -> &'static str {
        "loops"
    }
}

impl<T: Element> Kernels<T> for Loops {
    as_the_reference!(
        project,
        normalize,
        project_backward,
        normalize_backward,
        project_scratch,
        attend_scratch,
        project_backward_scratch,
        attend_backward_scratch
    );

    fn features(&self) -> Features {
        Features::ALL
    }

    fn backward_features(&self) -> Features {
        Kernels::<T>::backward_features(&REFERENCE)
    }

    fn attend(
        &self,
        mut call: Attention<'_, Host, T>,
        mut out: HostViewMut<'_, T>,
        _: &mut [T::Acc],
    ) -> Result<(), Error> {
        let shape = call.shape()?;
        call.check_contents(&shape)?;
        let asked = core::mem::take(&mut call.outputs);
        let problem = Problem::new(&call, shape, self.0.forward())?;
        let (mut weights, mut statistics) = (asked.weights, asked.statistics);
        for row in problem.rows() {
            let solved = problem.solve(row);
            for (column, number) in problem.output(row, &solved).into_iter().enumerate() {
                problem.set_out(&mut out, row, column, number);
            }
            if let Some(weights) = &mut weights {
                problem.write(weights, row, &problem.stage(&solved, asked.stage));
            }
            if let Some(statistics) = &mut statistics {
                problem.write(statistics, row, &[solved.largest, solved.total]);
            }
        }
        Ok(())
    }

    fn attend_backward(
        &self,
        call: AttentionBackward<'_, Host, T>,
        _: &mut [T::Acc],
    ) -> Result<(), Error> {
        backward::attend(self.0, call)
    }
}

fn is_found<T: Element>(fault: Fault, group: Group) -> bool {
    run::<T, _>(&Loops(fault), group, &MATHS).is_err()
}

/// Without a fault nothing is found, so that it is the faults that are.
#[test]
fn nothing_is_found_without_a_fault() {
    let groups = [
        Group::Grouped,
        Group::Window,
        Group::Sequences,
        Group::Segments,
        Group::Blocks,
        Group::Scores,
        Group::Sinks,
        Group::Stages,
        Group::Caches,
        Group::GradientsGrouped,
        Group::GradientsWindow,
        Group::GradientsSequences,
        Group::GradientsSegments,
        Group::GradientsBlocks,
        Group::GradientsScores,
        Group::GradientsSinks,
    ];
    for group in groups {
        run::<f32, _>(&Loops(Fault::None), group, &MATHS).unwrap();
        run::<bf16, _>(&Loops(Fault::None), group, &MATHS).unwrap();
    }
}

mod found {
    use super::*;

    faults_found! {
        heads_in_turn: HeadsInTurn by Grouped in f32, bf16;
        left_off_by_one: LeftOffByOne by Window in f32, bf16;
        right_off_by_one: RightOffByOne by Window in f32, bf16;
        window_at_the_other_corner: WindowAtTheOtherCorner by Window in f32, bf16;
        window_without_causal: WindowWithoutCausal by Window in f32, bf16;
        hidden_values_times_zero_window: HiddenValuesTimesZero by Window in f32, bf16;
        key_offset_lost: KeyOffsetLost by Sequences in f32, bf16;
        lengths_of_the_array: LengthsOfTheArray by Sequences in f32, bf16;
        query_lengths_ignored: QueryLengthsIgnored by Sequences in f32, bf16;
        key_lengths_ignored: KeyLengthsIgnored by Sequences in f32, bf16;
        query_offset_lost: QueryOffsetLost by Sequences in f32, bf16;
        mean_of_all_keys: MeanOfAllKeys by Sequences in f32, bf16;
        segments_of_first_entry: SegmentsOfFirstEntry by Segments in f32, bf16;
        segments_in_order: SegmentsInOrder by Segments in f32, bf16;
        hidden_values_times_zero_segments: HiddenValuesTimesZero by Segments in f32, bf16;
        block_sizes_swapped: BlockSizesSwapped by Blocks in f32, bf16;
        blocks_of_first_head: BlocksOfFirstHead by Blocks in f32, bf16;
        hidden_values_times_zero_blocks: HiddenValuesTimesZero by Blocks in f32, bf16;
        softcap_after_bias: SoftcapAfterBias by Scores in f32, bf16;
        softcap_without_factor: SoftcapWithoutFactor by Scores in f32, bf16;
        alibi_with_sign: AlibiWithSign by Scores in f32, bf16;
        alibi_of_first_head: AlibiOfFirstHead by Scores in f32, bf16;
        alibi_across_sequences: AlibiAcrossSequences by Scores in f32, bf16;
        relative_reversed: RelativeReversed by Scores in f32, bf16;
        relative_without_ends: RelativeWithoutEnds by Scores in f32, bf16;
        relative_of_first_head: RelativeOfFirstHead by Scores in f32, bf16;
        sink_not_in_sum: SinkNotInSum by Sinks in f32, bf16;
        sink_not_in_largest: SinkNotInLargest by Sinks in f32, bf16;
        sink_of_first_head: SinkOfFirstHead by Sinks in f32, bf16;
        sink_of_blind_rows_forgotten: SinkOfBlindRowsForgotten by Sinks in f32, bf16;
        sink_outside_of_sequences: SinkOutsideOfSequences by Sinks in f32, bf16;
        unscaled_scores: UnscaledScores by Stages in f32, bf16;
        capped_scores_with_bias: CappedScoresWithBias by Stages in f32, bf16;
        hidden_scores_cleared: HiddenScoresCleared by Stages in f32, bf16;
        absent_scores_kept: AbsentScoresKept by Stages in f32, bf16;
        fill_of_other_rule: FillOfOtherRule by Stages in f32, bf16;
        pages_in_order: PagesInOrder by Caches in f32, bf16;
        pages_of_first_entry: PagesOfFirstEntry by Caches in f32, bf16;
        ring_from_its_start: RingFromItsStart by Caches in f32, bf16;
        ring_with_lost_tokens: RingWithLostTokens by Caches in f32, bf16;
        tokens_of_the_longest: TokensOfTheLongest by Caches in f32, bf16;
        factor_of_first_head: FactorOfFirstHead by Caches in f32, bf16;
        factor_of_first_block: FactorOfFirstBlock by Caches in f32, bf16;
        factor_of_next_row: FactorOfNextRow by Caches in f32, bf16;
        last_of_the_group: LastOfTheGroup by GradientsGrouped in f32, bf16;
        slope_forgotten: SlopeForgotten by GradientsScores in f32, bf16;
        slope_of_the_score: SlopeOfTheScore by GradientsScores in f32, bf16;
        table_of_last_entry: TableOfLastEntry by GradientsScores in f32, bf16;
        table_columns_reversed: TableColumnsReversed by GradientsScores in f32, bf16;
        sinks_with_other_sign: SinksWithOtherSign by GradientsSinks in f32, bf16;
        sinks_of_last_entry: SinksOfLastEntry by GradientsSinks in f32, bf16;
        sink_forgotten_backward: SinkForgottenBackward by GradientsSinks in f32, bf16;
        outside_left_as_it_was: OutsideLeftAsItWas by GradientsSequences in f32, bf16;
        spans_forgotten_backward: SpansForgottenBackward by GradientsSequences in f32, bf16;
        window_forgotten_backward: WindowForgottenBackward by GradientsWindow in f32, bf16;
        segments_forgotten_backward: SegmentsForgottenBackward by GradientsSegments in f32, bf16;
        blocks_forgotten_backward: BlocksForgottenBackward by GradientsBlocks in f32, bf16;
    }
}
