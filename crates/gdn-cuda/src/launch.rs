//! How a kernel is launched, and what a device and a kernel can take.

use crate::error::{Error, Result};

/// The shape of a launch: grid, block, dynamic shared memory, and two options of newer GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct LaunchConfig {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) cluster: Option<[u32; 3]>,
    pub(crate) overlap: bool,
}

impl LaunchConfig {
    /// `grid` blocks of `block` threads each, along x, y and z.
    pub const fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Self { grid, block, shared_bytes: 0, cluster: None, overlap: false }
    }

    /// `blocks` blocks of `threads` threads each, along x alone.
    pub const fn linear(blocks: u32, threads: u32) -> Self {
        Self::new([blocks, 1, 1], [threads, 1, 1])
    }

    /// Dynamic shared memory of each block, in bytes. Above 48 KiB the kernel is opted in by
    /// itself, once.
    pub const fn shared_bytes(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// Blocks of one cluster along x, y and z: they run at once and see each other's shared
    /// memory. Needs compute capability 9.0. Up to 8 blocks run on every such GPU; up to 16 are
    /// allowed where the GPU has the room.
    pub const fn cluster(mut self, blocks: [u32; 3]) -> Self {
        self.cluster = Some(blocks);
        self
    }

    /// Programmatic dependent launch: lets this kernel start while the one before it on the stream
    /// still runs. The kernel must execute `griddepcontrol.wait` before it touches what the one
    /// before writes, or writes what the one before reads. Needs compute capability 9.0.
    pub const fn overlap_previous(mut self) -> Self {
        self.overlap = true;
        self
    }

    /// Checks this shape against `limits`.
    ///
    /// # Errors
    /// [`InvalidLaunch`](crate::ErrorKind::InvalidLaunch), naming the part that does not fit.
    #[inline]
    pub fn check(&self, limits: &LaunchLimits) -> Result<()> {
        let inside = |dims: &[u32; 3], max: &[u32; 3]| {
            dims.iter().zip(max).all(|(&n, &most)| n >= 1 && n <= most)
        };
        let threads = count(&self.block);
        let fits = inside(&self.grid, &limits.max_grid)
            && inside(&self.block, &limits.max_block)
            && threads <= u64::from(limits.max_block_threads)
            && self.shared_bytes <= limits.max_shared_bytes
            && (!self.overlap || limits.clusters)
            && self.cluster.is_none_or(|cluster| {
                let whole = cluster.iter().zip(&self.grid).all(|(&c, &g)| c >= 1 && g % c == 0);
                limits.clusters && whole && count(&cluster) <= MAX_CLUSTER
            });
        if fits { Ok(()) } else { Err(self.refusal(limits)) }
    }

    #[cold]
    fn refusal(&self, limits: &LaunchLimits) -> Error {
        for (what, dims, max) in
            [("grid", &self.grid, &limits.max_grid), ("block", &self.block, &limits.max_block)]
        {
            for axis in 0..3 {
                if dims[axis] == 0 || dims[axis] > max[axis] {
                    return Error::launch(format!(
                        "{what} {dims:?} has {} along {}, and 1 to {} are allowed",
                        dims[axis],
                        ["x", "y", "z"][axis],
                        max[axis]
                    ));
                }
            }
        }
        let threads = count(&self.block);
        if threads > u64::from(limits.max_block_threads) {
            return Error::launch(format!(
                "block {:?} has {threads} threads, and this kernel takes at most {} (its registers \
                 and launch bounds decide)",
                self.block, limits.max_block_threads
            ));
        }
        if self.shared_bytes > limits.max_shared_bytes {
            return Error::launch(format!(
                "{} bytes of dynamic shared memory wanted, and this kernel can have at most {}",
                self.shared_bytes, limits.max_shared_bytes
            ));
        }
        if !limits.clusters {
            let what = if self.overlap { "programmatic dependent launch" } else { "clusters" };
            return Error::launch(format!("{what} need a GPU of compute capability 9.0 or newer"));
        }
        let cluster = self.cluster.unwrap_or([1; 3]);
        if count(&cluster) > MAX_CLUSTER {
            return Error::launch(format!(
                "cluster {cluster:?} has {} blocks, and at most {MAX_CLUSTER} are allowed",
                count(&cluster)
            ));
        }
        Error::launch(format!(
            "cluster {cluster:?} does not divide grid {:?} along every axis",
            self.grid
        ))
    }
}

