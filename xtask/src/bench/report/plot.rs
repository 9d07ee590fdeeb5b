//! Plots as SVG: dots along rows, lines over a length.

use super::axis::Axis;
use core::fmt::Write;

const WIDTH: f64 = 800.0;
/// Room for the names of rows.
const ROW_NAMES: f64 = 372.0;
const ROW_HEIGHT: f64 = 24.0;
const LINES_HEIGHT: f64 = 400.0;
const MARGIN: f64 = 16.0;
/// Room for half of the last number of an axis.
const RIGHT: f64 = 28.0;
/// Room for numbers and the name of an axis.
const AXIS: f64 = 46.0;
const LEFT: f64 = 76.0;

/// Who a mark belongs to: a place among the colours, 0 for our own.
pub(super) type Colour = usize;

/// The colour of reference lines.
pub(super) const REFERENCE: &str = "reference";

/// A point of a row.
pub(super) struct Dot {
    pub(super) value: f64,
    pub(super) colour: Colour,
    /// Shown when pointed at.
    pub(super) title: String,
}

/// A row of dots.
pub(super) struct DotRow {
    pub(super) name: String,
    pub(super) dots: Vec<Dot>,
}

/// Rows of dots over an axis.
pub(super) struct DotPlot {
    /// What it shows, for readers that hear it.
    pub(super) label: String,
    /// The name of the axis, with its unit.
    pub(super) axis: String,
    pub(super) logarithmic: bool,
    pub(super) rows: Vec<DotRow>,
    /// A line at this value.
    pub(super) mark: Option<f64>,
}

/// Values over a length.
pub(super) struct Line {
    pub(super) name: String,
    /// `None` for a reference.
    pub(super) colour: Option<Colour>,
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over a length, both logarithmic.
pub(super) struct LinePlot {
    pub(super) label: String,
    pub(super) x_axis: String,
    pub(super) y_axis: String,
    pub(super) lines: Vec<Line>,
    /// How a number is written.
    pub(super) number: fn(f64) -> String,
}

impl DotPlot {
    pub(super) fn svg(&self) -> String {
        let height = MARGIN + self.rows.len() as f64 * ROW_HEIGHT + AXIS;
        let bottom = height - AXIS;
        let ends = [ROW_NAMES, WIDTH - RIGHT];
        let values = self
            .rows
            .iter()
            .flat_map(|row| &row.dots)
            .map(|dot| dot.value);
        let axis = if self.logarithmic {
            Axis::logarithmic(values, 10.0, ends)
        } else {
            Axis::linear(values.chain(self.mark), ends)
        };
        let mut svg = open(&self.label, height);
        for tick in axis.ticks() {
            let x = axis.at(tick);
            line(&mut svg, "grid", [x, MARGIN], [x, bottom]);
            let number = if self.logarithmic {
                power(tick)
            } else {
                percent(tick)
            };
            text(&mut svg, "middle", [x, bottom + 18.0], &number);
        }
        if let Some(mark) = self.mark {
            line(
                &mut svg,
                REFERENCE,
                [axis.at(mark), MARGIN],
                [axis.at(mark), bottom],
            );
        }
        text(
            &mut svg,
            "middle",
            [f64::midpoint(ends[0], ends[1]), height - 8.0],
            &self.axis,
        );
        for (n, row) in self.rows.iter().enumerate() {
            let y = MARGIN + (n as f64 + 0.5) * ROW_HEIGHT;
            text(&mut svg, "end", [ROW_NAMES - 12.0, y + 4.0], &row.name);
            line(&mut svg, "row", [ends[0], y], [ends[1], y]);
            // Ours last, so that it lies on top.
            let ours = |dot: &&Dot| dot.colour == 0;
            for dot in row
                .dots
                .iter()
                .filter(|dot| !ours(dot))
                .chain(row.dots.iter().filter(ours))
            {
                circle(&mut svg, dot, [axis.at(dot.value), y]);
            }
        }
        svg + "</svg>\n"
    }
}

impl LinePlot {
    pub(super) fn svg(&self) -> String {
        let bottom = LINES_HEIGHT - AXIS;
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x_axis = Axis::logarithmic(points().map(|point| point.0), 2.0, [LEFT, WIDTH - RIGHT]);
        let y_axis = Axis::logarithmic(points().map(|point| point.1), 10.0, [bottom, MARGIN]);
        let mut svg = open(&self.label, LINES_HEIGHT);
        for tick in y_axis.ticks() {
            let y = y_axis.at(tick);
            line(&mut svg, "grid", [LEFT, y], [WIDTH - RIGHT, y]);
            text(&mut svg, "end", [LEFT - 8.0, y + 4.0], &(self.number)(tick));
        }
        for tick in self.lengths() {
            let x = x_axis.at(tick);
            line(&mut svg, "grid", [x, MARGIN], [x, bottom]);
            text(&mut svg, "middle", [x, bottom + 18.0], &format!("{tick}"));
        }
        text(
            &mut svg,
            "middle",
            [f64::midpoint(LEFT, WIDTH - RIGHT), LINES_HEIGHT - 8.0],
            &self.x_axis,
        );
        let _ = writeln!(
            svg,
            "<text class=\"middle\" transform=\"translate(14 {:.1}) rotate(-90)\">{}</text>",
            f64::midpoint(MARGIN, bottom),
            escaped(&self.y_axis)
        );
        // Ours last, so that it lies on top.
        for line in self.lines.iter().rev() {
            self.draw(&mut svg, line, &x_axis, &y_axis);
        }
        svg + "</svg>\n"
    }

