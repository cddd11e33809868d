//! The picture that `gdn bench --plot` draws.

use anyhow::anyhow;
use gdn::LayerSpec;
use plotters::prelude::*;

use super::{row::Row, stats::Summary};

const SIZE: (u32, u32) = (960, 960);

type Value = fn(&Row) -> Summary;

/// Name, colour and value of the lines in each panel. The colours are those of
/// Okabe and Ito, which colour-blind readers can tell apart.
const TIMES: [(&str, RGBColor, Value); 5] = [
    ("split", RGBColor(230, 159, 0), |row| row.split_us),
    ("packed", RGBColor(0, 114, 178), |row| row.packed_us),
    ("chain", RGBColor(204, 121, 167), |row| row.chain_us),
    ("fused", RGBColor(0, 158, 115), |row| row.fused_us),
    ("copy", RGBColor(96, 96, 96), |row| row.copy_us),
];

/// Time a row above, share of the copy below, both against batch size, as SVG.
/// The band around a line is what lies between the quartiles.
pub(super) fn draw(spec: &LayerSpec, setup: &str, rows: &[Row]) -> anyhow::Result<String> {
    let mut svg = String::new();
    // plotters' errors borrow what they are about.
    try_draw(&mut svg, spec, setup, rows).map_err(|error| anyhow!("--plot: {error}"))?;
    Ok(svg)
}

fn try_draw(
    svg: &mut String,
    spec: &LayerSpec,
    setup: &str,
    rows: &[Row],
) -> Result<(), Box<dyn std::error::Error>> {
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by_key(|row| row.batch);
    let batches: Vec<f64> = rows.iter().map(|row| row.batch as f64).collect();
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (q_heads, v_heads) = (spec.q_heads(), spec.v_heads());
    let (head_k, head_v) = (spec.head_k(), spec.head_v());
    let title =
        format!("Gated DeltaNet decode, H = {q_heads}, HV = {v_heads}, K = {head_k}, V = {head_v}");
    let root = root.margin(12, 0, 0, 0).titled(&title, ("sans-serif", 22))?;
    let root = root.titled(setup, ("sans-serif", 13))?;
    let (above, below) = root.split_vertically(SIZE.1 * 11 / 20);

    let per_row = |value: Value| {
        let line = rows.iter().map(|row| value(row).map(|time| time / row.batch as f64));
        line.collect::<Vec<_>>()
    };
    let times = TIMES.map(|(name, colour, value)| (name, colour, per_row(value)));
    let all = times.iter().flat_map(|(_, _, line)| line);
    let highest = all.map(|time| time.upper_quartile).fold(0.0, f64::max);
    let mut chart = chart(&above).build_cartesian_2d(batch_axis(&batches), 0.0..highest * 1.3)?;
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
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;

    let share: Vec<_> = rows.iter().map(|row| row.share_of_copy).collect();
    let highest = share.iter().map(|share| share.upper_quartile).fold(1.0, f64::max);
    let mut chart =
        self::chart(&below).build_cartesian_2d(batch_axis(&batches), 0.0..highest * 1.1)?;
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
    root.present()?;
    Ok(())
}

fn chart<'a, 'b>(
    area: &'a DrawingArea<SVGBackend<'b>, plotters::coord::Shift>,
) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut chart = ChartBuilder::on(area);
    chart.margin(16).x_label_area_size(44).y_label_area_size(72);
    chart
}

/// Powers of two, a little wider than the batches.
fn batch_axis(batches: &[f64]) -> LogCoord<f64> {
    let (first, last) = (batches[0], batches[batches.len() - 1]);
    (first * 0.9..last * 1.1).log_scale().base(2.0).into()
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
