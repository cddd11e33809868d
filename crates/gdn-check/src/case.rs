//! What to try: shapes, dtypes, layouts.

use gdn::{DType, HeadOrder, LayerSpec};

/// One problem to try a backend on.
#[derive(Clone, Debug)]
pub struct Case {
    /// B, the rows of the batch.
    pub rows: usize,
    /// The layer.
    pub spec: LayerSpec,
    /// N, the slots of the pool.
    pub pool: usize,
    /// The dtype of activations and conv state.
    pub activations: DType,
    /// The dtype of the recurrent state.
    pub recurrent: DType,
    /// Whether every third row is padding.
    pub padding: bool,
    /// Elements between the rows of the inputs.
    pub row_gap: usize,
    /// Elements between the slots of the pool.
    pub slot_gap: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Tokens that each row decodes.
    pub steps: usize,
    /// What all random numbers come from.
    pub seed: u64,
}

impl Case {
    /// A case with dense tensors, no padding, two steps.
    pub fn new(rows: usize, spec: LayerSpec) -> Self {
        Self {
            rows,
            spec,
            pool: rows + 3,
            activations: DType::F32,
            recurrent: DType::F32,
            padding: false,
            row_gap: 0,
            slot_gap: 0,
            conv_bias: true,
            steps: 2,
            seed: 0,
        }
    }

    /// The same case with other dtypes.
    pub fn with_dtypes(self, activations: DType, recurrent: DType) -> Self {
        Self { activations, recurrent, ..self }
    }

    /// The relative L2 error that out and state may have.
    pub fn tolerance(&self) -> f64 {
        let of = |dtype, bf16: f64| match dtype {
            DType::F32 => 1e-5,
            DType::BF16 => bf16,
            // Three more bits of mantissa, and some room.
            DType::F16 => bf16 / 4.0,
        };
        of(self.activations, 5e-3).max(of(self.recurrent, 8e-3))
    }

    /// One line that tells this case from others.
    pub fn describe(&self) -> String {
        let spec = &self.spec;
        let mut text = format!(
            "B={} H={} HV={} K={} V={} pool={} {}/{}",
            self.rows,
            spec.q_heads(),
            spec.v_heads(),
            spec.head_k(),
            spec.head_v(),
            self.pool,
            self.activations,
            self.recurrent,
        );
        for (applies, what) in [
            (self.padding, "padding"),
            (self.row_gap > 0, "strided"),
            (self.slot_gap > 0, "pitched"),
            (spec.head_order() == HeadOrder::Tiled, "tiled"),
            (spec.conv_width() != 4, "conv width not 4"),
            (!self.conv_bias, "no bias"),
        ] {
            if applies {
                text += ", ";
                text += what;
            }
        }
        text
    }

    /// The shapes of the reference benchmark, those of SGLang's pull request
    /// 20627: 14 batches and the one with padding.
    pub fn reference() -> Vec<Self> {
        let of = |batches: &[usize], q_heads, v_heads| {
            let case = |&rows: &usize| Self::new(rows, spec(q_heads, v_heads, 128, 128));
            batches.iter().map(case).collect::<Vec<_>>()
        };
        let mut cases = of(&[1, 4, 16, 32, 64, 128, 256], 8, 16);
        cases.extend(of(&[1, 32, 64], 16, 32));
        cases.extend(of(&[32, 64], 16, 16));
        cases.push(Self { padding: true, ..Self::new(32, spec(8, 16, 128, 128)) });
        // The last two fill their pool.
        let tight = |case: Self| Self { pool: case.rows, ..case };
        cases.extend(of(&[1, 2], 8, 16).into_iter().map(tight));
        cases
    }

    /// Beyond the reference: head ratios, head dims, head order, conv widths,
    /// strided inputs, pitched pools.
    pub fn beyond_reference() -> Vec<Self> {
        let mut cases = Vec::new();
        for (q_heads, ratio) in [(4, 1), (4, 2), (2, 3), (2, 4), (1, 8)] {
            cases.push(Self::new(5, spec(q_heads, q_heads * ratio, 128, 128)));
        }
        for (k, v) in [(64, 64), (96, 96), (256, 256), (64, 128), (128, 64), (33, 47)] {
            cases.push(Self::new(3, spec(2, 4, k, v)));
        }
        let base = Self::new(6, spec(2, 6, 128, 128));
        let tiled = base.spec.clone().with_head_order(HeadOrder::Tiled);
        cases.push(Self { spec: tiled, ..base.clone() });
        for width in [1, 2, 7] {
            let spec = base.spec.clone().with_conv_width(width).expect("a width of at least 1");
            cases.push(Self { spec, steps: 9, ..base.clone() });
        }
        cases.push(Self { conv_bias: false, ..base.clone() });
        cases.push(Self { row_gap: 13, ..base.clone() });
        cases.push(Self { slot_gap: 29, ..base.clone() });
        cases.push(Self { row_gap: 5, slot_gap: 7, padding: true, ..base });
        cases
    }
}

fn spec(q_heads: usize, v_heads: usize, head_k: usize, head_v: usize) -> LayerSpec {
    LayerSpec::new(q_heads, v_heads, head_k, head_v).expect("a valid shape")
}
