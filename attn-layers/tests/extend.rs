//! Decoding over caches: however tokens are cut into calls and whoever is beside them, the bits are the same, and they are those of decoding without such a cache.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

#[path = "support/blocks.rs"]
mod blocks;
#[path = "support/gathered.rs"]
mod gathered;
mod support;

use attn_layers::core::{Element, Flat, Host, Kernels, Mask};
use attn_layers::tensor::Tensor;
use attn_layers::{
    AnyKvCache, AnyMultiHeadDotProductAttention, AnyNextTokens, AnyParams, AnyScratch, Cpu,
    DecodeCache, Dense, Dims, Error, FullyMasked, HostView, HostViewMut, Inputs, KvCachePlan,
    KvFormat, KvLayout, MultiHeadDotProductAttentionOf, NextTokens, OnFull, OwnedKvCache,
    OwnedScratch, Params, Result, Rotary, RotaryTable, bf16, f16,
};
use gathered::Gathered;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use support::{Numbers, Parameters, Sizes};

const FEATURES: usize = 6;
/// Tokens that a sequence may get in all.
const MOST: usize = 12;

fn view<T: Element>(tensor: &Tensor) -> HostView<'_, T> {
    HostView::new(tensor.as_slice().expect("of this type"), tensor.shape()).expect("its shape")
}

/// A layer, its parameters, and the tokens of some sequences, `[sequences, tokens, features]`.
struct World<T: Element> {
    layer: MultiHeadDotProductAttentionOf<T>,
    params: Parameters,
    scales: Parameters,
    sequences: Vec<Vec<Vec<T>>>,
    window: Option<usize>,
    /// Cosines and sines.
    table: Option<[Vec<T::Acc>; 2]>,
}

