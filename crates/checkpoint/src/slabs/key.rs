//! Names of slabs and sessions.

use std::fmt;

use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result};
use uuid::Uuid;

/// A place in a file of a save: the bytes from `slab_index` times the bytes of a slab on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlabKey {
    /// The attempt to save a step.
    pub attempt: AttemptId,
    /// Index into the files of its plan.
    pub file: u32,
    /// Which slab of the file.
    pub slab_index: u32,
}

impl fmt::Display for SlabKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slab {} of file {} of attempt {}", self.slab_index, self.file, self.attempt)
    }
}

/// A client's session. Its text is a secret between the client and this service only as far as the socket's folder is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Uuid);

impl SessionId {
    pub(super) fn random() -> SessionId {
        SessionId(Uuid::new_v4())
    }

    /// Parses what `Display` writes.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for anything else.
    pub fn parse(text: &str) -> Result<SessionId> {
        let parsed = Uuid::try_parse(text).ok().map(SessionId).filter(|id| id.to_string() == text);
        parsed.ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Error::new(Code::InvalidArgument, format!("{shown:?} is no session: it is a UUID in lower case"))
        })
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The name of a session's folder: who may go on with it, and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionName {
    pub(super) id: SessionId,
    pub(super) uid: u32,
    pub(super) slab_bytes: u64,
}

impl SessionName {
    pub(super) fn parse(name: &str) -> Option<SessionName> {
        let mut parts = name.splitn(3, '.');
        let id = SessionId::parse(parts.next()?).ok()?;
        let parsed = SessionName { id, uid: parts.next()?.parse().ok()?, slab_bytes: parts.next()?.parse().ok()? };
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.uid, self.slab_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        let name = SessionName { id: SessionId::random(), uid: 1000, slab_bytes: 64 << 20 };
        assert_eq!(SessionName::parse(&name.to_string()), Some(name));
        let id = name.id;
        for wrong in [
            "",
            ".",
            "..",
            "a.b.c",
            &format!("{id}"),
            &format!("{id}.1"),
            &format!("{id}.01.2"),
            &format!("{id}.1.2.3"),
        ] {
            assert_eq!(SessionName::parse(wrong), None, "{wrong}");
        }
        assert!(
            SessionId::parse(&id.to_string().to_uppercase()).is_err() || !id.to_string().contains(char::is_alphabetic)
        );
        assert!(SessionId::parse(&format!("{{{id}}}")).is_err());
    }
}
