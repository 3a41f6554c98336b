//! Who may have how many slabs. Numbers in, numbers out.
//!
//! Memory that a session has cannot be taken back: its client has locked the pages for a card. So a share is a limit of
//! growth: what there is divided by the sessions there are; and some room is kept for sessions that do not exist yet, so that
//! the first of a node's ranks does not take what the others need. A session that was admitted is never kept from its floor
//! by others that come later.

/// Slabs with which a client can copy into one while the other is flushed.
const FLOOR: u64 = 2;
/// Sessions for which room is kept: the cards of a large node.
const NEWCOMERS: u64 = 16;

/// A division of slabs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// All slabs.
    pub(super) capacity: u64,
}

impl Budget {
    /// What each of so many sessions is sure to get, where that is possible at all.
    fn floor(self, sessions: u64) -> u64 {
        (self.capacity / sessions.max(2)).clamp(1, FLOOR)
    }

    /// Slabs by which a session that has `own` may grow. `others` have theirs; `clients` is how many sessions its client
    /// expects there to be, 0 when it does not know; `leaving` are still being freed.
    pub(super) fn room(self, own: u64, others: &[u64], clients: u64, leaving: u64) -> u64 {
        let sessions = others.len() as u64 + 1;
        let floor = self.floor(sessions.max(clients));
        let held = others.iter().fold(own.saturating_add(leaving), |sum, held| sum.saturating_add(*held));
        let promised = others.iter().map(|held| floor.saturating_sub(*held)).sum::<u64>();
        let free = self.capacity.saturating_sub(held).saturating_sub(promised);
        let to_floor = floor.saturating_sub(own).min(free);
        let share = (self.capacity / sessions.max(clients)).max(floor);
        // Whoever knows how many there will be needs no guess.
        let expected = if clients > 0 { clients } else { (self.capacity / 2 / floor).clamp(1, NEWCOMERS) };
        let kept = expected.saturating_sub(sessions).saturating_mul(floor);
        to_floor.max(share.saturating_sub(own).min(free.saturating_sub(kept)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_leaves_room_and_later_ones_share() {
        let budget = Budget { capacity: 256 };
        assert_eq!(budget.room(0, &[], 0, 0), 226);
        assert_eq!(budget.room(0, &[226], 0, 0), 2);
        assert_eq!(budget.room(0, &[], 8, 0), 32);
        assert_eq!(budget.room(30, &[32; 7], 8, 0), 2);
        assert_eq!(budget.room(32, &[32; 7], 8, 0), 0);
        // Somebody leaves: the rest may grow.
        assert_eq!(budget.room(32, &[32; 3], 0, 0), 32);
        assert_eq!(budget.room(32, &[32; 3], 0, 120), 0);
    }

    #[test]
    fn a_slab_for_each_of_the_clients_that_are_expected() {
        let budget = Budget { capacity: 4 };
        let mut held = Vec::new();
        for _ in 0..4 {
            assert_eq!(budget.room(0, &held, 4, 0), 1);
            held.push(1);
        }
    }

    #[test]
    fn small_budgets_still_work() {
        assert_eq!(Budget { capacity: 1 }.room(0, &[], 0, 0), 1);
        assert_eq!(Budget { capacity: 1 }.room(0, &[1], 0, 0), 0);
        assert_eq!(Budget { capacity: 2 }.room(0, &[], 0, 0), 2);
        assert_eq!(Budget { capacity: 2 }.room(0, &[], 2, 0), 1);
        assert_eq!(Budget { capacity: 0 }.room(0, &[], 0, 0), 0);
    }

    proptest! {
        /// However sessions come, grow and go, the sum stays within the capacity, and whoever came while its floor was
        /// there gets it.
        #[test]
        fn never_more_than_there_is(
            capacity in 1_u64..400,
            steps in prop::collection::vec((0_usize..24, 0_u64..20, 0_u64..40), 1..200),
        ) {
            let budget = Budget { capacity };
            let floor = |sessions: usize, clients: u64| budget.floor((sessions as u64).max(clients));
            let mut held: Vec<u64> = Vec::new();
            for (who, clients, want) in steps {
                if who >= held.len() {
                    held.push(0);
                } else if want == 39 {
                    held.remove(who);
                    continue;
                }
                let at = who.min(held.len() - 1);
                let own = held.remove(at);
                let room = budget.room(own, &held, clients, 0);
                let floor = floor(held.len() + 1, clients);
                let promised: u64 = held.iter().map(|held| floor.saturating_sub(*held)).sum();
                let total: u64 = held.iter().sum::<u64>() + own;
                prop_assert!(total + room <= capacity);
                if own < floor && total + promised + floor - own <= capacity {
                    prop_assert!(room >= floor - own);
                }
                held.insert(at, own + room.min(want));
            }
        }
    }
}