impl<T: Element> World<T>
where
    Cpu: Kernels<T>,
{
    fn new(lengths: &[usize], head_dim: usize, window: Option<usize>) -> Self {
        Self::grouped(1, lengths, head_dim, window)
    }

    /// With `group` heads of queries for each of the cache's two.
    fn grouped(group: usize, lengths: &[usize], head_dim: usize, window: Option<usize>) -> Self {
        let sizes = Sizes {
            head_dim,
            out_features: 5,
            ..Sizes::of(FEATURES, 2)
        };
        let sizes = sizes.grouped(group);
        let mut numbers = Numbers(lengths.len() as u64);
        let params = Parameters::new(&mut numbers, &sizes, T::DTYPE);
        let mut token = || {
            let numbers = numbers.tensor(T::SCALAR, &[FEATURES], 2.0);
            numbers.as_slice::<T>().expect("of this type").to_vec()
        };
        let sequences = lengths
            .iter()
            .map(|&length| (0..length).map(|_| token()).collect());
        Self {
            layer: MultiHeadDotProductAttentionOf {
                num_kv_heads: sizes.num_kv_heads(),
                qkv_features: Some(sizes.num_heads * head_dim),
                out_features: Some(5),
                normalize_qk: true,
                // Turns that neither end soon nor are small.
                rotary: Some(Rotary {
                    base: 3.0,
                    ..Rotary::new()
                }),
                ..MultiHeadDotProductAttentionOf::new(sizes.num_heads)
            },
            sequences: sequences.collect(),
            scales: params.cast(<T::Acc as attn_layers::core::Scalar>::SCALAR),
            params,
            window,
            table: None,
        }
    }

    /// The same without a rotary embedding.
    fn unturned(mut self) -> Self {
        self.layer.rotary = None;
        self
    }

    fn params(&self) -> Params<'_, Host, T> {
        let dense = |scope: &str| Dense {
            kernel: view(self.params.get(&format!("{scope}/kernel"))).into(),
            bias: Some(view(self.params.get(&format!("{scope}/bias")))),
        };
        Params {
            query: dense("query"),
            key: dense("key"),
            value: dense("value"),
            out: dense("out"),
            query_ln: Some(view(self.scales.get("query_ln/scale"))),
            key_ln: Some(view(self.scales.get("key_ln/scale"))),
        }
    }

    /// The next `counts[s]` tokens of each sequence that has had `done[s]`; their outputs, `[sequences][tokens][out_features]`.
    fn extend<B: Kernels<T, Storage = Host, Error = Error>>(
        &self,
        backend: &B,
        owned: &mut OwnedKvCache<T>,
        done: &[usize],
        counts: &[usize],
    ) -> Result<Vec<Vec<Vec<T>>>> {
        self.extend_some(backend, owned, done, counts, None)
    }

    /// The same for a batch of these sequences of the cache.
    fn extend_some<B: Kernels<T, Storage = Host, Error = Error>>(
        &self,
        backend: &B,
        owned: &mut OwnedKvCache<T>,
        done: &[usize],
        counts: &[usize],
        sequences: Option<&[usize]>,
    ) -> Result<Vec<Vec<Vec<T>>>> {
        let tokens = counts.iter().copied().max().unwrap_or(0);
        let padding = vec![T::from_f64(f64::NAN); FEATURES];
        let token = |sequence: usize, index: usize| match index < counts[sequence] {
            true => &self.sequences[sequence][done[sequence] + index],
            false => &padding,
        };
        let x: Vec<T> = (0..counts.len())
            .flat_map(|sequence| (0..tokens).flat_map(move |index| token(sequence, index).clone()))
            .collect();
        let shape = Dims::new(&[counts.len(), tokens, FEATURES])?;
        let plan = self.layer.plan(&shape, &shape, &shape)?;
        let sizes = plan.extend_scratch::<T, _>(backend, owned.plan(), MOST);
        let mut scratch = OwnedScratch::new(&sizes)?;
        let mut out = vec![T::from_f64(f64::NAN); counts.len() * tokens * 5];
        let table = self.table.as_ref().map(|[cos, sin]| RotaryTable {
            cos: Flat::new(cos.as_slice()),
            sin: Flat::new(sin.as_slice()),
        });
        self.layer.extend(
            backend,
            &plan,
            &self.params(),
            &NextTokens::new(HostView::new(&x, &shape)?)
                .with_sequences(sequences)
                .with_counts(Some(counts))
                .with_window(self.window)
                .with_rotary_table(table),
            &mut owned.borrow(),
            HostViewMut::new(&mut out, &[counts.len(), tokens, 5])?,
            &mut scratch.borrow(),
        )?;
        let rows = out.chunks(5).map(<[T]>::to_vec).collect::<Vec<_>>();
        let of = |(sequence, &count): (usize, &usize)| rows[sequence * tokens..][..count].to_vec();
        Ok(counts.iter().enumerate().map(of).collect())
    }

    /// All outputs of all sequences, in calls of these counts.
    fn run<B: Kernels<T, Storage = Host, Error = Error>>(
        &self,
        backend: &B,
        plan: KvCachePlan,
        calls: &[Vec<usize>],
    ) -> Vec<Vec<Vec<T>>> {
        let mut owned = OwnedKvCache::new(plan).expect("small");
        let mut done = vec![0; self.sequences.len()];
        let mut outputs = vec![Vec::new(); self.sequences.len()];
        for counts in calls {
            let new = self
                .extend(backend, &mut owned, &done, counts)
                .expect("it fits");
            for (sequence, new) in new.into_iter().enumerate() {
                done[sequence] += new.len();
                outputs[sequence].extend(new);
            }
        }
        outputs
    }

    /// One sequence alone, by the layer's own decoding, with the window as a mask.
    fn decoded(&self, sequence: usize) -> Vec<Vec<T>> {
        let cpu = Cpu::detect();
        let tokens = &self.sequences[sequence];
        let x: Vec<T> = tokens.concat();
        let shape = Dims::new(&[tokens.len(), FEATURES]).expect("two axes");
        let plan = self.layer.plan(&shape, &shape, &shape).expect("a plan");
        let heads = self.params.get("key/bias").shape();
        let cached_shape = [tokens.len(), heads[0], heads[1]];
        let elements = cached_shape.iter().product::<usize>();
        let mut cached = [0, 1].map(|_| vec![T::default(); elements]);
        let [key, value] = &mut cached;
        let mut cache = DecodeCache {
            cached_key: HostViewMut::new(key, &cached_shape).expect("its shape"),
            cached_value: HostViewMut::new(value, &cached_shape).expect("its shape"),
            cache_index: 0,
            on_full: OnFull::Error,
        };
        let window = self.window.unwrap_or(usize::MAX);
        let sees = |query: usize, key: usize| key <= query && query - key < window;
        let bytes: Vec<u8> = (0..tokens.len())
            .flat_map(|query| (0..tokens.len()).map(move |key| u8::from(sees(query, key))))
            .collect();
        let mask = HostView::new(&bytes, &[tokens.len(), tokens.len()]).expect("its shape");
        let inputs = Inputs::self_attention(HostView::new(&x, &shape).expect("its shape"));
        let sizes = plan.decode_scratch::<T, _>(&cpu, tokens.len());
        let mut scratch = OwnedScratch::new(&sizes).expect("small");
        let mut out = vec![T::default(); tokens.len() * 5];
        let layer = MultiHeadDotProductAttentionOf {
            fully_masked: FullyMasked::Zero,
            ..self.layer.clone()
        };
        layer
            .decode(
                &cpu,
                &plan,
                &self.params(),
                &inputs.with_mask(Some(Mask::keep(mask))),
                &mut cache,
                HostViewMut::new(&mut out, &[tokens.len(), 5]).expect("its shape"),
                &mut scratch.borrow(),
            )
            .expect("it fits");
        out.chunks(5).map(<[T]>::to_vec).collect()
    }
}

