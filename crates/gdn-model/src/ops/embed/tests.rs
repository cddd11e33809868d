use gdn::DType;

use super::{cpu, cuda};
use crate::{math::Math, ops::testing::*};

#[test]
fn rows_are_those_of_the_table() {
    for gpu in gpus(DType::BF16) {
        for (vocab, hidden) in [(7, 64), (5, 2560)] {
            let table = rounded(&random(1, vocab * hidden));
            for tokens in [&[3][..], &[0, vocab as i32 - 1, 3, 3, -1, vocab as i32]] {
                let len = tokens.len() * hidden;
                let on = (upload(&gpu, &table), upload(&gpu, tokens));
                let x = upload(&gpu, &vec![f32::NAN; len]);
                let params = cuda::Params {
                    x: x.address(),
                    table: on.0.address(),
                    tokens: on.1.address(),
                    rows: tokens.len() as u32,
                    vocab: vocab as u32,
                };
                cuda::embed(&gpu, hidden, params).unwrap();
                let mut expected = vec![f32::NAN; len];
                cpu::embed(Math::new(true), tokens, &table, hidden, &mut expected);
                assert_eq!(download::<f32>(&x, len), expected);
                for (row, &token) in expected.chunks(hidden).zip(tokens) {
                    for (i, &x) in row.iter().enumerate() {
                        let inside = (0..vocab as i32).contains(&token);
                        let value = inside.then(|| table[token as usize * hidden + i].to_f32());
                        assert_eq!(x, value.unwrap_or(0.0));
                    }
                }
            }
        }
    }
}
