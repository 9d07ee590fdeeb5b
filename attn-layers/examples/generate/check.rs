//! What is held against Flax: the logits of a text that it was not trained on.

use crate::cache::{Cache, Format, Room};
use crate::files::{Files, read};
use crate::model::{Decoder, Description};
use crate::sampling::most_likely;
use crate::session::Session;
use anyhow::{Context, Result, ensure};
use attn_layers::core::{Element, Kernels};
use attn_layers::io::Tree;
use attn_layers::{HostKernels, bf16, f16};

/// A text, and Flax's logits of the characters after its last ones.
pub(crate) struct Recorded {
    ids: Vec<usize>,
    /// `[positions, characters]`.
    logits: Vec<f32>,
    /// The same in `float64`.
    truth: Vec<f64>,
    characters: usize,
}

impl Recorded {
    pub(crate) fn load(description: &Description) -> Result<Self> {
        let file = read("check.safetensors")?;
        let tree = Tree::read_safetensors(&file)?;
        let tensor = |name| {
            tree.tensor(name)
                .with_context(|| format!("there is no {name}"))
        };
        let characters = description.characters.len();
        let ids: Vec<f32> = tensor("ids")?.to_vec()?;
        let recorded = Self {
            ids: ids.into_iter().map(|id| id as usize).collect(),
            logits: tensor("logits")?.to_vec()?,
            truth: tensor("logits_in_float64")?.to_vec()?,
            characters,
        };
        ensure!(
            recorded.ids.iter().all(|&id| id < characters),
            "the text has a character that the model does not know"
        );
        let positions = recorded.positions();
        ensure!(
            positions > 0
                && positions < recorded.ids.len()
                && recorded.logits.len() == positions * characters
                && recorded.truth.len() == recorded.logits.len(),
            "text and logits do not fit"
        );
        Ok(recorded)
    }

    /// Characters that logits were recorded after.
    pub(crate) fn positions(&self) -> usize {
        self.logits.len() / self.characters
    }

    /// The characters before those positions, and theirs.
    fn parts(&self) -> (&[usize], &[usize]) {
        self.ids.split_at(self.ids.len() - self.positions())
    }

    fn compare(&self, logits: &[f32]) -> Followed {
        let rows = logits.chunks(self.characters);
        let agree = rows.zip(self.logits.chunks(self.characters));
        Followed {
            from_flax: largest_distance(logits, &self.logits),
            from_truth: largest_distance(logits, &self.truth),
            agreeing: agree
                .filter(|(one, other)| most_likely(one) == most_likely(other))
                .count(),
        }
    }

    /// How far logits in `f32` may be from those of exact arithmetic: twice as far as Flax in the same type. Both round every sum, in orders of their own.
    pub(crate) fn allowed(&self) -> f64 {
        2.0 * largest_distance(&self.logits, &self.truth)
    }
}

/// How closely logits follow.
#[derive(Debug)]
pub(crate) struct Followed {
    /// The largest distance from Flax's logits.
    pub(crate) from_flax: f64,
    /// The largest distance from those of exact arithmetic (Flax in `float64`).
    pub(crate) from_truth: f64,
    /// After how many characters the likeliest next one is Flax's.
    pub(crate) agreeing: usize,
}

/// Follows the recorded text with such a cache. With one in `f32` the logits must be Flax's but for rounding; the others store rounded keys and values, for
/// which there is no bound but their formats' own, so they are reported.
pub(crate) fn follow<B: HostKernels>(
    backend: &B,
    files: &Files,
    cache: Cache,
    recorded: &Recorded,
) -> Result<Followed> {
    let followed = match cache.format {
        Format::F16 => follow_in::<f16, B>(backend, files, cache, recorded),
        Format::BF16 => follow_in::<bf16, B>(backend, files, cache, recorded),
        Format::F32 | Format::Int8 | Format::Q8_0 => {
            follow_in::<f32, B>(backend, files, cache, recorded)
        }
    }?;
    let allowed = recorded.allowed();
    ensure!(
        cache.format != Format::F32 || followed.from_truth <= allowed,
        "{cache}: a logit is {:.1e} from that of exact arithmetic; {allowed:.1e} is allowed",
        followed.from_truth
    );
    Ok(followed)
}

