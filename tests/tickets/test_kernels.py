"""The kernels compiled for an NVIDIA H100 (sm_90), which needs no GPU: what the compiler makes of them."""

import re
import subprocess
from functools import cache

import pytest

from mth.tickets import products

triton = pytest.importorskip("triton")
tl = triton.language

NUMBERS = {"K": "i32", "index": "*i32", "flat": "*fp32", "parts": "*fp32", "table": "*i64"}
MOVES = {"MOST": 512, "BLOCK": 1024}
SUMS = {"ENTRIES": products.ENTRIES, "TOKENS": products.TOKENS}
CASES = {
    **{
        f"move_entries {what} {kind} {index}": ("move_entries", kind, {"WHAT": what, "ELEMENT": kind, "INDEX": index, **MOVES}, 4)
        for what, kind, index in (
            ("read", "bfloat16", "int32"),
            ("write", "bfloat16", "int32"),
            ("add", "bfloat16", "int32"),
            ("write", "float16", "int64"),
            ("add", "float32", None),
        )
    },
    **{f"transpose {kind}": ("transpose", kind, {"SIDE": products.SIDE}, 4) for kind in ("bfloat16", "float32")},
    **{
        f"sum_products {kind} {add}": ("sum_products", kind, {"ADD": add, **SUMS}, products.WARPS)
        for kind, add in (("bfloat16", True), ("bfloat16", False), ("float32", True))
    },
}
SHORT = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
NOT_ALIGNED = ("count", "tokens")  # all other numbers are multiples of 16, as addresses are


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles a case once. Returns its PTX, and what the assembler says of it."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    from mth.tickets import kernels

    folder = tmp_path_factory.mktemp("triton")

    def make(case):
        name, kind, constants, warps = CASES[case]
        function = getattr(kernels, name)
        constants = {key: getattr(tl, value) if key in ("ELEMENT", "INDEX") and value else value for key, value in constants.items()}
        pointers = {"x": SHORT[kind], "out": SHORT[kind], "dyt": SHORT[kind], "xt": SHORT[kind], **NUMBERS}
        signature = {key: "constexpr" if key in constants else pointers.get(key, "i32") for key in function.arg_names}
        aligned = [place for place, key in enumerate(signature) if key not in constants and key not in NOT_ALIGNED]
        source = ASTSource(function, signature, constants, {(place,): [["tt.divisibility", 16]] for place in aligned})
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "enable_fp_fusion": True})
        file = folder / "kernel.ptx"
        file.write_text(made.asm["ptx"])
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", file, "-o", folder / "kernel.cubin"]
        return made.asm["ptx"], subprocess.run(command, capture_output=True, text=True, check=True).stderr

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        yield cache(make)


@pytest.mark.parametrize("case", CASES)
def test_no_registers_are_spilled_and_many_programs_run_at_a_time(compiled, case):
    ptx, said = compiled(case)
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in said, said
    registers = int(re.search(r"Used (\d+) registers", said)[1])
    assert registers <= 64, said  # 1,024 threads of a multiprocessor's 65,536 registers
    assert not re.search(r"\b(atom|red)\.", ptx.replace("shared.", ""))  # nothing is added in an order that differs from time to time


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("transpose", "sum_products"))])
def test_operands_are_read_and_written_16_bytes_at_a_time(compiled, case):
    ptx, _ = compiled(case)
    assert ptx.count("ld.global.v4.b32") >= 4
    assert not case.startswith("transpose") or (ptx.count("st.global.v4.b32") >= 4 and "st.global.b" not in ptx)


def test_masters_are_rounded_to_the_nearest_even_number(compiled):
    assert "cvt.rn.bf16.f32" in compiled("move_entries write bfloat16 int32")[0]
