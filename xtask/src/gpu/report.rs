//! One page of all results, that needs nothing else, and the numbers behind it.

#[path = "../bench/report/axis.rs"]
mod axis;
#[path = "../bench/report/plot.rs"]
mod plot;

use anyhow::{Context, Result};
use plot::{Dot, DotPlot, DotRow, Line, LinePlot, class, colours, escaped};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::path::Path;

const STYLE: &str = include_str!("../bench/report/style.css");
/// Who is compared, in the order of the colours.
const RUNNERS: [&str; 4] = ["own", "flash", "cudnn", "efficient"];

/// Writes `report.json` and `report.html` into a folder that has the results.
pub(crate) fn write(folder: &Path) -> Result<()> {
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    };
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let (own, torch) = (read("bench.json"), read("torch.json"));
    let cases = cases(&own, &torch);
    let report = json!({
        "device": own["device"],
        "machine": text("machine.csv"),
        "torch": torch["torch"],
        "parts": text("parts.txt").lines().collect::<Vec<_>>(),
        "cases": cases,
    });
    let page = page(&report, &cases);
    for (name, text) in [
        ("report.json", serde_json::to_string_pretty(&report)?),
        ("report.html", page),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Each case with everybody's milliseconds.
fn cases(own: &Value, torch: &Value) -> Vec<Value> {
    let cases = own["cases"].as_array().cloned().unwrap_or_default();
    let with_peers = |mut case: Value| {
        let mut times = Map::new();
        times.insert("own".to_owned(), case["ms"].clone());
        let name = case["name"].as_str().unwrap_or_default();
        if let Some(peers) = torch["cases"][name].as_object() {
            times.extend(peers.clone());
        }
        case["times"] = Value::Object(times);
        case
    };
    cases.into_iter().map(with_peers).collect()
}

fn page(report: &Value, cases: &[Value]) -> String {
    let device = report["device"].as_str().unwrap_or("no device");
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<title>Attention on a GPU</title>\n\
         <style>\n{STYLE}{}</style>\n</head>\n<body>\n<h1>Attention on a GPU</h1>\n<p class=\"soft\">{}</p>\n",
        colours(),
        escaped(device)
    );
    for part in report["parts"].as_array().into_iter().flatten() {
        let _ = writeln!(
            page,
            "<p>{}</p>",
            escaped(part.as_str().unwrap_or_default())
        );
    }
    page.push_str("<div class=\"legend\">\n");
    for (colour, runner) in RUNNERS.iter().enumerate() {
        let _ = writeln!(
            page,
            "<span><svg viewBox=\"0 0 12 12\"><circle class=\"dot {}\" cx=\"6\" cy=\"6\" r=\"5\"/></svg>{runner}</span>",
            class(colour)
        );
    }
    page.push_str("</div>\n<div class=\"figures\">\n");
    for operation in ["forward", "backward"] {
        for depth in [64, 128, 256] {
            for causal in [false, true] {
                page.push_str(&rates(cases, operation, depth, causal));
            }
        }
    }
    page.push_str(&shares(cases));
    page.push_str("</div>\n");
    page.push_str(&table(cases));
    let json = report.to_string().replace("</", "<\\/");
    let _ = writeln!(
        page,
        "<script type=\"application/json\" id=\"results\">{json}</script>"
    );
    page + "</body>\n</html>\n"
}

/// Rates over the length; nothing if no case is of this kind.
fn rates(cases: &[Value], operation: &str, depth: u64, causal: bool) -> String {
    let of_kind: Vec<&Value> = cases
        .iter()
        .filter(|case| {
            case["operation"] == operation
                && case["depth"] == depth
                && case["causal"] == causal
                && case["dtype"] == "bf16"
        })
        .collect();
    let line = |(colour, runner): (usize, &&str)| {
        let mut points: Vec<(f64, f64)> = of_kind
            .iter()
            .filter_map(|case| {
                let ms = case["times"][*runner].as_f64()?;
                Some((
                    case["key_length"].as_f64()?,
                    case["operations"].as_f64()? / ms / 1e9,
                ))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line {
            name: (*runner).to_string(),
            colour: Some(colour),
            points,
        }
    };
    let lines: Vec<Line> = RUNNERS.iter().enumerate().map(line).collect();
    if lines.iter().all(|line| line.points.is_empty()) {
        return String::new();
    }
    let mask = if causal { "causal" } else { "full" };
    let title = format!("{operation}, bf16, depth {depth}, {mask}");
    let plot = LinePlot {
        label: title.clone(),
        x_axis: "length".to_owned(),
        y_axis: "TFLOP/s".to_owned(),
        lines: lines
            .into_iter()
            .filter(|line| !line.points.is_empty())
            .collect(),
        number: |value| format!("{value:.0}"),
    };
    format!(
        "<figure>\n<h2>{title}</h2>\n{}<figcaption>More is better; 16,384 tokens, 2,048 features.</figcaption>\n</figure>\n",
        plot.svg()
    )
}

/// Everybody's speed as a share of ours.
fn shares(cases: &[Value]) -> String {
    let row = |case: &Value| {
        let own = case["times"]["own"].as_f64()?;
        let dots = RUNNERS.iter().enumerate().filter_map(|(colour, runner)| {
            let ms = case["times"][*runner].as_f64()?;
            Some(Dot {
                value: own / ms,
                colour,
                title: format!("{runner}: {ms:.4} ms"),
            })
        });
        Some(DotRow {
            name: case["name"].as_str()?.to_owned(),
            dots: dots.collect(),
        })
    };
    let plot = DotPlot {
        label: "speed beside ours".to_owned(),
        axis: "speed as a share of ours: to the left of the line is slower".to_owned(),
        logarithmic: false,
        rows: cases.iter().filter_map(row).collect(),
        mark: Some(1.0),
    };
    format!(
        "<figure>\n<h2>Speed beside PyTorch's backends</h2>\n{}</figure>\n",
        plot.svg()
    )
}

fn table(cases: &[Value]) -> String {
    let mut table = "<div class=\"card\"><table>\n<tr><th>case</th>".to_owned();
    for runner in RUNNERS {
        let _ = write!(table, "<th>{runner} ms</th>");
    }
    table.push_str("<th>TFLOP/s</th><th>TB/s of cache</th></tr>\n");
    for case in cases {
        let name = case["name"].as_str().unwrap_or_default();
        let _ = write!(table, "<tr><td>{}</td>", escaped(name));
        for runner in RUNNERS {
            match case["times"][runner].as_f64() {
                Some(ms) => drop(write!(table, "<td>{ms:.4}</td>")),
                None => table.push_str("<td></td>"),
            }
        }
        let rate = |amount: &Value, unit: f64| {
            let ms = case["times"]["own"].as_f64();
            ms.zip(amount.as_f64())
                .map_or(String::new(), |(ms, amount)| {
                    format!("{:.2}", amount / ms / unit)
                })
        };
        let _ = writeln!(
            table,
            "<td>{}</td><td>{}</td></tr>",
            rate(&case["operations"], 1e9),
            rate(&case["cache_bytes"], 1e9)
        );
    }
    table + "</table></div>\n"
}
