//! The acknowledgement that a rank's bytes are safe on this node.

use std::sync::Arc;

use super::{Attempt, Record};
use crate::failpoint;

/// All bytes of the rank are synced, and every record that says so: the acknowledgement.
pub(crate) fn record_durable(attempt: &Arc<Attempt>, rank: u32) {
    failpoint::hit("before_rank_durable");
    match attempt.record_blocking(Record::RankDurable { rank }) {
        Ok(()) => {
            failpoint::hit("after_rank_durable");
            attempt.settle_room(rank);
        }
        Err(error) => attempt.fail(error),
    }
}
