//! A case: what its four files hold, read and checked, not yet run.

use super::fields::Fields;
use super::json;
use super::onnx::OnnxCase;
use super::tensors::{self, Tensors};
use anyhow::{Context, Result, bail, ensure};
use attn_layers::tensor::TensorView;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a case asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Forward,
    Decode,
    Init,
    Function,
    Error,
}

/// How one output is judged.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// numpy's name of the output's type.
    pub(crate) dtype: String,
    /// The output's shape.
    pub(crate) shape: Vec<usize>,
    /// The tensor of the expected file to compare with.
    pub(crate) truth: String,
    pub(crate) limit: Limit,
}

/// How far an output may be off.
#[derive(Debug, Clone)]
pub(crate) enum Limit {
    /// The largest difference allowed, 0 for an exact output.
    Distance(f64),
    /// Every bit as it is in the truth, or in the other tensor named.
    Bits { also: Option<String> },
}

/// An exception of Flax.
#[derive(Debug, Clone)]
pub(crate) struct Exception {
    pub(crate) class: String,
    pub(crate) message: String,
}

/// A recorded call, with everything that the program needs to repeat it.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    /// The module's class, or none for a function.
    pub(crate) module: Option<String>,
    /// The function's name, for a function.
    pub(crate) function: Option<String>,
    pub(crate) config: Fields,
    pub(crate) call: Fields,
    pub(crate) rngs: Fields,
    /// Names of the modules from the root down to the attention module.
    module_path: Vec<String>,
    /// How often the module is called in one apply.
    pub(crate) make_rng_count: u32,
    /// What the key of fresh parameters was made from.
    pub(crate) seed: Option<i64>,
    /// Whether JAX's 64-bit types were on.
    pub(crate) x64: bool,
    /// `jax_threefry_partitionable`.
    pub(crate) partitionable: bool,
    /// `flax_fix_rng_separator`.
    pub(crate) separator: bool,
    /// Slots of the decode cache.
    pub(crate) max_length: Option<usize>,
    /// Tokens of a decode case.
    pub(crate) steps: Option<usize>,
    /// Whether the call may change the cache.
    pub(crate) mutable: bool,
    pub(crate) params: Tensors,
    pub(crate) inputs: Tensors,
    pub(crate) expected: BTreeMap<String, Expected>,
    /// The contents of the expected file.
    pub(crate) truth: Tensors,
    pub(crate) error: Option<Exception>,
}

impl Case {
    /// The tensor that is given as the call's argument `name`.
    pub(crate) fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.optional_tensor(name)?
            .with_context(|| format!("call.{name} is missing"))
    }

    /// The same, if it is given.
    pub(crate) fn optional_tensor(&self, name: &str) -> Result<Option<TensorView<'_>>> {
        let tensor = self.call.text(name)?;
        tensor.map(|tensor| self.inputs.view(tensor)).transpose()
    }

    /// The tensor that is given at `position` of the call's positional arguments, or as its argument `name`.
    pub(crate) fn argument(&self, position: usize, name: &str) -> Result<Option<TensorView<'_>>> {
        match self
            .call
            .texts("positional")?
            .get(position)
            .copied()
            .flatten()
        {
            Some(tensor) => self.inputs.view(tensor).map(Some),
            None => self.optional_tensor(name),
        }
    }

    /// Names of the modules from the root down to the attention module.
    pub(crate) fn path(&self) -> Vec<&str> {
        self.module_path.iter().map(String::as_str).collect()
    }
}

/// The name and kind of a case, as far as its file can be read: they head its report even when the rest is damaged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heading {
    pub(crate) name: String,
    pub(crate) kind: String,
}

/// A case's JSON file, read.
#[derive(Debug)]
pub(crate) struct CaseFile {
    path: PathBuf,
    fields: Fields,
}

