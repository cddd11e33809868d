use gdn::DType;

use super::cuda::{Part, slots};
use crate::ops::testing::*;

#[test]
fn parts_are_filled_and_copied_and_nothing_else() {
    for gpu in gpus(DType::BF16) {
        let from: Vec<u16> = (0..400_000).map(|i| (i * 7 + 1) as u16).collect();
        let (source, target) = (upload(&gpu, &from), upload(&gpu, &vec![9u16; from.len()]));
        // More than a launch takes: aligned and not, empty, one longer than a CTA's share.
        let mut expected = vec![9u16; from.len()];
        let mut parts = Vec::new();
        let mut at = 0;
        for n in 0..150 {
            let len = if n == 70 { 200_000 } else { [0, 1, 8, 1000, 4096][n % 5] };
            let copies = n % 3 != 0;
            parts.push(Part {
                to: target.address() + 2 * at as u64,
                from: if copies { source.address() + 2 * at as u64 } else { 0 },
                bytes: 2 * len as u64,
            });
            let to = at..at + len;
            match copies {
                true => expected[to.clone()].copy_from_slice(&from[to]),
                false => expected[to].fill(0),
            }
            at += len + n % 2;
        }
        assert!(at < from.len());
        slots(&gpu, &parts).unwrap();
        assert_eq!(download::<u16>(&target, from.len()), expected);
    }
}
