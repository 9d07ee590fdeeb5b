//! The inputs of a case: read from raw little-endian `f32` files, `FOLDER/DATA.NAME.f32`, or drawn from a seed.
//!
//! | kind | arrays |
//! |---|---|
//! | layers | `x`, `g` `[batch, length, features]`; `wq`, `wk`, `wv`, `wo` `[features, features]` (`y = x · w + b`); `bq`, … `[features]` |
//! | cores | `q` `[batch, heads, query_length, depth]`; `k`, `v` `[batch, kv_heads, key_length, depth]` |
//! | products | `a` `[rows, inner]`, `b` `[inner, columns]` |

use crate::spec::{CoreSizes, LayerSizes, ProductSizes, Spec, Work};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes of a file that are handled at once.
const PART: usize = 1 << 16;

/// The inputs of a case.
#[derive(Debug)]
pub(crate) enum Arrays {
    Layer(LayerArrays),
    Core(CoreArrays),
    Product(ProductArrays),
}

#[derive(Debug)]
pub(crate) struct LayerArrays {
    pub(crate) x: Vec<f32>,
    /// The gradient of the output.
    pub(crate) g: Vec<f32>,
    pub(crate) query: DenseArrays,
    pub(crate) key: DenseArrays,
    pub(crate) value: DenseArrays,
    pub(crate) out: DenseArrays,
}

