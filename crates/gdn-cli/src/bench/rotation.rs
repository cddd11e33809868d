//! Which slots each call works on.

use rand::{Rng, seq::SliceRandom};

/// Slots in shuffled order, handed out in turn; or the same ones every time.
#[derive(Debug)]
pub(super) struct Rotation {
    /// All slots twice: any number of them lies in one piece from any start.
    slots: Vec<i32>,
    next: usize,
    fixed: bool,
}

impl Rotation {
    pub(super) fn new(slots: usize, fixed: bool, rng: &mut impl Rng) -> Self {
        let mut slots: Vec<i32> = (0..slots as i32).collect();
        slots.shuffle(rng);
        slots.extend_from_within(..);
        Self { slots, next: 0, fixed }
    }

    /// The next `rows` slots, no two alike.
    pub(super) fn next(&mut self, rows: usize) -> &[i32] {
        let start = self.next;
        if !self.fixed {
            self.next = (start + rows) % (self.slots.len() / 2);
        }
        &self.slots[start..start + rows]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn slots_rotate_through_the_whole_pool() {
        let mut rotation = Rotation::new(7, false, &mut SmallRng::seed_from_u64(1));
        let first = rotation.next(3).to_vec();
        let second = rotation.next(3).to_vec();
        let third = rotation.next(3).to_vec();
        let all: HashSet<_> = first.iter().chain(&second).chain(&third[..1]).collect();
        assert_eq!(all.len(), 7, "no slot comes twice before all have come");
        assert_eq!(third[1..], first[..2], "then they come in the same order");
        assert_eq!(rotation.next(7).iter().collect::<HashSet<_>>().len(), 7);
    }

    #[test]
    fn warm_slots_stay() {
        let mut rotation = Rotation::new(7, true, &mut SmallRng::seed_from_u64(1));
        let first = rotation.next(3).to_vec();
        assert_eq!(rotation.next(3), first);
    }
}
