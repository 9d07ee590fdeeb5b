//! Caches hold what they were given, whatever is done to them, and are as they were after an error.

#[path = "support/blocks.rs"]
mod blocks;

use attn_layers::core::{Element, Layout, Place, Rows, Sequences};
use attn_layers::{
    Dims, Error, HostView, KvCache, KvCacheBuffers, KvCachePlan, KvFormat, KvLayout, OwnedKvCache,
    RowBuffers, bf16, f16,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const SEQUENCES: usize = 3;
const HEADS: usize = 2;

/// A token by its number: what its keys and values are.
fn numbers<T: Element>(token: u64, salt: u64, depth: usize) -> Vec<T> {
    let mut state = token.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        // A row in five is all zeros: its factor is 0.
        let size = f64::from(u8::from(!token.is_multiple_of(5)));
        ((state >> 40) as f64 / f64::from(1 << 23) - 1.0) * 3.0 * size
    };
    (0..HEADS * depth).map(|_| T::from_f64(next())).collect()
}

/// What a cache gives back for numbers that it was given.
fn stored<T: Element>(given: &[T], format: KvFormat, depth: usize) -> Vec<T> {
    let rounded: Vec<f32> = given.iter().map(|x| x.to_f64() as f32).collect();
    let back = |numbers: Vec<f32>| numbers.into_iter().map(|x| T::from_f64(x.into()));
    match format {
        KvFormat::Plain => given.to_vec(),
        KvFormat::Int8 => (rounded.chunks(depth))
            .flat_map(|head| {
                let (integers, d) = blocks::int8(head);
                back(blocks::numbers(&integers, d))
            })
            .collect(),
        KvFormat::Q8_0 => back(blocks::numbers_of_blocks(&blocks::q8_0(&rounded))).collect(),
    }
}

/// Something done to a cache. Numbers may name what is not there.
#[derive(Debug, Clone)]
enum Operation {
    Append {
        counts: Vec<usize>,
        poison: bool,
    },
    /// To some sequences in another order, each by its number and how many tokens.
    AppendTo(Vec<(usize, usize)>),
    Truncate(usize, usize),
    Fork(usize),
    Remove(usize),
    Add,
    Clear,
    RemoveAll,
}

fn operation() -> impl Strategy<Value = Operation> {
    let sequence = 0..SEQUENCES + 1;
    prop_oneof![
        8 => (vec(0..6usize, SEQUENCES), prop::bool::weighted(0.1))
            .prop_map(|(counts, poison)| Operation::Append { counts, poison }),
        4 => vec((sequence.clone(), 0..9usize), 1..4).prop_map(Operation::AppendTo),
        6 => (sequence.clone(), 0..14usize).prop_map(|(s, n)| Operation::Truncate(s, n)),
        5 => sequence.clone().prop_map(Operation::Fork),
        4 => sequence.prop_map(Operation::Remove),
        2 => Just(Operation::Add),
        1 => Just(Operation::Clear),
        1 => Just(Operation::RemoveAll),
    ]
}

fn plan() -> impl Strategy<Value = KvCachePlan> {
    let layout = prop_oneof![
        (1..12usize).prop_map(|capacity| KvLayout::Contiguous { capacity }),
        (1..6usize, 0..5usize).prop_map(|(window, spare)| KvLayout::Ring {
            window,
            capacity: window + spare
        }),
        (1..5usize, 1..10usize, 1..6usize).prop_map(|(page_size, pages, most)| KvLayout::Paged {
            page_size,
            pages,
            pages_per_sequence: most,
        }),
    ];
    let format = || select(vec![KvFormat::Plain, KvFormat::Int8, KvFormat::Q8_0]);
    (layout, format(), format(), any::<bool>()).prop_map(|(layout, key, value, wide)| {
        let depth = |format| match format {
            KvFormat::Q8_0 => 32,
            KvFormat::Plain | KvFormat::Int8 => 3,
        };
        KvCachePlan::new(layout, SEQUENCES, HEADS, depth(key))
            .with_value_depth(depth(value) * if wide { 2 } else { 1 })
            .with_formats(key, value)
    })
}

