//! What prompts and answers left behind, by their tokens.

use std::collections::{BTreeMap, HashMap};

/// Sequences by their tokens, in a radix tree. The one that was not used for longest goes
/// first.
#[derive(Debug)]
pub(crate) struct PrefixCache<S> {
    root: Node<S>,
    /// The tokens of each entry, by when it was used last.
    used: BTreeMap<u64, Vec<u32>>,
    clock: u64,
    capacity: usize,
}

/// What the tokens on the way to it have in common.
#[derive(Debug)]
struct Node<S> {
    entry: Option<Entry<S>>,
    /// By the first token of the edge.
    edges: HashMap<u32, Edge<S>>,
}

#[derive(Debug)]
struct Edge<S> {
    /// At least one.
    tokens: Vec<u32>,
    to: Node<S>,
}

#[derive(Debug)]
struct Entry<S> {
    sequence: S,
    used: u64,
}

/// What is known of a prompt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found<'a, S> {
    /// A sequence of its first tokens, and how many they are: less than all.
    pub(crate) sequence: Option<(&'a S, usize)>,
    /// The first tokens that another one has too; there need not be a sequence of them.
    pub(crate) shared: usize,
}

impl<S> Default for Node<S> {
    fn default() -> Self {
        Self { entry: None, edges: HashMap::new() }
    }
}

impl<S> Node<S> {
    fn is_empty(&self) -> bool {
        self.entry.is_none() && self.edges.is_empty()
    }

    /// The node of these tokens, made if there is none.
    fn at(&mut self, tokens: &[u32]) -> &mut Self {
        let Some(first) = tokens.first() else { return self };
        let edge = self
            .edges
            .entry(*first)
            .or_insert_with(|| Edge { tokens: tokens.to_vec(), to: Self::default() });
        let same = common(&edge.tokens, tokens);
        if same < edge.tokens.len() {
            edge.split(same);
        }
        edge.to.at(&tokens[same..])
    }

    /// Takes the entry of these tokens, and nodes that lead nowhere then.
    fn remove(&mut self, tokens: &[u32]) -> Option<Entry<S>> {
        let Some(first) = tokens.first() else { return self.entry.take() };
        let edge = self.edges.get_mut(first)?;
        let rest = tokens.strip_prefix(&edge.tokens[..])?;
        let entry = edge.to.remove(rest);
        if edge.to.is_empty() {
            self.edges.remove(first);
        } else if edge.to.entry.is_none() && edge.to.edges.len() == 1 {
            edge.join();
        }
        entry
    }
}

impl<S> Edge<S> {
    /// Puts a node behind the first `len` tokens.
    fn split(&mut self, len: usize) {
        let rest = self.tokens.split_off(len);
        let to = std::mem::take(&mut self.to);
        self.to.edges.insert(rest[0], Self { tokens: rest, to });
    }

    /// The reverse of it.
    fn join(&mut self) {
        let edges = std::mem::take(&mut self.to.edges);
        for next in edges.into_values() {
            self.tokens.extend(next.tokens);
            self.to = next.to;
        }
    }
}

impl<S> PrefixCache<S> {
    /// For so many sequences.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { root: Node::default(), used: BTreeMap::new(), clock: 0, capacity }
    }

    pub(crate) fn len(&self) -> usize {
        self.used.len()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether there is a sequence of exactly these tokens; it counts as used.
    pub(crate) fn touch(&mut self, tokens: &[u32]) -> bool {
        let (clock, used) = (&mut self.clock, &mut self.used);
        let mut node = &mut self.root;
        let mut rest = tokens;
        while let Some(first) = rest.first() {
            let Some(edge) = node.edges.get_mut(first) else { return false };
            let Some(behind) = rest.strip_prefix(&edge.tokens[..]) else { return false };
            (node, rest) = (&mut edge.to, behind);
        }
        let Some(entry) = &mut node.entry else { return false };
        *clock += 1;
        if let Some(tokens) = used.remove(&entry.used) {
            used.insert(*clock, tokens);
        }
        entry.used = *clock;
        true
    }

    /// What is known of a prompt; the sequence counts as used.
    pub(crate) fn find(&mut self, prompt: &[u32]) -> Found<'_, S> {
        let (mut longest, mut shared) = (None, 0);
        let mut node = &self.root;
        loop {
            if node.entry.is_some() && shared < prompt.len() {
                longest = Some(shared);
            }
            let rest = &prompt[shared..];
            let Some(edge) = rest.first().and_then(|first| node.edges.get(first)) else { break };
            let same = common(&edge.tokens, rest);
            shared += same;
            if same < edge.tokens.len() {
                break;
            }
            node = &edge.to;
        }
        let Some(len) = longest else { return Found { sequence: None, shared } };
        self.touch(&prompt[..len]);
        let entry = self.root.at(&prompt[..len]).entry.as_ref();
        Found { sequence: entry.map(|entry| (&entry.sequence, len)), shared }
    }

    /// Keeps a sequence of these tokens, in the place of the oldest if there are as many as
    /// may be.
    pub(crate) fn insert(&mut self, tokens: Vec<u32>, sequence: S) {
        if self.capacity == 0 || self.touch(&tokens) {
            return;
        }
        while self.len() >= self.capacity {
            self.evict();
        }
        self.clock += 1;
        self.root.at(&tokens).entry = Some(Entry { sequence, used: self.clock });
        self.used.insert(self.clock, tokens);
    }

    /// Lets go of the sequence that was not used for longest; whether there was one.
    pub(crate) fn evict(&mut self) -> bool {
        let Some((_, tokens)) = self.used.pop_first() else { return false };
        self.root.remove(&tokens);
        true
    }
}

/// How many of the first tokens are the same.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
