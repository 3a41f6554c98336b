"""What the profiles are of, and what was learned from profiles of these paths and changed because of it."""

from __future__ import annotations

WHAT = {
    "local-resident": "the model's files are in the page cache, and come into memory that the loader shares",
    "local-cold": "the model's files are on the disk, and dropped from the page cache before each load",
    "worker-same-host": "the model is in the files of a worker on this host, which the page cache holds; unix socket",
    "worker-tcp": "the model is in the files of a worker, which the page cache holds; over loopback TCP",
    "origin-direct": "an S3-compatible origin as fast as it can be, and no cache",
    "empty-cache": "the same origin through an empty worker on this host, which keeps what it brings; unix socket",
    "empty-cache-tcp": "the same origin through an empty worker over loopback TCP, which keeps what it brings",
    "small-files-pull": "`longshore pull` of objects of 100 kB through an empty worker, onto the disk",
}

#: For each path, or for several together, what stands in ARCHITECTURE.md among the decisions.
LEARNED = {
    "local-resident": """
* A fresh memfd, which has no huge pages on most systems, costs 0.77 CPU s/GB in page faults. Regions are files of a
  private tmpfs mount with `huge=within_size` where that can be had: 0.07 (`crates/memory/examples/fill_region.rs`).
* Where shared memory has 4 KiB pages only, reading into a warm buffer and `pwrite` to the memfd takes 39 % less CPU to
  fill than a mapping. It is not done: writes to one tmpfs file exclude each other, page faults do not, and with huge
  pages mapped windows are several times cheaper than either.""",
    "local-cold": """
* Files are read past the page cache where it does not hold them, decided per 4 MiB by `cachestat`, by io_uring into
  the slot, or through a huge-page buffer and a copy where the destination lies on 4 KiB pages: 1.6 to 2.8 times the
  rate of the page cache, and faster than reading into 4 KiB pages in place (`crates/memory/examples/read_cold.rs`).""",
    "worker-same-host": """
* Chunks in the worker's memory, growing ones too, are handed over as a read-only descriptor instead of passing the
  socket: a second load of 1 GB from there takes 0.14 CPU s instead of 0.40. Where shared memory has no huge pages they
  go through the socket, and `memory_not_shared` counts them.""",
    "worker-tcp": """
* Bulk bytes do not pass through tokio: that costs about a third more CPU than `sendfile` and `readv` on blocking
  sockets.
* Bodies are received in full pieces of 256 KiB inside the kernel, and checksummed while they are in the core's cache:
  0.41 CPU s/GB instead of 0.47 to 0.55.""",
    "origin-direct": """
* The thread that wants a body receives it from a blocking socket, straight into the landing: 0.26 to 0.29 CPU s/GB, as
  plain GETs, against 0.41 to 0.47 as a stream of pieces (`crates/origin/examples/read_cost.rs`).
* Four fetches at once took 0.3 GB/s of a store that gives a connection 90 MB/s, sixteen 1.2 GB/s: a loader fetches 16
  chunks at once at least, whatever the cores.""",
    "empty-cache": """
* Writing chunk files through the page cache took 19 % of all CPU: a copy into fresh pages. They are written past it,
  behind the load, by threads at nice 15.
* A loader on the worker's host reads growing chunks through a descriptor; of those the worker sends only the checksums
  of the blocks.""",
    "small-files-pull": """
* Nearly half of the CPU time was `recently_deleted` and its neighbours in the kernel: ext4 searches long for an inode
  where many were deleted a minute ago, and the report removed the files of the pull before. Each pull of the report has
  a new folder since, and all go at the end.""",
}


def learned(name: str) -> str:
    """Of a path; a path that differs in its transport alone shares the lessons."""
    return LEARNED.get(name, LEARNED.get(name.removesuffix("-tcp"), "")).strip()
