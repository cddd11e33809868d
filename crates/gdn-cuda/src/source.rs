//! A kernel's source, and the key under which its binary is kept.

use crate::driver::Version;

/// CUDA C++ text to compile, with its headers and options.
///
/// The text includes nothing from disk, so that text, headers and options together say everything
/// that the binary depends on. Entry points are `extern "C" __global__` and take one struct by
/// value.
///
/// ```
/// # use gdn_cuda::KernelSource;
/// let source = KernelSource::new("scale", r#"
///     #include "dims.h"
///     struct Scale { float* x; float by; unsigned len; };
///     extern "C" __global__ void scale(const Scale p) {
///         unsigned i = blockIdx.x * THREADS + threadIdx.x;
///         if (i < p.len) p.x[i] *= p.by;
///     }
/// "#)
/// .header("dims.h", "#define THREADS 256\n")
/// .option("--use_fast_math");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSource<'a> {
    pub(crate) name: &'a str,
    pub(crate) text: &'a str,
    pub(crate) headers: Vec<(&'a str, &'a str)>,
    pub(crate) options: Vec<String>,
}

impl<'a> KernelSource<'a> {
    /// The source `text`; `name` appears in the compiler's messages and in cache file names.
    pub fn new(name: &'a str, text: &'a str) -> Self {
        Self { name, text, headers: Vec::new(), options: Vec::new() }
    }

    /// Adds a header that the text includes as `name`.
    #[must_use]
    pub fn header(mut self, name: &'a str, text: &'a str) -> Self {
        self.headers.push((name, text));
        self
    }

    /// Adds a compiler option, such as `-DTILE=64`. The architecture and C++17 are set already.
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Everything the binary depends on, as bytes that no two different sources share.
    pub(crate) fn key(&self, arch: &str, compiler: Version) -> CacheKey {
        let mut text = Vec::with_capacity(self.text.len() + 256);
        let mut put = |part: &str| {
            // The length first, so that no text can pass for the end of one part and the start of
            // the next.
            text.extend_from_slice(&(part.len() as u64).to_le_bytes());
            text.extend_from_slice(part.as_bytes());
        };
        put(arch);
        put(&compiler.to_string());
        put(self.name);
        put(self.text);
        put(&self.headers.len().to_string());
        for (name, header) in &self.headers {
            put(name);
            put(header);
        }
        for option in &self.options {
            put(option);
        }
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }
        };
        let name: String = self.name.chars().take(48).map(plain).collect();
        let file_name = format!("{name}-{arch}-{:032x}.cubin", fnv1a(&[&text]));
        CacheKey { text, file_name }
    }
}

/// What a binary is kept under, in memory and on disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey {
    pub(crate) text: Vec<u8>,
    pub(crate) file_name: String,
}

/// FNV-1a of 128 bits: stable across machines and Rust versions. It names files and finds damage;
/// the cache compares whole keys, so two sources of one hash would do no harm.
pub(crate) fn fnv1a(parts: &[&[u8]]) -> u128 {
    const PRIME: u128 = 0x0000000001000000000000000000013B;
    let mut hash: u128 = 0x6c62272e07bb014262b821756295c58d;
    for &byte in parts.iter().copied().flatten() {
        hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: Version = Version::new(13, 0);

    #[test]
    fn hash_matches_the_published_vectors() {
        assert_eq!(fnv1a(&[]), 0x6c62272e07bb014262b821756295c58d);
        assert_eq!(fnv1a(&[b"a"]), 0xd228cb696f1a8caf78912b704e4a8964);
        assert_eq!(fnv1a(&[b"foo", b"bar"]), 0x343e1662793c64bf6f0d3597ba446f18);
    }

    #[test]
    fn the_key_changes_with_everything_the_binary_depends_on() {
        let base = KernelSource::new("k", "text").header("h", "1").option("-a");
        let keys = [
            base.key("sm_90a", V),
            base.key("sm_80", V),
            base.key("sm_90a", Version::new(13, 1)),
            KernelSource { text: "texT", ..base.clone() }.key("sm_90a", V),
            base.clone().option("-b").key("sm_90a", V),
            base.clone().header("i", "2").key("sm_90a", V),
            KernelSource::new("k", "text").header("h", "2").option("-a").key("sm_90a", V),
            KernelSource::new("k", "text").header("h", "1").option("-b").key("sm_90a", V),
        ];
        for (i, a) in keys.iter().enumerate() {
            for b in &keys[..i] {
                assert_ne!(a.text, b.text);
                assert_ne!(a.file_name, b.file_name);
            }
        }
        assert_eq!(base.key("sm_90a", V), base.clone().key("sm_90a", V));
    }

    #[test]
    fn parts_cannot_be_shifted_between_fields() {
        let options = |a: &str, b: &str| {
            KernelSource::new("k", "t").option(a).option(b).key("sm_90a", V).text
        };
        assert_ne!(options("-ab", "-c"), options("-a", "b-c"));
        let header = KernelSource::new("k", "t").header("a", "b").key("sm_90a", V);
        let option = KernelSource::new("k", "t").option("a").option("b").key("sm_90a", V);
        assert_ne!(header.text, option.text);
    }

    #[test]
    fn file_names_are_plain() {
        let name = KernelSource::new("../a b/ü", "t").key("sm_90a", V).file_name;
        assert!(name.starts_with("---a-b---sm_90a-"), "{name}");
        assert!(name.ends_with(".cubin") && !name.contains(['/', ' ']), "{name}");
    }
}