/// What an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Unknown,
    Twice,
    SequencesFull,
    Full,
    TableFull,
    Exhausted,
    Rollback,
    NotQuantizable,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::SequenceUnknown { .. } => Self::Unknown,
            Error::SequenceTwice { .. } => Self::Twice,
            Error::SequencesFull { .. } => Self::SequencesFull,
            Error::CacheFull { .. } => Self::Full,
            Error::PageTableFull { .. } => Self::TableFull,
            Error::PagesExhausted { .. } => Self::Exhausted,
            Error::Rollback { .. } => Self::Rollback,
            Error::NotQuantizable { .. } => Self::NotQuantizable,
            other => panic!("{other}"),
        }
    }
}

/// A sequence as lists: its tokens by number, and its pages by names that are never used again.
#[derive(Debug, Clone, Default)]
struct Sequence {
    tokens: Vec<u64>,
    /// The first that a ring has not overwritten.
    start: usize,
    pages: Vec<u64>,
}

/// A cache as lists.
#[derive(Debug, Clone)]
struct Model {
    plan: KvCachePlan,
    sequences: Vec<Option<Sequence>>,
    next_token: u64,
    next_page: u64,
}

impl Model {
    fn new(plan: KvCachePlan) -> Self {
        Self {
            plan,
            sequences: vec![Some(Sequence::default()); SEQUENCES],
            next_token: 1,
            next_page: 0,
        }
    }

    fn get(&self, sequence: usize) -> Result<&Sequence, Fault> {
        let found = self.sequences.get(sequence).and_then(Option::as_ref);
        found.ok_or(Fault::Unknown)
    }

    fn set(&mut self, sequence: usize, to: Sequence) {
        self.sequences[sequence] = Some(to);
    }

    fn distinct_pages(&self) -> usize {
        let all = self.sequences.iter().flatten();
        let mut pages: Vec<u64> = all.flat_map(|one| one.pages.clone()).collect();
        pages.sort_unstable();
        pages.dedup();
        pages.len()
    }

    fn owners(&self, page: u64) -> usize {
        let all = self.sequences.iter().flatten();
        all.filter(|one| one.pages.contains(&page)).count()
    }

    /// Sequences with the numbers of their new tokens.
    fn append(&mut self, growth: &[(usize, Vec<u64>)]) -> Result<(), Fault> {
        let mut after = self.clone();
        for (sequence, tokens) in growth {
            if !tokens.is_empty() {
                after.extend(*sequence, tokens)?;
            }
        }
        if let KvLayout::Paged { pages, .. } = self.plan.layout
            && after.distinct_pages() > pages
        {
            return Err(Fault::Exhausted);
        }
        *self = after;
        Ok(())
    }

    fn extend(&mut self, sequence: usize, tokens: &[u64]) -> Result<(), Fault> {
        let mut one = self.get(sequence)?.clone();
        let length = one.tokens.len();
        one.tokens.extend(tokens);
        let total = one.tokens.len();
        match self.plan.layout {
            KvLayout::Contiguous { capacity } if total > capacity => return Err(Fault::Full),
            KvLayout::Contiguous { .. } => {}
            KvLayout::Ring { capacity, .. } => {
                one.start = one.start.max(total.saturating_sub(capacity));
            }
            KvLayout::Paged {
                page_size,
                pages_per_sequence,
                ..
            } => {
                if total > page_size * pages_per_sequence {
                    return Err(Fault::TableFull);
                }
                let tail = length / page_size;
                if !length.is_multiple_of(page_size) && self.owners(one.pages[tail]) > 1 {
                    one.pages[tail] = self.new_page();
                }
                while one.pages.len() * page_size < total {
                    one.pages.push(self.new_page());
                }
            }
        }
        self.set(sequence, one);
        Ok(())
    }

    fn new_page(&mut self) -> u64 {
        self.next_page += 1;
        self.next_page
    }

