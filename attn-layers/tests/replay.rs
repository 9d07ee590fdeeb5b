//! The committed cases, recorded from Flax, through the code of the example `replay`; and what that code says of damaged cases.
#![expect(
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core,
    reason = "a program has std"
)]

#[path = "../examples/replay/harness/mod.rs"]
mod harness;
mod support;

use attn_layers::HostKernels;
use attn_layers::cpu::{Cpu, Isa};
use harness::{Report, find_cases, replay};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/cases")
}

fn golden_onnx() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/onnx/cases")
}

fn all_must_pass<B: HostKernels>(backend: &B, folder: PathBuf, least: usize) {
    let cases = find_cases(&[folder]).expect("the committed cases are there");
    assert!(
        cases.len() >= least,
        "only {} cases are committed",
        cases.len()
    );
    let failures: Vec<String> = cases
        .iter()
        .map(|case| replay(case, backend))
        .filter(|report| !report.passed())
        .map(|report| report.to_string())
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} cases:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

#[test]
fn every_case_passes_on_the_best_instruction_set() {
    all_must_pass(&Cpu::detect(), golden(), 180);
}

#[test]
fn every_case_passes_on_the_portable_instruction_set() {
    let portable = Cpu::with_isa(Isa::Portable).expect("every machine has it");
    all_must_pass(&portable, golden(), 180);
}

#[test]
fn every_case_of_onnx_passes() {
    all_must_pass(&Cpu::detect(), golden_onnx(), 55);
    let portable = Cpu::with_isa(Isa::Portable).expect("every machine has it");
    all_must_pass(&portable, golden_onnx(), 55);
}

#[test]
fn every_case_of_onnx_passes_in_plain_arithmetic() {
    all_must_pass(&support::plain(), golden_onnx(), 55);
}

/// A copy of the first committed case of a kind, to be damaged.
struct Copy {
    json: PathBuf,
}

impl Copy {
    fn of(kind: &str, test: &str) -> Self {
        let is_of_kind = |path: &PathBuf| {
            let case = fs::read(path).map(|bytes| serde_json::from_slice::<Value>(&bytes));
            matches!(case, Ok(Ok(case)) if case["kind"] == kind)
        };
        let cases = find_cases(&[golden()]).expect("the committed cases are there");
        let case = cases.into_iter().find(is_of_kind);
        Self::of_file(&case.expect("a case of this kind"), test)
    }

    /// A copy of the case of this name.
    fn named(name: &str, test: &str) -> Self {
        Self::of_file(&golden().join(format!("{name}.json")), test)
    }

    fn of_file(case: &Path, test: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("replay")
            .join(test);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("the build's own folder can be written");
        let stem = case
            .file_stem()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        // Only cases of Flax have parameters.
        let params = format!("{stem}.params.safetensors");
        let mut parts = vec!["json", "inputs.safetensors", "expected.safetensors"];
        if case.with_file_name(params).exists() {
            parts.push("params.safetensors");
        }
        for part in parts {
            let name = format!("{stem}.{part}");
            let copy = folder.join(format!("case.{part}"));
            fs::copy(case.with_file_name(&name), copy).expect(&name);
        }
        Self {
            json: folder.join("case.json"),
        }
        .edited(|case| case["msgpack"] = Value::Null)
    }

    fn edited(self, edit: impl Fn(&mut Value)) -> Self {
        let mut case = read_json(&self.json);
        edit(&mut case);
        fs::write(&self.json, case.to_string()).expect("the copy can be written");
        self
    }

    fn file(&self, part: &str) -> PathBuf {
        self.json.with_file_name(format!("case.{part}.safetensors"))
    }

    fn replay(&self) -> Report {
        replay(&self.json, &Cpu::detect())
    }

    /// The words with which the case failed.
    fn failure(&self) -> String {
        let report = self.replay();
        let json = report.to_json();
        assert_eq!(json["ok"], json!(report.passed()));
        json["why"].as_str().expect("the case must fail").to_owned()
    }

