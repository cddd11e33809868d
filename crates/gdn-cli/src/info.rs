//! `gdn info`: what there is to run on.

use std::io::Write;

use gdn::Cpu;
use gdn_cuda::{Compiler, DeviceInfo, Driver};
use indicatif::BinaryBytes;
use serde::Serialize;

use crate::{cli::InfoArgs, machine::Machine};

#[derive(Serialize)]
struct Info {
    version: &'static str,
    backends: Vec<BackendInfo>,
    /// Accelerators that a backend could open.
    devices: Vec<String>,
    machine: Machine,
}

#[derive(Serialize)]
struct BackendInfo {
    name: &'static str,
    available: bool,
    /// What it runs on, or why it can't be had.
    detail: String,
    simd: Option<&'static str>,
    threads: Option<usize>,
}

pub(crate) fn run(args: &InfoArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let cpu = Cpu::new()?;
    let devices = Driver::load().and_then(|driver| driver.devices());
    let cuda = match &devices {
        Ok(devices) if devices.is_empty() => Err("the driver shows no GPU".to_owned()),
        Ok(_) => Compiler::find()
            .map(|c| format!("kernels by NVRTC {}", c.version()))
            .map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let info = Info {
        version: env!("CARGO_PKG_VERSION"),
        backends: vec![
            BackendInfo {
                name: "cpu",
                available: true,
                detail: format!("{}, {} threads", cpu.simd_level(), cpu.threads()),
                simd: Some(cpu.simd_level()),
                threads: Some(cpu.threads()),
            },
            BackendInfo {
                name: "cuda",
                available: cuda.is_ok(),
                detail: cuda.unwrap_or_else(|why| why),
                simd: None,
                threads: None,
            },
        ],
        devices: devices.unwrap_or_default().iter().map(describe).collect(),
        machine: Machine::probe(),
    };
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&info)?)?;
    } else {
        print(&info, out)?;
    }
    Ok(())
}

fn describe(device: &DeviceInfo) -> String {
    format!(
        "cuda:{}  {}, compute capability {}, {} multiprocessors, {}, CUDA {}",
        device.ordinal,
        device.name,
        device.compute_capability,
        device.multiprocessors,
        BinaryBytes(device.memory_bytes as u64),
        device.driver_version,
    )
}

fn print(info: &Info, out: &mut impl Write) -> std::io::Result<()> {
    let Machine { cpu, cores, last_level_cache_bytes, available_memory_bytes, os, arch } =
        &info.machine;
    let bytes = |count: &Option<u64>| match count {
        Some(count) => BinaryBytes(*count).to_string(),
        None => "unknown".to_owned(),
    };
    writeln!(out, "gdn {} on {os} {arch}", info.version)?;
    writeln!(out)?;
    writeln!(out, "backends")?;
    for backend in &info.backends {
        writeln!(out, "  {:<6} {}", backend.name, backend.detail)?;
    }
    writeln!(out, "devices")?;
    if info.devices.is_empty() {
        writeln!(out, "  none")?;
    }
    for device in &info.devices {
        writeln!(out, "  {device}")?;
    }
    writeln!(out, "machine")?;
    writeln!(out, "  {:<18} {cpu}", "CPU")?;
    writeln!(out, "  {:<18} {cores}", "hardware threads")?;
    writeln!(out, "  {:<18} {}", "last-level cache", bytes(last_level_cache_bytes))?;
    writeln!(out, "  {:<18} {}", "memory available", bytes(available_memory_bytes))
}