    fn truncate(&mut self, sequence: usize, length: usize) -> Result<(), Fault> {
        let mut one = self.get(sequence)?.clone();
        let most = one.tokens.len();
        if length > most {
            return Err(Fault::Rollback);
        }
        if let KvLayout::Ring { window, .. } = self.plan.layout {
            // Every token of the window before `length` that the sequence ever had must be there.
            let needed = length.saturating_sub(window);
            if length != most && length > 0 && needed < one.start {
                return Err(Fault::Rollback);
            }
            if length == 0 {
                one.start = 0;
            }
        }
        one.tokens.truncate(length);
        if let KvLayout::Paged { page_size, .. } = self.plan.layout {
            one.pages.truncate(length.div_ceil(page_size));
        }
        self.set(sequence, one);
        Ok(())
    }

    fn add(&mut self, sequence: Sequence) -> Result<usize, Fault> {
        let free = self.sequences.iter().position(Option::is_none);
        let free = free.ok_or(Fault::SequencesFull)?;
        self.set(free, sequence);
        Ok(free)
    }

    fn fork(&mut self, sequence: usize) -> Result<usize, Fault> {
        let copy = self.get(sequence)?.clone();
        self.add(copy)
    }

    fn remove(&mut self, sequence: usize) -> Result<(), Fault> {
        self.get(sequence)?;
        self.sequences[sequence] = None;
        Ok(())
    }

    fn new_tokens(&mut self, count: usize) -> Vec<u64> {
        let first = self.next_token;
        self.next_token += count as u64;
        (first..self.next_token).collect()
    }
}

/// What a cache did, and what its model did.
type Outcomes = (Result<usize, Fault>, Result<usize, Fault>);

/// A cache and its model side by side.
struct World<T: Element> {
    owned: OwnedKvCache<T>,
    model: Model,
}

impl<T: Element> World<T> {
    fn new(plan: KvCachePlan) -> Self {
        Self {
            owned: OwnedKvCache::new(plan).expect("small"),
            model: Model::new(plan),
        }
    }

    /// Does the same to both, and compares.
    fn run(&mut self, operation: &Operation) {
        let before = format!("{:?}", self.owned);
        let (got, wanted) = self.both(operation);
        assert_eq!(got, wanted, "{operation:?}");
        if got.is_err() {
            let after = format!("{:?}", self.owned);
            assert_eq!(before, after, "{operation:?}");
        }
        self.compare();
    }

    fn both(&mut self, operation: &Operation) -> Outcomes {
        let unit = |result: Result<(), Error>| result.map(|()| 0).map_err(Fault::from);
        match operation {
            Operation::Append { counts, poison } => self.append(counts, *poison),
            Operation::AppendTo(growth) => self.append_to(growth),
            Operation::Truncate(sequence, length) => (
                unit(self.owned.borrow().truncate(*sequence, *length)),
                self.model.truncate(*sequence, *length).map(|()| 0),
            ),
            Operation::Fork(sequence) => (
                self.owned.borrow().fork(*sequence).map_err(Fault::from),
                self.model.fork(*sequence),
            ),
            Operation::Remove(sequence) => (
                unit(self.owned.borrow().remove(*sequence)),
                self.model.remove(*sequence).map(|()| 0),
            ),
            Operation::Add => (
                self.owned.borrow().add().map_err(Fault::from),
                self.model.add(Sequence::default()),
            ),
            Operation::Clear => {
                self.owned.borrow().clear();
                for sequence in self.model.sequences.iter_mut().flatten() {
                    *sequence = Sequence::default();
                }
                (Ok(0), Ok(0))
            }
            Operation::RemoveAll => {
                self.owned.borrow().remove_all();
                self.model.sequences.fill(None);
                (Ok(0), Ok(0))
            }
        }
    }

