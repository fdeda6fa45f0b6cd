//! The picture that `train_bigram` draws.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use std::error::Error;
use std::ops::Range;
use std::path::Path;

/// Losses, in nats per character.
#[derive(Debug, Default)]
pub(crate) struct Curves {
    /// Of the batch of each step, before the step.
    pub(crate) batches: Vec<f64>,
    /// Of the whole training text, after each epoch.
    pub(crate) training: Vec<f64>,
    /// Of the text that is not trained on, after each epoch.
    pub(crate) held_out: Vec<f64>,
    /// What the best bigram model reaches on the training text.
    pub(crate) training_goal: f64,
    /// What it reaches on the other, with something added to the counts.
    pub(crate) held_out_goal: f64,
}

const SIZE: (u32, u32) = (1120, 500);
const BLUE: RGBColor = RGBColor(31, 104, 164);
const PALE: RGBColor = RGBColor(120, 170, 210);
const ORANGE: RGBColor = RGBColor(214, 96, 20);
const LABELS: (&str, i32) = ("sans-serif", 16);

struct Line {
    label: &'static str,
    color: RGBColor,
    look: Look,
    points: Vec<(f64, f64)>,
}

#[derive(PartialEq)]
enum Look {
    Solid,
    Dotted,
    Dashed,
}

/// Writes an SVG picture of two panels: every step, and the epochs enlarged. After the first epoch the loss
/// sinks by a fiftieth of what it sank before, which one scale cannot show.
pub(crate) fn draw(path: &Path, title: &str, curves: &Curves) -> Result<(), Box<dyn Error>> {
    let picture = SVGBackend::new(path, SIZE).into_drawing_area();
    picture.fill(&WHITE)?;
    let panels = picture.titled(title, ("sans-serif", 24))?.split_evenly((1, 2));

    let steps = 1.0..curves.batches.len().max(2) as f64;
    let lines = vec![
        line("batch, before the step", PALE, Look::Solid, (1..).zip(&curves.batches)),
        goal("training text, bigram counts", BLUE, &steps, curves.training_goal),
    ];
    panel(&panels[0], "Loss of every batch", "step (logarithmic scale)", steps.log_scale(), lines)?;

    let epochs = 1.0..curves.training.len().max(2) as f64;
    let lines = vec![
        line("held-out text", ORANGE, Look::Dotted, (1..).zip(&curves.held_out)),
        goal("held-out text, bigram counts + 0.1", ORANGE, &epochs, curves.held_out_goal),
        line("training text", BLUE, Look::Dotted, (1..).zip(&curves.training)),
        goal("training text, bigram counts", BLUE, &epochs, curves.training_goal),
    ];
    panel(&panels[1], "Loss of the whole text after each epoch", "epoch", epochs, lines)?;

    // Dropping the picture would write it too, and say nothing of errors.
    Ok(picture.present()?)
}

fn line<'a>(
    label: &'static str,
    color: RGBColor,
    look: Look,
    points: impl Iterator<Item = (u32, &'a f64)>,
) -> Line {
    Line { label, color, look, points: points.map(|(x, &y)| (f64::from(x), y)).collect() }
}

fn goal(label: &'static str, color: RGBColor, x: &Range<f64>, loss: f64) -> Line {
    Line { label, color, look: Look::Dashed, points: vec![(x.start, loss), (x.end, loss)] }
}

fn panel<X>(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    caption: &str,
    x_label: &str,
    x: X,
    lines: Vec<Line>,
) -> Result<(), Box<dyn Error>>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let losses = || lines.iter().flat_map(|line| &line.points).map(|&(_, loss)| loss);
    let (low, high) = (losses().fold(f64::MAX, f64::min), losses().fold(f64::MIN, f64::max));
    let height = (high - low).max(1e-3);
    // The legend has the space above the lines.
    let y = low - 0.05 * height..high + (0.1 + 0.09 * lines.len() as f64) * height;
    // As many decimals as tell the labels apart.
    let decimals = if height < 0.2 { 3 } else { 2 };
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 19))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(46)
        .y_label_area_size(66)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc(x_label)
        .y_desc("loss (nats per character)")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|loss| format!("{loss:.decimals$}"))
        .axis_desc_style(LABELS)
        .label_style(LABELS)
        .bold_line_style(BLACK.mix(0.12))
        .max_light_lines(0)
        .draw()?;
    for Line { label, color, look, points } in lines {
        let style = color.stroke_width(if look == Look::Dotted { 2 } else { 1 });
        let drawn = match look {
            Look::Dashed => chart.draw_series(DashedLineSeries::new(points, 7, 5, style))?,
            Look::Solid => chart.draw_series(LineSeries::new(points, style))?,
            Look::Dotted => {
                chart.draw_series(LineSeries::new(points, style.filled()).point_size(3))?
            }
        };
        drawn.label(label).legend(move |(x, y)| {
            // A dash, or a line.
            let end = if look == Look::Dashed { 9 } else { 24 };
            PathElement::new([(x, y), (x + end, y)], style)
        });
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.25))
        .legend_area_size(34)
        .margin(12)
        .label_font(LABELS)
        .draw()?;
    Ok(())
}
