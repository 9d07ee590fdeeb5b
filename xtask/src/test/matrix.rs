//! The axes of the matrix: dtypes, instruction sets, backends; and which tests a filter asks for.

use anyhow::{Result, bail};

/// Names of the dtypes as tests spell them, in the order of `attn_core::DType::ALL`.
pub(crate) const DTYPES: [&str; 4] = ["f32", "f64", "f16", "bf16"];

/// An instruction set as tests name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa {
    pub(crate) name: &'static str,
    /// The architecture that can have it; `None` is every one.
    architecture: Option<&'static str>,
}

/// The instruction sets in the order of `attn_kernels_cpu::Isa::ALL`.
pub(crate) const ISAS: [Isa; 5] = [
    Isa::new("portable", None),
    Isa::new("avx2", Some("x86_64")),
    Isa::new("avx512", Some("x86_64")),
    Isa::new("neon", Some("aarch64")),
    Isa::new("wasm_simd128", Some("wasm32")),
];

impl Isa {
    const fn new(name: &'static str, architecture: Option<&'static str>) -> Self {
        Self { name, architecture }
    }

    /// Whether a machine of this architecture can have it.
    pub(crate) fn fits_this_architecture(self) -> bool {
        self.architecture
            .is_none_or(|name| name == std::env::consts::ARCH)
    }

    /// The instruction set with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        ISAS.into_iter().find(|isa| isa.name == name)
    }
}

/// Where kernels run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Cpu,
    Cuda,
}

impl Backend {
    pub(crate) fn from_name(name: &str) -> Result<Self> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => bail!("`--backend {name}`: choose cpu or cuda"),
        }
    }

    /// The crate with its conformance tests.
    pub(crate) const fn package(self) -> &'static str {
        match self {
            Self::Cpu => "attn-kernels-cpu",
            Self::Cuda => "attn-kernels-cuda",
        }
    }
}

/// Which part of the matrix is asked for; the empty filter is all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) dtypes: Vec<&'static str>,
    pub(crate) isas: Vec<Isa>,
    pub(crate) backend: Option<Backend>,
}

impl Filter {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn add_dtype(&mut self, name: &str) -> Result<()> {
        let Some(dtype) = DTYPES.into_iter().find(|dtype| *dtype == name) else {
            bail!("`--dtype {name}`: choose one of {}", DTYPES.join(", "));
        };
        self.dtypes.push(dtype);
        Ok(())
    }

    pub(crate) fn add_isa(&mut self, name: &str) -> Result<()> {
        let Some(isa) = Isa::from_name(name) else {
            bail!(
                "`--isa {name}`: choose one of {}",
                ISAS.map(|isa| isa.name).join(", ")
            );
        };
        self.isas.push(isa);
        Ok(())
    }

    /// Fails where two parts contradict each other.
    pub(crate) fn check(&self) -> Result<()> {
        if self.backend == Some(Backend::Cuda) && !self.isas.is_empty() {
            bail!(
                "`--isa` names an instruction set of the CPU; leave it out with `--backend cuda`"
            );
        }
        Ok(())
    }

    /// The words for the test programs: a test runs if its path contains one of them. None means every test.
    pub(crate) fn test_names(&self) -> Vec<String> {
        match (self.isas.is_empty(), self.dtypes.is_empty()) {
            (true, true) => Vec::new(),
            (false, true) => self
                .isas
                .iter()
                .map(|isa| format!("{}::", isa.name))
                .collect(),
            (true, false) => self
                .dtypes
                .iter()
                .map(|dtype| format!("::{dtype}::"))
                .collect(),
            (false, false) => self
                .isas
                .iter()
                .flat_map(|isa| {
                    self.dtypes
                        .iter()
                        .map(|dtype| format!("{}::{dtype}::", isa.name))
                })
                .collect(),
        }
    }

