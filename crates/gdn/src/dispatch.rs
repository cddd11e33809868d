//! The dispatcher: which path a backend takes for a layer.

use crate::{
    DType, ErrorKind, Layer, Result,
    backend::{Backend, DecodePath, DecodeSpec},
    error::expect_dtype,
    ops::LayerStep,
};

/// Takes the fastest path that a backend has for a layer, and runs it.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    path: DecodePath,
    activations: DType,
    recurrent: DType,
}

impl Dispatcher {
    /// Asks `backend` for every path, the fastest first, and takes the first
    /// that it supports; `force` takes that one or none. Says which and why at
    /// info level through `tracing`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the forced path, or every path, is
    /// unsupported.
    pub fn new(
        backend: &dyn Backend,
        layer: &Layer,
        activations: DType,
        recurrent: DType,
        force: Option<DecodePath>,
    ) -> Result<Self> {
        let spec = DecodeSpec { layer: layer.spec(), activations, recurrent };
        let candidates = force.map_or(DecodePath::ALL.to_vec(), |path| vec![path]);
        let mut rejected = Vec::new();
        for path in candidates {
            match backend.supports(path, &spec) {
                Ok(()) => {
                    let why = if force.is_some() {
                        "forced".to_owned()
                    } else if rejected.is_empty() {
                        "the fastest".to_owned()
                    } else {
                        rejected.join("; ")
                    };
                    tracing::info!(%path, backend = backend.name(), why, "decode path");
                    return Ok(Self { path, activations, recurrent });
                }
                Err(no) => rejected.push(format!("{path}: {no}")),
            }
        }
        let path = force.unwrap_or(DecodePath::Split);
        let reason = rejected.join("; ");
        Err(ErrorKind::Unsupported { path, backend: backend.name(), reason }.into())
    }

    /// The path that was taken.
    pub fn path(&self) -> DecodePath {
        self.path
    }

    /// One token of the layer on the path that was taken.
    ///
    /// # Errors
    /// [`ErrorKind::DType`] for tensors of other dtypes than those dispatched
    /// for, and the errors of [`LayerStep`].
    pub fn step(&self, backend: &mut dyn Backend, args: LayerStep<'_>) -> Result<()> {
        expect_dtype("mixed_qkv", self.activations, args.mixed_qkv.dtype())?;
        expect_dtype("state.recurrent", self.recurrent, args.state.recurrent.dtype())?;
        backend.layer_step(self.path, args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        LayerSpec, LayerWeights, Rows,
        backend::Unsupported,
        ops::{ConvUpdate, Decode, GatedNorm, Prefill, PrefillForm},
    };

    /// A backend that has some paths and can't run any.
    #[derive(Debug)]
    struct Having(&'static [DecodePath]);

    impl Backend for Having {
        fn name(&self) -> &'static str {
            "having"
        }
        fn supports(&self, path: DecodePath, _: &DecodeSpec<'_>) -> Result<(), Unsupported> {
            if self.0.contains(&path) {
                return Ok(());
            }
            Err(Unsupported { reason: format!("no {path} here") })
        }
        fn conv_update(&mut self, _: ConvUpdate<'_>) -> Result<()> {
            unreachable!()
        }
        fn split_decode(&mut self, _: Decode<'_>) -> Result<()> {
            unreachable!()
        }
        fn packed_decode(&mut self, _: Decode<'_>) -> Result<()> {
            unreachable!()
        }
        fn gated_norm(&mut self, _: GatedNorm<'_>) -> Result<()> {
            unreachable!()
        }
        fn layer_step(&mut self, _: DecodePath, _: LayerStep<'_>) -> Result<()> {
            unreachable!()
        }
        fn prefill(&mut self, _: PrefillForm, _: Prefill<'_>) -> Result<()> {
            unreachable!()
        }
    }

    fn dispatch(paths: &'static [DecodePath], force: Option<DecodePath>) -> Result<DecodePath> {
        let spec = LayerSpec::new(1, 1, 2, 2).unwrap();
        let weights = LayerWeights {
            conv_weight: Rows::new(&[0.0f32; 24], 6, 4).unwrap(),
            conv_bias: None,
            a_log: (&[0.0f32]).into(),
            dt_bias: (&[0.0f32]).into(),
            norm_weight: (&[1.0f32; 2]).into(),
        };
        let layer = Layer::new(&spec, weights).unwrap();
        let backend = Having(paths);
        Ok(Dispatcher::new(&backend, &layer, DType::BF16, DType::F32, force)?.path())
    }

    #[test]
    fn the_fastest_supported_path_is_taken() {
        use DecodePath::{Fused, Packed, Split};
        assert_eq!(dispatch(&[Split, Packed, Fused], None), Ok(Fused));
        assert_eq!(dispatch(&[Split, Packed], None), Ok(Packed));
        assert_eq!(dispatch(&[Split], None), Ok(Split));
    }

    #[test]
    fn a_forced_path_is_taken_or_refused() {
        use DecodePath::{Fused, Packed, Split};
        assert_eq!(dispatch(&[Split, Packed, Fused], Some(Split)), Ok(Split));
        let error = dispatch(&[Split], Some(Packed)).unwrap_err();
        let expected = "path: packed is not supported by the having backend: \
                        packed: no packed here";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn no_path_at_all_names_every_reason() {
        let error = dispatch(&[], None).unwrap_err().to_string();
        for path in DecodePath::ALL {
            assert!(error.contains(&format!("no {path} here")), "{error}");
        }
    }
}
