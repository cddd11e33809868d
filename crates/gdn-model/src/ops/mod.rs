//! The operators of a forward pass: for each a folder with its CPU and CUDA halves,
//! which compute the same from the same arguments.

pub(crate) mod attention;
pub(crate) mod embed;
pub(crate) mod experts;
pub(crate) mod fill;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod qkv;
pub(crate) mod route;
pub(crate) mod sample;
pub(crate) mod slots;
#[cfg(test)]
pub(crate) mod testing;
