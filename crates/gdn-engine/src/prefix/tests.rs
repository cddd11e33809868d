use proptest::prelude::*;

use super::*;

/// The same by comparing everything.
#[derive(Default)]
struct Plain {
    /// The one that was used last comes last.
    entries: Vec<(Vec<u32>, u32)>,
}

impl Plain {
    fn use_at(&mut self, index: usize) {
        let entry = self.entries.remove(index);
        self.entries.push(entry);
    }

    fn find(&mut self, prompt: &[u32]) -> (Option<(u32, usize)>, usize) {
        let shared = self.entries.iter().map(|(t, _)| common(t, prompt)).max().unwrap_or(0);
        let fits = |t: &[u32]| t.len() < prompt.len() && prompt.starts_with(t);
        let indices = (0..self.entries.len()).filter(|&i| fits(&self.entries[i].0));
        let best = indices.max_by_key(|&i| self.entries[i].0.len());
        let found = best.map(|i| (self.entries[i].1, self.entries[i].0.len()));
        best.into_iter().for_each(|i| self.use_at(i));
        (found, shared)
    }

    fn insert(&mut self, tokens: Vec<u32>, value: u32, capacity: usize) {
        if capacity == 0 {
            return;
        }
        if let Some(index) = self.entries.iter().position(|(t, _)| *t == tokens) {
            return self.use_at(index);
        }
        if self.entries.len() == capacity {
            self.entries.remove(0);
        }
        self.entries.push((tokens, value));
    }
}

#[derive(Clone, Debug)]
enum Action {
    Find(Vec<u32>),
    Insert(Vec<u32>),
    Evict,
}

fn action() -> impl Strategy<Value = Action> {
    // Few tokens, so that much is shared.
    let tokens = || prop::collection::vec(0u32..2, 1..9);
    prop_oneof![
        4 => tokens().prop_map(Action::Find),
        4 => tokens().prop_map(Action::Insert),
        1 => Just(Action::Evict),
    ]
}

proptest! {
    #[test]
    fn as_comparing_everything(
        capacity in 0usize..6,
        actions in prop::collection::vec(action(), 1..80),
    ) {
        let (mut cache, mut plain) = (PrefixCache::new(capacity), Plain::default());
        for (value, action) in actions.into_iter().enumerate() {
            match action {
                Action::Find(prompt) => {
                    let Found { sequence, shared } = cache.find(&prompt);
                    let found = (sequence.map(|(&value, len)| (value, len)), shared);
                    prop_assert_eq!(found, plain.find(&prompt));
                }
                Action::Insert(tokens) => {
                    cache.insert(tokens.clone(), value as u32);
                    plain.insert(tokens, value as u32, capacity);
                }
                Action::Evict => {
                    prop_assert_eq!(cache.evict(), !plain.entries.is_empty());
                    plain.entries.drain(..plain.entries.len().min(1));
                }
            }
            prop_assert_eq!(cache.len(), plain.entries.len());
            prop_assert!(cache.len() <= capacity);
        }
        while cache.evict() {}
        prop_assert!(cache.root.is_empty(), "no node without an entry below it is left");
    }
}