    /// What `ATTN_REQUIRE` must hold so that a skip is a failure: everything asked for by name, else all that this
    /// architecture can have.
    pub(crate) fn required(&self) -> String {
        if self.backend == Some(Backend::Cuda) {
            return "cuda".to_owned();
        }
        let possible = ISAS.into_iter().filter(|isa| isa.fits_this_architecture());
        let asked: Vec<_> = if self.isas.is_empty() {
            possible.map(|isa| isa.name).collect()
        } else {
            self.isas.iter().map(|isa| isa.name).collect()
        };
        asked.join(",")
    }
}

/// The place of a test in the matrix, from its path `isa::dtype::group`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    /// An instruction set, or the name of another backend.
    pub(crate) isa: &'a str,
    pub(crate) dtype: &'a str,
    pub(crate) group: &'a str,
}

impl<'a> Place<'a> {
    pub(crate) fn of(test: &'a str) -> Option<Self> {
        let (isa, rest) = test.split_once("::")?;
        let (dtype, group) = rest.split_once("::")?;
        DTYPES
            .contains(&dtype)
            .then_some(Self { isa, dtype, group })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(dtypes: &[&str], isas: &[&str]) -> Filter {
        let mut filter = Filter::default();
        for dtype in dtypes {
            filter.add_dtype(dtype).unwrap();
        }
        for isa in isas {
            filter.add_isa(isa).unwrap();
        }
        filter
    }

    #[test]
    fn dtypes_are_those_of_the_one_list() {
        let listed = attn_core::DType::ALL.map(|dtype| dtype.name().replace("float", "f"));
        assert_eq!(listed, DTYPES);
    }

    #[test]
    fn instruction_sets_are_those_of_the_kernels() {
        let kernels = attn_kernels_cpu::Isa::ALL.map(attn_kernels_cpu::Isa::name);
        assert_eq!(kernels, ISAS.map(|isa| isa.name));
    }

    #[test]
    fn this_machine_has_only_what_its_architecture_can_have() {
        for isa in attn_kernels_cpu::Isa::ALL {
            if attn_kernels_cpu::Cpu::with_isa(isa).is_ok() {
                assert!(Isa::from_name(isa.name()).unwrap().fits_this_architecture());
            }
        }
    }

    #[test]
    fn filters_name_every_combination() {
        assert!(filter(&[], &[]).test_names().is_empty());
        assert_eq!(filter(&["f32"], &[]).test_names(), ["::f32::"]);
        assert_eq!(filter(&[], &["avx2"]).test_names(), ["avx2::"]);
        assert_eq!(
            filter(&["f32", "bf16"], &["avx2", "neon"]).test_names(),
            ["avx2::f32::", "avx2::bf16::", "neon::f32::", "neon::bf16::"]
        );
    }

    #[test]
    fn unknown_names_are_answered_with_the_known_ones() {
        let error = Filter::default().add_dtype("f8").unwrap_err().to_string();
        assert!(error.contains("f32, f64, f16, bf16"), "{error}");
        let error = Filter::default().add_isa("sse2").unwrap_err().to_string();
        assert!(error.contains("portable, avx2"), "{error}");
        assert!(Backend::from_name("gpu").is_err());
    }

    #[test]
    fn an_instruction_set_of_a_gpu_is_refused() {
        let mut asked = filter(&[], &["avx2"]);
        assert!(asked.check().is_ok());
        asked.backend = Some(Backend::Cuda);
        assert!(asked.check().is_err());
    }

    #[test]
    fn other_architectures_are_required_only_by_name() {
        let required = filter(&[], &[]).required();
        assert!(required.split(',').any(|name| name == "portable"));
        assert!(!required.contains("wasm"));
        assert_eq!(filter(&[], &["wasm_simd128"]).required(), "wasm_simd128");
    }

    #[test]
    fn places_are_read_from_paths() {
        let place = Place::of("avx2::bf16::causal").unwrap();
        assert_eq!(
            (place.isa, place.dtype, place.group),
            ("avx2", "bf16", "causal")
        );
        assert_eq!(Place::of("avx2::int8::causal"), None);
        assert_eq!(Place::of("plain"), None);
    }
}
