//! The MLPs of a mixture of experts, each for the tokens that are routed to it: a
//! pair is a token and one of its places, the last of which is the shared expert's.
//! A pair's bits depend on its token and its expert alone.

pub(crate) mod cuda;

#[cfg(test)]
mod tests;