/// Every sequence in calls of one token, one sequence a call.
fn one_by_one(lengths: &[usize]) -> Vec<Vec<usize>> {
    let calls = lengths.iter().enumerate().flat_map(|(sequence, &length)| {
        let mut counts = vec![0; lengths.len()];
        counts[sequence] = 1;
        vec![counts; length]
    });
    calls.collect()
}

/// Calls of these numbers of tokens, over and over, until all are done; after a call without any, all of the rest.
fn cut(lengths: &[usize], sizes: &[usize]) -> Vec<Vec<usize>> {
    let mut rest = lengths.to_vec();
    let mut sizes = sizes.iter().copied().cycle();
    let mut calls = Vec::new();
    while rest.iter().any(|&rest| rest > 0) {
        let next = rest.iter().zip(&mut sizes);
        let counts: Vec<usize> = next.map(|(&rest, size)| size.min(rest)).collect();
        for (rest, count) in rest.iter_mut().zip(&counts) {
            *rest -= count;
        }
        let stuck = counts.iter().all(|&count| count == 0);
        calls.push(counts);
        if stuck {
            calls.push(core::mem::take(&mut rest));
        }
    }
    calls
}

fn layouts(sequences: usize) -> Vec<KvLayout> {
    let ring = |window, capacity| KvLayout::Ring { window, capacity };
    let paged = |page_size| KvLayout::Paged {
        page_size,
        pages: sequences * MOST.div_ceil(page_size),
        pages_per_sequence: MOST.div_ceil(page_size),
    };
    vec![
        KvLayout::Contiguous { capacity: MOST },
        ring(3, 3),
        ring(3, 5),
        ring(4, 9),
        paged(1),
        paged(3),
        paged(16),
    ]
}

fn same_bits<T: Element>(left: &[Vec<Vec<T>>], right: &[Vec<Vec<T>>]) -> bool {
    let bits = |all: &[Vec<Vec<T>>]| -> Vec<Vec<u64>> {
        let of = |one: &Vec<Vec<T>>| one.concat().iter().map(|x| x.to_f64().to_bits()).collect();
        all.iter().map(of).collect()
    };
    bits(left) == bits(right)
}

