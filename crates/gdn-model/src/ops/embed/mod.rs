//! The rows of the embedding table.

#[cfg(test)] // the CPU reads rows of weights of any dtype: `cpu::weights`
pub(crate) mod cpu;
pub(crate) mod cuda;

#[cfg(test)]
mod tests;
