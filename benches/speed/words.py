"""The words of the page."""

from __future__ import annotations

INTRODUCTION = """# Benchmarks

Written from `benches/results/{name}`; no number and no plot here is edited by hand. `make bench` writes
[benchmarks.md](benchmarks.md), `make bench-full` with larger models [benchmarks-full.md](benchmarks-full.md). Loads
onto GPUs are in [benchmarks-gpu.md](benchmarks-gpu.md), saves in [benchmarks-checkpoint.md](benchmarks-checkpoint.md).
"""

UNFINISHED = """
**The run was ended before it was done: what is not here was not measured.**
"""

METHOD = """
Longshore and every peer do the same work in the same run, on the same machine, next to the plain limit of that work.
The cases of a section are measured in rounds: each round measures every row once, in an order that differs from round
to round, so that a noisy machine hits all alike. The first round warms up, compares the SHA-256 of all tensors with
that of the files, and is not counted. A group whose rounds take little time gets up to three times as many. Values are
medians over the rounds with their extremes; ratios are medians of the ratios within each round. Peers run with their
best documented settings, each in its own environment (`scripts/bench-peers.sh`); what a peer cannot do is said below
the table.

A load counts from the call in a Python process until all of the model's tensors are torch CPU tensors and one byte of
each of their pages was read: one finishing line for every loader, whatever its memory is. `longshore, host region` is
the same load up to the end of the loader's own work, which is what the limits limit. CPU seconds are those of all
processes on both ends (client, loader, workers), without the origin, which is a process of its own beside them.
Virtual machines give freed memory back to their host, and are slow to get it again: before each row that loads a
model, twice its memory is touched and freed by another process, so that none pays for what another one left.
`local/untouched` does without, and shows what that costs. Fresh pages are cleared all the same, which limits into
memory that was touched before do not pay for, and loads without `--prefault` do.

Rows called *prefaulted* are loads by a loader with `--prefault`: it touches memory while no load runs, and the next
load gets it. They stand beside those with default options. Their time has nothing of it, their CPU seconds have all of
it: each load is followed by the wait until as much memory is ready again. A load that did not get all its memory so is
not counted.
"""

COLUMNS = """Columns: *median* is that of all counted rounds, *min to max* their extremes. *Of limit* says what part
of the plain work's rate (`limit/...`, or the row that is named) this row reaches; the rows of the plain work itself say
*is the limit*. *CPU s per GB* are the CPU seconds of all processes for each GB that was loaded, and *CPU over limit's*
is how many times those of the plain work that is; both are empty where no bytes or no CPU time are counted. *Runs* is
the number of counted rounds.
"""

LOAD_TIME = """Dark blue is Longshore, light blue the part of it that the dashed limit limits, orange are the peers."""

SMALL = """Light blue are other ways to ask Longshore, grey is the plain work of this machine. The peers read the files
into memory; `longshore pull` writes them to the disk, or to a folder in memory, and a worker keeps a copy."""

AIMS_NOTE = """
Ratios to limits are those of `longshore, host region`; ratios to peers are `longshore`'s median over theirs. Local
files and workers have rows in two settings, with `--prefault` and without: an aim is reached when one setting meets all
of its conditions, since peers have their best documented settings as well, and the other one stands in parentheses.
Other figures stand in the table for information and are not judged, because the work is another one:

* Reads and GETs *into the same buffers again* end in a few buffers of 16 MiB over and over: nothing of the model is
  there when they are done, and where the processor's cache is larger than those buffers, nothing is written to memory
  at all. The limit of a load is the same work with the bytes kept, in memory that was touched before.
* Resident local file: a peer that maps the file hands out the page cache's own pages. It copies nothing, so its time is
  that of filling page tables, and the bytes go when the page cache needs the room. Longshore is judged beside the
  fastest peer that, like itself, ends with the bytes in memory of its own.
* Random reads: s3fs with its cache of files (`disk`) first copies the whole file to this disk, then reads the copy with
  pread. It is the limit plus Python, and where it reaches more than a fifth of pread's rate nothing can be 5 x as
  fast. Judged is s3fs as it reads from S3, one read after the other or many at once, whichever is faster.

The plan of 100,000 tensors and the other micro benchmarks are measured by `cargo bench -p longshore-benches`.
"""

CPU = """CPU seconds a GB, of all processes of a subject on both ends, without the origin. Cores that loading does not
take are free for what else starts up."""

STEPS = """From the loader's own report: each step from its first start to its last end, and the time that
threads spent in it. Steps that only wait for others are left out."""

HISTORY = """## Before

Until November 2026 this page came from a report that measured Longshore beside limits alone, with huge pages for shared
memory and without; its results are in the repository's history."""

MICRO = """From `benches/results/{name}` ({date}. {machine}), which `make bench-micro` measures with Criterion.
*Beside* is the time of the same work by another library, or by plain reads, in the same run."""

CHECKPOINTS = """From `benches/results/{name}` ({date}. {machine}. {size:.2f} GB; command: `{command}`), which
`make bench-checkpoint` measures; more of it in [benchmarks-checkpoint.md](benchmarks-checkpoint.md)."""

#: Title, first part of the cases' names, and what is said.
SECTIONS = [
    (
        "Local files",
        "local/",
        "The model's files on this machine's disk: in the page cache, and dropped from it before each load. "
        "`untouched`: in the page cache, but nobody has touched memory for five seconds, as between two loads of a "
        "node; the host of a virtual machine has taken free memory back by then, and finds it again page by page.",
    ),
    (
        "Workers",
        "worker/",
        "The model is in the cache of workers: one on this host that hands over descriptors, and 1 to 8 over loopback "
        "TCP. All of them share the machine's cores with the loader and the client.",
    ),
    (
        "Origin",
        "origin/",
        "An S3-compatible origin in a process on this machine: as fast as it can be, and paced like a cloud store (5 "
        "ms to the first byte, 90 MB/s a connection, 600 MB/s in all).",
    ),
    (
        "Second load and attach",
        ("second-load", "attach/"),
        "The model is in the loader's memory, and another process wants it.",
    ),
    (
        "Eight processes at once",
        "concurrent/",
        "Eight Python processes load from the fast origin at the same time: all the same small model, or each its own.",
    ),
    ("Start-up", "startup/", "A bare interpreter until its first model is there."),
    (
        "Small files, random reads, metadata",
        ("files/", "metadata/"),
        "10,000 objects of 100 kB in the origin; reads of 4 kB at random places of one file of the model; calls for "
        "size and version.",
    ),
    ("Limits", "limit/", "What the machine does when a few threads do the plain work and nothing else."),
]