fn cuts_agree<T: Element, B: Kernels<T, Storage = Host, Error = Error>>(
    backend: &B,
    layout: KvLayout,
    format: KvFormat,
    (group, rotary): (usize, bool),
    lengths: &[usize],
    sizes: &[usize],
) where
    Cpu: Kernels<T>,
{
    let head_dim = if format == KvFormat::Q8_0 { 32 } else { 4 };
    let world = World::<T>::grouped(group, lengths, head_dim, None);
    let world = if rotary { world } else { world.unturned() };
    let plan = KvCachePlan::new(layout, lengths.len(), 2, head_dim).with_formats(format, format);
    let wanted = world.run(backend, plan, &one_by_one(lengths));
    let what = format!("{} {layout:?} {format:?} {group}", T::DTYPE);
    let at_once = world.run(backend, plan, &[lengths.to_vec()]);
    assert!(same_bits(&at_once, &wanted), "{what}, at once");
    let pieces = world.run(backend, plan, &cut(lengths, sizes));
    assert!(same_bits(&pieces, &wanted), "{what}, in pieces");
    for (sequence, &length) in lengths.iter().enumerate() {
        let alone = KvCachePlan {
            sequences: 1,
            ..plan
        };
        let world = World {
            sequences: vec![world.sequences[sequence].clone()],
            layer: world.layer.clone(),
            ..World::<T>::grouped(group, lengths, head_dim, None)
        };
        let got = world.run(backend, alone, &[vec![length]]);
        assert!(
            same_bits(&got, &wanted[sequence..=sequence]),
            "{what}, alone"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn cuts_into_calls_change_no_bit(
        lengths in vec(0..=MOST, 1..4),
        sizes in vec(0..6usize, 1..7),
        layout in select(layouts(3)),
        format in select(vec![KvFormat::Plain, KvFormat::Int8, KvFormat::Q8_0]),
        group in 1..4usize,
        rotary in any::<bool>(),
    ) {
        let (gathered, cpu) = (Gathered::new(), Cpu::detect());
        let turned = (group, rotary);
        cuts_agree::<f32, _>(&gathered, layout, format, turned, &lengths, &sizes);
        cuts_agree::<f64, _>(&gathered, layout, format, turned, &lengths, &sizes);
        cuts_agree::<f16, _>(&gathered, layout, format, turned, &lengths, &sizes);
        cuts_agree::<bf16, _>(&gathered, layout, format, turned, &lengths, &sizes);
        cuts_agree::<f32, _>(&cpu, layout, format, turned, &lengths, &sizes);
        cuts_agree::<f64, _>(&cpu, layout, format, turned, &lengths, &sizes);
        cuts_agree::<f16, _>(&cpu, layout, format, turned, &lengths, &sizes);
        cuts_agree::<bf16, _>(&cpu, layout, format, turned, &lengths, &sizes);
    }
}

fn agrees_with_decoding<T: Element>()
where
    Cpu: Kernels<T>,
{
    let lengths = [7, 0, MOST];
    for layout in layouts(3) {
        for (own, rotary, group) in [
            (None, true, 1),
            (None, false, 3),
            (Some(1), true, 3),
            (Some(2), false, 1),
            (Some(5), true, 1),
            (Some(5), false, 3),
        ] {
            let mut world = World::<T>::grouped(group, &lengths, 4, own);
            if !rotary {
                world = world.unturned();
            }
            let plan = KvCachePlan::new(layout, 3, 2, 4);
            let gathered = world.run(&Gathered::new(), plan, &[lengths.to_vec()]);
            let by_cpu = world.run(&Cpu::detect(), plan, &[lengths.to_vec()]);
            if let KvLayout::Ring { window, .. } = layout {
                world.window = Some(own.map_or(window, |own| own.min(window)));
            }
            let wanted: Vec<_> = (0..3).map(|sequence| world.decoded(sequence)).collect();
            let what = format!("{} {layout:?} {own:?} {rotary} {group}", T::DTYPE);
            assert!(same_bits(&gathered, &wanted), "{what}");
            assert!(same_bits(&by_cpu, &wanted), "{what}, by the CPU alone");
        }
    }
}

#[test]
fn a_cache_gives_the_bits_of_decoding() {
    agrees_with_decoding::<f32>();
    agrees_with_decoding::<f64>();
    agrees_with_decoding::<f16>();
    agrees_with_decoding::<bf16>();
}

/// Sequences by their numbers in another order, some left out, as a server does that has some in their prompts and others past them.
fn chosen_agree<T: Element, B: Kernels<T, Storage = Host, Error = Error>>(backend: &B)
where
    Cpu: Kernels<T>,
{
    let lengths = [9, MOST, 7];
    let world = World::<T>::new(&lengths, 4, None);
    for layout in layouts(3) {
        let plan = KvCachePlan::new(layout, 3, 2, 4);
        let wanted = world.run(backend, plan, &[lengths.to_vec()]);
        let mut owned = OwnedKvCache::new(plan).expect("small");
        let mut done = [0; 3];
        let mut outputs = vec![Vec::new(); 3];
        let is_ring = matches!(layout, KvLayout::Ring { .. });
        let calls: [(&[usize], &[usize]); 5] = [
            (&[1], &[8]),
            if is_ring {
                (&[1, 2], &[0, 4])
            } else {
                (&[2, 1], &[4, 0])
            },
            (&[0, 1, 2], &[1, 2, 3]),
            if is_ring {
                (&[0, 1], &[5, 2])
            } else {
                (&[1, 0], &[2, 5])
            },
            (&[0], &[3]),
        ];
        for (sequences, counts) in calls {
            let of = sequences
                .iter()
                .map(|&sequence| world.sequences[sequence].clone());
            let batch = World {
                sequences: of.collect(),
                ..World::<T>::new(&lengths, 4, None)
            };
            let before: Vec<usize> = sequences.iter().map(|&sequence| done[sequence]).collect();
            let new = batch.extend_some(backend, &mut owned, &before, counts, Some(sequences));
            for (&sequence, new) in sequences.iter().zip(new.expect("it fits")) {
                done[sequence] += new.len();
                outputs[sequence].extend(new);
            }
        }
        assert!(same_bits(&outputs, &wanted), "{} {layout:?}", T::DTYPE);
    }
}

#[test]
fn chosen_sequences_get_the_same_bits() {
    let backend = Gathered::new();
    chosen_agree::<f32, _>(&backend);
    chosen_agree::<f64, _>(&backend);
    chosen_agree::<f16, _>(&backend);
    chosen_agree::<bf16, _>(&backend);
}

#[test]
fn a_fork_goes_on_as_its_sequence() {
    for layout in layouts(2) {
        let lengths = [MOST, MOST];
        let mut world = World::<f32>::new(&lengths, 4, None);
        let backend = Gathered::new();
        let mut owned = OwnedKvCache::new(KvCachePlan::new(layout, 2, 2, 4)).unwrap();
        // Five tokens, which the other sequence has too; then each has its own.
        world.sequences[1] = [&world.sequences[0][..5], &world.sequences[1][5..]].concat();
        owned.borrow().remove(1).unwrap();
        world
            .extend(&backend, &mut owned, &[0, 0], &[5, 0])
            .unwrap();
        assert_eq!(owned.borrow().fork(0), Ok(1));
        let got = world
            .extend(&backend, &mut owned, &[5, 5], &[7, 7])
            .unwrap();
        let plan = *owned.plan();
        let wanted = world.run(&backend, plan, &[lengths.to_vec()]);
        let wanted: Vec<_> = wanted.iter().map(|one| one[5..].to_vec()).collect();
        assert!(same_bits(&got, &wanted), "{layout:?}");
    }
}

#[test]
fn a_refused_call_leaves_the_cache_as_it_was() {
    let world = World::<f32>::new(&[MOST, MOST], 4, None);
    let backend = Gathered::new();
    let layout = KvLayout::Ring {
        window: 3,
        capacity: 3,
    };
    for format in [KvFormat::Plain, KvFormat::Int8] {
        let plan = KvCachePlan::new(layout, 2, 2, 4).with_formats(format, format);
        let mut owned = OwnedKvCache::new(plan).unwrap();
        world
            .extend(&backend, &mut owned, &[0, 0], &[5, 4])
            .unwrap();
        let before = format!("{owned:?}");
        let mut refused =
            |wanted: fn(&Error) -> bool,
             call: &mut dyn FnMut(&mut OwnedKvCache<f32>) -> Result<()>| {
                let error = call(&mut owned).expect_err("it does not fit");
                assert!(wanted(&error), "{error}");
                assert_eq!(before, format!("{owned:?}"));
            };
        let mut of_zero = World {
            window: Some(0),
            ..World::<f32>::new(&[MOST, MOST], 4, None)
        };
        refused(
            |error| matches!(error, Error::Zero { argument: "window" }),
            &mut |owned| of_zero.extend(&backend, owned, &[5, 4], &[1, 1]).map(drop),
        );
        of_zero.window = None;
        of_zero.layer.num_heads = 4;
        refused(
            |error| matches!(error, Error::ParamShape { .. }),
            &mut |owned| of_zero.extend(&backend, owned, &[5, 4], &[1, 1]).map(drop),
        );
        // Three batch entries, two sequences.
        let three = World::<f32>::new(&[MOST; 3], 4, None);
        refused(
            |error| matches!(error, Error::CacheQueryShape { .. }),
            &mut |owned| three.extend(&backend, owned, &[0; 3], &[1; 3]).map(drop),
        );
        if format == KvFormat::Int8 {
            let mut infinite = World::<f32>::new(&[MOST, MOST], 4, None);
            infinite.sequences[1][5][2] = f32::INFINITY;
            refused(
                |error| {
                    matches!(
                        error,
                        Error::NotQuantizable {
                            sequence: 1,
                            token: 1,
                            ..
                        }
                    )
                },
                &mut |owned| infinite.extend(&backend, owned, &[5, 4], &[2, 2]).map(drop),
            );
        }
    }
}

/// Tables and what they say of tokens beyond them, of a layer that does not turn, and of a backend that cannot.
#[test]
fn a_rotary_table_turns_as_the_formula_does() {
    let lengths = [MOST, 5];
    let backend = Gathered::new();
    let plan = KvCachePlan::new(layouts(2)[0], 2, 2, 4);
    let mut world = World::<f32>::new(&lengths, 4, None);
    let wanted = world.run(&backend, plan, &[lengths.to_vec()]);

    let rotary = world.layer.rotary.unwrap();
    let (mut cos, mut sin) = (vec![0.0f32; MOST * 2], vec![0.0f32; MOST * 2]);
    rotary.fill_table(4, 0, &mut cos, &mut sin).unwrap();
    world.table = Some([cos, sin]);
    // With a table the base is not looked at.
    world.layer.rotary = Some(Rotary {
        base: 7.0,
        ..rotary
    });
    let calls = [vec![7, 0], vec![0, 5], vec![MOST - 7, 0]];
    assert!(same_bits(&world.run(&backend, plan, &calls), &wanted));

    for table in world.table.as_mut().unwrap() {
        table.truncate((MOST - 1) * 2);
    }
    let mut owned = OwnedKvCache::new(plan).unwrap();
    world
        .extend(&backend, &mut owned, &[0, 0], &[7, 5])
        .unwrap();
    let before = format!("{owned:?}");
    // The longer sequence ends one token beyond the table, the shorter far before it.
    let counts = [MOST - 7, 0];
    let error = world.extend(&backend, &mut owned, &[7, 5], &counts);
    let error = error.unwrap_err();
    let beyond = Error::Entry {
        argument: "positions",
        index: counts[0] - 1,
        got: MOST as i64 - 1,
        least: 0,
        most: MOST as i64 - 2,
    };
    assert_eq!(error, beyond);
    world.layer.rotary = None;
    let error = world.extend(&backend, &mut owned, &[7, 5], &[1, 0]);
    assert!(matches!(error, Err(Error::Together { .. })), "{error:?}");
    assert_eq!(before, format!("{owned:?}"));
}

#[test]
fn a_backend_that_reads_no_caches_says_so_before_anything_is_written() {
    let world = World::<f32>::new(&[4], 4, None);
    let mut owned = OwnedKvCache::new(KvCachePlan::new(layouts(1)[0], 1, 2, 4)).unwrap();
    let before = format!("{owned:?}");
    let backend = Gathered::of_arrays();
    let error = world.extend(&backend, &mut owned, &[0], &[4]).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert_eq!(before, format!("{owned:?}"));
}

#[test]
fn the_dtype_may_be_known_at_run_time_only() {
    let world = World::<f16>::new(&[4], 4, None);
    let plan = KvCachePlan::new(layouts(1)[0], 1, 2, 4);
    let backend = Gathered::new();
    let wanted = world.run(&backend, plan, &[vec![4]]);

    let layer: AnyMultiHeadDotProductAttention = world.layer.clone().into();
    let x = world.sequences[0].concat();
    let shape = Dims::new(&[1, 4, FEATURES]).unwrap();
    let sizes = layer.plan(&shape, &shape, &shape).unwrap();
    let mut owned = OwnedKvCache::<f16>::new(plan).unwrap();
    let mut scratch =
        OwnedScratch::<f16>::new(&sizes.extend_scratch::<f16, _>(&backend, &plan, 4)).unwrap();
    let mut out = vec![f16::ZERO; 4 * 5];
    let mut run = |tokens: AnyNextTokens<'_>| {
        layer.extend(
            &backend,
            &sizes,
            &AnyParams::from(world.params()),
            &tokens,
            &mut AnyKvCache::from(owned.borrow()),
            HostViewMut::new(&mut out, &[1, 4, 5]).unwrap().into(),
            &mut AnyScratch::from(scratch.borrow()),
        )
    };
    let other = vec![0.0f32; 4 * FEATURES];
    let error = run(NextTokens::new(HostView::new(&other, &shape).unwrap()).into()).unwrap_err();
    assert!(matches!(error, Error::DTypeMismatch { .. }), "{error}");
    run(NextTokens::new(HostView::new(&x, &shape).unwrap()).into()).unwrap();
    assert_eq!(out, wanted[0].concat());
}
