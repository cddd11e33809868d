//! The table that `gdn bench` prints.

use gdn::LayerSpec;

use super::{
    row::{Launches, Row},
    stats::Summary,
};

/// Lines of aligned columns, two spaces apart.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
}

#[derive(Debug)]
struct Column {
    title: &'static str,
    width: usize,
    cell: fn(&Row) -> String,
}

impl Table {
    /// A table for rows of such a layer.
    pub(super) fn new(spec: &LayerSpec, gpu: bool) -> Self {
        let int = |title, cell, widest: usize| Column {
            title,
            width: widest.to_string().len().max(3),
            cell,
        };
        let wide = |title, cell| Column { title, width: 13, cell };
        let narrow = |title, cell| Column { title, width: 8, cell };
        let mut table = Self {
            columns: vec![
                int("B", |row| row.batch.to_string(), 10_000),
                int("H", |row| row.q_heads.to_string(), spec.q_heads()),
                int("HV", |row| row.v_heads.to_string(), spec.v_heads()),
                int("K", |row| row.head_k.to_string(), spec.head_k()),
                int("V", |row| row.head_v.to_string(), spec.head_v()),
                wide("split µs", |row| with_spread(&row.split_us)),
                wide("packed µs", |row| with_spread(&row.packed_us)),
                narrow("speedup", |row| format!("{:.2}", row.speedup.median)),
                narrow("saved µs", |row| format!("{:.1}", row.saved_us.median)),
                wide("chain µs", |row| with_spread(&row.chain_us)),
                wide("fused µs", |row| with_spread(&row.fused_us)),
                wide("state GB/s", |row| with_spread(&row.state_gb_per_s)),
                wide("of a copy", |row| {
                    let share = &row.share_of_copy;
                    format!("{:.0}% ±{:.0}%", 100.0 * share.median, share.spread())
                }),
            ],
        };
        if gpu {
            table.columns.extend([
                narrow("warm µs", |row| of_launches(row, |launches| launches.warm_us)),
                narrow("eager µs", |row| of_launches(row, |launches| launches.eager_us)),
                narrow("host µs", |row| of_launches(row, |launches| launches.host_us)),
            ]);
        }
        table
    }

    /// The first line.
    pub(super) fn head(&self) -> String {
        self.join(|column| column.title.to_owned())
    }

    /// The line of a row.
    pub(super) fn line(&self, row: &Row) -> String {
        self.join(|column| (column.cell)(row))
    }

    fn join(&self, cell: impl Fn(&Column) -> String) -> String {
        let cells = self.columns.iter().map(|column| format!("{:>1$}", cell(column), column.width));
        cells.collect::<Vec<_>>().join("  ")
    }
}

fn with_spread(summary: &Summary) -> String {
    // A GPU's launches take a few microseconds.
    let digits = if summary.median < 10.0 { 2 } else { 1 };
    format!("{:.digits$} ±{:.0}%", summary.median, summary.spread())
}

fn of_launches(row: &Row, value: fn(&Launches) -> Summary) -> String {
    row.launches.as_ref().map_or(String::new(), |launches| format!("{:.2}", value(launches).median))
}
