//! Accuracy over epochs as a picture: SVG, and characters for the terminal.

use core::fmt::Write as _;

/// The accuracy after each epoch, from 0 to 1.
pub(crate) struct Curve<'a> {
    pub(crate) name: &'a str,
    pub(crate) values: &'a [f32],
}

/// The accuracies that are drawn: from a round number below all to 1. What is below it, the first epochs, is cut.
fn bottom(curves: &[Curve<'_>]) -> f32 {
    let late = curves
        .iter()
        .flat_map(|curve| curve.values.iter().skip(curve.values.len() / 10));
    let lowest = late.copied().fold(1.0, f32::min);
    ((lowest * 20.0).floor() / 20.0).clamp(0.0, 0.95)
}

fn longest(curves: &[Curve<'_>]) -> usize {
    curves
        .iter()
        .map(|curve| curve.values.len())
        .max()
        .unwrap_or(0)
}

/// A picture of 640 by 360.
pub(crate) fn svg(curves: &[Curve<'_>]) -> String {
    const COLOURS: [&str; 4] = ["#c2410c", "#1d4ed8", "#15803d", "#7e22ce"];
    const LEFT: f32 = 60.0;
    const TOP: f32 = 40.0;
    const WIDTH: f32 = 560.0;
    const HEIGHT: f32 = 270.0;
    let (low, epochs) = (bottom(curves), longest(curves).max(2));
    let x = |epoch: usize| LEFT + WIDTH * epoch as f32 / (epochs - 1) as f32;
    let y = |accuracy: f32| TOP + HEIGHT * (1.0 - (accuracy - low) / (1.0 - low));
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 360\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <clipPath id=\"area\"><rect x=\"60\" y=\"40\" width=\"560\" height=\"270\"/></clipPath>\n\
         <rect width=\"640\" height=\"360\" fill=\"white\"/>\n<text x=\"60\" y=\"24\" font-size=\"15\">Test accuracy after each epoch</text>\n",
    );
    // Writing to a `String` cannot fail.
    for tick in 0..=5 {
        let accuracy = low + (1.0 - low) * tick as f32 / 5.0;
        let at = y(accuracy);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}h{WIDTH}\" stroke=\"#ddd\"/><text x=\"52\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>",
            at + 4.0,
            100.0 * accuracy
        );
    }
    for tick in 0..=4 {
        let epoch = (epochs - 1) * tick / 4;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"330\" text-anchor=\"middle\">{}</text>",
            x(epoch),
            epoch + 1
        );
    }
    for (i, curve) in curves.iter().enumerate().rev() {
        let colour = COLOURS[i % COLOURS.len()];
        let points = curve.values.iter().enumerate();
        let points: Vec<_> = points
            .map(|(epoch, &accuracy)| format!("{:.1},{:.1}", x(epoch), y(accuracy)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" clip-path=\"url(#area)\"/>",
            points.join(" ")
        );
    }
    for (i, curve) in curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let (at, last) = (
            TOP + HEIGHT - 14.0 - 18.0 * i as f32,
            curve.values.last().copied().unwrap_or(0.0),
        );
        let _ = writeln!(
            svg,
            "<path d=\"M420 {:.1}h24\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"450\" y=\"{at:.1}\">{}, at last {:.2} %</text>",
            at - 4.0,
            curve.name,
            100.0 * last
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// A picture of characters; later curves are drawn below the earlier ones.
pub(crate) fn terminal(curves: &[Curve<'_>], colour: bool) -> String {
    const ROWS: usize = 12;
    const COLUMNS: usize = 60;
    const MARKS: [(char, &str); 4] = [
        ('●', "38;5;208"),
        ('·', "38;5;33"),
        ('+', "38;5;34"),
        ('x', "38;5;129"),
    ];
    let (low, epochs) = (bottom(curves), longest(curves));
    let mut cells = vec![[None; COLUMNS]; ROWS];
    for (i, curve) in curves.iter().enumerate().rev() {
        for (epoch, &accuracy) in curve.values.iter().enumerate() {
            let column = epoch * (COLUMNS - 1) / (epochs - 1).max(1);
            if accuracy < low {
                continue;
            }
            let height = (accuracy - low) / (1.0 - low) * (ROWS - 1) as f32;
            let row = ROWS - 1 - (height.round() as usize).min(ROWS - 1);
            cells[row][column] = Some(i);
        }
    }
    let mark = |i: usize| {
        let (mark, code) = MARKS[i % MARKS.len()];
        match colour {
            true => format!("\x1b[{code}m{mark}\x1b[0m"),
            false => mark.to_string(),
        }
    };
    let mut text = String::new();
    for (row, cells) in cells.iter().enumerate() {
        let accuracy = low + (1.0 - low) * (ROWS - 1 - row) as f32 / (ROWS - 1) as f32;
        let _ = write!(text, "{:5.1} % │", 100.0 * accuracy);
        for cell in cells {
            text.push_str(&cell.map_or_else(|| " ".into(), mark));
        }
        text.push('\n');
    }
    let _ = writeln!(text, "        └{}", "─".repeat(COLUMNS));
    let _ = writeln!(
        text,
        "         1{:>1$}",
        format!("epoch {epochs}"),
        COLUMNS - 1
    );
    for (i, curve) in curves.iter().enumerate() {
        let _ = writeln!(text, "         {} {}", mark(i), curve.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURVES: [Curve<'_>; 2] = [
        Curve {
            name: "one",
            values: &[0.1, 0.8, 0.9, 0.97],
        },
        Curve {
            name: "other",
            values: &[0.2, 0.7],
        },
    ];

    #[test]
    fn every_curve_is_drawn() {
        let svg = svg(&CURVES);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("one, at last 97.00 %") && svg.ends_with("</svg>\n"));
        let text = terminal(&CURVES, false);
        assert_eq!(text.matches('●').count(), 4 + 1);
        assert!(!text.contains('\x1b') && terminal(&CURVES, true).contains('\x1b'));
    }

    #[test]
    fn no_curve_and_one_epoch_can_be_drawn() {
        for curves in [
            &[][..],
            &[Curve {
                name: "short",
                values: &[0.5],
            }],
        ] {
            assert!(!svg(curves).contains("NaN"));
            assert!(!terminal(curves, false).contains("NaN"));
        }
    }
}