impl CaseFile {
    /// Reads the JSON file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let bytes = tensors::read_file(path)?;
        let text = std::str::from_utf8(&bytes).context("the case is not text")?;
        let value: Value =
            serde_json::from_str(&json::strict(text)).context("the case is not JSON")?;
        ensure!(value.is_object(), "the case is not a JSON object");
        Ok(Self {
            path: path.to_owned(),
            fields: Fields::new("case", value)?,
        })
    }

    /// The case's name and kind, where they are texts.
    pub(crate) fn heading(&self) -> Heading {
        let text = |name| self.fields.text(name).ok().flatten().map(str::to_owned);
        Heading {
            name: text("name").unwrap_or_else(|| file_stem(&self.path)),
            kind: text("kind").or_else(|| text("op")).unwrap_or_default(),
        }
    }

    /// Reads the rest of the case: its tensors, its expectations.
    pub(crate) fn load(mut self) -> Result<Case> {
        let kind = self.kind()?;
        let x64 = self.fields.flag("x64")?.unwrap_or(false);
        let params = self.params()?;
        let inputs = self.tensors("inputs")?;
        let truth = if kind == Kind::Error {
            Tensors::default()
        } else {
            self.tensors("expected")?
        };
        let expected = self.expected(kind)?;
        let error = self.error()?;
        ensure!(
            (kind == Kind::Error) == error.is_some(),
            "case.error is needed for the kind error, and for no other"
        );
        Ok(Case {
            kind,
            module: self.fields.text("module")?.map(str::to_owned),
            function: self.fields.text("function")?.map(str::to_owned),
            module_path: self.module_path()?,
            make_rng_count: self.make_rng_count()?,
            seed: self.seed()?,
            x64,
            partitionable: self.setting("jax_threefry_partitionable", true)?,
            separator: self.setting("flax_fix_rng_separator", false)?,
            max_length: self.fields.size("max_length")?,
            steps: self.fields.size("steps")?,
            mutable: self.mutable(kind)?,
            config: Fields::new("config", self.fields.take("config"))?,
            call: Fields::new("call", self.fields.take("call"))?,
            rngs: Fields::new("rngs", self.fields.take("rngs"))?,
            // Without 64-bit types JAX narrows what it is given before it computes anything.
            params: if x64 { params } else { params.narrowed()? },
            inputs: if x64 { inputs } else { inputs.narrowed()? },
            expected,
            truth,
            error,
        })
    }

    /// The operator, if this is a case of ONNX.
    pub(crate) fn operator(&self) -> Result<Option<&str>> {
        self.fields.text("op")
    }

    /// Reads the rest of a case of the operator `Attention`.
    pub(crate) fn load_onnx(mut self) -> Result<OnnxCase> {
        let mut part = |name| Fields::new(name, self.fields.take(name));
        let (attributes, inputs, input_types) =
            (part("attributes")?, part("inputs")?, part("input_types")?);
        let asked = self.fields.texts("outputs_asked")?;
        let asked: Option<Vec<String>> = asked
            .into_iter()
            .map(|name| name.map(str::to_owned))
            .collect();
        Ok(OnnxCase {
            opset: self
                .fields
                .integer("opset")?
                .context("the case has no opset")?,
            attributes,
            inputs,
            input_types,
            tensors: self.tensors("inputs")?,
            asked: asked.context("case.outputs_asked has a null entry")?,
            expected: self.outputs()?,
            truth: self.tensors("expected")?,
        })
    }

    fn kind(&self) -> Result<Kind> {
        match self.fields.text("kind")? {
            Some("forward") => Ok(Kind::Forward),
            Some("decode") => Ok(Kind::Decode),
            Some("init") => Ok(Kind::Init),
            Some("function") => Ok(Kind::Function),
            Some("error") => Ok(Kind::Error),
            Some(other) => bail!("cases of kind {other:?} are not supported"),
            None => bail!("the case has no kind"),
        }
    }

    fn setting(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.fields.flag(name)?.unwrap_or(default))
    }

    fn module_path(&self) -> Result<Vec<String>> {
        let names = self.fields.texts("module_path")?.into_iter();
        let names: Option<Vec<String>> = names.map(|name| name.map(str::to_owned)).collect();
        names.context("case.module_path has a null entry")
    }

    fn make_rng_count(&self) -> Result<u32> {
        let count = self.fields.size("make_rng_count")?.unwrap_or(1);
        ensure!(count > 0, "case.make_rng_count is 0; a call is needed");
        Ok(count.try_into()?)
    }

    fn seed(&self) -> Result<Option<i64>> {
        let Some(seed) = self.fields.get("seed") else {
            return Ok(None);
        };
        let seed = seed.as_i64();
        Ok(Some(seed.context("case.seed is not a number of 64 bits")?))
    }

    fn tensors(&self, part: &str) -> Result<Tensors> {
        let file = self
            .path
            .with_file_name(format!("{}.{part}.safetensors", file_stem(&self.path)));
        Tensors::read(&file)
    }

    /// The parameters. Where the case has them as msgpack too, both files must hold the same.
    fn params(&self) -> Result<Tensors> {
        let params = self.tensors("params")?;
        let Some(msgpack) = self.fields.get("msgpack") else {
            return Ok(params);
        };
        let msgpack = Fields::new("msgpack", msgpack.clone())?;
        let file = msgpack.text("file")?.context("msgpack.file is missing")?;
        let plain_name = Path::new(file).file_name().is_some_and(|name| name == file);
        ensure!(
            plain_name,
            "msgpack.file is {file:?}; the name of a file beside the case is needed"
        );
        let root: Option<Vec<&str>> = msgpack.texts("root")?.into_iter().collect();
        let root = root.context("msgpack.root has a null entry")?;
        let same = Tensors::read_below(&self.path.with_file_name(file), &root)?;
        params
            .same_as(&same)
            .with_context(|| format!("{file} differs from the parameters in safetensors"))?;
        Ok(same)
    }

    fn expected(&self, kind: Kind) -> Result<BTreeMap<String, Expected>> {
        match kind {
            Kind::Error => Ok(BTreeMap::new()),
            _ => self.outputs(),
        }
    }

    fn outputs(&self) -> Result<BTreeMap<String, Expected>> {
        let expected = self
            .fields
            .get("expected")
            .context("the case expects nothing")?;
        let expected = expected
            .as_object()
            .context("case.expected is not an object")?;
        expected
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| {
                let one =
                    Expected::read(name, value).with_context(|| format!("expected.{name}"))?;
                Ok((name.clone(), one))
            })
            .collect()
    }

    /// Flax's argument `mutable`: true, or the name or a list of names of the collections that may change.
    fn mutable(&self, kind: Kind) -> Result<bool> {
        match self.fields.get("mutable") {
            None => Ok(kind != Kind::Error),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::String(name)) => Ok(name == "cache"),
            Some(Value::Array(names)) => Ok(names.iter().any(|name| name == "cache")),
            Some(other) => {
                bail!("case.mutable is {other}; true, false or names of collections are needed")
            }
        }
    }

    fn error(&self) -> Result<Option<Exception>> {
        let Some(error) = self.fields.get("error") else {
            return Ok(None);
        };
        let error = Fields::new("error", error.clone())?;
        Ok(Some(Exception {
            class: error
                .text("type")?
                .context("error.type is missing")?
                .to_owned(),
            message: error
                .text("message")?
                .context("error.message is missing")?
                .to_owned(),
        }))
    }
}

