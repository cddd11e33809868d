//! What stands between two layers: their sum into the residual stream, and the norm
//! of it that the next one reads.

pub(crate) mod cpu;
pub(crate) mod cuda;

#[cfg(test)]
mod tests;
