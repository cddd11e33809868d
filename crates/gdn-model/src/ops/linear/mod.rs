//! Products with a weight, `[rows, outputs]` from `[rows, k]`: alone, or as the gated
//! half of an MLP. A row's bits depend on that row and the weight alone.

pub(crate) mod cuda;
#[cfg(test)]
pub(crate) mod reference;

#[cfg(test)]
mod tests;
