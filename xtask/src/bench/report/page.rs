//! The page: words, figures, the table of everything, the numbers.

use super::figures::{self, Figure};
use super::plot::{class, colours, escaped};
use crate::race::OWN;
use crate::results::{Results, Row};
use crate::spec::Spec;
use crate::start;
use crate::table::{plural, time};
use core::fmt::Write;

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(super) fn html(results: &Results) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>Attention benchmarks, {}</title>\n<style>\n{STYLE}{}</style>\n</head>\n<body>\n",
        escaped(&results.date),
        colours()
    );
    page.push_str(&head(results));
    page.push_str(&legend(results));
    page.push_str("<div class=\"figures\">\n");
    for figure in figures::all(results) {
        page.push_str(&framed(&figure));
    }
    page.push_str("</div>\n");
    page.push_str(&table(results));
    page.push_str(&left_out(results));
    // Inside a script, only this sequence could end it early; the escape is JSON's own.
    let json = results.to_json().to_string().replace("</", "<\\/");
    let _ = writeln!(
        page,
        "<script type=\"application/json\" id=\"results\">{json}</script>"
    );
    page + "</body>\n</html>\n"
}

fn head(results: &Results) -> String {
    let mut text = format!(
        "<h1>Attention on a CPU</h1>\n<p class=\"soft\">{}, {}. Everybody takes turns within seconds; a time is the median of the slots' medians.</p>\n",
        escaped(&results.machine),
        escaped(&results.date)
    );
    text.push_str("<div class=\"tiles\">\n");
    for limits in &results.limits {
        let tiles = [
            (limits.flops / 1e9, 0, "GFLOP/s", "fused multiply-adds"),
            (limits.bytes / 1e9, 1, "GB/s", "reads from memory"),
            (limits.cached_bytes / 1e9, 1, "GB/s", "reads from cache"),
            (limits.exponentials / 1e9, 2, "G/s", "exponentials"),
        ];
        for (value, digits, unit, what) in tiles {
            let _ = writeln!(
                text,
                "<div class=\"tile\"><b>{value:.digits$} {unit}</b><span class=\"soft\">{what}, {}</span></div>",
                plural(limits.threads)
            );
        }
    }
    if let Some(ms) = results.cold_start_ms {
        let case = start::CASE;
        let _ = writeln!(
            text,
            "<div class=\"tile\"><b>{} ms</b><span class=\"soft\">cold start, whole process, {case}</span></div>",
            time(ms)
        );
    }
    text + "</div>\n"
}

fn legend(results: &Results) -> String {
    let mut text = "<div class=\"legend\">\n".to_owned();
    for (colour, runner) in results.runners().into_iter().enumerate() {
        let _ = writeln!(
            text,
            "<span><svg viewBox=\"0 0 12 12\"><circle class=\"dot {}\" cx=\"6\" cy=\"6\" r=\"5\"/></svg>{}</span>",
            class(colour),
            escaped(if runner == OWN {
                "own (this project)"
            } else {
                runner
            })
        );
    }
    text + "</div>\n"
}

fn framed(figure: &Figure) -> String {
    format!(
        "<figure>\n<h2>{}</h2>\n{}<figcaption>{}</figcaption>\n</figure>\n",
        escaped(&figure.title),
        figure.svg,
        escaped(figure.words)
    )
}

/// Every row of every case.
fn table(results: &Results) -> String {
    const HEAD: [&str; 10] = [
        "case",
        "what",
        "who",
        "threads",
        "median",
        "fastest slot",
        "spread",
        "GFLOP/s",
        "of the limit",
        "error",
    ];
    let head: Vec<_> = HEAD.iter().map(|name| format!("<th>{name}</th>")).collect();
    let mut text = format!(
        "<div class=\"card\">\n<h2>All numbers</h2>\n<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n",
        head.concat()
    );
    for spec in &results.cases {
        for threads in results.threads() {
            let mut rows: Vec<&Row> = results.rows_of(&spec.name, threads).collect();
            rows.sort_by(|a, b| a.median_ms.total_cmp(&b.median_ms));
            for row in rows {
                text.push_str(&table_row(results, spec, row));
            }
        }
    }
    text + "</tbody>\n</table>\n</div>\n"
}