fn follow_in<T: Element, B: HostKernels + Kernels<T>>(
    backend: &B,
    files: &Files,
    cache: Cache,
    recorded: &Recorded,
) -> Result<Followed> {
    let model = files.decoder::<T, B>(backend)?;
    let (prompt, rest) = recorded.parts();
    let stepwise = logits(backend, &model, cache, prompt, rest.chunks(1))?;
    let at_once = logits(backend, &model, cache, prompt, [rest].into_iter())?;
    ensure!(
        stepwise
            .iter()
            .zip(&at_once)
            .all(|(a, b)| a.to_bits() == b.to_bits()),
        "{cache}: one character at a time gives other bits than all at once"
    );
    Ok(recorded.compare(&stepwise))
}

/// Logits of the characters after those of `pieces`, each piece a call, after a prompt.
fn logits<'i, T: Element, B: HostKernels + Kernels<T>>(
    backend: &B,
    model: &Decoder<T>,
    cache: Cache,
    prompt: &[usize],
    pieces: impl Iterator<Item = &'i [usize]> + Clone,
) -> Result<Vec<f32>> {
    let longest = prompt.len() + pieces.clone().map(<[usize]>::len).sum::<usize>();
    let room = Room {
        longest,
        sequences: 1,
    };
    let plan = cache.plan(&model.description, room);
    let mut session = Session::new(backend, model, plan, longest)?;
    let sequence = session.add()?;
    session.feed(sequence, prompt)?;
    let mut logits = Vec::new();
    for piece in pieces {
        logits.extend(session.feed(sequence, piece)?);
    }
    Ok(logits)
}

fn largest_distance<A: Copy + Into<f64>, B: Copy + Into<f64>>(one: &[A], other: &[B]) -> f64 {
    let apart = one
        .iter()
        .zip(other)
        .map(|(&a, &b)| (a.into() - b.into()).abs());
    apart.fold(0.0, |largest, apart| {
        if apart > largest || apart.is_nan() {
            apart
        } else {
            largest
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use attn_layers::Cpu;

    fn load() -> (Files, Recorded) {
        let files = Files::load().unwrap();
        let recorded = Recorded::load(&files.description).unwrap();
        (files, recorded)
    }

    fn caches(format: Format) -> impl Iterator<Item = Cache> {
        Cache::all().filter(move |cache| cache.format == format)
    }

    #[test]
    fn logits_are_those_of_flax() {
        let (files, recorded) = load();
        for cpu in [Cpu::detect(), Cpu::portable()] {
            for cache in caches(Format::F32) {
                let followed = follow(&cpu, &files, cache, &recorded).unwrap();
                println!("{} {cache}: {followed:?}", cpu.isa());
                assert_eq!(followed.agreeing, recorded.positions());
            }
        }
    }

    /// How far they are from Flax has no bound; that the bits are the same however the text is cut has.
    #[test]
    fn other_formats_follow_in_calls_of_any_length() {
        let (files, recorded) = load();
        for format in [Format::F16, Format::BF16, Format::Int8, Format::Q8_0] {
            for cache in caches(format).skip(1) {
                let followed = follow(&Cpu::detect(), &files, cache, &recorded).unwrap();
                println!("{cache}: {followed:?}");
                assert!(followed.from_truth.is_finite());
            }
        }
    }

    #[test]
    fn another_model_is_found_out() {
        let changes: [fn(&mut Description); 2] = [
            |description| description.window -= 1,
            |description| description.rotary_base += 1.0,
        ];
        for (change, cache) in changes.into_iter().zip(caches(Format::F32)) {
            let (mut files, recorded) = load();
            change(&mut files.description);
            assert!(follow(&Cpu::detect(), &files, cache, &recorded).is_err());
        }
    }
}
