"""Profiles: what is read of perf's samples, what is kept of it, and the page; no perf is needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[0:0] = [str(HERE.parent), str(HERE.parents[1] / "scripts" / "gpu")]

from speed import lessons, perf, profile_page, profiles  # noqa: E402 # behind the path
from speed.perf import Known, counted, entry_of, symbol_of  # noqa: E402

SCRIPT = """\
:31   30/31   5.000000000:
\tffffffff821e8f67 clear_page_erms ([kernel.kallsyms])
\tffffffff81000c82 asm_exc_page_fault ([kernel.kallsyms])
\tffffffff82010248 tcp_recvmsg_locked ([kernel.kallsyms])
\tffffffff81e300e8 __sys_recvmsg ([kernel.kallsyms])
\tffffffff821ed511 do_syscall_64 ([kernel.kallsyms])
\t         10393c7 receive::body::h0123456789abcdef (/home/somebody/target/longshore)

two words   40/41   5.500000000:
\t          3f9f1 <[T] as core::fmt::Debug>::fmt (/home/somebody/target/longshore)

fake-origin   50/51   5.500000000:
\tffffffff81b6ab30 _copy_to_iter ([kernel.kallsyms])

python   60/60   5.500000000:
\t          3f9f1 [unknown] (/usr/lib/cygrpc.so)

python   60/60   9.500000000:
\t          3f9f1 [unknown] (/usr/lib/cygrpc.so)

longshore   30/31   9.500000000:
\tffffffff81b6ab30 _copy_to_iter ([kernel.kallsyms])

somebody   99/99   5.500000000:
\t          3f9f1 main (/bin/somebody)
"""


def known() -> Known:
    roles = {30: "loader", 40: "command line", 50: "origin", 60: "client"}
    # The loader works on when the client has its answer.
    return Known(roles, {31: "fetch-7"}, [(4.0, 6.0, True), (9.0, 10.0, False)], above=7)


def test_samples_of_this_run_in_its_windows_count() -> None:
    found = counted(SCRIPT.splitlines(keepends=True), known())
    wanted = {("loader", "fetch-*"): 2, ("command line", "two words"): 1, ("client", "python"): 1}
    assert found.threads == wanted
    assert found.samples == 4
    assert found.of_origin == 1
    assert found.entries["loader", "page faults in system call recvmsg"] == 1
    assert found.entries["command line", "its own code"] == 1
    assert found.symbols["command line", "<[T] as core::fmt::Debug>::fmt (longshore)"] == 1
    assert found.symbols["client", "(unknown) (cygrpc.so)"] == 1
    assert found.seconds("loader") == pytest.approx(2 / perf.SAMPLES_A_SECOND)


def test_symbols_tell_nothing_of_the_machine() -> None:
    assert symbol_of("receive::body::h0123456789abcdef", "/home/me/longshore") == "receive::body (longshore)"
    assert symbol_of("ext4_readahead", "[ext4]") == "ext4_readahead [ext4]"
    assert symbol_of("memcpy", "[kernel.kallsyms]") == "memcpy [kernel]"
    assert len(symbol_of("x" * 500, "/a/b")) < 150


@pytest.mark.parametrize(
    ("stack", "entry"),
    [
        (["copy", "vfs_read", "__x64_sys_pread64", "do_syscall_64"], "system call pread64"),
        (["copy", "ksys_read.isra.0", "do_syscall_64"], "system call read"),
        (["io_read", "__do_sys_io_uring_enter", "do_syscall_64"], "system call io_uring_enter"),
        (["clear_page_erms", "exc_page_fault", "asm_exc_page_fault"], "page faults"),
        (["net_rx_action", "asm_sysvec_apic_timer_interrupt", "asm_exc_page_fault"], "interrupts"),
        (["io_read", "io_wq_worker", "ret_from_fork_asm"], "kernel threads"),
        (["schedule"], "the kernel, otherwise"),
    ],
)
def test_how_the_kernel_was_entered(stack: list[str], entry: str) -> None:
    assert entry_of([(symbol, "[kernel.kallsyms]") for symbol in stack]) == entry


def test_a_profile_is_short_and_the_page_is_made_of_it(tmp_path: Path) -> None:
    found = counted(SCRIPT.splitlines(keepends=True), known())
    facts = {"date": "2026-01-02", "machine": "m", "measured": "3 times 1.00 GB"}
    text = profiles.text_of("worker-tcp", facts, found, 2.0)
    assert len(text) < 20_000
    assert str(Path.home()) not in text
    assert "somebody" not in text
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "worker-tcp.txt").write_text(text)
    profile_page.write(kept, tmp_path)
    page = (tmp_path / "profiles.md").read_text()
    assert "## worker-tcp" in page
    assert "| 25.0% | loader | page faults in system call recvmsg |" in page
    assert "| 25.0% | command line | `<[T] as core::fmt::Debug>::fmt (longshore)` |" in page
    assert "Bulk bytes do not pass through tokio" in page


def test_every_path_is_described_and_a_row_of_the_report() -> None:
    assert lessons.WHAT.keys() == profiles.PATHS.keys()
    assert lessons.LEARNED.keys() <= profiles.PATHS.keys()
    assert profiles.wanted([]) == list(profiles.PATHS)
    with pytest.raises(SystemExit, match="no path dance"):
        profiles.wanted(["dance"])


def test_kept_profiles_name_no_place_of_a_machine() -> None:
    for path in profiles.FOLDER.glob("*.txt"):
        text = path.read_text()
        assert len(text) < 20_000, path.name
        assert os.fspath(HERE.parents[1]) not in text, path.name
        assert "/home/" not in text, path.name