    fn append(&mut self, counts: &[usize], poison: bool) -> Outcomes {
        let tokens = counts.iter().copied().max().unwrap_or(0);
        let new = counts.iter().map(|&count| self.model.new_tokens(count));
        let new: Vec<Vec<u64>> = new.collect();
        let plan = self.model.plan;
        let array = |salt, depth| {
            let row = |token: Option<&u64>| match token {
                Some(&token) => numbers(token, salt, depth),
                // Padding is neither read nor refused.
                None => vec![T::from_f64(f64::NAN); HEADS * depth],
            };
            let rows = new
                .iter()
                .flat_map(|new| (0..tokens).map(|index| row(new.get(index))));
            rows.flatten().collect::<Vec<T>>()
        };
        let (key, mut value) = (array(1, plan.depth), array(2, plan.value_depth));
        let last = counts[SEQUENCES - 1];
        let poison = poison && last > 0 && plan.value_format != KvFormat::Plain;
        if poison {
            let rows = (SEQUENCES - 1) * tokens + last;
            value[rows * HEADS * plan.value_depth - 1] = T::from_f64(f64::INFINITY);
        }
        let shape = |depth| [SEQUENCES, tokens, HEADS, depth];
        let got = self.owned.borrow().append(
            HostView::new(&key, &shape(plan.depth)).expect("its shape"),
            HostView::new(&value, &shape(plan.value_depth)).expect("its shape"),
            Some(counts),
        );
        let before = self.model.clone();
        let growth: Vec<_> = new.into_iter().enumerate().collect();
        let mut wanted = self.model.append(&growth);
        if poison && wanted.is_ok() {
            self.model = before;
            wanted = Err(Fault::NotQuantizable);
        }
        (got.map(|()| 0).map_err(Fault::from), wanted.map(|()| 0))
    }

    /// Tokens for some sequences, the rows of a head side by side.
    fn append_to(&mut self, growth: &[(usize, usize)]) -> Outcomes {
        let (sequences, counts): (Vec<usize>, Vec<usize>) = growth.iter().copied().unzip();
        let tokens = counts.iter().copied().max().unwrap_or(0);
        let new: Vec<Vec<u64>> = counts
            .iter()
            .map(|&count| self.model.new_tokens(count))
            .collect();
        let plan = self.model.plan;
        let by_heads = |salt, depth: usize| {
            let mut numbers_of = Vec::new();
            for new in &new {
                let row =
                    |index: usize| numbers::<T>(new.get(index).copied().unwrap_or(0), salt, depth);
                for head in 0..HEADS {
                    numbers_of.extend(
                        (0..tokens).flat_map(|index| row(index)[head * depth..][..depth].to_vec()),
                    );
                }
            }
            numbers_of
        };
        let (key, value) = (by_heads(1, plan.depth), by_heads(2, plan.value_depth));
        let axes = [sequences.len(), tokens];
        let got = self.owned.borrow().append_to(
            &sequences,
            transposed(&key, axes, plan.depth),
            transposed(&value, axes, plan.value_depth),
            Some(&counts),
        );
        let growth: Vec<_> = sequences.iter().copied().zip(new).collect();
        let wanted = self
            .named_once(&sequences)
            .and_then(|()| self.model.append(&growth));
        (got.map(|()| 0).map_err(Fault::from), wanted.map(|()| 0))
    }

    fn named_once(&self, sequences: &[usize]) -> Result<(), Fault> {
        for (entry, &sequence) in sequences.iter().enumerate() {
            self.model.get(sequence)?;
            if sequences[..entry].contains(&sequence) {
                return Err(Fault::Twice);
            }
        }
        Ok(())
    }

    /// Every token that is there, and what is counted.
    fn compare(&mut self) {
        let plan = self.model.plan;
        let cache = self.owned.borrow();
        let (mut key, mut value) = (
            vec![T::default(); HEADS * plan.depth],
            vec![T::default(); HEADS * plan.value_depth],
        );
        for sequence in 0..SEQUENCES {
            let Ok(one) = self.model.get(sequence) else {
                let unknown = Error::SequenceUnknown { sequence };
                assert_eq!(cache.length(sequence), Err(unknown));
                continue;
            };
            assert_eq!(cache.length(sequence), Ok(one.tokens.len()));
            for (token, &number) in one.tokens.iter().enumerate() {
                let got = cache.read(sequence, token, &mut key, &mut value);
                if token < one.start {
                    assert!(matches!(got, Err(Error::Entry { .. })), "{got:?}");
                    continue;
                }
                assert_eq!(got, Ok(()));
                let wanted =
                    |salt, format, depth| stored::<T>(&numbers(number, salt, depth), format, depth);
                assert_eq!(key, wanted(1, plan.key_format, plan.depth));
                assert_eq!(value, wanted(2, plan.value_format, plan.value_depth));
            }
        }
        if let KvLayout::Paged { pages, .. } = plan.layout {
            self.compare_pages(pages);
        }
    }

