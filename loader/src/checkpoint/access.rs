//! What a caller may do, by the way it came.
//!
//! Nobody is asked for a name on either way. The unix socket has a file mode: whoever may connect is trusted with what this
//! loader may do, among it reading the files of its user and writing to the origin with its credentials. A TCP port has no
//! such guard, so over TCP nothing of this node can be read or written, and nothing in an origin changes: ranks on other
//! nodes can agree on a plan, and anybody can see which checkpoints and saves there are.

use longshore_origin::Origins;
use longshore_types::{Code, Error, Result, redact_url};

/// The way that a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// The unix socket, or a call inside this process.
    Node,
    /// TCP.
    Network,
}

impl Access {
    /// Lets calls pass that read or write files of this node, or change what is in an origin.
    ///
    /// # Errors
    /// [`Code::PermissionDenied`], naming the call.
    pub(super) fn check_node(self, call: &str) -> Result<()> {
        match self {
            Access::Node => Ok(()),
            Access::Network => Err(Error::new(
                Code::PermissionDenied,
                format!(
                    "{call} is not served over TCP, because callers are not known there; connect to the unix socket loader.sock"
                ),
            )),
        }
    }

    /// Lets reading calls pass, but for folders of this node.
    ///
    /// # Errors
    /// [`Code::PermissionDenied`], naming the URL.
    pub(super) fn check_url(self, url: &str) -> Result<()> {
        match self == Access::Network && Origins::local_path(url).is_some() {
            false => Ok(()),
            true => Err(Error::new(
                Code::PermissionDenied,
                format!(
                    "{} is a folder of the loader's node, which is not looked into over TCP; connect to the unix socket loader.sock",
                    redact_url(url)
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_tcp_nothing_of_the_node_is_read_and_nothing_changes() {
        for call in ["SaveFolder", "DeleteCheckpoint"] {
            Access::Node.check_node(call).unwrap();
            let error = Access::Network.check_node(call).unwrap_err();
            assert_eq!(error.code(), Code::PermissionDenied);
            assert!(error.message().contains(call) && error.message().contains("loader.sock"), "{error}");
        }
        Access::Node.check_url("file:///home/user/run").unwrap();
        Access::Network.check_url("s3://bucket/run").unwrap();
        let error = Access::Network.check_url("file:///home/user/run").unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied);
    }
}
