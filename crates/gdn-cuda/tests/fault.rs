//! A kernel that faults. In a file of its own, since its process loses the GPU.

#![allow(unsafe_code, clippy::print_stdout)]

use gdn_cuda::{DevicePtr, ErrorKind};

mod common;

#[test]
fn a_fault_of_a_kernel_is_a_value_and_is_told_from_a_refusal() {
    let Some(rig) = common::Rig::new() else {
        return;
    };
    let bad = DevicePtr::from_address(0x10);
    let params = common::Axpy { x: bad, y: bad, a: 1.0, len: 1 };
    // SAFETY: none: the kernel reads a bad address, which the GPU catches. Nothing of this
    // process relies on the GPU afterwards.
    unsafe { rig.axpy.launch(&rig.stream, &common::shape(1), &params) }.unwrap();
    let e = rig.stream.synchronize().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DeviceLost, "{e}");
    assert!(e.to_string().contains("restart the process"), "{e}");
    println!("{e}");
    // What is left is dropped without a panic.
}
