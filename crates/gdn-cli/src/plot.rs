//! What all pictures share.

use plotters::{
    coord::{Shift, ranged1d::Ranged},
    prelude::*,
};

/// An area of a picture.
pub(crate) type Area<'b> = DrawingArea<SVGBackend<'b>, Shift>;
pub(crate) type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Colours of Okabe and Ito, which colour-blind readers can tell apart.
pub(crate) const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub(crate) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(crate) const PINK: RGBColor = RGBColor(204, 121, 167);
pub(crate) const GREEN: RGBColor = RGBColor(0, 158, 115);
pub(crate) const RED: RGBColor = RGBColor(213, 94, 0);
pub(crate) const GREY: RGBColor = RGBColor(96, 96, 96);

/// An SVG of this size, with a title and what was measured below it; `draw` fills it.
pub(crate) fn svg(
    size: (u32, u32),
    title: &str,
    setup: &str,
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    let all = || -> Drawn {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.margin(12, 0, 0, 0).titled(title, ("sans-serif", 22))?;
        let root = root.titled(setup, ("sans-serif", 13))?;
        draw(&root)?;
        root.present()?;
        Ok(())
    };
    // plotters' errors borrow what they are about.
    all().map_err(|error| anyhow::anyhow!("--plot: {error}"))?;
    Ok(svg)
}

/// A chart with room for its axes.
pub(crate) fn chart<'a, 'b>(area: &'a Area<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut chart = ChartBuilder::on(area);
    chart.margin(16).x_label_area_size(44).y_label_area_size(72);
    chart
}

/// Draws the names of lines into a corner.
pub(crate) fn legend<'a, 'b: 'a, X: Ranged, Y: Ranged>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>,
    corner: SeriesLabelPosition,
) -> Drawn {
    chart
        .configure_series_labels()
        .position(corner)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// Powers of two, a little wider than these values, which are sorted.
pub(crate) fn log2_axis(values: &[f64]) -> LogCoord<f64> {
    let (first, last) = (values[0], values[values.len() - 1]);
    (first * 0.9..last * 1.1).log_scale().base(2.0).into()
}
