//! What to measure, and how many slots keep its state cold.

use clap::ValueEnum;
use gdn::{ErrorKind, LayerSpec};
use indicatif::BinaryBytes;

use crate::{
    cli::{BenchArgs, Preset, ShapeArgs},
    machine::Machine,
    output::Usage,
};

/// Where the machine does not say how large its caches are.
const DEFAULT_CACHE: u64 = 64 << 20;

/// Where it does not say how much memory it has.
const DEFAULT_MEMORY: u64 = 4 << 30;

/// The memory that state lies in, and the cache before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) cache_bytes: u64,
    pub(super) available_bytes: u64,
    /// Pool over cache: caches don't evict strictly the oldest.
    pub(super) cold_factor: u64,
    /// Batches that the pool holds at least: launches of a GPU that may overlap
    /// must not meet on a slot.
    pub(super) batches: usize,
}

impl Memory {
    /// The host's.
    pub(super) fn host(machine: &Machine) -> Self {
        Self {
            cache_bytes: machine.last_level_cache_bytes.unwrap_or(DEFAULT_CACHE),
            available_bytes: machine.available_memory_bytes.unwrap_or(DEFAULT_MEMORY),
            cold_factor: 2,
            batches: 1,
        }
    }
}

impl Preset {
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value().expect("no preset is skipped");
        value.get_name().to_owned()
    }

    /// H, HV, K, V.
    fn heads(self) -> Option<[usize; 4]> {
        match self {
            Self::Qwen35B | Self::QwenNext80B => Some([16, 32, 128, 128]),
            Self::Qwen27B => Some([16, 48, 128, 128]),
            Self::Custom => None,
        }
    }
}

/// A checked request.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) spec: LayerSpec,
    /// N, the slots of the pool.
    pub(super) slots: usize,
    /// The blocks of a slot's size in each buffer of the copy.
    pub(super) copy_blocks: usize,
    /// The recurrent state of a slot.
    pub(super) slot_bytes: u64,
    pub(super) cache_bytes: u64,
}

impl Plan {
    pub(super) fn new(args: &BenchArgs, memory: Memory) -> Result<Self, Usage> {
        let spec = spec(&args.shape)?;
        let largest = *args.batch_sizes.iter().max().expect("clap asks for one");
        let Memory { cache_bytes, available_bytes: memory, cold_factor, batches } = memory;
        let held = largest.saturating_mul(batches);
        let bytes = |len: usize, size: usize| (len as u64).saturating_mul(size as u64);
        let slot_bytes = bytes(spec.state_len(), args.state_dtype.size());

        let slots = match args.pool_size {
            Some(slots) if slots < held => {
                return Err(Usage(format!(
                    "--pool-size {slots}: batches of {largest} need {held} slots; \
                     raise --pool-size or lower --batch-sizes"
                )));
            }
            Some(slots) => slots,
            None if args.warm => held,
            None => {
                let cold = cache_bytes.saturating_mul(cold_factor).div_ceil(slot_bytes);
                let affordable = (memory / 4 / slot_bytes).max(1);
                held.max(cold.min(affordable) as usize)
            }
        };
        let copy_blocks = largest.max(slots / 2);
        let conv_bytes = bytes(spec.conv_len(), args.dtype.size());
        let needed = (slots as u64)
            .saturating_mul(slot_bytes.saturating_add(conv_bytes))
            .saturating_add(slot_bytes.saturating_mul(2).saturating_mul(copy_blocks as u64));
        if needed > memory {
            return Err(Usage(format!(
                "{slots} slots and the buffers of the copy take {}, but {} of memory are \
                 available; lower --batch-sizes or --pool-size",
                BinaryBytes(needed),
                BinaryBytes(memory)
            )));
        }
        Ok(Self { spec, slots, copy_blocks, slot_bytes, cache_bytes })
    }

    /// The recurrent state of the whole pool.
    pub(super) fn state_bytes(&self) -> u64 {
        self.slots as u64 * self.slot_bytes
    }

    /// Whether a slot has left the cache when its turn comes again.
    pub(super) fn is_cold(&self) -> bool {
        self.state_bytes() > self.cache_bytes
    }
}

/// The layer that preset and head flags ask for.
fn spec(args: &ShapeArgs) -> Result<LayerSpec, Usage> {
    let flags = [
        ("--num-q-heads", args.num_q_heads),
        ("--num-v-heads", args.num_v_heads),
        ("--head-size-k", args.head_size_k),
        ("--head-size-v", args.head_size_v),
    ];
    let mut heads = args.preset.heads().unwrap_or_default();
    let mut missing = Vec::new();
    for (head, (flag, value)) in heads.iter_mut().zip(flags) {
        match value {
            Some(value) => *head = value,
            None if *head == 0 => missing.push(flag),
            None => {}
        }
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(Usage(format!("--preset custom also needs {missing}")));
    }
    let [q_heads, v_heads, head_k, head_v] = heads;
    LayerSpec::new(q_heads, v_heads, head_k, head_v).map_err(|error| {
        Usage(match error.kind() {
            ErrorKind::HeadRatio { .. } => format!(
                "--num-v-heads {v_heads} is not a multiple of --num-q-heads {q_heads}: \
                 as many value heads must share each query/key head"
            ),
            _ => format!("--num-v-heads, --head-size-k and --head-size-v are too large: {error}"),
        })
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn plan(flags: &str, cache: u64, memory: u64) -> Result<Plan, Usage> {
        let args = ["gdn", "bench"].into_iter().chain(flags.split_whitespace());
        let Command::Bench(args) = Cli::parse_from(args).command else { unreachable!() };
        let machine = Machine {
            last_level_cache_bytes: Some(cache),
            available_memory_bytes: Some(memory),
            ..Machine::probe()
        };
        Plan::new(&args, Memory::host(&machine))
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_pool_is_twice_the_cache() {
        // A slot of the default preset holds 2 MiB of f32 state.
        let plan = plan("--batch-sizes 4", 32 * MIB, 4096 * MIB).unwrap();
        assert_eq!((plan.slots, plan.copy_blocks), (32, 16));
        assert!(plan.is_cold());
    }

    #[test]
    fn the_pool_is_bounded_by_memory() {
        let plan = plan("--batch-sizes 4", 400 * MIB, 1024 * MIB).unwrap();
        assert_eq!(plan.slots, 128);
        assert!(!plan.is_cold());
    }

    #[test]
    fn warm_state_needs_no_more_than_a_batch() {
        assert_eq!(plan("--batch-sizes 2,4 --warm", 32 * MIB, 4096 * MIB).unwrap().slots, 4);
    }

    #[test]
    fn the_largest_batch_fits() {
        assert_eq!(plan("--batch-sizes 4,100", MIB, 4096 * MIB).unwrap().slots, 100);
    }

    #[test]
    fn too_much_is_refused() {
        let error = plan("--batch-sizes 1024", MIB, 4096 * MIB).unwrap_err().to_string();
        assert!(error.contains("--batch-sizes"), "{error}");
        let flags = "--num-v-heads 1152921504606846976";
        let error = plan(flags, MIB, 4096 * MIB).unwrap_err().to_string();
        assert!(error.contains("--num-v-heads"), "{error}");
        plan("--pool-size 18446744073709551615", MIB, 4096 * MIB).unwrap_err();
    }

    #[test]
    fn head_flags_override_the_preset() {
        let plan = plan("--num-q-heads 8 --head-size-v 64", MIB, 4096 * MIB).unwrap();
        assert_eq!(plan.spec, LayerSpec::new(8, 32, 128, 64).unwrap());
    }
}
