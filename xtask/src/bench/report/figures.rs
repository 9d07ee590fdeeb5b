//! Which plots there are, and of what.

use super::plot::{Dot, DotPlot, DotRow, Line, LinePlot};
use crate::results::{Results, Row};
use crate::spec::{Spec, Work};
use crate::table::{plural, time};

/// A plot with its words.
pub(super) struct Figure {
    pub(super) title: String,
    /// How it is to be read.
    pub(super) words: &'static str,
    pub(super) svg: String,
}

/// Every figure that the results have numbers for.
pub(super) fn all(results: &Results) -> Vec<Figure> {
    let mut figures = Vec::new();
    for threads in results.threads() {
        figures.push(fractions(results, threads));
    }
    if results.lengths().next().is_some() {
        for threads in results.threads() {
            figures.push(times(results, threads));
        }
        figures.extend(
            results
                .threads()
                .next()
                .map(|threads| memory(results, threads)),
        );
    }
    figures.extend(
        results
            .threads()
            .next()
            .map(|threads| errors(results, threads)),
    );
    figures
}

/// Who has which colour.
fn colour(results: &Results, runner: &str) -> usize {
    results
        .runners()
        .iter()
        .position(|name| *name == runner)
        .unwrap_or(0)
}

fn fractions(results: &Results, threads: usize) -> Figure {
    let dot = |spec: &Spec, row: &Row| {
        let (fraction, bound) = results.fraction(spec, row)?;
        let words = [
            time(row.median_ms),
            format!("{:.0} % of the {} limit", 100.0 * fraction, bound.name()),
        ];
        Some(Dot {
            value: fraction,
            colour: colour(results, &row.runner),
            title: format!("{} {}: {} ms, {}", row.case, row.runner, words[0], words[1]),
        })
    };
    let title = format!("Share of the machine's limit, {}", plural(threads));
    let plot = DotPlot {
        label: title.clone(),
        axis: "useful work of the fastest slot, by the limit".to_owned(),
        logarithmic: false,
        rows: rows(results, threads, dot),
        mark: Some(1.0),
    };
    Figure {
        title,
        words: "The limit is the measured peak of fused multiply-adds; where reading the inputs takes longer, the measured bandwidth of the memory, or of the caches \
                where they stay from one step to the next. Exponentials, masks and dropout's bits are not counted as work, so cases with many of them cannot reach 100 %.",
        svg: plot.svg(),
    }
}

fn errors(results: &Results, threads: usize) -> Figure {
    let dot = |_: &Spec, row: &Row| {
        let error = row.error.filter(|error| *error > 0.0)?;
        Some(Dot {
            value: error,
            colour: colour(results, &row.runner),
            title: format!("{} {}: {error:.1e}", row.case, row.runner),
        })
    };
    let title = "Error against float64".to_owned();
    let plot = DotPlot {
        label: title.clone(),
        axis: "largest difference by the largest number".to_owned(),
        logarithmic: true,
        rows: rows(results, threads, dot),
        mark: None,
    };
    Figure {
        title,
        words: "Against plain float64 arithmetic on the inputs before they were rounded to the case's dtype; of long cores and products a sample of rows. \
                Dropout has no reference: every library draws its own masks.",
        svg: plot.svg(),
    }
}

/// A row of dots for every named case.
fn rows(
    results: &Results,
    threads: usize,
    dot: impl Fn(&Spec, &Row) -> Option<Dot>,
) -> Vec<DotRow> {
    let row = |spec: &Spec| DotRow {
        name: format!("{} {}", spec.name, spec.description()),
        dots: results
            .rows_of(&spec.name, threads)
            .filter_map(|row| dot(spec, row))
            .collect(),
    };
    results.named().map(row).collect()
}

fn times(results: &Results, threads: usize) -> Figure {
    let mut lines = lines(results, threads, |row| Some(row.median_ms));
    let limits = results
        .limits
        .iter()
        .find(|limits| limits.threads == threads);
    if let Some(limits) = limits {
        let points = results
            .lengths()
            .map(|(length, spec)| (length as f64, spec.work.flops() / limits.flops * 1e3));
        lines.push(Line {
            name: "limit".to_owned(),
            colour: None,
            points: points.collect(),
        });
    }
    let title = format!("Time against length, {}", plural(threads));
    let plot = LinePlot {
        label: title.clone(),
        x_axis: "length".to_owned(),
        y_axis: "time of a step, ms".to_owned(),
        lines,
        number: |ms| format!("{} ms", short(ms)),
    };
    Figure {
        title,
        words: "A causal core of 8 heads of depth 64. Dashed: the useful multiply-adds at the machine's peak.",
        svg: plot.svg(),
    }
}

fn memory(results: &Results, threads: usize) -> Figure {
    let mut lines = lines(results, threads, |row| {
        row.extra_bytes.map(|bytes| bytes as f64)
    });
    let scores = results.lengths().filter_map(|(length, spec)| {
        let Work::Core(sizes) = spec.work else {
            return None;
        };
        Some((length as f64, (4 * sizes.heads * length * length) as f64))
    });
    lines.push(Line {
        name: "scores".to_owned(),
        colour: None,
        points: scores.collect(),
    });
    let title = format!("Memory against length, {}", plural(threads));
    let plot = LinePlot {
        label: title.clone(),
        x_axis: "length".to_owned(),
        y_axis: "bytes beside inputs and outputs".to_owned(),
        lines,
        number: bytes,
    };
    Figure {
        title,
        words: "The same core. Ours is counted from the sizes of the scratch, which is all that a step uses; a peer's is how far its process grows at its first step, \
                beyond the output, with whatever it loads and compiles then. Dashed: a float32 matrix of scores for each head.",
        svg: plot.svg(),
    }
}

/// A line for every runner that has values.
fn lines(results: &Results, threads: usize, value: impl Fn(&Row) -> Option<f64>) -> Vec<Line> {
    let of = |runner: &str| {
        let points = results.lengths().filter_map(|(length, spec)| {
            let row = results
                .rows_of(&spec.name, threads)
                .find(|row| row.runner == runner)?;
            Some((length as f64, value(row).filter(|value| *value > 0.0)?))
        });
        Line {
            name: runner.to_owned(),
            colour: Some(colour(results, runner)),
            points: points.collect(),
        }
    };
    let all = results.runners().into_iter().map(of);
    all.filter(|line: &Line| !line.points.is_empty()).collect()
}

fn bytes(bytes: f64) -> String {
    const UNITS: [&str; 4] = ["B", "kB", "MB", "GB"];
    let power = (bytes.max(1.0).log10() / 3.0 + 1e-9).floor().min(3.0);
    format!(
        "{} {}",
        short(bytes / 1000f64.powf(power)),
        UNITS[power as usize]
    )
}

/// Three digits, without zeros at the end.
fn short(value: f64) -> String {
    let text = format!(
        "{value:.*}",
        (2 - value.abs().max(1e-9).log10().floor() as i32).clamp(0, 6) as usize
    );
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(
            [1.0, 1e3, 1e4, 65_536.0, 1e9, 2.5e12].map(bytes),
            ["1 B", "1 kB", "10 kB", "65.5 kB", "1 GB", "2500 GB"]
        );
        assert_eq!([0.01, 1.0, 1000.0].map(short), ["0.01", "1", "1000"]);
    }
}