    /// Every length that a line has.
    fn lengths(&self) -> Vec<f64> {
        let mut all: Vec<f64> = self
            .lines
            .iter()
            .flat_map(|line| &line.points)
            .map(|point| point.0)
            .collect();
        all.sort_unstable_by(f64::total_cmp);
        all.dedup();
        all
    }

    fn draw(&self, svg: &mut String, line: &Line, x_axis: &Axis, y_axis: &Axis) {
        let places: Vec<[f64; 2]> = line
            .points
            .iter()
            .map(|&(x, y)| [x_axis.at(x), y_axis.at(y)])
            .collect();
        let path: Vec<String> = places
            .iter()
            .map(|[x, y]| format!("{x:.1},{y:.1}"))
            .collect();
        let class = line.colour.map_or(REFERENCE.to_owned(), |colour| {
            format!("line {}", class(colour))
        });
        let _ = writeln!(
            svg,
            "<polyline class=\"{class}\" points=\"{}\"/>",
            path.join(" ")
        );
        let Some(colour) = line.colour else { return };
        for (&(x, value), place) in line.points.iter().zip(places) {
            let title = format!("{}, length {x}: {}", line.name, (self.number)(value));
            circle(
                svg,
                &Dot {
                    value,
                    colour,
                    title,
                },
                place,
            );
        }
    }
}

/// The class of a colour.
pub(super) fn class(colour: Colour) -> String {
    format!(
        "c{}",
        if colour == 0 {
            0
        } else {
            1 + (colour - 1) % (PALETTE.len() - 1)
        }
    )
}

/// Colours in light and in dark; the first is ours.
const PALETTE: [[&str; 2]; 13] = [
    ["#d7263d", "#ff5a6e"],
    ["#1f77b4", "#6cb4ee"],
    ["#2a9d62", "#5fd39a"],
    ["#8e5bb5", "#c39be8"],
    ["#b8860b", "#e5b84b"],
    ["#0f8b8d", "#4fd1d3"],
    ["#c2577c", "#f08fb2"],
    ["#5b6c8f", "#9fb0d3"],
    ["#6b8e23", "#a9cf5a"],
    ["#a0522d", "#dd9468"],
    ["#3f51b5", "#8c9eff"],
    ["#00796b", "#4db6ac"],
    ["#7b7b7b", "#b5b5b5"],
];

/// The palette as classes, for both schemes.
pub(super) fn colours() -> String {
    let scheme = |which: usize| -> String {
        let class = |(n, colours): (usize, &[&str; 2])| {
            format!(".{} {{ color: {}; }}", class(n), colours[which])
        };
        PALETTE
            .iter()
            .enumerate()
            .map(class)
            .collect::<Vec<_>>()
            .join(" ")
    };
    format!(
        "{}\n@media (prefers-color-scheme: dark) {{ {} }}\n",
        scheme(0),
        scheme(1)
    )
}

fn open(label: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n",
        escaped(label)
    )
}

fn line(svg: &mut String, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
    let _ = writeln!(
        svg,
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

fn text(svg: &mut String, class: &str, [x, y]: [f64; 2], words: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
        escaped(words)
    );
}

fn circle(svg: &mut String, dot: &Dot, [x, y]: [f64; 2]) {
    let radius = if dot.colour == 0 { 5.5 } else { 3.8 };
    let _ = writeln!(
        svg,
        "<circle class=\"dot {}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>{}</title></circle>",
        class(dot.colour),
        escaped(&dot.title)
    );
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// A power of 10 as `10⁻⁷`.
pub(super) fn power(value: f64) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let exponent = value.log10().round() as i32;
    let digits = exponent.unsigned_abs().to_string();
    let raised = digits
        .bytes()
        .map(|digit| DIGITS[usize::from(digit - b'0')]);
    let sign = if exponent < 0 { "⁻" } else { "" };
    format!("10{sign}{}", raised.collect::<String>())
}

/// Words as HTML.
pub(super) fn escaped(words: &str) -> String {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    words.replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_raised() {
        assert_eq!([1e-7, 1.0, 1e12].map(power), ["10⁻⁷", "10⁰", "10¹²"]);
    }

    #[test]
    fn only_ours_has_our_colour() {
        assert_eq!(class(0), "c0");
        assert!((1..100).all(|colour| class(colour) != "c0"));
    }
}
