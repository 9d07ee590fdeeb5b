//! Attention over parts of the keys, put together, beside attention over all of them.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::cpu::Cpu;
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{
    DType, DotProductAttention, Error, HostKernels, PartialAttention, dot_product_attention,
    merge_attention, partial_attention,
};
use support::twice::Twice;
use support::{Numbers, assert_close, plain};

const KEYS: usize = 60;

struct World {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    /// `[query_length, key_length]`.
    mask: Tensor,
}

impl World {
    fn new(dtype: DType) -> Self {
        let mut numbers = Numbers(3);
        let scalar = dtype.scalar();
        Self {
            query: numbers.tensor(scalar, &[2, 11, 3, 8], 3.0),
            key: numbers.tensor(scalar, &[2, KEYS, 3, 8], 3.0),
            value: numbers.tensor(scalar, &[2, KEYS, 3, 5], 2.0),
            mask: numbers.tensor(attn_layers::ScalarType::Bool, &[11, KEYS], 1.0),
        }
    }

    fn cast(&self, dtype: DType) -> Self {
        let cast = |tensor: &Tensor| tensor.to_dtype(dtype).unwrap();
        Self {
            query: cast(&self.query),
            key: cast(&self.key),
            value: cast(&self.value),
            mask: self.mask.clone(),
        }
    }

    /// Keys or columns `from..to` of an axis.
    fn part(tensor: &Tensor, axis: usize, [from, to]: [usize; 2]) -> Tensor {
        let mut shape = tensor.shape().to_vec();
        let inner: usize = shape[axis + 1..].iter().product();
        let (length, values) = (shape[axis], tensor.to_vec_f64());
        shape[axis] = to - from;
        let blocks = values.chunks(length * inner);
        let kept = blocks.flat_map(|block| block[from * inner..to * inner].to_vec());
        Tensor::from_f64s(tensor.scalar(), &shape, kept).unwrap()
    }

    /// Attention over the keys `from..to`.
    fn attend<B: HostKernels>(
        &self,
        backend: &B,
        keys: [usize; 2],
        masked: bool,
    ) -> PartialAttention {
        let key = Self::part(&self.key, 1, keys);
        let value = Self::part(&self.value, 1, keys);
        let mask = Self::part(&self.mask, 1, keys);
        let mut arguments = DotProductAttention::new(self.query.view(), key.view());
        arguments.mask = masked.then(|| mask.view());
        partial_attention(backend, &arguments, value.view()).unwrap()
    }

    fn merged<B: HostKernels>(
        &self,
        backend: &B,
        cuts: &[usize],
        masked: bool,
    ) -> PartialAttention {
        let parts: Vec<PartialAttention> = cuts
            .windows(2)
            .map(|ends| self.attend(backend, [ends[0], ends[1]], masked))
            .collect();
        merge_attention(backend, &parts).unwrap()
    }
}

/// Up to five parts of other lengths, some of them without keys.
const CUTS: [&[usize]; 8] = [
    &[0, KEYS],
    &[0, 30, KEYS],
    &[0, 1, KEYS],
    &[0, 0, KEYS],
    &[0, 7, 9, KEYS],
    &[0, 20, 20, 59, KEYS],
    &[0, 5, 12, 30, 31, KEYS],
    &[0, 0, 0, 40, KEYS, KEYS],
];

#[test]
fn parts_of_the_keys_give_the_whole() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let world = World::new(dtype);
        let exact = world.cast(DType::F64);
        for masked in [false, true] {
            let truth: Vec<Twice> = exact
                .attend(&Cpu::detect(), [0, KEYS], masked)
                .out
                .to_vec_f64()
                .into_iter()
                .map(Twice::from)
                .collect();
            for cuts in CUTS {
                let got = world.merged(&Cpu::detect(), cuts, masked).out;
                let plainly = world.merged(&plain(), cuts, masked).out;
                assert_close(
                    &format!("{dtype} {cuts:?} {masked}"),
                    &got,
                    &plainly,
                    &truth,
                );
            }
        }
    }
}

#[test]
fn one_part_has_its_own_bits_and_merges_again() {
    for dtype in DType::ALL {
        let (world, cpu) = (World::new(dtype), Cpu::detect());
        let whole = world.attend(&cpu, [0, KEYS], true);
        let one = core::slice::from_ref(&whole);
        assert_eq!(merge_attention(&cpu, one).unwrap(), whole);
        let key: TensorView<'_> = world.key.view();
        let mut arguments = DotProductAttention::new(world.query.view(), key);
        arguments.mask = Some(world.mask.view());
        let alone = dot_product_attention(&cpu, &arguments, world.value.view()).unwrap();
        assert_eq!(alone, whole.out, "statistics change no bit");
        // Without keys there is nothing to add.
        let empty = world.attend(&cpu, [0, 0], true);
        let merged = merge_attention(&cpu, &[empty.clone(), whole.clone(), empty.clone()]);
        assert_eq!(merged.unwrap(), whole);
        let nothing = merge_attention(&cpu, &[empty.clone(), empty.clone()]).unwrap();
        assert_eq!(nothing.out, empty.out);
        let merged = merge_attention(&cpu, &[nothing, whole.clone()]);
        assert_eq!(merged.unwrap(), whole);
    }
}

#[test]
fn what_does_not_fit_is_a_typed_error() {
    let (world, cpu) = (World::new(DType::F32), Cpu::detect());
    assert!(matches!(
        merge_attention(&cpu, &[]),
        Err(Error::Zero { .. })
    ));
    let part = world.attend(&cpu, [0, 4], false);
    let other = PartialAttention {
        out: World::part(&part.out, 1, [0, 3]),
        statistics: part.statistics.clone(),
    };
    let result = merge_attention(&cpu, &[part.clone(), other]);
    assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}");
    let other = PartialAttention {
        out: part.out.clone(),
        statistics: World::part(&part.statistics, 3, [0, 1]),
    };
    let result = merge_attention(&cpu, &[part, other]);
    assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}");
}
