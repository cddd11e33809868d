//! The picture that `gdn bench-model --plot` draws.

use plotters::prelude::*;

use super::measure::{DecodeRow, PrefillRow};
use crate::plot::{self, Area, BLUE, Drawn, GREY, legend, log2_axis};

/// A name, a colour and points.
type Line = (&'static str, RGBColor, Vec<(f64, f64)>);

const WIDTH: u32 = 960;
const PANEL: u32 = 420;

/// Time of a decode step beside its floor against batch size, and speed of prefill against the
/// length of prompts, as SVG: of these what was measured.
pub(super) fn draw(
    setup: &str,
    prefill: &[PrefillRow],
    decode: &[DecodeRow],
) -> anyhow::Result<String> {
    let panels = u32::from(!prefill.is_empty()) + u32::from(!decode.is_empty());
    plot::svg((WIDTH, PANEL * panels.max(1)), "A whole model", setup, |area| {
        let areas = area.split_evenly((panels.max(1) as usize, 1));
        let mut areas = areas.iter();
        if let (false, Some(area)) = (decode.is_empty(), areas.next()) {
            let line = |value: fn(&DecodeRow) -> f64| {
                sorted(decode.iter().map(|row| (row.batch as f64, value(row))))
            };
            let lines = [
                ("step", BLUE, line(|row| row.median_ms)),
                ("floor", GREY, line(|row| row.floor_ms)),
            ];
            panel(area, "batch size", "ms a decode step", &lines)?;
        }
        if let (false, Some(area)) = (prefill.is_empty(), areas.next()) {
            let line = sorted(prefill.iter().map(|row| (row.tokens as f64, row.tokens_per_s)));
            panel(area, "tokens of a prompt", "prefill, tokens/s", &[("prefill", BLUE, line)])?;
        }
        Ok(())
    })
}

fn sorted(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut points: Vec<_> = points.collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// Lines over the same places.
fn panel(area: &Area<'_>, x: &str, y: &str, lines: &[Line]) -> Drawn {
    let places: Vec<f64> = lines[0].2.iter().map(|point| point.0).collect();
    let highest = lines.iter().flat_map(|line| &line.2).map(|point| point.1).fold(0.0, f64::max);
    let mut chart = plot::chart(area).build_cartesian_2d(log2_axis(&places), 0.0..highest * 1.2)?;
    chart
        .configure_mesh()
        .x_label_formatter(&|place| format!("{place:.0}"))
        .x_desc(x)
        .y_desc(y)
        .light_line_style(WHITE)
        .draw()?;
    for (name, colour, points) in lines {
        let colour = *colour;
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
    }
    if lines.len() > 1 {
        legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
    }
    Ok(())
}
