"""Blocks per SM against the values of NVIDIA's own calculator."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from qimeng_attention import targets
from qimeng_attention.build import Occupancy, occupancy

TABLE = Path(__file__).with_name("occupancy.csv")


def test_all_rows_of_the_reference_table_agree() -> None:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))

    wrong = [
        row
        for row in rows
        if int(row["blocks"])
        != occupancy(
            targets.get(row["target"]),
            registers=int(row["registers"]),
            shared_bytes=int(row["shared_bytes"]),
            threads=int(row["threads"]),
        ).blocks_per_sm
    ]

    assert len(rows) == 240
    assert wrong == []


def test_128_threads_of_255_registers_and_64_kb_fit_twice_on_an_a100() -> None:
    found = occupancy(targets.get("A100"), registers=255, shared_bytes=65_536, threads=128)

    assert found == Occupancy(blocks_per_sm=2, warps_per_sm=8, limited_by="registers")


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "threads", "limited_by"),
    [
        (255, 0, 128, "registers"),
        (32, 200_000, 128, "shared memory"),
        (16, 0, 1024, "threads"),
        (16, 0, 32, "blocks"),
    ],
)
def test_the_limit_is_named(registers: int, shared_bytes: int, threads: int, limited_by: str) -> None:
    found = occupancy(targets.get("H200"), registers=registers, shared_bytes=shared_bytes, threads=threads)

    assert found.limited_by == limited_by


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "threads"), [(32, 232_449, 128), (32, 0, 2048), (256, 0, 32), (168, 0, 512)]
)
def test_a_launch_that_cannot_be_gives_zero(registers: int, shared_bytes: int, threads: int) -> None:
    found = occupancy(targets.get("H200"), registers=registers, shared_bytes=shared_bytes, threads=threads)

    assert found.blocks_per_sm == 0


def test_shared_memory_of_a_whole_block_fits_once() -> None:
    for name in targets.names():
        target = targets.get(name)
        found = occupancy(target, registers=32, shared_bytes=target.shared_per_block_bytes, threads=128)
        assert found.blocks_per_sm == 1, name
