"""What is said of a machine's pseudo terminals."""

from __future__ import annotations

from portico.cli.place import check_terminals


def test_a_devpts_without_the_group_tty_is_told() -> None:
    good = "devpts /dev/pts devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=000 0 0\n"
    assert check_terminals(good, 5) == check_terminals("", 5) == ""
    assert check_terminals(good.replace(",gid=5", "") + good, 5) == "", "the second hides the first"
    assert check_terminals("devpts /other devpts rw 0 0\n", 5) == ""
    for bad in ("rw,mode=600", "rw,gid=50", "rw,gid=4"):
        told = check_terminals(f"proc /proc proc rw 0 0\ndevpts /dev/pts devpts {bad} 0 0\n", 5)
        assert "remount,gid=5,mode=620" in told
