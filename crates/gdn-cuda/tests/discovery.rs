//! What a machine without CUDA, or without the GPU asked for, gets to hear.

#![allow(unsafe_code, clippy::print_stdout)]

use gdn_cuda::{Device, Driver, ErrorKind};

mod common;

#[test]
fn a_missing_driver_is_a_value_that_says_what_to_do() {
    match Driver::load() {
        Ok(driver) => {
            for info in driver.devices().unwrap() {
                println!("{info:#?}\npeak {:?} B/s", info.peak_bytes_per_second());
                assert!(info.multiprocessors > 0 && info.memory_bytes > 1 << 30);
                assert!(info.l2_bytes > 0 && info.max_block_shared_bytes >= 48 << 10);
            }
        }
        Err(e) => {
            let known = [ErrorKind::NoDriver, ErrorKind::NoDevice, ErrorKind::DriverTooOld];
            assert!(known.contains(&e.kind()), "{e:?}");
            assert!(e.to_string().contains("nvidia-smi") || e.to_string().contains("install"));
            // Asking again is no different.
            assert_eq!(Driver::load().unwrap_err().kind(), e.kind());
            assert_eq!(Device::open(0).unwrap_err().kind(), e.kind());
        }
    }
}

#[test]
fn a_gpu_that_is_not_there_is_a_value_too() {
    let Some(device) = common::device() else {
        return;
    };
    let e = Device::open(99).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NoDevice);
    assert!(e.to_string().contains("no GPU number 99"), "{e}");
    let memory = device.memory().unwrap();
    assert!(0 < memory.free && memory.free <= memory.total);
}