#[derive(Debug)]
pub(crate) struct DenseArrays {
    pub(crate) kernel: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct CoreArrays {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct ProductArrays {
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
}

/// Where arrays come from.
pub(crate) trait Source {
    /// The array `name` of `len` numbers, of about `scale` in size.
    fn array(&mut self, name: &str, len: usize, scale: f32) -> Result<Vec<f32>>;
}

impl Arrays {
    /// The inputs of `spec`.
    pub(crate) fn of(spec: &Spec, source: &mut dyn Source) -> Result<Self> {
        match spec.work {
            Work::Layer(sizes, _) => LayerArrays::of(sizes, source).map(Self::Layer),
            Work::Core(sizes) => CoreArrays::of(sizes, source).map(Self::Core),
            Work::Product(sizes) => ProductArrays::of(sizes, source).map(Self::Product),
        }
    }
}

impl LayerArrays {
    fn of(sizes: LayerSizes, source: &mut dyn Source) -> Result<Self> {
        let features = sizes.features;
        let inputs = sizes.batch * sizes.length * features;
        let mut dense = |kernel: &str, bias: &str| {
            Ok::<_, anyhow::Error>(DenseArrays {
                kernel: source.array(
                    kernel,
                    features * features,
                    (features as f32).sqrt().recip(),
                )?,
                bias: source.array(bias, features, 0.02)?,
            })
        };
        let (query, key) = (dense("wq", "bq")?, dense("wk", "bk")?);
        let (value, out) = (dense("wv", "bv")?, dense("wo", "bo")?);
        Ok(Self {
            x: source.array("x", inputs, 1.0)?,
            g: source.array("g", inputs, 1.0)?,
            query,
            key,
            value,
            out,
        })
    }
}

impl CoreArrays {
    fn of(sizes: CoreSizes, source: &mut dyn Source) -> Result<Self> {
        let keys = sizes.batch * sizes.kv_heads * sizes.key_length * sizes.depth;
        Ok(Self {
            q: source.array(
                "q",
                sizes.batch * sizes.heads * sizes.query_length * sizes.depth,
                1.0,
            )?,
            k: source.array("k", keys, 1.0)?,
            v: source.array("v", keys, 1.0)?,
        })
    }
}

impl ProductArrays {
    fn of(sizes: ProductSizes, source: &mut dyn Source) -> Result<Self> {
        Ok(Self {
            a: source.array("a", sizes.rows * sizes.inner, 1.0)?,
            b: source.array("b", sizes.inner * sizes.columns, 1.0)?,
        })
    }
}

/// Files of a folder.
#[derive(Debug)]
pub(crate) struct Folder {
    folder: PathBuf,
    data: String,
}

impl Folder {
    pub(crate) fn new(folder: impl Into<PathBuf>, data: &str) -> Self {
        Self {
            folder: folder.into(),
            data: data.to_owned(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}.{name}.f32", self.data))
    }
}

impl Source for Folder {
    fn array(&mut self, name: &str, len: usize, _: f32) -> Result<Vec<f32>> {
        let path = self.path(name);
        let values = read(&path)?;
        if values.len() != len {
            bail!(
                "{} has {} numbers, the case needs {len}",
                path.display(),
                values.len()
            );
        }
        Ok(values)
    }
}

/// Numbers of a normal distribution, the same ones for the same names on every machine.
#[derive(Debug)]
pub(crate) struct Drawn {
    data: String,
    /// Where they are written for workers of other languages.
    keep: Option<Folder>,
}

impl Drawn {
    pub(crate) fn new(data: &str) -> Self {
        Self {
            data: data.to_owned(),
            keep: None,
        }
    }

    /// Writing what is drawn to a folder.
    pub(crate) fn kept_in(folder: &Path, data: &str) -> Self {
        Self {
            data: data.to_owned(),
            keep: Some(Folder::new(folder, data)),
        }
    }
}

impl Source for Drawn {
    fn array(&mut self, name: &str, len: usize, scale: f32) -> Result<Vec<f32>> {
        let mut random = Random::new(&[&self.data, name]);
        let values: Vec<f32> = (0..len).map(|_| random.normal() * scale).collect();
        if let Some(folder) = &self.keep {
            write(&folder.path(name), &values)?;
        }
        Ok(values)
    }
}

/// A small generator (SplitMix64): benchmark inputs need spread, no more.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by names.
    pub(crate) fn new(names: &[&str]) -> Self {
        // FNV-1a.
        let bytes = names.iter().flat_map(|name| name.bytes().chain([0]));
        Self(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In `[0, 1)`.
    fn uniform(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Of the standard normal distribution, by Box and Muller.
    pub(crate) fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (core::f32::consts::TAU * self.uniform()).cos()
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }
}

/// Reads a raw file. A part at a time: the bytes of a long cache beside its numbers would show in the process's peak memory.
pub(crate) fn read(path: &Path) -> Result<Vec<f32>> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(failed)?;
    let bytes = usize::try_from(file.metadata().with_context(failed)?.len())?;
    if !bytes.is_multiple_of(size_of::<f32>()) {
        bail!("{} is no list of f32", path.display());
    }
    let mut values = Vec::with_capacity(bytes / size_of::<f32>());
    let mut buffer = [0; PART];
    for start in (0..bytes).step_by(PART) {
        let part = &mut buffer[..PART.min(bytes - start)];
        file.read_exact(part).with_context(failed)?;
        let (numbers, _) = part.as_chunks::<4>();
        values.extend(numbers.iter().map(|&number| f32::from_le_bytes(number)));
    }
    Ok(values)
}

/// Writes a raw file.
pub(crate) fn write(path: &Path, values: &[f32]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut file = BufWriter::with_capacity(PART, File::create(path).with_context(failed)?);
    for value in values {
        file.write_all(&value.to_le_bytes()).with_context(failed)?;
    }
    file.flush().with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_they_were_written() {
        let path = std::env::temp_dir().join(format!("bench-data-{}", std::process::id()));
        // More than a part, and no whole number of parts.
        let values: Vec<f32> = (0..PART / 4 * 2 + 7).map(|n| n as f32).collect();
        write(&path, &values).unwrap();
        let got = read(&path);
        std::fs::write(&path, [0; 5]).unwrap();
        let odd = read(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(got.unwrap(), values);
        assert!(odd.is_err() && read(&path).is_err());
    }

    #[test]
    fn drawn_numbers_are_normal_and_always_the_same() {
        let draw = || Drawn::new("A1").array("x", 10_000, 2.0).unwrap();
        let values = draw();
        assert_eq!(values, draw());
        assert_ne!(values, Drawn::new("A1").array("g", 10_000, 2.0).unwrap());
        // Five standard errors of the mean, of a variance of 4 and of the share within one deviation.
        let count = values.len() as f32;
        let mean = values.iter().sum::<f32>() / count;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / count;
        let inside = values.iter().filter(|x| x.abs() < 2.0).count() as f32 / count;
        assert!(mean.abs() < 5.0 * 2.0 / count.sqrt(), "{mean}");
        assert!(
            (variance - 4.0).abs() < 5.0 * 4.0 * (2.0 / count).sqrt(),
            "{variance}"
        );
        assert!(
            (inside - 0.682_69).abs() < 5.0 * (0.2166 / count).sqrt(),
            "{inside}"
        );
    }
}
