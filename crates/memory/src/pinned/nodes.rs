//! Which NUMA nodes there are, and how an arena's slots are spread over them.

use std::fs;
use std::path::Path;

/// What one piece of an arena is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PiecePlan {
    pub(super) slots: u64,
    /// The node its memory should be on; `None` where that makes no difference.
    pub(super) node: Option<u32>,
}

/// The nodes that have memory and that this process may allocate from; empty on a machine without NUMA.
pub(super) fn usable() -> Vec<u32> {
    usable_below(Path::new("/"))
}

/// `root` stands for `/`.
fn usable_below(root: &Path) -> Vec<u32> {
    let with_memory = fs::read_to_string(root.join("sys/devices/system/node/has_memory")).unwrap_or_default();
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:")).map(parse_list);
    let mut nodes = parse_list(&with_memory);
    if let Some(allowed) = allowed {
        nodes.retain(|node| allowed.contains(node));
    }
    nodes
}

/// Nodes a kernel can have at most (CONFIG_NODES_SHIFT is at most 10); beyond it the text is not a list of nodes.
pub(crate) const NODES_MAX: u32 = 1024;

/// Numbers as the kernel lists them, `0-2,5`; what is no such list counts as empty.
fn parse_list(text: &str) -> Vec<u32> {
    let number = |text: &str| text.trim().parse().ok().filter(|node| *node < NODES_MAX);
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(number(first)?..=number(last)?),
        None => number(part).map(|node| node..=node),
    };
    let ranges: Option<Vec<_>> = text.trim().split(',').map(range).collect();
    let mut nodes: Vec<u32> = ranges.unwrap_or_default().into_iter().flatten().collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// Pieces of at most `piece_slots_max` slots that together have `slots`, as evenly over the nodes as whole slots go.
/// With fewer than two nodes nobody is told where memory should be.
pub(super) fn spread(slots: u64, nodes: &[u32], piece_slots_max: u64) -> Vec<PiecePlan> {
    let targets: Vec<Option<u32>> =
        if nodes.len() < 2 { vec![None] } else { nodes.iter().copied().map(Some).collect() };
    let count = targets.len() as u64;
    let mut plan = Vec::new();
    for (index, node) in (0u64..).zip(targets) {
        let mut left = slots / count + u64::from(index < slots % count);
        while left > 0 {
            let taken = left.min(piece_slots_max.max(1));
            plan.push(PiecePlan { slots: taken, node });
            left -= taken;
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_as_the_kernel_writes_them() {
        let cases: [(&str, &[u32]); 9] = [
            ("0\n", &[0]),
            ("0-3\n", &[0, 1, 2, 3]),
            ("0-1,4,6-7", &[0, 1, 4, 6, 7]),
            ("\t0-1\n", &[0, 1]),
            ("4,0-1,1", &[0, 1, 4]),
            ("", &[]),
            ("3-1", &[]),
            ("0-4000000000", &[]),
            ("none", &[]),
        ];
        for (text, nodes) in cases {
            assert_eq!(parse_list(text), nodes, "{text:?}");
        }
    }

    #[test]
    fn slots_are_spread_evenly_in_pieces() {
        let plan = |slots, nodes: &[u32], max| -> Vec<(u64, Option<u32>)> {
            spread(slots, nodes, max).into_iter().map(|piece| (piece.slots, piece.node)).collect()
        };
        assert_eq!(plan(130, &[], 64), [(64, None), (64, None), (2, None)]);
        assert_eq!(plan(3, &[5], 64), [(3, None)]);
        assert_eq!(plan(7, &[0, 2], 3), [(3, Some(0)), (1, Some(0)), (3, Some(2))]);
        assert_eq!(plan(2, &[0, 1, 2], 64), [(1, Some(0)), (1, Some(1))]);
        assert_eq!(plan(0, &[0, 1], 64), []);
        for (slots, nodes) in [(1000, 4), (65_537, 8), (63, 64)] {
            let nodes: Vec<u32> = (0..nodes).collect();
            let pieces = spread(slots, &nodes, 64);
            assert_eq!(pieces.iter().map(|piece| piece.slots).sum::<u64>(), slots);
            assert!(pieces.iter().all(|piece| (1..=64).contains(&piece.slots)));
        }
    }

    #[cfg(not(miri))]
    #[test]
    fn only_nodes_with_memory_that_the_process_may_use() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(usable_below(root.path()), [] as [u32; 0]);
        let node = root.path().join("sys/devices/system/node");
        fs::create_dir_all(&node).unwrap();
        fs::write(node.join("has_memory"), "0-1,3\n").unwrap();
        assert_eq!(usable_below(root.path()), [0, 1, 3]);
        let process = root.path().join("proc/self");
        fs::create_dir_all(&process).unwrap();
        fs::write(process.join("status"), "Name:\tx\nMems_allowed_list:\t1-7\n").unwrap();
        assert_eq!(usable_below(root.path()), [1, 3]);
    }
}
