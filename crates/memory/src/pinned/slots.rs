//! Which slots of the arena are free, and the memory behind them.

use std::ptr::NonNull;
use std::sync::Arc;

use longshore_types::CHUNK_BYTES;
use parking_lot::Mutex;

use super::PageKind;
use crate::arena::Reservation;
use crate::raw::RawMemory;

/// One piece of memory: whole slots of one NUMA node.
#[derive(Debug)]
pub(super) struct Bank {
    pub(super) memory: RawMemory,
    pub(super) node: Option<u32>,
}

/// All slots. Lives as long as the arena or any slot that was taken from it.
pub(super) struct Slots {
    banks: Vec<Bank>,
    free: Mutex<Free>,
    capacity: u64,
    pages: PageKind,
    _reservation: Option<Reservation>,
}

struct Free {
    /// One list a node; the slot freed last is used next, its memory may still be in a cache.
    by_node: Vec<(Option<u32>, Vec<Place>)>,
    used: u64,
}

/// Where a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) bank: usize,
    pub(super) offset_bytes: u64,
}

/// One slot, exclusively; free again on drop.
pub(super) struct Slot {
    slots: Arc<Slots>,
    place: Place,
}

impl Slots {
    /// Cuts `banks`, each of whole slots, into slots. Bytes of a bank beyond its last whole slot are not used.
    pub(super) fn new(banks: Vec<Bank>, pages: PageKind, reservation: Option<Reservation>) -> Arc<Slots> {
        let mut by_node: Vec<(Option<u32>, Vec<Place>)> = Vec::new();
        let mut capacity = 0;
        // Backwards, so that the first slots are handed out first.
        for (index, bank) in banks.iter().enumerate().rev() {
            let count = bank.memory.len() as u64 / CHUNK_BYTES;
            let places = (0..count).rev().map(|slot| Place { bank: index, offset_bytes: slot * CHUNK_BYTES });
            capacity += count;
            match by_node.iter_mut().find(|(node, _)| *node == bank.node) {
                Some((_, free)) => free.extend(places),
                None => by_node.push((bank.node, places.collect())),
            }
        }
        let free = Mutex::new(Free { by_node, used: 0 });
        Arc::new(Slots { banks, free, capacity, pages, _reservation: reservation })
    }

    /// A free slot: of the node `near` if there is one, else of the node with the most free.
    pub(super) fn take(slots: &Arc<Slots>, near: Option<u32>) -> Option<Slot> {
        let mut free = slots.free.lock();
        let wanted = |node: &Option<u32>| near.is_some() && *node == near;
        let list = free.by_node.iter_mut().max_by_key(|(node, list)| (!list.is_empty() && wanted(node), list.len()))?;
        let place = list.1.pop()?;
        free.used += 1;
        drop(free);
        Some(Slot { slots: Arc::clone(slots), place })
    }

    pub(super) fn banks(&self) -> &[Bank] {
        &self.banks
    }

    /// All slots.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Slots taken now.
    pub(super) fn used(&self) -> u64 {
        self.free.lock().used
    }

    /// What the memory is made of.
    pub(super) fn pages(&self) -> PageKind {
        self.pages
    }

    /// NUMA nodes that have slots.
    pub(super) fn nodes(&self) -> u32 {
        self.free.lock().by_node.len() as u32
    }
}

impl Slot {
    pub(super) fn place(&self) -> Place {
        self.place
    }

    pub(super) fn node(&self) -> Option<u32> {
        self.slots.banks[self.place.bank].node
    }

    /// What its memory is made of.
    pub(super) fn pages(&self) -> PageKind {
        self.slots.pages
    }

    /// The first byte. Valid for [`CHUNK_BYTES`] while `self` lives, and nobody else's.
    pub(super) fn start(&self) -> NonNull<u8> {
        let memory = &self.slots.banks[self.place.bank].memory;
        // SAFETY: places are whole slots within the memory of their bank.
        unsafe { memory.start().add(self.place.offset_bytes as usize) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let node = self.node();
        let mut free = self.slots.free.lock();
        free.used -= 1;
        if let Some((_, list)) = free.by_node.iter_mut().find(|(of, _)| *of == node) {
            list.push(self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(banks: &[(Option<u32>, usize)]) -> Arc<Slots> {
        let bank = |&(node, count): &(Option<u32>, usize)| Bank {
            memory: RawMemory::mapping(count * CHUNK_BYTES as usize).unwrap(),
            node,
        };
        Slots::new(banks.iter().map(bank).collect(), PageKind::Small, None)
    }

    #[test]
    fn every_slot_is_handed_out_once_and_comes_back() {
        let slots = slots(&[(None, 2), (None, 1)]);
        assert_eq!((slots.capacity(), slots.used(), slots.nodes()), (3, 0, 1));
        let taken: Vec<_> = std::iter::from_fn(|| Slots::take(&slots, Some(4))).collect();
        let places: Vec<_> = taken.iter().map(|slot| (slot.place().bank, slot.place().offset_bytes)).collect();
        assert_eq!(places, [(0, 0), (0, CHUNK_BYTES), (1, 0)]);
        assert_eq!(slots.used(), 3);
        drop(taken);
        assert_eq!(slots.used(), 0);
        assert!(Slots::take(&slots, None).is_some());
    }

    #[test]
    fn the_near_node_comes_first_then_the_emptiest() {
        let slots = slots(&[(Some(0), 1), (Some(1), 2), (Some(7), 1)]);
        assert_eq!(slots.nodes(), 3);
        let mut taken = Vec::new();
        let mut node = |near| {
            taken.extend(Slots::take(&slots, near));
            taken.last().and_then(Slot::node)
        };
        assert_eq!(node(Some(7)), Some(7));
        assert_eq!(node(Some(7)), Some(1));
        assert_eq!(node(Some(0)), Some(0));
        assert_eq!(node(None), Some(1));
        assert!(Slots::take(&slots, Some(1)).is_none());
    }

    #[test]
    fn a_slot_keeps_the_memory_when_the_arena_is_gone() {
        let slots = slots(&[(None, 1)]);
        let slot = Slots::take(&slots, None).unwrap();
        drop(slots);
        // SAFETY: the slot is ours, its memory lives with it, and nobody else refers to it.
        unsafe { slot.start().as_ptr().write(1) };
    }
}
