use proptest::prelude::*;

use super::*;

fn key(url_len: usize, version_len: usize, size_bytes: u64, index: u32) -> ChunkKey {
    let url = format!("s3://{}", "u".repeat(url_len));
    let version = Version::new("v".repeat(version_len)).unwrap();
    ChunkKey::new(Arc::new(Artifact::new(url, version, size_bytes).unwrap()), index).unwrap()
}

fn checksums(key: &ChunkKey) -> Vec<BlockChecksum> {
    (0..key.block_count() as u64).map(|block| BlockChecksum(block * 77 + 1)).collect()
}

fn tail_of(key: &ChunkKey) -> Vec<u8> {
    let trailer = encode(key, &checksums(key));
    let mut tail = vec![0; TRAILER_BYTES_MAX as usize - trailer.len()];
    tail.extend_from_slice(&trailer);
    tail
}

#[test]
fn the_longest_identity_fits_and_survives() {
    let longest = key(URL_BYTES_MAX - 5, URL_BYTES_MAX, u64::from(u32::MAX) << 20, 9);
    let trailer = encode(&longest, &checksums(&longest));
    assert_eq!(trailer.len() as u64, trailer_bytes(&longest));
    assert!(trailer.len() as u64 <= TRAILER_BYTES_MAX);
    let decoded = decode(&tail_of(&longest), file_bytes(&longest)).unwrap();
    assert_eq!(decoded, Trailer { checksums: checksums(&longest).into(), key: longest });
}

#[test]
fn a_file_of_one_byte_round_trips() {
    let key = key(4, 3, 1, 0);
    let file = tempfile::tempfile().unwrap();
    let mut bytes = vec![7u8];
    bytes.resize(PAGE_BYTES as usize, 0);
    bytes.extend(encode(&key, &checksums(&key)));
    file.write_all_at(&bytes, 0).unwrap();
    assert_eq!(read(&file).unwrap().key, key);
    file.set_len(bytes.len() as u64 - 1).unwrap();
    assert!(matches!(read(&file), Err(FormatError::Torn(_))));
    file.set_len(PAGE_BYTES).unwrap();
    assert!(matches!(read(&file), Err(FormatError::Torn(_))));
    file.set_len(0).unwrap();
    assert!(matches!(read(&file), Err(FormatError::Torn(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn identities_round_trip(url in 1usize..2000, version in 1usize..2000, size in 1u64..1 << 45, at in any::<u32>()) {
        let index = (u64::from(at) % longshore_types::chunk::chunk_count(size)) as u32;
        let key = key(url, version, size, index);
        let decoded = decode(&tail_of(&key), file_bytes(&key)).unwrap();
        prop_assert_eq!(decoded.checksums.to_vec(), checksums(&key));
        prop_assert_eq!(decoded.key, key);
    }

    /// Any damage to the trailer is found: it is never decoded as another identity.
    #[test]
    fn damage_is_found(size in 1u64..1 << 30, at in 0usize..4096, flip in 1u8..=255) {
        let key = key(20, 20, size, 0);
        let mut tail = tail_of(&key);
        let end = tail.len();
        tail[end - 1 - at] ^= flip;
        prop_assert!(decode(&tail, file_bytes(&key)).is_err());
    }

    /// Garbage, and a true footer behind garbage, are refused without a panic.
    #[test]
    fn garbage_is_refused(mut tail in proptest::collection::vec(any::<u8>(), 0..9000), len in any::<u32>(), seal in any::<bool>()) {
        if seal && tail.len() > FOOTER_BYTES {
            let footer = tail.len() - FOOTER_BYTES;
            tail[footer..footer + 4].copy_from_slice(&len.to_le_bytes());
            tail[footer + 4..footer + 8].copy_from_slice(&FORMAT.to_le_bytes());
            tail[footer + 8..footer + 16].copy_from_slice(MAGIC);
            let start = tail.len().saturating_sub(len as usize);
            let crc = BlockChecksum::of(&tail[start..footer + 16]);
            tail[footer + 16..].copy_from_slice(&crc.0.to_le_bytes());
        }
        prop_assert!(decode(&tail, tail.len() as u64).is_err());
    }
}
