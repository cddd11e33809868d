//! Names that nobody has yet, and the time.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// A name such as `cmpl-1f..`, another one each time.
pub(crate) fn unique(prefix: &str) -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(random);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}-{:016x}{:08x}", *PROCESS, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Another number each time: the standard library seeds its hash maps so.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
