"""Instructions and loops from listings in nvdisasm's form."""

from __future__ import annotations

from qimeng_attention.build.disassembly import count, find_loops, parse


def listing(*lines: str, kernel: str = "k") -> str:
    """Write a listing: labels end in a colon, everything else is an instruction."""
    text = [f'\t.section\t.text.{kernel},"ax",@progbits', f"{kernel}:", f".text.{kernel}:"]
    address = 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
        else:
            text.append(f"        /*{address:04x}*/              {line} ;")
            address += 16
    return "\n".join(text)


NESTED = listing(
    "S2R R0, SR_TID.X",
    ".L_x_0:",
    "LDG.E R1, [R2.64]",
    ".L_x_1:",
    "HMMA.16816.F32 R4, R8, R12, R4",
    "MUFU.EX2 R5, R5",
    "@P1 BRA `(.L_x_1)",
    "@P0 BRA `(.L_x_0)",
    "STG.E [R2.64], R4",
    "EXIT",
    ".L_x_2:",
    "BRA `(.L_x_2)",
    "NOP",
)

# As ptxas places a ring: the slow path of a wait lies behind the kernel's end and jumps back into the loop.
OUT_OF_LINE_WAIT = listing(
    "S2R R0, SR_TID.X",
    ".L_x_0:",
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R7+URZ], R3",
    "@!P0 BRA `(.L_x_3)",
    ".L_x_1:",
    "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT",
    "@P1 BRA `(.L_x_0)",
    "LDL R1, [R1]",
    "STG.E [R2.64], R4",
    "EXIT",
    ".L_x_3:",
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R7+URZ], R3",
    "@!P0 BRA `(.L_x_3)",
    "BRA `(.L_x_1)",
)


def test_opcodes_are_counted_without_modifiers_but_special_functions_by_kind() -> None:
    counts = count(parse(NESTED, "k"))

    assert counts["HMMA"] == 1
    assert counts["MUFU.EX2"] == 1
    assert counts["LDG"] == counts["STG"] == 1


def test_padding_that_never_runs_is_left_out() -> None:
    text = listing("@!PT LDS RZ, [RZ]", "@!UPT UIADD3 URZ, URZ, URZ, URZ", "@P0 LDS R1, [R2]", "EXIT")

    assert count(parse(text, "k")) == {"LDS": 1, "EXIT": 1}


def test_only_the_named_kernel_is_read() -> None:
    text = listing("LDL R1, [R1]", "EXIT", kernel="other") + "\n" + listing("FFMA R1, R2, R3, R4", "EXIT")

    assert count(parse(text, "k")) == {"FFMA": 1, "EXIT": 1}
    assert parse(text, "missing") == []


def test_nested_loops_are_told_apart() -> None:
    outer, inner = find_loops(parse(NESTED, "k"))

    assert (outer.address, outer.depth, outer.innermost) == (0x10, 1, False)
    assert (inner.address, inner.depth, inner.innermost) == (0x20, 2, True)
    assert dict(inner.counts) == {"BRA": 1, "HMMA": 1, "MUFU.EX2": 1}
    assert outer.count("LDG", "HMMA") == 2
    assert outer.instructions == 5


def test_the_endless_branch_behind_a_kernel_is_no_loop() -> None:
    assert find_loops(parse(listing("EXIT", ".L_x_0:", "BRA `(.L_x_0)", "NOP"), "k")) == []


def test_a_wait_placed_behind_the_end_belongs_to_its_loop_and_not_what_lies_between() -> None:
    main, wait = find_loops(parse(OUT_OF_LINE_WAIT, "k"))

    assert main.innermost
    assert main.count("HGMMA") == 1
    assert main.count("LDL", "STG") == 0
    assert (wait.waits, wait.innermost, wait.depth) == (True, False, 2)


def test_a_branch_on_two_predicates_falls_through() -> None:
    text = listing(".L_x_0:", "FADD R1, R1, R2", "@!P2 BRA !P0, `(.L_x_0)", "BRA P3, `(.L_x_0)", "EXIT")

    (loop,) = find_loops(parse(text, "k"))

    assert loop.instructions == 3


def test_bsync_goes_on_where_its_bssy_said() -> None:
    text = listing(
        ".L_x_0:",
        "BSSY B0, `(.L_x_1)",
        "@P0 BRA `(.L_x_2)",
        "FMUL R1, R1, R2",
        "BSYNC B0",
        "STL [R1], R2",
        ".L_x_2:",
        "FADD R1, R1, R2",
        "BSYNC B0",
        ".L_x_1:",
        "@P1 BRA `(.L_x_0)",
        "EXIT",
    )

    (loop,) = find_loops(parse(text, "k"))

    assert loop.count("FMUL", "FADD", "BSYNC") == 4
    assert loop.count("STL") == 0


def test_a_called_function_returns_and_the_loop_goes_on() -> None:
    text = listing(
        ".L_x_0:",
        "CALL.REL.NOINC `($k$__internal_0_$__divide)",
        "FADD R1, R1, R2",
        "@P0 BRA `(.L_x_0)",
        "EXIT",
        "$k$__internal_0_$__divide:",
        "MUFU.RCP R3, R3",
        "RET.REL.NODEC R4 `(k)",
    )

    (loop,) = find_loops(parse(text, "k"))

    assert dict(loop.counts) == {"BRA": 1, "CALL": 1, "FADD": 1}


def test_an_empty_listing_has_no_loops() -> None:
    assert find_loops([]) == []