fn table_row(results: &Results, spec: &Spec, row: &Row) -> String {
    let fraction = results.fraction(spec, row);
    let cells = [
        escaped(&spec.name),
        escaped(&spec.description()),
        escaped(&row.runner),
        row.threads.to_string(),
        format!("{} ms", time(row.median_ms)),
        format!("{} ms", time(row.fastest_ms)),
        format!("{:.1} %", 100.0 * row.spread),
        format!("{:.1}", spec.work.flops() / row.median_ms / 1e6),
        fraction.map_or("–".to_owned(), |(fraction, _)| {
            format!("{:.0} %", 100.0 * fraction)
        }),
        row.error
            .map_or("–".to_owned(), |error| format!("{error:.1e}")),
    ];
    let class = if row.runner == OWN {
        " class=\"own\""
    } else {
        ""
    };
    let cells: Vec<_> = cells
        .iter()
        .map(|cell| format!("<td>{cell}</td>"))
        .collect();
    format!("<tr{class}>{}</tr>\n", cells.concat())
}

fn left_out(results: &Results) -> String {
    let mut lines: Vec<String> = results.absent.clone();
    lines.extend(results.unsupported.iter().map(|no| {
        format!(
            "{} of {} on {}: {}",
            no.runner,
            no.case,
            plural(no.threads),
            no.why
        )
    }));
    let items: Vec<_> = lines
        .iter()
        .map(|line| format!("<li>{}</li>\n", escaped(line)))
        .collect();
    let versions = escaped(&results.versions.join(", "));
    let mut text = "<div class=\"card soft\">\n<h2>Who ran, and who did not</h2>\n".to_owned();
    let _ = writeln!(
        text,
        "<p>Peers: {}.</p>",
        if versions.is_empty() {
            "none"
        } else {
            &versions
        }
    );
    let _ = writeln!(text, "<ul>\n{}</ul>\n</div>", items.concat());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::example;

    /// Every element ends where it should; what is left open is named.
    fn unbalanced(html: &str) -> Option<String> {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = html;
        while let Some(start) = rest.find('<') {
            let end = start + rest[start..].find('>')?;
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            let name = tag
                .trim_start_matches('/')
                .split([' ', '\n'])
                .next()
                .unwrap_or_default();
            if tag.starts_with('!') || tag.ends_with('/') {
                continue;
            }
            if tag.starts_with('/') {
                if open.pop() != Some(name) {
                    return Some(name.to_owned());
                }
            } else {
                open.push(name);
                // Their content is not HTML.
                if name == "script" || name == "style" {
                    rest = &rest[rest.find(&format!("</{name}>"))?..];
                }
            }
        }
        open.pop().map(str::to_owned)
    }

    #[test]
    fn the_page_is_well_formed_and_has_every_case() {
        let results = example();
        let page = html(&results);
        assert_eq!(unbalanced(&page), None);
        assert_eq!(unbalanced("<p><b></p>").as_deref(), Some("p"));
        for case in &results.cases {
            assert!(
                page.contains(&format!("<td>{}</td>", case.name)),
                "{}",
                case.name
            );
        }
        for case in results.named() {
            let name = format!("{} {}", case.name, case.description());
            assert!(
                page.matches(&name).count() >= 3,
                "a row of every plot: {name}"
            );
        }
        assert!(page.contains("a &lt;machine&gt; &amp; more"));
        assert!(page.contains("it cannot") && page.contains("no jax"));
    }

    #[test]
    fn the_numbers_are_inside() {
        let results = example();
        let page = html(&results);
        let (_, rest) = page.split_once("id=\"results\">").unwrap();
        let (json, _) = rest.split_once("</script>").unwrap();
        let read = Results::from_json(&serde_json::from_str(json).unwrap()).unwrap();
        assert_eq!(read, results);
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let page = html(&example());
        for sign in ["http", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(sign), "{sign}");
        }
    }
}
