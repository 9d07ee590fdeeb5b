//! Files of real Flax and safetensors, written back byte for byte; damaged and hostile files.
#![cfg(feature = "std")]

use attn_layers::io::{self, Problem, Tree};
use attn_layers::tensor::TensorView;
use attn_layers::{ParamSource, ScalarType};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use proptest::prelude::*;
use std::alloc::System;

const PARAMS: &[u8] = include_bytes!("data/io/params.msgpack");
const STATE: &[u8] = include_bytes!("data/io/state.msgpack");
const CHUNKED: &[u8] = include_bytes!("data/io/chunked.msgpack");
const SAFETENSORS: &[u8] = include_bytes!("data/io/params.safetensors");

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

/// Counts the bytes that a thread asks for.
struct Counting;

#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: every call is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + layout.size()));
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn read_all(bytes: &[u8]) {
    for read in [Tree::read, Tree::read_msgpack, Tree::read_safetensors] {
        if let Ok(tree) = read(bytes) {
            for entry in tree.entries() {
                if let Some(view) = entry.tensor() {
                    assert_eq!(view.bytes().len(), view.elements() * view.scalar().size());
                }
            }
        }
    }
}

/// Reads, and asserts that memory grew with the file only. The most for a byte of the file is a list's entry: a node of 64 bytes,
/// twice that as its vector doubles (and frees the smaller), and about as much in the map of names; three readers, each walked.
fn read_within_bounds(bytes: &[u8]) {
    let before = ALLOCATED.with(Cell::get);
    read_all(bytes);
    let allocated = ALLOCATED.with(Cell::get) - before;
    assert!(
        allocated <= 8192 + 500 * bytes.len(),
        "{allocated} bytes for a file of {}",
        bytes.len()
    );
}

fn tensors<'t>(tree: &'t Tree<'_>) -> Vec<(String, TensorView<'t>)> {
    tree.entries()
        .filter_map(|entry| Some((entry.path(), entry.tensor()?)))
        .collect()
}