    /// No page is lost, and sequences share those that they should and no other.
    fn compare_pages(&mut self, pages: usize) {
        let model = &self.model;
        let cache = self.owned.borrow();
        assert_eq!(cache.free_pages(), Some(pages - model.distinct_pages()));
        let mut names = std::collections::HashMap::new();
        let mut used = 0;
        for (sequence, one) in model.sequences.iter().enumerate() {
            let Some(one) = one else { continue };
            let got = cache.pages(sequence).expect("it is there");
            assert_eq!(got.len(), one.pages.len());
            for (&page, &name) in got.iter().zip(&one.pages) {
                assert_eq!(*names.entry(page).or_insert(name), name);
                assert_eq!(cache.page_owners(page), model.owners(name));
                used += 1;
            }
        }
        let owners = (0..pages as i32).map(|page| cache.page_owners(page));
        assert_eq!(owners.sum::<usize>(), used);
        assert_eq!(names.len(), model.distinct_pages());
    }
}

/// `[entries, heads, tokens, depth]` seen as `[entries, tokens, heads, depth]`.
fn transposed<T: Element>(
    buf: &[T],
    [entries, tokens]: [usize; 2],
    depth: usize,
) -> HostView<'_, T> {
    let shape = Dims::new(&[entries, tokens, HEADS, depth]).expect("four axes");
    let strides = [HEADS * tokens * depth, depth, tokens * depth, 1];
    let layout = Layout::strided(0, shape, &strides).expect("small");
    HostView::with_layout(buf, layout).expect("inside")
}