    fn must_fail_with(&self, words: &str) {
        let failure = self.failure();
        assert!(failure.contains(words), "{failure:?} lacks {words:?}");
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

#[test]
fn an_unchanged_copy_passes() {
    let report = Copy::of("forward", "unchanged").replay();
    assert!(report.passed(), "{report}");
    let out = &report.to_json()["outputs"]["out"];
    assert!(out["max_abs_err"].as_f64() <= out["atol"].as_f64());
}

#[test]
fn a_difference_beyond_the_tolerance_is_named() {
    let case = Copy::of("forward", "tolerance")
        .edited(|case| case["expected"]["out"]["atol"] = json!(0.0));
    case.must_fail_with("allowed 0e0");
}

#[test]
fn another_type_or_shape_fails() {
    let dtype = Copy::of("forward", "dtype")
        .edited(|case| case["expected"]["out"]["dtype"] = json!("float16"));
    dtype.must_fail_with("dtype is");
    let shape = Copy::of("forward", "shape")
        .edited(|case| case["expected"]["out"]["shape"] = json!([1, 2]));
    shape.must_fail_with("shape is");
}

#[test]
fn an_output_that_is_not_computed_fails() {
    let case = Copy::of("forward", "output").edited(|case| {
        case["expected"]["more"] = case["expected"]["out"].clone();
    });
    case.must_fail_with("more: was not computed");
}

#[test]
fn an_error_of_another_meaning_fails() {
    let case = Copy::of("error", "meaning").edited(|case| {
        let (class, message) = match case["error"]["type"].as_str() {
            Some("ZeroDivisionError") => ("ValueError", "Dtype must be inexact: int32"),
            _ => ("ZeroDivisionError", "integer modulo by zero"),
        };
        case["error"] = json!({"type": class, "message": message});
    });
    case.must_fail_with("means something else");
    let unknown = Copy::of("error", "unknown").edited(|case| {
        case["error"] = json!({"type": "KeyError", "message": "unheard of"});
    });
    unknown.must_fail_with("no rule");
}

#[test]
fn a_call_that_should_have_failed_fails() {
    let case = Copy::of("forward", "succeeded").edited(|case| {
        case["kind"] = json!("error");
        case["error"] = json!({"type": "ZeroDivisionError", "message": "integer modulo by zero"});
    });
    case.must_fail_with("the call succeeded");
}

#[test]
fn what_is_not_supported_says_so() {
    let onnx = Copy::of("forward", "onnx").edited(|case| case["op"] = json!("LinearAttention"));
    onnx.must_fail_with("the ONNX operator LinearAttention");
    let field =
        Copy::of("forward", "field").edited(|case| case["config"]["num_kv_heads"] = json!(2));
    field.must_fail_with("config.num_kv_heads is not supported");
    let initializer = Copy::of("init", "initializer")
        .edited(|case| case["config"]["kernel_init"] = json!({"name": "orthogonal"}));
    initializer.must_fail_with("the initializer \"orthogonal\" is not supported");
    let argument = Copy::of("init", "argument").edited(|case| {
        case["config"]["kernel_init"] = json!({"name": "normal", "mean": 1.0});
    });
    argument.must_fail_with("kernel_init.mean is not supported");
}

#[test]
fn a_damaged_case_of_onnx_is_its_failure() {
    let case = |edit: fn(&mut Value)| {
        let name = "more_float64.json";
        Copy::of_file(&golden_onnx().join(name), "onnx_case").edited(edit)
    };
    assert!(case(|_| ()).replay().passed());
    case(|case| case["opset"] = json!(22)).must_fail_with("before 23");
    case(|case| case["opset"] = Value::Null).must_fail_with("no opset");
    case(|case| case["attributes"]["scale"] = json!(0.7)).must_fail_with("Y[");
    case(|case| case["attributes"]["is_causal"] = json!(0)).must_fail_with("Y[");
    case(|case| case["attributes"]["more"] = json!(1)).must_fail_with("attributes.more");
    case(|case| case["attributes"]["qk_matmul_output_mode"] = json!(4))
        .must_fail_with("between 0 and 3");
    case(|case| case["attributes"]["softmax_precision"] = json!(2))
        .must_fail_with("softmax_precision");
    case(|case| case["attributes"]["left_window_size"] = json!(1)).must_fail_with("windows");
    case(|case| case["inputs"]["K"] = Value::Null).must_fail_with("inputs.K is missing");
    case(|case| case["inputs"]["K"] = json!("X")).must_fail_with("no tensor \"X\"");
    case(|case| case["input_types"]["K"] = json!("int8")).must_fail_with("not int8");
    case(|case| case["outputs_asked"] = json!(["Z"])).must_fail_with("the output \"Z\"");
    case(|case| case["outputs_asked"] = json!(["Y"]))
        .must_fail_with("qk_matmul_output: was not computed");
    case(|case| case["expected"]["Y"]["atol"] = json!(0.0)).must_fail_with("allowed 0e0");
}

/// Flips bits of the last byte but `from_end` of the expected tensors; they are those of the value's kernel.
fn damage_parameter(case: &Copy, from_end: usize) {
    let mut expected = fs::read(case.file("expected")).expect("a file");
    let at = expected.len() - 1 - from_end;
    expected[at] ^= 1;
    fs::write(case.file("expected"), expected).expect("the copy can be written");
}

#[test]
fn other_parameters_than_those_of_flax_fail() {
    let case = Copy::named("init_nested", "parameter");
    assert!(case.replay().passed());
    // A byte of the exponent.
    damage_parameter(&case, 0);
    case.must_fail_with("params/value/kernel");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_parameter_that_is_off_in_the_last_bit_fails() {
    let case = Copy::named("init_nested", "last_bit");
    damage_parameter(&case, 3);
    case.must_fail_with("params/value/kernel");
}

#[test]
fn the_bits_of_another_version_are_accepted_where_they_are_recorded() {
    let other = Copy::named("init_nested", "version").edited(|case| {
        case["expected"]["params/key/kernel"]["truth"] = json!("params/query/kernel");
    });
    other.must_fail_with("params/key/kernel");
    let both = other.edited(|case| {
        case["expected"]["params/key/kernel"]["also_accepted"] = json!("params/key/kernel");
    });
    assert_eq!(
        both.replay().passed(),
        cfg!(target_arch = "x86_64"),
        "elsewhere only distances count"
    );
}

#[test]
fn a_parameter_that_flax_does_not_make_fails() {
    let case = Copy::named("init_nested", "more").edited(|case| {
        let expected = case["expected"].as_object_mut().expect("an object");
        expected.remove("params/query/bias");
    });
    case.must_fail_with("params/query/bias was made");
}

#[test]
fn random_numbers_depend_on_everything_that_a_case_says() {
    let init = |edit: fn(&mut Value)| Copy::named("init_nested", "init").edited(edit);
    init(|case| case["seed"] = json!(4)).must_fail_with("the seed 4 makes the key");
    init(|case| case["flax_fix_rng_separator"] = json!(true)).must_fail_with("params/");
    init(|case| case["jax_threefry_partitionable"] = json!(false)).must_fail_with("params/");
    init(|case| case["module_path"] = json!(["encoder", null])).must_fail_with("null entry");
    let dropout = |edit: fn(&mut Value)| Copy::named("dropout_nested", "dropout").edited(edit);
    dropout(|case| case["module_path"] = json!(["encoder"])).must_fail_with("dropout_keep");
    dropout(|case| case["make_rng_count"] = json!(2)).must_fail_with("dropout_keep");
    dropout(|case| case["make_rng_count"] = json!(0)).must_fail_with("make_rng_count is 0");
    dropout(|case| case["x64"] = json!(true)).must_fail_with("dropout_keep");
    dropout(|case| case["rngs"] = json!({})).must_fail_with("a random key");
}

#[test]
fn a_gradient_beyond_its_tolerance_is_named() {
    for name in ["d_inputs_q", "d_params/key/kernel", "d_params/out/bias"] {
        let case = Copy::named("gradient_self", "gradient");
        let case = case.edited(|case| case["expected"][name]["atol"] = json!(0.0));
        case.must_fail_with(name);
    }
    let bias = Copy::named("gradient_attention_bias_keys", "bias")
        .edited(|case| case["expected"]["d_bias"]["atol"] = json!(0.0));
    bias.must_fail_with("d_bias");
}

#[test]
fn parameters_that_differ_between_formats_fail() {
    let file = |name: &'static str| {
        Copy::of("forward", "formats")
            .edited(|case| case["msgpack"] = json!({"file": name, "root": []}))
    };
    assert!(file("case.params.safetensors").replay().passed());
    file("case.inputs.safetensors").must_fail_with("differs from the parameters");
    file("../case.params.safetensors").must_fail_with("the name of a file beside the case");
}

#[test]
fn damaged_files_are_the_cases_failure() {
    let json = Copy::of("forward", "json");
    fs::write(&json.json, "{\"kind\": \"forward\"").expect("the copy can be written");
    json.must_fail_with("not JSON");
    for part in ["params", "inputs", "expected"] {
        let case = Copy::of("forward", "missing");
        fs::remove_file(case.file(part)).expect("the copy can be removed");
        case.must_fail_with(&format!("case.{part}.safetensors"));
    }
}

#[test]
fn every_truncation_is_a_failure() {
    let case = Copy::of("forward", "truncated");
    let whole = fs::read(case.file("params")).expect("a file");
    for length in (0..whole.len()).step_by(whole.len().div_ceil(64)) {
        fs::write(case.file("params"), &whole[..length]).expect("the copy can be written");
        assert!(!case.replay().passed(), "{length} of {} bytes", whole.len());
    }
}

#[test]
fn no_flipped_byte_of_a_header_is_a_panic() {
    for part in ["params", "inputs", "expected"] {
        let case = Copy::of("forward", "flipped");
        let whole = fs::read(case.file(part)).expect("a file");
        for at in 0..whole.len().min(400) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x11;
            fs::write(case.file(part), &bytes).expect("the copy can be written");
            let report = case.replay();
            assert!(
                !report.to_string().contains("panicked"),
                "{part}, byte {at}: {report}"
            );
        }
    }
}

#[test]
fn a_folder_without_cases_is_an_error() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("replay")
        .join("empty");
    fs::create_dir_all(&folder).expect("the build's own folder can be written");
    assert!(find_cases(&[folder]).is_err());
    assert!(find_cases(&[PathBuf::from("no/such/path")]).is_err());
}