impl Expected {
    fn read(name: &str, value: &Value) -> Result<Self> {
        let fields = Fields::new("expected", value.clone())?;
        // A bool output is stored as bytes; Flax's own type is what ours must have.
        let dtype = match fields.text("flax_dtype")? {
            Some(dtype) => dtype,
            None => fields.text("dtype")?.context("dtype is missing")?,
        };
        let limit = Limit::read(&fields, dtype)?;
        let truth = fields.text("truth")?.unwrap_or(name);
        Ok(Self {
            dtype: dtype.to_owned(),
            shape: shape(fields.get("shape"))?,
            truth: truth.to_owned(),
            limit,
        })
    }
}

impl Limit {
    fn read(fields: &Fields, dtype: &str) -> Result<Self> {
        if let Some(atol) = fields.number("atol")? {
            return Ok(Self::Distance(atol));
        }
        if fields.flag("exact")?.unwrap_or(false) {
            return Ok(Self::Distance(0.0));
        }
        let Some(elsewhere) = fields.number("atol_if_not_bit_exact")? else {
            bail!("neither exact nor atol is given");
        };
        // Logarithms are rounded by the processor's own instructions, those of float64 by its C library.
        let comparable = cfg!(target_arch = "x86_64") && dtype != "float64";
        if comparable && fields.flag("bit_exact")?.unwrap_or(true) {
            let also = fields.text("also_accepted")?.map(str::to_owned);
            return Ok(Self::Bits { also });
        }
        Ok(Self::Distance(elsewhere))
    }
}

fn shape(value: Option<&Value>) -> Result<Vec<usize>> {
    let axes = value
        .and_then(Value::as_array)
        .context("shape is missing")?;
    axes.iter()
        .map(|axis| axis.as_u64().and_then(|axis| axis.try_into().ok()))
        .collect::<Option<_>>()
        .context("shape is not a list of sizes")
}

pub(crate) fn file_stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
