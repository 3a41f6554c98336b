//! Who is in the cluster and who owns what: membership, the consistent-hash ring, and the health of members.
//!
//! There is no master. An engine (here the static list) says who is in the cluster; everything else is computed
//! from that [`View`], so two processes with the same view always agree. Health is kept apart from membership: an
//! unreachable member keeps its place on the ring and is passed over until it answers again, so nothing moves.
//! Start reading at [`Ring`] (placement), then [`membership`].

pub mod health;
pub mod id;
pub mod member;
pub mod membership;
pub mod ring;

pub use health::Health;
pub use id::{MemberId, host_id, load_or_create_id};
pub use member::{Identity, Member, View};
pub use membership::{Membership, PROBE_TIMEOUT, Probe, StaticMembership};
pub use ring::Ring;
