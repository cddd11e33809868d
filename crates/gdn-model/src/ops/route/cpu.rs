//! On the CPU.

use crate::math::{sigmoid, softmax};

/// What each row takes: `[T, top_k + 1]`, the shared expert last.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Routes {
    /// -1 in padding.
    pub(crate) experts: Vec<i32>,
    /// 0 in padding.
    pub(crate) shares: Vec<f32>,
}

/// Pairs of a token and a place, number `token * (top_k + 1) + place`, by expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sorted {
    /// Those of an expert ascend.
    pub(crate) order: Vec<i32>,
    /// `[experts + 2]`: where those of an expert start; the last is their number.
    pub(crate) starts: Vec<i32>,
    /// The experts with pairs, ascending.
    pub(crate) active: Vec<i32>,
}

/// For rows of `experts + 1` logits, the last of them the shared expert's gate. The highest
/// logits win, the lower index of equals; NaN is the lowest. Rows of a negative sequence
/// are padding.
pub(crate) fn route(logits: &[f32], sequences: &[i32], top_k: usize, renormalise: bool) -> Routes {
    let mut routes = Routes { experts: Vec::new(), shares: Vec::new() };
    for (row, &sequence) in logits.chunks_exact(logits.len() / sequences.len()).zip(sequences) {
        if sequence < 0 {
            routes.experts.extend(vec![-1; top_k + 1]);
            routes.shares.extend(vec![0.0; top_k + 1]);
            continue;
        }
        let (&gate, logits) = row.split_last().expect("a gate");
        let key = |expert: usize| Some(logits[expert]).filter(|logit| !logit.is_nan());
        let mut order: Vec<usize> = (0..logits.len()).collect();
        // Equals keep their order, as the sort is stable.
        order.sort_by(|&a, &b| key(b).partial_cmp(&key(a)).expect("no NaN"));
        order.truncate(top_k);
        let mut shares = logits.to_vec();
        softmax(&mut shares);
        let sum: f32 = order.iter().map(|&expert| shares[expert]).sum();
        let scale = if renormalise { 1.0 / sum } else { 1.0 };
        routes.shares.extend(order.iter().map(|&expert| shares[expert] * scale));
        routes.shares.push(sigmoid(gate));
        routes.experts.extend(order.iter().map(|&expert| expert as i32));
        routes.experts.push(logits.len() as i32);
    }
    routes
}

/// The pairs of `experts` of `all` (the shared one is among these) by expert.
pub(crate) fn sort(experts: &[i32], all: usize) -> Sorted {
    let mut starts = vec![0; all + 1];
    for &expert in experts.iter().filter(|&&expert| expert >= 0) {
        starts[expert as usize + 1] += 1;
    }
    let taken = |expert: &i32| starts[*expert as usize + 1] > 0;
    let active = (0..all as i32).filter(taken).collect();
    for expert in 0..all {
        starts[expert + 1] += starts[expert];
    }
    let (mut next, mut order) = (starts.clone(), vec![0; starts[all] as usize]);
    for (pair, &expert) in experts.iter().enumerate().filter(|(_, expert)| **expert >= 0) {
        order[next[expert as usize] as usize] = pair as i32;
        next[expert as usize] += 1;
    }
    Sorted { order, starts, active }
}