/// The largest cluster that any GPU takes, in blocks; above [`PORTABLE_CLUSTER`] a kernel opts in.
const MAX_CLUSTER: u64 = 16;

/// The largest cluster that every GPU with clusters takes, in blocks.
pub(crate) const PORTABLE_CLUSTER: u64 = 8;

/// Product of three dimensions; cannot wrap, since all but one axis are small where it matters.
pub(crate) fn count(dims: &[u32; 3]) -> u64 {
    dims.iter().fold(1u64, |n, &d| n.saturating_mul(u64::from(d)))
}

/// What one kernel on one GPU can take; see [`Function::limits`](crate::Function::limits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaunchLimits {
    /// Blocks of a grid along x, y and z.
    pub max_grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub max_block: [u32; 3],
    /// Threads of a block, as the kernel's registers and launch bounds allow.
    pub max_block_threads: u32,
    /// Dynamic shared memory of a block, in bytes: the GPU's limit less the kernel's static part.
    pub max_shared_bytes: u32,
    /// Whether the GPU has clusters and programmatic dependent launch.
    pub clusters: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const HOPPER: LaunchLimits = LaunchLimits {
        max_grid: [i32::MAX as u32, 65535, 65535],
        max_block: [1024, 1024, 64],
        max_block_threads: 512,
        max_shared_bytes: 227 * 1024 - 1024,
        clusters: true,
    };
    const AMPERE: LaunchLimits = LaunchLimits { clusters: false, ..HOPPER };

    fn refused(config: LaunchConfig, limits: &LaunchLimits, part: &str) {
        let e = config.check(limits).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidLaunch);
        assert!(e.to_string().contains(part), "`{e}` lacks `{part}`");
    }

    #[test]
    fn what_fits_passes() {
        for config in [
            LaunchConfig::linear(1, 1),
            LaunchConfig::linear(i32::MAX as u32, 512),
            LaunchConfig::new([1, 65535, 65535], [8, 8, 8]).shared_bytes(226 * 1024),
            LaunchConfig::new([8, 6, 1], [128, 1, 1]).cluster([4, 2, 1]).overlap_previous(),
            LaunchConfig::linear(16, 32).cluster([16, 1, 1]),
        ] {
            config.check(&HOPPER).unwrap();
        }
        LaunchConfig::linear(1, 512).check(&AMPERE).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_named() {
        refused(LaunchConfig::linear(0, 32), &HOPPER, "grid [0, 1, 1] has 0 along x");
        refused(LaunchConfig::linear(1, 0), &HOPPER, "block [0, 1, 1] has 0 along x");
        refused(LaunchConfig::new([1, 65536, 1], [1; 3]), &HOPPER, "has 65536 along y");
        refused(LaunchConfig::new([1; 3], [1, 1, 65]), &HOPPER, "has 65 along z");
        refused(
            LaunchConfig::linear(1, 513),
            &HOPPER,
            "513 threads, and this kernel takes at most 512",
        );
        refused(LaunchConfig::new([1; 3], [1024, 1024, 64]), &HOPPER, "67108864 threads");
        let shared = LaunchConfig::linear(1, 32).shared_bytes(226 * 1024 + 1);
        refused(shared, &HOPPER, "231425 bytes of dynamic shared memory wanted");
    }

    #[test]
    fn clusters_divide_the_grid_and_need_a_new_gpu() {
        let config = LaunchConfig::linear(6, 32);
        refused(config.cluster([4, 1, 1]), &HOPPER, "does not divide grid [6, 1, 1]");
        refused(config.cluster([2, 0, 1]), &HOPPER, "does not divide");
        refused(LaunchConfig::linear(32, 32).cluster([32, 1, 1]), &HOPPER, "has 32 blocks");
        refused(config.cluster([2, 1, 1]), &AMPERE, "clusters need a GPU");
        refused(config.overlap_previous(), &AMPERE, "programmatic dependent launch need");
    }
}
