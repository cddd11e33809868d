//! Which experts each token takes, and which tokens each expert has.

pub(crate) mod cpu;
pub(crate) mod cuda;

#[cfg(test)]
mod tests;

/// The most experts that a token takes.
pub(crate) const MOST_PER_TOKEN: usize = 16;
