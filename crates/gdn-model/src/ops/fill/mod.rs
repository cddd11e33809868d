//! Weights of a model that there is no checkpoint of.

pub(crate) mod cpu;
pub(crate) mod cuda;

#[cfg(test)]
mod tests;