fn agrees_with_lists<T: Element>(plan: KvCachePlan, operations: &[Operation]) {
    let mut world = World::<T>::new(plan);
    for operation in operations {
        world.run(operation);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_cache_is_its_lists(plan in plan(), operations in vec(operation(), 1..40)) {
        agrees_with_lists::<f32>(plan, &operations);
    }

    #[test]
    fn a_cache_is_its_lists_in_other_dtypes(plan in plan(), operations in vec(operation(), 1..20)) {
        agrees_with_lists::<f64>(plan, &operations);
        agrees_with_lists::<f16>(plan, &operations);
        agrees_with_lists::<bf16>(plan, &operations);
    }
}

#[test]
fn blocks_are_those_of_another_encoder() {
    let plan = KvCachePlan::new(KvLayout::Contiguous { capacity: 50 }, 1, HEADS, 96)
        .with_formats(KvFormat::Q8_0, KvFormat::Int8);
    let mut owned = OwnedKvCache::<f32>::new(plan).unwrap();
    let mut cache = owned.borrow();
    let rows: Vec<f32> = (0..50)
        .flat_map(|token| numbers::<f32>(token, 7, 96))
        .collect();
    let view = HostView::new(&rows, &[50, HEADS, 96]).unwrap();
    cache.append_to(&[0], view, view, None).unwrap();
    let cached = cache.as_cached().unwrap();
    let Rows::Q8_0 { bytes } = cached.key else {
        panic!("keys are blocks")
    };
    assert_eq!(bytes.shape()[..], [1, 50, HEADS, 3 * 34]);
    assert_eq!(*bytes.buf(), blocks::q8_0(&rows));
    let Rows::Int8 { values, scales } = cached.value else {
        panic!("values are integers")
    };
    let heads: Vec<_> = rows.chunks(96).map(blocks::int8).collect();
    assert_eq!(
        *scales.buf(),
        heads.iter().map(|(_, d)| *d).collect::<Vec<_>>()
    );
    assert_eq!(
        *values.buf(),
        heads.into_iter().flat_map(|(q, _)| q).collect::<Vec<_>>()
    );
}

/// The formats' errors are those of their definition: half a step of the factor, and of the factor's own rounding.
#[test]
fn quantised_numbers_are_within_half_a_step() {
    let given = numbers::<f32>(1, 3, 64);
    for (format, unit) in [
        (KvFormat::Int8, f64::from(f32::EPSILON)),
        (KvFormat::Q8_0, f16::EPSILON.to_f64()),
    ] {
        let plan = KvCachePlan::new(KvLayout::Contiguous { capacity: 1 }, 1, HEADS, 64)
            .with_formats(format, format);
        let mut owned = OwnedKvCache::<f32>::new(plan).unwrap();
        let mut cache = owned.borrow();
        let view = HostView::new(&given, &[1, HEADS, 64]).unwrap();
        cache.append_to(&[0], view, view, None).unwrap();
        let (mut key, mut value) = (vec![0.0; HEADS * 64], vec![0.0; HEADS * 64]);
        cache.read(0, 0, &mut key, &mut value).unwrap();
        assert_eq!(key, value);
        let largest = given
            .iter()
            .fold(0.0f64, |most, x| most.max(x.abs().into()));
        let allowed = largest / 127.0 * 0.5 + largest * unit;
        for (got, given) in key.iter().zip(&given) {
            assert!(
                f64::from(got - given).abs() <= allowed,
                "{format:?}: {got} for {given}"
            );
        }
    }
}

#[test]
fn what_a_cache_is_like_is_checked() {
    let contiguous = |capacity| KvLayout::Contiguous { capacity };
    let sizes = |plan: KvCachePlan| plan.sizes();
    let zero = |argument| Err(Error::Zero { argument });
    assert_eq!(
        sizes(KvCachePlan::new(contiguous(0), 1, 1, 1)),
        zero("capacity")
    );
    assert_eq!(
        sizes(KvCachePlan::new(contiguous(1), 0, 1, 1)),
        zero("sequences")
    );
    assert_eq!(
        sizes(KvCachePlan::new(contiguous(1), 1, 0, 1)),
        zero("key_heads")
    );
    assert_eq!(
        sizes(KvCachePlan::new(contiguous(1), 1, 1, 0)),
        zero("depth")
    );
    let ring = |window, capacity| KvCachePlan::new(KvLayout::Ring { window, capacity }, 1, 1, 1);
    assert_eq!(sizes(ring(0, 4)), zero("window"));
    assert!(matches!(
        sizes(ring(5, 4)),
        Err(Error::Entry {
            argument: "window",
            got: 5,
            most: 4,
            ..
        })
    ));
    let paged = |page_size, pages, most| {
        let layout = KvLayout::Paged {
            page_size,
            pages,
            pages_per_sequence: most,
        };
        KvCachePlan::new(layout, 2, 3, 32)
    };
    assert_eq!(sizes(paged(0, 1, 1)), zero("page_size"));
    assert_eq!(sizes(paged(1, 0, 1)), zero("pages"));
    assert_eq!(sizes(paged(1, 1, 0)), zero("pages_per_sequence"));
    for plan in [
        KvCachePlan::new(contiguous(usize::MAX), 1, 1, 1),
        KvCachePlan::new(contiguous(1), usize::MAX, 1, 1),
        KvCachePlan::new(contiguous(1 << 30), 1 << 30, 1 << 30, 1),
        KvCachePlan::new(contiguous(1), 1, 1, usize::MAX / 2),
        paged(usize::MAX, 2, 2),
        paged(2, usize::MAX, 2),
        paged(2, 2, usize::MAX),
    ] {
        assert!(
            matches!(plan.bytes::<f32>(), Err(Error::TooLarge { .. })),
            "{plan:?}"
        );
        assert!(matches!(
            OwnedKvCache::<f32>::new(plan),
            Err(Error::TooLarge { .. })
        ));
    }
    let blocks = KvCachePlan::new(contiguous(1), 1, 1, 33);
    let wanted = Error::BlockDepth {
        argument: "value",
        got: 33,
        block: 32,
    };
    assert_eq!(
        sizes(blocks.with_formats(KvFormat::Int8, KvFormat::Q8_0)),
        Err(wanted)
    );
}

#[test]
fn bytes_are_those_of_the_buffers() {
    let layout = KvLayout::Paged {
        page_size: 4,
        pages: 5,
        pages_per_sequence: 3,
    };
    let plan = KvCachePlan::new(layout, 2, 3, 32).with_formats(KvFormat::Int8, KvFormat::Q8_0);
    // A row of keys has 3 heads of 32 bytes and a factor, one of values 3 of 34 bytes.
    let token = 3 * (32 + 4) + 3 * 34;
    assert_eq!(plan.bytes_per_token::<f32>(), Ok(token));
    let index = 4 * (4 * 2 + 2 * 2 * 3 + 5 + 2);
    assert_eq!(plan.bytes::<f32>(), Ok(20 * token + index));
    let owned = OwnedKvCache::<f32>::new(plan).unwrap();
    assert_eq!(owned.bytes(), 20 * token + index);
    let plain = KvCachePlan::new(
        KvLayout::Ring {
            window: 2,
            capacity: 4,
        },
        2,
        3,
        5,
    );
    assert_eq!(plain.bytes_per_token::<f64>(), Ok(2 * 3 * 5 * 8));
    assert_eq!(plain.bytes::<f16>(), Ok(8 * 2 * 3 * 5 * 2 + 4 * 5 * 2));
}

#[test]
fn buffers_are_checked() {
    let plan = KvCachePlan::new(KvLayout::Contiguous { capacity: 2 }, 1, 1, 3);
    let (mut key, mut value, mut index) = ([0.0f32; 6], [0.0f32; 6], [0; 5]);
    let mut make = |plan, keys: usize, numbers: usize| {
        let buffers = KvCacheBuffers {
            key: RowBuffers::Plain(&mut key[..keys]),
            value: RowBuffers::Plain(&mut value),
            index: &mut index[..numbers],
        };
        KvCache::new(plan, buffers).map(|_| ())
    };
    assert_eq!(make(plan, 6, 5), Ok(()));
    let buffer = |argument, got, wanted| {
        Err(Error::Buffer {
            argument,
            got,
            wanted,
        })
    };
    assert_eq!(make(plan, 5, 5), buffer("cached key", 5, 6));
    assert_eq!(make(plan, 6, 4), buffer("cache index", 4, 5));
    let int8 = plan.with_formats(KvFormat::Int8, KvFormat::Plain);
    assert!(matches!(make(int8, 6, 5), Err(Error::Unsupported { .. })));
}

#[test]
fn tokens_of_another_shape_are_refused() {
    let plan = KvCachePlan::new(KvLayout::Contiguous { capacity: 4 }, 2, 2, 3);
    let mut owned = OwnedKvCache::<f32>::new(plan).unwrap();
    let rows = [0.0f32; 64];
    let view = |shape: &[usize]| HostView::new(&rows[..shape.iter().product()], shape).unwrap();
    let mut append = |key: &[usize], value: &[usize], counts: Option<&[usize]>| {
        let before = format!("{owned:?}");
        let result = owned.borrow().append(view(key), view(value), counts);
        assert_eq!(before, format!("{owned:?}"));
        result.expect_err("it does not fit")
    };
    let right = [2, 1, 2, 3];
    assert!(matches!(
        append(&[3, 1, 2, 3], &right, None),
        Error::Shape {
            argument: "key",
            ..
        }
    ));
    assert!(matches!(
        append(&[2, 1, 3, 3], &right, None),
        Error::Shape {
            argument: "key",
            ..
        }
    ));
    assert!(matches!(
        append(&right, &[2, 1, 2, 4], None),
        Error::Shape {
            argument: "value",
            ..
        }
    ));
    assert!(matches!(
        append(&right, &[2, 2, 2, 3], None),
        Error::Mismatch { .. }
    ));
    assert!(matches!(
        append(&[2, 3], &right, None),
        Error::Rank {
            argument: "key",
            got: 2,
            ..
        }
    ));
    assert!(matches!(
        append(&right, &right, Some(&[1])),
        Error::Buffer {
            argument: "counts",
            got: 1,
            wanted: 2
        }
    ));
    assert!(matches!(
        append(&right, &right, Some(&[1, 2])),
        Error::Entry {
            argument: "counts",
            index: 1,
            got: 2,
            ..
        }
    ));
}

/// The last of the sequences that share a page writes to it, and takes none.
#[test]
fn pages_are_counted_as_they_are_taken() {
    let layout = KvLayout::Paged {
        page_size: 4,
        pages: 2,
        pages_per_sequence: 1,
    };
    let mut owned = OwnedKvCache::<f32>::new(KvCachePlan::new(layout, 3, 1, 1)).unwrap();
    let mut cache = owned.borrow();
    cache.remove(1).unwrap();
    cache.remove(2).unwrap();
    let rows = [1.0, 2.0, 3.0];
    let view = |count| HostView::new(&rows[..count], &[count, 1, 1]).unwrap();
    cache.append_to(&[0], view(2), view(2), None).unwrap();
    assert_eq!((cache.fork(0), cache.fork(0)), (Ok(1), Ok(2)));
    let each = |count| HostView::new(&rows[..count], &[count, 1, 1, 1]).unwrap();
    let exhausted = Err(Error::PagesExhausted { got: 2, free: 1 });
    assert_eq!(cache.append(each(3), each(3), None), exhausted);
    cache.remove(2).unwrap();
    assert_eq!(cache.append_to(&[1, 0], each(2), each(2), None), Ok(()));
    assert_eq!(cache.free_pages(), Some(0));
    let last = |sequence| {
        let (mut key, mut value) = ([0.0], [0.0]);
        cache.read(sequence, 2, &mut key, &mut value).unwrap();
        (key[0], value[0])
    };
    assert_eq!((last(1), last(0)), ((1.0, 1.0), (2.0, 2.0)));
}

#[test]
fn some_sequences_can_be_a_batch() {
    let contiguous = KvLayout::Contiguous { capacity: 3 };
    let ring = KvLayout::Ring {
        window: 2,
        capacity: 3,
    };
    let paged = KvLayout::Paged {
        page_size: 2,
        pages: 6,
        pages_per_sequence: 2,
    };
    for layout in [contiguous, ring, paged] {
        let mut owned = OwnedKvCache::<f32>::new(KvCachePlan::new(layout, 3, 1, 1)).unwrap();
        let mut cache = owned.borrow();
        let rows = [1.0, 2.0, 3.0];
        let rows = HostView::new(&rows, &[3, 1, 1, 1]).unwrap();
        cache.append(rows, rows, Some(&[1, 0, 1])).unwrap();
        let twice = Error::SequenceTwice { sequence: 1 };
        assert_eq!(cache.as_cached_of(&[1, 1]).unwrap_err(), twice);
        let unknown = Error::SequenceUnknown { sequence: 3 };
        assert_eq!(cache.as_cached_of(&[3]).unwrap_err(), unknown);
        let backwards = cache.as_cached_of(&[2, 1]);
        let Ok((cached, Sequences::Padded { key_lengths, .. })) = backwards else {
            assert!(matches!(backwards, Err(Error::Unsupported { .. })));
            assert_eq!(layout, ring);
            let (cached, _) = cache.as_cached_of(&[1, 2]).unwrap();
            assert_eq!(cached.key.shape("key").unwrap()[..], [2, 3, 1, 1]);
            continue;
        };
        assert_eq!(*key_lengths.buf(), [1, 0]);
        let Place::Paged { table } = cached.place else {
            panic!("pages, or sequences as pages");
        };
        let [pages, _, _, _] = cached.key.shape("key").unwrap()[..] else {
            panic!("four axes");
        };
        assert_eq!(
            (pages, table.len()),
            if layout == paged { (6, 4) } else { (3, 2) }
        );
    }
}
