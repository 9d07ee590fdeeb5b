//! Initializers by the names of `jax.nn.initializers`.

use super::fields::Fields;
use anyhow::{Context, Result, bail};
use attn_layers::Initializer;
use attn_layers::initializers::{Distribution, FanMode};

/// The field `name` of a case's config.
pub(crate) fn of(config: &Fields, field: &'static str) -> Result<Option<Initializer<'static>>> {
    let Some(value) = config.get(field) else {
        return Ok(None);
    };
    let arguments = Fields::new(field, value.clone())?;
    let name = arguments
        .text("name")?
        .with_context(|| format!("config.{field}.name is missing"))?;
    let (initializer, known) = named(name, &arguments)?;
    arguments.only(&[&["name"], known].concat())?;
    Ok(Some(initializer))
}

/// The initializer and the names of its arguments. Those that are left out have JAX's defaults.
fn named(
    name: &str,
    arguments: &Fields,
) -> Result<(Initializer<'static>, &'static [&'static str])> {
    let number = |name, default| Ok::<_, anyhow::Error>(arguments.number(name)?.unwrap_or(default));
    Ok(match name {
        "lecun_normal" => (Initializer::LecunNormal, &[]),
        "lecun_uniform" => (Initializer::LecunUniform, &[]),
        "he_normal" | "kaiming_normal" => (Initializer::HeNormal, &[]),
        "he_uniform" | "kaiming_uniform" => (Initializer::HeUniform, &[]),
        "xavier_normal" | "glorot_normal" => (Initializer::XavierNormal, &[]),
        "xavier_uniform" | "glorot_uniform" => (Initializer::XavierUniform, &[]),
        "zeros" | "zeros_init" => (Initializer::Zeros, &[]),
        "ones" | "ones_init" => (Initializer::Ones, &[]),
        "constant" => {
            let value = arguments.number("value")?;
            let value = value.context("a constant initializer has no value")?;
            (Initializer::Constant { value }, &["value"])
        }
        "normal" => {
            let stddev = number("stddev", 1e-2)?;
            (Initializer::Normal { stddev }, &["stddev"])
        }
        "uniform" => {
            let scale = number("scale", 1e-2)?;
            (Initializer::Uniform { scale }, &["scale"])
        }
        "truncated_normal" => {
            let initializer = Initializer::TruncatedNormal {
                stddev: number("stddev", 1e-2)?,
                lower: number("lower", -2.0)?,
                upper: number("upper", 2.0)?,
            };
            (initializer, &["stddev", "lower", "upper"])
        }
        "variance_scaling" => {
            let initializer = Initializer::VarianceScaling {
                scale: number("scale", 1.0)?,
                mode: mode(arguments.text("mode")?)?,
                distribution: distribution(arguments.text("distribution")?)?,
            };
            (initializer, &["scale", "mode", "distribution"])
        }
        other => bail!("the initializer {other:?} is not supported"),
    })
}

fn mode(name: Option<&str>) -> Result<FanMode> {
    Ok(match name {
        Some("fan_in") => FanMode::In,
        Some("fan_out") => FanMode::Out,
        Some("fan_avg") => FanMode::Average,
        Some("fan_geo_avg") => FanMode::GeometricAverage,
        other => bail!("the mode {other:?} is not supported"),
    })
}

fn distribution(name: Option<&str>) -> Result<Distribution> {
    Ok(match name {
        Some("truncated_normal") => Distribution::TruncatedNormal,
        Some("normal") => Distribution::Normal,
        Some("uniform") => Distribution::Uniform,
        other => bail!("the distribution {other:?} is not supported"),
    })
}
