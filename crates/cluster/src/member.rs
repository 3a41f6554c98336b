//! What a worker says about itself, and the set of workers at one moment.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::MemberId;

/// What a worker answers to `GET /v1/identity`, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Kept in the worker's cache folder: a changed address moves nothing.
    pub id: MemberId,
    /// Capacity of the cache in GiB, at least 1. Chunks are placed in proportion to it.
    pub weight: u64,
    /// `host:port` of the data plane.
    pub data: String,
    /// `host:port` of the gRPC control service.
    pub control: String,
    /// The data plane's unix socket, for callers on the same host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix_socket: Option<PathBuf>,
    /// Equal for two processes on one running machine; see [`crate::host_id`].
    pub host_id: String,
    /// Version of the worker's binary.
    pub version: String,
}

/// A worker as this process knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What the worker said about itself.
    pub identity: Identity,
    /// The address it was asked at: `host:port` of the data plane as it is written in the list.
    pub address: String,
}

impl Member {
    /// The id on the ring.
    pub fn id(&self) -> MemberId {
        self.identity.id
    }

    /// Placement weight, at least 1 whatever the worker claims.
    pub fn weight(&self) -> u64 {
        self.identity.weight.max(1)
    }
}

/// The members at one moment. Two views with equal members give equal rings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Counts the changes this process has seen; 0 before the first.
    pub epoch: u64,
    /// Sorted by id, each id once.
    pub members: Vec<Member>,
}

impl View {
    /// The member with that id.
    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.binary_search_by_key(&id, Member::id).ok().map(|index| &self.members[index])
    }
}
