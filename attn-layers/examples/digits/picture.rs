//! Grey pictures in the terminal, two characters a pixel.

use core::fmt::Write;

/// A picture of brightnesses from 0 to 1, row by row.
pub(crate) struct Picture {
    pub(crate) title: String,
    pub(crate) width: usize,
    pub(crate) pixels: Vec<f32>,
}

impl Picture {
    /// A picture whose brightest pixel is 1.
    pub(crate) fn scaled(title: impl Into<String>, width: usize, mut pixels: Vec<f32>) -> Self {
        let brightest = pixels.iter().copied().fold(0.0, f32::max);
        if brightest > 0.0 {
            pixels.iter_mut().for_each(|pixel| *pixel /= brightest);
        }
        Self {
            title: title.into(),
            width,
            pixels,
        }
    }

    /// Every pixel as a square of `factor` by `factor`.
    pub(crate) fn enlarged(self, factor: usize) -> Self {
        let mut pixels = Vec::with_capacity(self.pixels.len() * factor * factor);
        for row in self.pixels.chunks(self.width) {
            let wide: Vec<f32> = row
                .iter()
                .flat_map(|&pixel| core::iter::repeat_n(pixel, factor))
                .collect();
            for _ in 0..factor {
                pixels.extend_from_slice(&wide);
            }
        }
        Self {
            width: self.width * factor,
            pixels,
            ..self
        }
    }
}

/// Pictures of one height beside each other, their titles above. `colour` uses the terminal's 24 greys, otherwise
/// the five block characters serve.
pub(crate) fn beside(pictures: &[Picture], colour: bool) -> String {
    let mut text = String::new();
    for picture in pictures {
        let _ = write!(text, "{:1$}", picture.title, 2 * picture.width + 2);
    }
    text.push('\n');
    let rows = pictures
        .iter()
        .map(|picture| picture.pixels.len() / picture.width)
        .max();
    for row in 0..rows.unwrap_or(0) {
        for picture in pictures {
            let start = row * picture.width;
            for &pixel in picture.pixels.iter().skip(start).take(picture.width) {
                draw(&mut text, pixel, colour);
            }
            text.push_str("  ");
        }
        text.push('\n');
    }
    text
}

fn draw(text: &mut String, pixel: f32, colour: bool) {
    const BLOCKS: [char; 5] = [' ', '░', '▒', '▓', '█'];
    if colour {
        // 232 to 255 are the greys of the 256-colour palette.
        let grey = 232 + (pixel * 23.0).round() as u8;
        let _ = write!(text, "\x1b[48;5;{grey}m  \x1b[0m");
    } else {
        let block = BLOCKS[((pixel * 4.0).round() as usize).min(4)];
        text.extend([block, block]);
    }
}