fn borrowed<'a>(tensors: &'a [(String, TensorView<'a>)]) -> Vec<(&'a str, TensorView<'a>)> {
    tensors
        .iter()
        .map(|(path, view)| (path.as_str(), *view))
        .collect()
}

#[test]
fn params_of_flax_are_read_and_written_byte_for_byte() {
    let tree = Tree::read(PARAMS).unwrap();
    let all = tensors(&tree);
    assert_eq!(all.len(), 8);
    assert_eq!(all[0].0, "params/encoder/attn/query/kernel");
    assert_eq!(io::write_msgpack(&borrowed(&all)).unwrap(), PARAMS);
    let bias = tree.tensor("params/encoder/attn/query/bias").unwrap();
    assert_eq!(
        (bias.scalar(), bias.shape().as_slice()),
        (ScalarType::BF16, [2, 3].as_slice())
    );
    assert_eq!(
        tree.attention_layers().collect::<Vec<_>>(),
        ["params/encoder/attn"]
    );
}

#[test]
fn a_layer_is_picked_by_path_prefix_or_end() {
    let tree = Tree::read(PARAMS).unwrap();
    for path in [
        "params/encoder/attn",
        "encoder/attn",
        "encoder.attn",
        "params.encoder.attn",
    ] {
        assert!(
            tree.subtree(path)
                .unwrap()
                .tensor("out", "kernel")
                .is_some(),
            "{path}"
        );
    }
    assert!(
        tree.find_layer("attn")
            .unwrap()
            .tensor("key", "kernel")
            .is_some()
    );
    assert_eq!(
        tree.subtree("decoder").unwrap_err().problem,
        Problem::NoEntry
    );
    assert_eq!(
        tree.find_layer("bias").unwrap_err().problem,
        Problem::Ambiguous { count: 4 }
    );
}

#[test]
fn both_formats_hold_the_same() {
    let (left, right) = (
        Tree::read(PARAMS).unwrap(),
        Tree::read(SAFETENSORS).unwrap(),
    );
    let all = tensors(&left);
    for (path, view) in &all {
        assert_eq!(right.tensor(path), Some(*view), "{path}");
    }
    let rewritten = io::write_safetensors(&borrowed(&all)).unwrap();
    let again = Tree::read(&rewritten).unwrap();
    assert_eq!(tensors(&again).len(), all.len());
    assert!(
        all.iter()
            .all(|(path, view)| again.tensor(path) == Some(*view))
    );
}

#[test]
fn a_train_state_is_read() {
    let tree = Tree::read(STATE).unwrap();
    assert_eq!(tree.tensor("index").unwrap().get_f64(0), 3.0);
    assert_eq!(tree.tensor("scalar").unwrap().get_f64(0), 0.5);
    assert_eq!(
        tree.tensor("opt_state/0/mu/w").unwrap().shape().as_slice(),
        [2, 2]
    );
    let table = tree.to_string();
    assert!(
        table.contains("step") && table.contains("Complex"),
        "{table}"
    );
}

#[test]
fn chunks_are_joined_in_numeric_order_and_written_alike() {
    let tree = Tree::read(CHUNKED).unwrap();
    let all = tensors(&tree);
    assert_eq!(
        all.iter()
            .map(|(path, _)| path.as_str())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(all[0].1.shape().as_slice(), [13, 2]);
    assert_eq!(
        io::write_msgpack_chunked(&borrowed(&all), 20).unwrap(),
        CHUNKED
    );
}

/// An extension of type 1 that holds an extension that holds one…
fn nested_extensions(levels: u32) -> Vec<u8> {
    let mut file = b"\x81\xa1a".to_vec();
    for level in (0..levels).rev() {
        file.push(0xc9);
        file.extend((6 * level).to_be_bytes());
        file.push(1);
    }
    file
}

#[test]
fn nesting_takes_no_stack() {
    let problem = Tree::read(&nested_extensions(1_000_000))
        .unwrap_err()
        .problem;
    assert!(matches!(problem, Problem::Unexpected { .. }), "{problem:?}");
    let name = "a/".repeat(1_000_000);
    let view = TensorView::from_slice(&[0.0f32], &[1]).unwrap();
    let file = io::write_safetensors(&[(&name, view)]).unwrap();
    for error in [
        Tree::read(&file).unwrap_err(),
        io::write_msgpack(&[(&name, view)]).unwrap_err(),
    ] {
        assert_eq!(error.problem, Problem::TooDeep { limit: 64 });
    }
}

#[test]
fn reading_takes_time_that_grows_with_the_file() {
    // A long name above many leaves: looked at once, not once for each leaf.
    let mut file = b"\x81\xdb\x00\x10\x00\x00".to_vec();
    file.extend(core::iter::repeat_n(b'n', 1 << 20));
    file.extend(b"\xdd\x00\x04\x00\x00");
    file.extend(core::iter::repeat_n(0xc0, 1 << 18));
    let start = std::time::Instant::now();
    let tree = Tree::read(&file).unwrap();
    assert_eq!(tree.entries().count(), 1 << 18);
    // Once for each leaf would be 2^38 bytes.
    assert!(start.elapsed() < core::time::Duration::from_secs(10));
}

#[test]
fn names_with_separators_are_found() {
    let view = TensorView::from_slice(&[1.0f32], &[1]).unwrap();
    for names in [
        ["enc/attn/query/kernel", "enc/attn/key/kernel"],
        ["enc.attn.query.kernel", "enc.attn.key.kernel"],
    ] {
        // As safetensors, and as the flat dict that `flatten_dict` makes.
        let mut flat = b"\x82".to_vec();
        for name in names {
            flat.push(0xa0 | name.len() as u8);
            flat.extend(name.bytes());
            flat.extend(b"\xc7\x11\x01\x93\x91\x01\xa7float32\xc4\x04\x00\x00\x80\x3f");
        }
        let safetensors = io::write_safetensors(&names.map(|name| (name, view))).unwrap();
        for file in [flat, safetensors] {
            let tree = Tree::read(&file).unwrap();
            let layer = tree.subtree("enc.attn").unwrap();
            assert_eq!(layer.tensor("query", "kernel"), Some(view));
            assert_eq!(tree.tensor("enc/attn/key.kernel"), Some(view));
        }
    }
    // A module's name keeps its dot, and is found by either separator.
    let file = io::write_msgpack(&[("params/block.0/attn/out/kernel", view)]).unwrap();
    let tree = Tree::read(&file).unwrap();
    assert_eq!(io::write_msgpack(&borrowed(&tensors(&tree))).unwrap(), file);
    for path in ["block.0/attn", "params.block.0.attn", "/block.0/attn/"] {
        assert!(
            tree.subtree(path)
                .unwrap()
                .tensor("out", "kernel")
                .is_some(),
            "{path}"
        );
    }
}

#[test]
fn a_part_gets_a_second_path() {
    let mut tree = Tree::read(PARAMS).unwrap();
    let before = tensors(&tree).len();
    tree.alias("params/encoder/attn/out", "params/encoder/attn/output")
        .unwrap();
    tree.alias("params.encoder.attn", "layers.0").unwrap();
    assert_eq!(
        tree.tensor("layers/0/output/kernel"),
        tree.tensor("params/encoder/attn/out/kernel")
    );
    assert!(tree.tensor("layers/0/output/kernel").is_some());
    assert_eq!(tensors(&tree).len(), before);
    for (from, to, problem) in [
        ("params/decoder", "x", Problem::NoEntry),
        ("params/encoder", "params/encoder", Problem::Duplicate),
        ("params", "params/encoder/again", Problem::Duplicate),
    ] {
        assert_eq!(tree.alias(from, to).unwrap_err().problem, problem);
    }
}

#[test]
fn chunks_must_be_whole() {
    // The chunk "1" under the name "2", and "01".
    let at = |name: &[u8]| {
        CHUNKED
            .windows(name.len())
            .position(|bytes| bytes == name)
            .unwrap()
    };
    for digit in [b'2', b'x'] {
        let mut file = CHUNKED.to_vec();
        let chunks = at(b"chunks");
        let one = chunks
            + file[chunks..]
                .windows(2)
                .position(|bytes| bytes == b"\xa11")
                .unwrap();
        file[one + 1] = digit;
        assert!(Tree::read(&file).is_err(), "{digit}");
    }
    let mut file = CHUNKED.to_vec();
    let shape = at(b"shape");
    file[shape + 8] += 1;
    let error = Tree::read(&file).unwrap_err();
    assert_eq!(error.problem, Problem::Chunks);
    assert!(error.offset > 0);
}

#[test]
fn a_file_is_opened() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/io/params.msgpack");
    let file = io::File::open(&path).unwrap();
    assert_eq!(&*file, PARAMS);
    let missing = io::File::open(path.join("missing")).unwrap_err();
    assert!(matches!(missing.problem, Problem::System(_)));
    #[cfg(feature = "mmap")]
    {
        #[expect(unsafe_code, reason = "maps a file of the repository")]
        // SAFETY: nothing writes to the test's data.
        let mapped = unsafe { io::File::map(&path) }.unwrap();
        assert_eq!(tensors(&Tree::read(&mapped).unwrap()).len(), 8);
    }
}

#[test]
fn hostile_files_are_typed_errors() {
    let deep: Vec<u8> = core::iter::repeat_n([0x81, 0xa1, b'a'], 100_000)
        .flatten()
        .collect();
    let cases: [(&[u8], Problem); 10] = [
        (b"", Problem::UnknownFormat),
        (b"\x93", Problem::UnknownFormat),
        (&deep, Problem::TooDeep { limit: 64 }),
        (
            b"\xdf\xff\xff\xff\xff",
            Problem::Truncated {
                got: 0,
                wanted: 2 * u64::from(u32::MAX),
            },
        ),
        (
            b"\x81\xa1a\xc6\xff\xff\xff\xff",
            Problem::Truncated {
                got: 0,
                wanted: u64::from(u32::MAX),
            },
        ),
        (b"\x82\xa1a\x01\xa1a\x02", Problem::Duplicate),
        (
            b"\x82\xa1a\x81\xa1x\x01\xa1a\x81\xa1y\x02",
            Problem::Duplicate,
        ),
        (b"\x81\xa1a\x01\x00", Problem::Trailing { count: 1 }),
        (
            b"\x81\xa1a\xc7\x0d\x01\x93\x91\x02\xa7float32\xc4\x00",
            Problem::Length { got: 0, wanted: 8 },
        ),
        (
            b"\x81\xa1a\xd5\x07\x00\x00",
            Problem::Unexpected {
                wanted: "an extension of Flax (1, 2 or 3)",
            },
        ),
    ];
    for (bytes, problem) in cases {
        assert_eq!(
            Tree::read(bytes).unwrap_err().problem,
            problem,
            "{:?}",
            &bytes[..bytes.len().min(20)]
        );
    }
    let overflowing = b"\x81\xa1a\xc7\x1d\x01\x93\x92\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xa5int32\xc4\x00";
    assert!(Tree::read(overflowing).is_err());
}

/// A safetensors file of this header and so many bytes of data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(core::iter::repeat_n(0, data));
    file
}

