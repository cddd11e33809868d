//! What lies between an attention layer's projection and its softmax: queries and keys
//! are normed and rotated, keys and values go to their page.

pub(crate) mod cpu;
pub(crate) mod cuda;

#[cfg(test)]
mod tests;

/// Tokens of a page of keys and values.
pub(crate) const PAGE: usize = 64;
