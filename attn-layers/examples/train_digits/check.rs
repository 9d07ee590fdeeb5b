//! What is held against Flax: the bits of the start, and the first losses.

use crate::data::{Data, Recorded};
use crate::model::Description;
use crate::parameters::Parameters;
use crate::training::Training;
use anyhow::{Result, ensure};
use attn_layers::Cpu;
use core::fmt::Write as _;
use sha1::{Digest, Sha1};

/// Every initial parameter must have Flax's bits, and stand in Flax's order.
pub(crate) fn start(parameters: &Parameters, recorded: &Recorded) -> Result<()> {
    let (got, wanted) = (parameters.iter().count(), recorded.parameters.len());
    ensure!(
        got == wanted,
        "there are {got} parameters; Flax has {wanted}"
    );
    for ((path, array), (flax, hash)) in parameters.iter().zip(&recorded.parameters) {
        ensure!(
            path == flax,
            "the parameter {path} stands where Flax has {flax}"
        );
        let mut own = String::new();
        for byte in Sha1::digest(array.bytes()) {
            write!(own, "{byte:02x}")?;
        }
        ensure!(
            own == *hash,
            "the initial {path} has other bits than Flax's"
        );
    }
    Ok(())
}

/// How closely the first losses without dropout follow.
pub(crate) struct Followed {
    pub(crate) steps: usize,
    /// The largest distance from Flax's losses.
    pub(crate) from_flax: f64,
    /// The largest distance from the losses of exact arithmetic (Flax in `float64`).
    pub(crate) from_truth: f64,
    /// The largest part of what is allowed that any step took.
    pub(crate) part: f64,
}

/// Trains the first steps and holds their losses against exact arithmetic. Rounding leads every training astray, the farther the longer: Adam divides
/// the smallest gradients by their own size. So up to each step this training may be led twice as far as Flax in the same dtype, and the loss itself, a
/// mean over a batch, may round once for each image.
pub(crate) fn follow(
    description: &Description,
    cpu: &Cpu,
    data: &Data,
    recorded: &Recorded,
) -> Result<Followed> {
    let wanted = recorded.losses.len();
    ensure!(
        recorded.settings.batch <= data.train.len(),
        "a batch is larger than the images to train on"
    );
    let mut losses = Vec::new();
    let mut training = Training::new(description, cpu, data, &recorded.settings, false)?;
    while losses.len() < wanted {
        training.steps(wanted - losses.len(), |loss| losses.push(f64::from(loss)))?;
    }
    let roundings = roundings(recorded);
    let (mut flax_astray, mut part) = (0.0f64, 0.0f64);
    let recorded_losses = recorded.losses.iter().zip(&recorded.losses_in_float64);
    for (step, (loss, (flax, truth))) in losses.iter().zip(recorded_losses).enumerate() {
        flax_astray = flax_astray.max((flax - truth).abs());
        let allowed = 2.0 * flax_astray + roundings * truth;
        let apart = (loss - truth).abs();
        ensure!(
            apart <= allowed,
            "the loss of step {step} is {apart:.1e} from that of exact arithmetic; {allowed:.1e} is allowed"
        );
        part = part.max(apart / allowed);
    }
    Ok(Followed {
        steps: losses.len(),
        from_flax: largest_distance(&losses, &recorded.losses),
        from_truth: largest_distance(&losses, &recorded.losses_in_float64),
        part,
    })
}

/// The first loss with dropout must be Flax's but for what each may round: with another mask it would be another.
pub(crate) fn dropout(
    description: &Description,
    cpu: &Cpu,
    data: &Data,
    recorded: &Recorded,
) -> Result<()> {
    let mut first = f64::NAN;
    let mut training = Training::new(description, cpu, data, &recorded.settings, true)?;
    training.steps(1, |loss| first = f64::from(loss))?;
    let flax = recorded.first_loss_with_dropout;
    let (apart, allowed) = ((first - flax).abs(), 2.0 * roundings(recorded) * flax);
    ensure!(
        apart <= allowed,
        "the first loss with dropout is {apart:.1e} from Flax's; {allowed:.1e} is allowed"
    );
    Ok(())
}

/// The relative error of a loss that is a mean over a batch, summed one after the other.
fn roundings(recorded: &Recorded) -> f64 {
    recorded.settings.batch as f64 * f64::from(f32::EPSILON) / 2.0
}

fn largest_distance(one: &[f64], other: &[f64]) -> f64 {
    let apart = one.iter().zip(other).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::read;

    fn description() -> Description {
        Description::parse(&read("../digits/model.json").unwrap()).unwrap()
    }

    #[test]
    fn the_start_is_that_of_flax() {
        let recorded = Recorded::load().unwrap();
        let parameters = Parameters::initial(&description(), recorded.settings.seed).unwrap();
        start(&parameters, &recorded).unwrap();
        let other = Parameters::initial(&description(), recorded.settings.seed + 1).unwrap();
        assert!(start(&other, &recorded).is_err());
    }

    #[test]
    fn the_first_losses_follow_flax() {
        let (data, recorded) = (Data::load().unwrap(), Recorded::load().unwrap());
        for cpu in [Cpu::detect(), Cpu::portable()] {
            let followed = follow(&description(), &cpu, &data, &recorded).unwrap();
            println!("{}: {:.2} of what is allowed", cpu.isa(), followed.part);
            assert_eq!(followed.steps, 50);
        }
    }

    #[test]
    fn dropout_is_that_of_flax() {
        let (data, mut recorded) = (Data::load().unwrap(), Recorded::load().unwrap());
        let cpu = Cpu::detect();
        dropout(&description(), &cpu, &data, &recorded).unwrap();
        recorded.settings.seed += 1;
        assert!(dropout(&description(), &cpu, &data, &recorded).is_err());
    }
}