#[test]
fn hostile_safetensors_are_typed_errors() {
    let one = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let two = r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#;
    let cases = [
        (format!(r#"{{"a":{one},"a":{two}}}"#), 8, Problem::Duplicate),
        (format!(r#"{{"a":{one},"b":{one}}}"#), 8, Problem::Overlap),
        (format!(r#"{{"a":{one}}}"#), 8, Problem::Overlap),
        (
            format!(r#"{{"a":{two}}}"#),
            4,
            Problem::Truncated { got: 4, wanted: 8 },
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#.into(),
            4,
            Problem::Length { got: 4, wanted: 8 },
        ),
        (
            r#"{"a":{"dtype":"F8","shape":[4],"data_offsets":[0,4]}}"#.into(),
            4,
            Problem::DType,
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}"#.into(),
            4,
            Problem::Shape,
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#.into(),
            4,
            Problem::Shape,
        ),
        (r#"{"a\u0041":{}}"#.into(), 0, Problem::Name),
        (
            format!(r#"{{"a":{one}}} x"#),
            4,
            Problem::Trailing { count: 1 },
        ),
    ];
    for (header, data, problem) in cases {
        assert_eq!(
            Tree::read(&safetensors(&header, data)).unwrap_err().problem,
            problem,
            "{header}"
        );
    }
}

#[test]
fn metadata_may_hold_escapes_and_stands_once() {
    let metadata = r#""__metadata__":{"a\"b":"\u00e9 {\"x\": 1}\n"}"#;
    let one = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let tree =
        |header: &str| Tree::read(&safetensors(header, 1)).map(|tree| tree.entries().count());
    assert_eq!(tree(&format!("{{{metadata},{one}}}")), Ok(1));
    for (header, problem) in [
        (
            format!("{{{metadata},{metadata},{one}}}"),
            Problem::Duplicate,
        ),
        (
            format!(r#"{{"__metadata__":{{"a":"\x"}},{one}}}"#),
            Problem::Name,
        ),
        (
            format!(r#"{{"__metadata__":{{"a":"\u12"}},{one}}}"#),
            Problem::Name,
        ),
    ] {
        assert_eq!(tree(&header).unwrap_err().problem, problem, "{header}");
    }
    let view = TensorView::from_slice(&[0.0f32], &[1]).unwrap();
    assert_eq!(
        io::write_safetensors(&[("__metadata__", view)])
            .unwrap_err()
            .problem,
        Problem::Name
    );
}

#[test]
fn written_arrays_are_aligned_for_their_types() {
    let (bytes, halves, doubles) = ([1u8], [2u8, 0], 3f64.to_le_bytes());
    let file = io::write_safetensors(&[
        (
            "bytes",
            TensorView::new(ScalarType::Bool, &[1], &bytes).unwrap(),
        ),
        (
            "halves",
            TensorView::new(ScalarType::F16, &[1], &halves).unwrap(),
        ),
        (
            "doubles",
            TensorView::new(ScalarType::F64, &[1], &doubles).unwrap(),
        ),
    ])
    .unwrap();
    let tree = Tree::read(&file).unwrap();
    for (path, view) in tensors(&tree) {
        let offset = view.bytes().as_ptr().addr() - file.as_ptr().addr();
        assert_eq!(offset % view.scalar().size(), 0, "{path}");
    }
    assert_eq!(tree.tensor("doubles").unwrap().get_f64(0), 3.0);
}

#[test]
fn every_truncation_is_an_error() {
    for file in [PARAMS, STATE, CHUNKED, SAFETENSORS] {
        for end in 0..file.len() {
            read_within_bounds(&file[..end]);
            assert!(Tree::read(&file[..end]).is_err(), "{end} of {}", file.len());
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_within_bounds(&bytes);
    }

    #[test]
    fn arbitrary_headers_never_panic(header in "[{}\\[\\]:,\"a-fFdtypeshape_0-9 ]{0,200}") {
        read_within_bounds(&safetensors(&format!("{{{header}"), 16));
    }

    #[test]
    fn flipped_bytes_never_panic(file in 0..4usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = [PARAMS, STATE, CHUNKED, SAFETENSORS][file].to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        read_within_bounds(&bytes);
    }

    #[test]
    fn what_is_written_is_read(
        shapes in prop::collection::btree_map("[a-z]{1,3}(/[a-z]{1,40})?", prop::collection::vec(0..4usize, 0..4), 0..20),
        scalar in prop::sample::select(ScalarType::ALL.to_vec()),
        chunk in 1..200usize,
    ) {
        let data = [0u8, 1].repeat(512);
        let names: Vec<&String> = shapes.keys().filter(|name| !shapes.contains_key(name.split('/').next().unwrap_or("")) || !name.contains('/')).collect();
        let entries: Vec<(&str, TensorView<'_>)> = names
            .iter()
            .map(|name| {
                let shape = &shapes[*name];
                let size = shape.iter().product::<usize>() * scalar.size();
                (name.as_str(), TensorView::new(scalar, shape, &data[..size]).expect("it fits"))
            })
            .collect();
        let msgpack = io::write_msgpack_chunked(&entries, chunk).expect("no duplicates");
        let safetensors = io::write_safetensors(&entries).expect("no duplicates");
        for file in [msgpack, safetensors] {
            let tree = Tree::read(&file).expect("a valid file");
            for (name, view) in &entries {
                prop_assert_eq!(tree.tensor(name), Some(*view));
            }
        }
    }
}
