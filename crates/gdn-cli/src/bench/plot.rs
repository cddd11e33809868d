//! The picture that `gdn bench --plot` draws.

use gdn::LayerSpec;
use plotters::prelude::*;

use super::{row::Row, stats::Summary};
use crate::plot::{self, Area, BLUE, Drawn, GREEN, GREY, ORANGE, PINK, legend, log2_axis};

const SIZE: (u32, u32) = (960, 960);

type Value = fn(&Row) -> Summary;

/// Name, colour and value of the lines in each panel.
const TIMES: [(&str, RGBColor, Value); 5] = [
    ("split", ORANGE, |row| row.split_us),
    ("packed", BLUE, |row| row.packed_us),
    ("chain", PINK, |row| row.chain_us),
    ("fused", GREEN, |row| row.fused_us),
    ("copy", GREY, |row| row.copy_us),
];

/// Time a row above, share of the copy below, both against batch size, as SVG.
/// The band around a line is what lies between the quartiles.
pub(super) fn draw(spec: &LayerSpec, setup: &str, rows: &[Row]) -> anyhow::Result<String> {
    let (q_heads, v_heads) = (spec.q_heads(), spec.v_heads());
    let (head_k, head_v) = (spec.head_k(), spec.head_v());
    let title =
        format!("Gated DeltaNet decode, H = {q_heads}, HV = {v_heads}, K = {head_k}, V = {head_v}");
    plot::svg(SIZE, &title, setup, |area| panels(area, rows))
}

fn panels(root: &Area<'_>, rows: &[Row]) -> Drawn {
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by_key(|row| row.batch);
    let batches: Vec<f64> = rows.iter().map(|row| row.batch as f64).collect();
    let (above, below) = root.split_vertically(SIZE.1 * 11 / 20);

    let per_row = |value: Value| {
        let line = rows.iter().map(|row| value(row).map(|time| time / row.batch as f64));
        line.collect::<Vec<_>>()
    };
    let times = TIMES.map(|(name, colour, value)| (name, colour, per_row(value)));
    let all = times.iter().flat_map(|(_, _, line)| line);
    let highest = all.map(|time| time.upper_quartile).fold(0.0, f64::max);
    let mut chart =
        plot::chart(&above).build_cartesian_2d(log2_axis(&batches), 0.0..highest * 1.3)?;
    chart
        .configure_mesh()
        .x_label_formatter(&|batch| format!("{batch:.0}"))
        .x_desc("batch size")
        .y_desc("time over batch size, µs")
        .light_line_style(WHITE)
        .draw()?;
    for (name, colour, line) in times {
        chart.draw_series([Polygon::new(band(&batches, &line), colour.mix(0.15))])?;
        chart
            .draw_series(LineSeries::new(medians(&batches, &line), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        let points = medians(&batches, &line);
        chart.draw_series(points.map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)?;

    let share: Vec<_> = rows.iter().map(|row| row.share_of_copy).collect();
    let highest = share.iter().map(|share| share.upper_quartile).fold(1.0, f64::max);
    let mut chart =
        plot::chart(&below).build_cartesian_2d(log2_axis(&batches), 0.0..highest * 1.1)?;
    chart
        .configure_mesh()
        .x_label_formatter(&|batch| format!("{batch:.0}"))
        .y_label_formatter(&|share| format!("{:.0} %", 100.0 * share))
        .x_desc("batch size")
        .y_desc("copy time over packed time")
        .light_line_style(WHITE)
        .draw()?;
    let (_, colour, _) = TIMES[1];
    chart.draw_series([Polygon::new(band(&batches, &share), colour.mix(0.15))])?;
    chart.draw_series(LineSeries::new(medians(&batches, &share), colour.stroke_width(2)))?;
    let points = medians(&batches, &share);
    chart.draw_series(points.map(|point| Circle::new(point, 3, colour.filled())))?;
    Ok(())
}

fn medians(batches: &[f64], line: &[Summary]) -> impl Iterator<Item = (f64, f64)> {
    batches.iter().zip(line).map(|(&batch, value)| (batch, value.median))
}

/// The outline of what lies between the quartiles.
fn band(batches: &[f64], line: &[Summary]) -> Vec<(f64, f64)> {
    let points = || batches.iter().copied().zip(line);
    let upper = points().map(|(batch, value)| (batch, value.upper_quartile));
    let lower = points().map(|(batch, value)| (batch, value.lower_quartile));
    upper.chain(lower.rev()).collect()
}
