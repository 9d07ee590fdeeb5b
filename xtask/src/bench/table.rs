//! The results as a Markdown table, for the terminal and for the README.

use crate::results::{Bound, Results, Row};
use crate::spec::Spec;
use crate::start;
use crate::statistics::{geometric_mean, median};
use core::fmt::Write;

/// A table of every named case, with machine, date, limits and spread below.
pub(crate) fn markdown(results: &Results) -> String {
    let threads: Vec<usize> = results.threads().collect();
    let peers = results
        .rows
        .iter()
        .any(|row| Some(row) != results.own(&row.case, row.threads));
    let mut columns = vec!["case".to_owned(), "what".to_owned()];
    for &threads in &threads {
        columns.push(format!("{}: ms", plural(threads)));
        columns.extend(["GFLOP/s", "of the limit"].map(str::to_owned));
        if peers {
            columns.push("fastest peer".to_owned());
        }
    }
    let mut text = format!(
        "\n| {} |\n|---|---|{}\n",
        columns.join(" | "),
        "--:|".repeat(columns.len() - 2)
    );
    for spec in results.named() {
        let mut cells = vec![spec.name.clone(), spec.description()];
        for &threads in &threads {
            let own = results.own(&spec.name, threads);
            cells.extend(own_cells(results, spec, own));
            if peers {
                cells.push(peer_cell(results, own, &spec.name, threads));
            }
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
    text.push_str(&notes(results, peers));
    text
}

fn own_cells(results: &Results, spec: &Spec, own: Option<&Row>) -> [String; 3] {
    let Some(own) = own else {
        return ["–", "–", "–"].map(str::to_owned);
    };
    let fraction = results.fraction(spec, own);
    [
        time(own.median_ms),
        format!("{:.1}", spec.work.flops() / own.median_ms / 1e6),
        fraction.map_or("–".to_owned(), |(fraction, bound)| {
            let why = match bound {
                Bound::Arithmetic => String::new(),
                other => format!(" ({})", other.name()),
            };
            format!("{:.0} %{why}", 100.0 * fraction)
        }),
    ]
}

fn peer_cell(results: &Results, own: Option<&Row>, case: &str, threads: usize) -> String {
    match (own, results.fastest_peer(case, threads)) {
        (Some(own), Some(peer)) => {
            format!("{}, {:.2} ×", peer.runner, peer.median_ms / own.median_ms)
        }
        _ => "–".to_owned(),
    }
}

/// What a reader must know to read the numbers.
fn notes(results: &Results, peers: bool) -> String {
    let mut text = format!("{}, {}. ", results.machine, results.date);
    for limits in &results.limits {
        let _ = write!(
            text,
            "Limits of {}, measured between the slots: {:.0} GFLOP/s, {:.1} GB/s read from memory, {:.1} from cache, {:.2} G exponentials/s. ",
            plural(limits.threads),
            limits.flops / 1e9,
            limits.bytes / 1e9,
            limits.cached_bytes / 1e9,
            limits.exponentials / 1e9,
        );
    }
    let spreads: Vec<f64> = results.rows.iter().map(|row| row.spread).collect();
    let widest = spreads.iter().copied().fold(0.0, f64::max);
    let _ = write!(
        text,
        "Times are medians of interleaved slots, whose quartiles lie {:.1} % apart (median; at most {:.0} %); the limit is compared with the fastest slot.",
        100.0 * median(&spreads),
        100.0 * widest,
    );
    if let Some(ms) = results.cold_start_ms {
        let case = start::CASE;
        let _ = write!(
            text,
            " A cold process takes {} ms from its start to its end with the result of {case}.",
            time(ms)
        );
    }
    if peers {
        let ratios = ratios(results);
        let ahead = ratios.iter().filter(|&&ratio| ratio > 1.0).count();
        let _ = write!(
            text,
            " The last column of a group says how many times as long the fastest peer of the same run takes: ahead in {ahead} of {}, {:.2} × in the geometric mean. Peers: {}.",
            ratios.len(),
            geometric_mean(&ratios),
            results.versions.join(", "),
        );
    }
    text.push('\n');
    text
}

/// The fastest peer's time by ours, of every case that both can do.
fn ratios(results: &Results) -> Vec<f64> {
    let mut all = Vec::new();
    for threads in results.threads() {
        for spec in results.named() {
            let own = results.own(&spec.name, threads);
            if let (Some(own), Some(peer)) = (own, results.fastest_peer(&spec.name, threads)) {
                all.push(peer.median_ms / own.median_ms);
            }
        }
    }
    all
}

/// Three digits of a time.
pub(crate) fn time(ms: f64) -> String {
    match ms {
        ms if ms >= 100.0 => format!("{ms:.0}"),
        ms if ms >= 10.0 => format!("{ms:.1}"),
        ms if ms >= 1.0 => format!("{ms:.2}"),
        ms if ms >= 0.1 => format!("{ms:.3}"),
        ms => format!("{ms:.4}"),
    }
}

pub(crate) fn plural(threads: usize) -> String {
    if threads == 1 {
        "1 thread".to_owned()
    } else {
        format!("{threads} threads")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::example;

    #[test]
    fn every_case_has_a_line_of_as_many_cells_as_the_head() {
        let results = example();
        let text = markdown(&results);
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(lines.len(), results.named().count() + 2);
        let cells = lines[0].matches('|').count();
        assert!(
            lines.iter().all(|line| line.matches('|').count() == cells),
            "{text}"
        );
        assert!(text.contains("| 2.00 | 302.0 |"), "{text}");
        assert!(text.contains("torch.sdpa, 1.50 ×"), "{text}");
    }

    #[test]
    fn times_have_three_digits() {
        let times = [123.4, 12.34, 1.234, 0.1234, 0.012_34].map(time);
        assert_eq!(times, ["123", "12.3", "1.23", "0.123", "0.0123"]);
    }
}
