//! The picture that `gdn bench-serving --plot` draws.

use plotters::prelude::*;

use super::metrics::{Distribution, Metrics};
use crate::plot::{self, Area, BLUE, Drawn, GREEN, RED, legend};

const SIZE: (u32, u32) = (960, 720);
const BINS: usize = 60;
/// What a clock's reading of no time at all is drawn as.
const SHORTEST_MS: f64 = 0.01;

/// How often the first token, and each of the others, took how long, as SVG.
pub(super) fn draw(setup: &str, metrics: &Metrics) -> anyhow::Result<String> {
    let title = "Time to the first token, and from each to the next";
    plot::svg(SIZE, title, setup, |root| {
        let (above, below) = root.split_vertically(SIZE.1 / 2 - 30);
        panel(&above, "TTFT, ms", "share of requests", BLUE, &metrics.ttft)?;
        panel(&below, "ITL, ms", "share of spans", GREEN, &metrics.itl)
    })
}

/// A histogram over a logarithmic axis, with lines at the median and at P99.
fn panel(
    area: &Area<'_>,
    what: &str,
    share: &str,
    colour: RGBColor,
    seconds: &Distribution,
) -> Drawn {
    let Histogram { edges, shares } = Histogram::of(seconds);
    let highest = shares.iter().copied().fold(0.0, f64::max).max(f64::MIN_POSITIVE) * 1.4;
    let (first, last) = (edges[0], edges[BINS]);
    let mut chart =
        plot::chart(area).build_cartesian_2d((first..last).log_scale(), 0.0..highest)?;
    chart
        .configure_mesh()
        .x_label_formatter(&|ms| format!("{ms}"))
        .y_label_formatter(&|share| format!("{:.1} %", 100.0 * share))
        .x_desc(what)
        .y_desc(share)
        .light_line_style(WHITE)
        .draw()?;
    let bins = edges.windows(2).zip(shares);
    chart.draw_series(bins.map(|(edge, share)| {
        Rectangle::new([(edge[0], 0.0), (edge[1], share)], colour.mix(0.5).filled())
    }))?;
    for (name, percent, line) in [("median", 50.0, BLACK), ("P99", 99.0, RED)] {
        let ms = 1e3 * seconds.percentile(percent);
        let at = ms.clamp(first, last);
        let points = [(at, 0.0), (at, highest)];
        chart
            .draw_series(LineSeries::new(points, line.stroke_width(2)))?
            .label(format!("{name} {ms:.2} ms"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], line.stroke_width(2)));
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

/// Shares of a sample in bins whose milliseconds grow by the same factor.
#[derive(Debug)]
struct Histogram {
    edges: Vec<f64>,
    shares: Vec<f64>,
}

impl Histogram {
    fn of(seconds: &Distribution) -> Self {
        let ms = || seconds.values().iter().map(|seconds| (1e3 * seconds).max(SHORTEST_MS));
        // One decade of nothing, where there is nothing.
        let first = ms().next().unwrap_or(1.0) * 0.9;
        let last = ms().next_back().unwrap_or(10.0) * 1.1;
        let factor = (last / first).powf(1.0 / BINS as f64);
        let mut shares = vec![0.0; BINS];
        for ms in ms() {
            let bin = ((ms / first).ln() / factor.ln()) as usize;
            shares[bin.min(BINS - 1)] += 1.0 / seconds.values().len() as f64;
        }
        let edges = (0..=BINS).map(|edge| first * factor.powi(edge as i32)).collect();
        Self { edges, shares }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bin() {
        let sample = Distribution::of([0.0, 0.001, 0.001, 0.1, 2.0]);
        let Histogram { edges, shares } = Histogram::of(&sample);
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let share = |ms: f64| {
            let bin = edges.windows(2).position(|edge| edge[0] <= ms && ms < edge[1]);
            shares[bin.unwrap()]
        };
        for (ms, expected) in [(SHORTEST_MS, 0.2), (1.0, 0.4), (100.0, 0.2), (2000.0, 0.2)] {
            assert!((share(ms) - expected).abs() < 1e-9, "{ms}");
        }
    }

    #[test]
    fn nothing_and_one_value_can_be_drawn() {
        for seconds in [vec![], vec![0.0], vec![0.5]] {
            let histogram = Histogram::of(&Distribution::of(seconds));
            assert!(histogram.edges.windows(2).all(|edge| edge[0] < edge[1]));
        }
    }
}
