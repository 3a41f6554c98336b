//! What is sent to be written.

use bytes::Bytes;
use longshore_types::BlockChecksum;
use object_store::PutPayload;

/// Bytes of a part or of an object, in pieces that may lie anywhere in memory. A clone shares them.
#[derive(Debug, Clone, Default)]
pub struct Body {
    pieces: Vec<Bytes>,
    len_bytes: u64,
    checksum: Option<BlockChecksum>,
}

impl Body {
    /// The pieces, in order, and the checksum of all of them together. It is sent along, so that a store which compares
    /// refuses other bytes.
    pub fn checked(pieces: Vec<Bytes>, checksum: BlockChecksum) -> Body {
        let len_bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        Body { pieces, len_bytes, checksum: Some(checksum) }
    }

    /// How many bytes all pieces have.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    pub(crate) fn checksum(&self) -> Option<BlockChecksum> {
        self.checksum
    }

    pub(crate) fn payload(&self) -> PutPayload {
        self.pieces.iter().cloned().collect()
    }
}

/// One piece, whose checksum is worked out when it is sent.
impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        Body { len_bytes: bytes.len() as u64, pieces: vec![bytes], checksum: None }
    }
}
