//! Origins that misbehave: what is repeated, what is resumed, what is refused, and what the user is told. Every case runs in
//! both ways of reading: as a stream, and straight into memory.

// A helper of a test may fail it as the test itself may.
#![allow(clippy::unwrap_used)]

mod streamed {
    use futures::TryStreamExt;

    async fn read(origins: &Origins, artifact: &Arc<Artifact>, range: Range<u64>) -> Result<Vec<u8>> {
        let pieces: Vec<_> = origins.read(artifact, range).try_collect().await?;
        Ok(pieces.concat())
    }

    include!("cases.rs");
}

mod straight {
    use longshore_testkit::origin::Counters;
    use tokio_util::sync::CancellationToken;

    async fn read(origins: &Origins, artifact: &Arc<Artifact>, range: Range<u64>) -> Result<Vec<u8>> {
        read_until(origins, artifact, range, CancellationToken::new()).await
    }

    async fn read_until(
        origins: &Origins,
        artifact: &Arc<Artifact>,
        range: Range<u64>,
        token: CancellationToken,
    ) -> Result<Vec<u8>> {
        let (origins, artifact, runtime) = (origins.clone(), artifact.clone(), tokio::runtime::Handle::current());
        let work = move || {
            let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
            origins.read_into(&artifact, range, &mut &mut bytes[..], &runtime, &token).map(|()| bytes)
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    include!("cases.rs");
    include!("ways.rs");
}
