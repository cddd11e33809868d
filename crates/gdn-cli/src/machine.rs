//! What the machine says of itself.

use std::{collections::HashMap, env::consts, fs, path::Path};

use serde::Serialize;

/// The parts of a machine that decide how fast decode is.
#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    /// Hardware threads that this process may use.
    pub(crate) cores: usize,
    /// All last-level caches together; `None` where the system does not say.
    pub(crate) last_level_cache_bytes: Option<u64>,
    /// Memory that can be used without swapping; `None` as above.
    pub(crate) available_memory_bytes: Option<u64>,
    pub(crate) os: &'static str,
    pub(crate) arch: &'static str,
}

impl Machine {
    /// Asks the operating system. Only Linux is asked for more than the number
    /// of cores.
    pub(crate) fn probe() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let model = cpu_model(&read("/proc/cpuinfo"));
        Self {
            cpu: model.unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            last_level_cache_bytes: last_level_cache(Path::new("/sys/devices/system/cpu")),
            available_memory_bytes: available_memory(&read("/proc/meminfo")),
            os: consts::OS,
            arch: consts::ARCH,
        }
    }
}

/// The model in the text of `/proc/cpuinfo`.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The bytes of `MemAvailable` in the text of `/proc/meminfo`.
fn available_memory(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The bytes of all caches of the last level, each counted once: threads may
/// run on any core, so state is cold only if it fits none of them.
fn last_level_cache(cpus: &Path) -> Option<u64> {
    let mut caches = HashMap::new();
    for cpu in fs::read_dir(cpus).ok()?.flatten() {
        let Ok(indices) = fs::read_dir(cpu.path().join("cache")) else { continue };
        for index in indices.flatten() {
            let read = |file: &str| fs::read_to_string(index.path().join(file)).ok();
            let cache = || -> Option<_> {
                let level: u32 = read("level")?.trim().parse().ok()?;
                Some(((level, read("shared_cpu_list")?), cache_size(read("size")?.trim())?))
            };
            caches.extend(cache());
        }
    }
    let last = caches.keys().map(|(level, _)| *level).max()?;
    Some(caches.iter().filter(|((level, _), _)| *level == last).map(|(_, size)| size).sum())
}

/// The bytes of a size as "480K" or "32M".
fn cache_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_read() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9B14: fast\nflags\t: fpu\n";
        assert_eq!(cpu_model(text).as_deref(), Some("AMD EPYC 9B14: fast"));
        assert_eq!(cpu_model("processor : 0\n"), None);
    }

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       24684096 kB\nMemAvailable:   1000 kB\n";
        assert_eq!(available_memory(text), Some(1_024_000));
        assert_eq!(available_memory(""), None);
    }

    #[test]
    fn cache_sizes_are_read() {
        assert_eq!(cache_size("48K"), Some(49_152));
        assert_eq!(cache_size("32M"), Some(33_554_432));
        assert_eq!(cache_size("512"), Some(512));
        assert_eq!(cache_size("12X"), None);
        assert_eq!(cache_size(""), None);
    }

    #[test]
    fn each_last_level_cache_counts_once() {
        let root = tempfile::tempdir().unwrap();
        let caches = [
            ("cpu0/cache/index0", "1", "0", "48K"),
            ("cpu0/cache/index3", "3", "0-1", "16M"),
            ("cpu1/cache/index3", "3", "0-1", "16M"),
            ("cpu2/cache/index3", "3", "2", "8M"),
        ];
        for (directory, level, shared, size) in caches {
            let directory = root.path().join(directory);
            fs::create_dir_all(&directory).unwrap();
            for (file, text) in [("level", level), ("shared_cpu_list", shared), ("size", size)] {
                fs::write(directory.join(file), format!("{text}\n")).unwrap();
            }
        }
        assert_eq!(last_level_cache(root.path()), Some(24 << 20));
        assert_eq!(last_level_cache(&root.path().join("absent")), None);
    }
}
