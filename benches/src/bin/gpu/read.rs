//! Sequential reads with a queue: each thread has one read in flight, and takes the next block in order.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

/// What O_DIRECT asks of offsets, lengths and addresses on any common disk.
const ALIGNMENT: usize = 4096;

/// Reads `files` and says how fast.
pub fn read(files: &[PathBuf], direct: bool, block_bytes: u64, threads: usize) -> anyhow::Result<Value> {
    ensure!(block_bytes > 0 && block_bytes.is_multiple_of(ALIGNMENT as u64), "--block must be a multiple of 4096");
    let opened: Vec<File> = files.iter().map(|path| open(path, direct)).collect::<anyhow::Result<_>>()?;
    let mut blocks: Vec<(usize, Range<u64>)> = Vec::new();
    for (index, file) in opened.iter().enumerate() {
        let size = file.metadata()?.len();
        blocks.extend((0..size).step_by(block_bytes as usize).map(|at| (index, at..(at + block_bytes).min(size))));
    }
    let bytes: u64 = blocks.iter().map(|(_, range)| range.end - range.start).sum();
    let (cpu, start) = (crate::cpu_seconds(), Instant::now());
    crate::deal(
        blocks,
        threads,
        || vec![1u8; block_bytes as usize + ALIGNMENT],
        |memory, (index, range)| {
            let skipped = memory.as_ptr().align_offset(ALIGNMENT);
            let buffer = &mut memory[skipped..skipped + block_bytes as usize];
            read_block(&opened[index], buffer, range).with_context(|| format!("read {}", files[index].display()))
        },
    )?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({ "bytes": bytes, "seconds": seconds, "cpu_seconds": crate::cpu_seconds() - cpu, "threads": threads }))
}

fn open(path: &Path, direct: bool) -> anyhow::Result<File> {
    let flags = if direct { OFlags::RDONLY | OFlags::DIRECT } else { OFlags::RDONLY };
    let file = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    Ok(File::from(file.with_context(|| format!("open {}", path.display()))?))
}

/// Reads a range whole. The buffer is asked for, not the range: past the end of a file O_DIRECT wants whole blocks too.
fn read_block(file: &File, buffer: &mut [u8], range: Range<u64>) -> anyhow::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let done = (at - range.start) as usize;
        let count = file.read_at(&mut buffer[done..], at)?;
        ensure!(count > 0, "the file ended at byte {at}");
        at += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read_also_where_the_end_is_odd() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![3u8; 100_001]).unwrap();
        let answer = read(&[path.clone(), path], false, 8192, 3).unwrap();
        assert_eq!(answer["bytes"], 200_002);
    }
}
