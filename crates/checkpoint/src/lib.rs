//! Saving checkpoints: plan, slabs, journal, local durability, write-back, commit, retention.
