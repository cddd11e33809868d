//! The state slot of a sequence, in all layers at once: a call for each part of each
//! would cost the host more than the GPU.

pub(crate) mod cuda;

#[cfg(test)]
mod tests;
