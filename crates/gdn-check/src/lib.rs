//! Random Gated DeltaNet problems, and the f64 oracle's word on what a backend
//! made of them: what `gdn check` prints and the tests assert.
//!
//! A [`Case`] says what to try; a [`Problem`] draws its random numbers, runs an
//! [`Operator`] on any backend and compares the [`Outcome`].

mod case;
mod problem;
mod tensor;
mod verdict;

pub use self::{
    case::Case,
    problem::{Inputs, Problem, RandomLayer},
    tensor::{DeviceTensor, Tensor},
    verdict::{Errors, Operator, Outcome, relative_l2},
};
