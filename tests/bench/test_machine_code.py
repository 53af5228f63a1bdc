"""What is read of the compiled kernels, and that they hold the instructions which their sources mean."""

import json
import re

import pytest

from dllm_kernels.bench import machine_code
from dllm_kernels.bench.machine_code import Kernel
from dllm_kernels.ops.card import RTX_5090
from dllm_kernels.ops.kernels import TILES
from tests.cli.command import run
from tests.ops.test_extension import needs_module

LINEAR = "_ZN4dllm41_GLOBAL__N__1f6064f6_9_linear_cu_ea59c27b13linear_kernelINS_10StreamTileILi2ELi1ELi4ELi2EEEEEvNS_6LinearEj"


@pytest.fixture(scope="module")
def built():
    return machine_code.built()


def test_a_title_is_the_function_and_its_numbers():
    assert Kernel("sm_90a", LINEAR, {}, "").title == "linear<2, 1, 4, 2>"


def test_defects_are_named():
    kernel = Kernel("sm_90a", LINEAR, {"STACK": 8, "LOCAL": 0}, "/*0010*/ STL [R1], R2 ;\n/*0020*/ LDS.128 R4, [R8] ;")
    assert kernel.defects() == ["STACK:8", "STL [R1], R2 ;"]
    assert kernel.count("LDS.128") == 1 and kernel.count("HMMA") == 0


def test_a_kernel_for_other_architectures_is_empty():
    rest = "/*0000*/ LDC R1, c[0x0][0x37c] ; /* 0x0000df00ff017b82 */\n/*0010*/ EXIT ;\n/*0020*/ BRA 0x20;\n/*0030*/ NOP;"
    assert Kernel("sm_120a", LINEAR, {}, rest).empty
    assert not Kernel("sm_120a", LINEAR, {}, rest + "\n/*0040*/ STG.E [R2.64], R4 ;").empty


@needs_module
def test_the_skinny_linear_by_wgmma(built):
    found = [kernel for kernel in skinny_linears(built, "sm_90a") if kernel.count("HGMMA")]
    assert len(found) == 24 and {kernel.architecture for kernel in found} == {"sm_90a"}
    for kernel in found:
        assert kernel.defects() == [], kernel.title
        assert kernel.count("UBLKCP") >= 1 and kernel.count("UTMALDG") >= 1 and kernel.count("LDS.128") >= 6, kernel.title
        assert kernel.count("HGMMA") >= 4 and kernel.count("HMMA") == 0, kernel.title
        # Two blocks on an SM, of eight warps, or of twelve for 128 rows.
        warps = tile_of(kernel)[3] + 4
        assert 2 * warps * -(-kernel.usage["REG"] * 32 // 256) * 256 <= 65_536, kernel.title


def skinny_linears(built: list[Kernel], architecture: str, clusters: bool = True) -> list[Kernel]:
    """The kernels of linear_skinny that have code for an architecture; those without clusters are apart."""
    found = [k for k in built if k.architecture == architecture and k.title.startswith("linear_skinny<") and not k.empty]
    return [k for k in found if ("WithoutClusters" in k.name) != clusters]


def tile_of(kernel: Kernel) -> list[int]:
    """Rows, outputs, columns of a stage, warps along rows and outputs, and slices of K."""
    return [int(number) for number in re.findall(r"\d+", kernel.title)]


def pending_at_the_second_arrival(sass: str) -> tuple[int, set[int]]:
    """How many loads of peers stand between the arrivals at a cluster's barrier, and the registers that none has read then."""
    between = [m[1] for m in re.finditer(r"/\*[0-9a-f]+\*/\s+([^;]*?)\s*;", sass.split("UCGABAR_ARV")[1])]
    loads, pending = 0, set()
    for instruction in between:
        # A predicate, the operation, what it writes, what it reads.
        operation, *operands = re.sub(r"^@\S+ ", "", instruction).replace(",", "").split()
        pending -= {int(n) for operand in operands[1:] for n in re.findall(r"\bR(\d+)", operand)}
        if operation == "LD.E.128":
            loads += 1
            pending |= {int(operands[0].partition(".")[0][1:]) + i for i in range(4)}
    return loads, pending


def test_loads_that_are_pending_are_found():
    add = "/*0020*/ FADD.FTZ R20, R4, R5 ; /* 0x000000051404721e */\n/*0030*/ @P0 FADD R21, R6, {} ;"
    code = f"UCGABAR_ARV ;\n/*0010*/ LD.E.128 R4, [R8] ;\n{add}\n/*0040*/ UCGABAR_ARV ;"
    assert pending_at_the_second_arrival(code.format("R7")) == (1, set())
    assert pending_at_the_second_arrival(code.format("R1")) == (1, {7})


@needs_module
def test_the_sums_of_peers_are_there_before_a_block_says_that_it_has_read_them(built):
    """PTX orders no reads before a relaxed arrival; a value that has been added up has been read."""
    clusters = [k for k in skinny_linears(built, "sm_90a") if tile_of(k)[-1] > 1]
    assert len(clusters) == 46
    for kernel in clusters:
        loads, pending = pending_at_the_second_arrival(kernel.sass)
        assert loads >= 4 and not pending, kernel.title


@needs_module
def test_three_blocks_of_denoise_update_fit_an_sm_of_hopper(built):
    """At widths up to 2048, of bfloat16 predictions."""
    found = [
        k for k in built if re.search("denoise_update_kernelI13__nv_bfloat16.*Li1E", k.name) and k.architecture == "sm_90a"
    ]
    assert len(found) == 2 and all(kernel.defects() == [] and kernel.usage["REG"] <= 40 for kernel in found)


@needs_module
def test_the_persistent_linear(built):
    found = [kernel for kernel in built if kernel.title.startswith("linear_persistent<")]
    assert len(found) == 2 and {kernel.architecture for kernel in found} == {"sm_90a"}
    for kernel in found:
        assert kernel.defects() == [], kernel.title
        assert kernel.count("UTMALDG") >= 2 and kernel.count("HGMMA") >= 4 and kernel.count("HMMA") == 0, kernel.title
        # A block of 384 threads on an SM.
        assert kernel.usage["REG"] * 384 <= 65_536, kernel.title


@needs_module
@pytest.mark.parametrize("architecture", ["sm_90a", "sm_120a"])
def test_the_skinny_linear_by_mma(built, architecture):
    found = [kernel for kernel in skinny_linears(built, architecture) if not kernel.count("HGMMA")]
    alone = skinny_linears(built, architecture, clusters=False)
    assert len(found) == 35 and len(alone) == 29
    for kernel in found + alone:
        assert kernel.defects() == [], kernel.title
        assert kernel.count("UBLKCP") >= 1 and kernel.count("UTMALDG") >= 1, kernel.title
        assert kernel.count("HMMA") >= 16 and kernel.count("LDSM.4") >= 8, kernel.title
        tile = next(t for t in TILES["linear_skinny"] if [*t.shape, t.split_k] == tile_of(kernel))
        rings = 2 * 2 * tile.tile_k * (tile.tile_m + tile.tile_n)
        fits_twice = tile.ring_offset + max(rings, tile.product_bytes) <= RTX_5090.half_bytes
        # Registers are given out in lots of 256 a warp (CUDA C++ Programming Guide, Compute Capabilities).
        registers = (tile.num_warps_m * tile.num_warps_n + 4) * -(-kernel.usage["REG"] * 32 // 256) * 256
        assert (2 if fits_twice else 1) * registers <= 65_536, kernel.title


@needs_module
@pytest.mark.parametrize("architecture", ["sm_90a", "sm_120a"])
def test_the_skinny_lm_head(built, architecture):
    found = [k for k in built if k.architecture == architecture and k.title.startswith("lm_head_skinny<")]
    assert len(found) == 4
    for kernel in found:
        assert kernel.defects() == [], kernel.title
        assert kernel.count("UBLKCP") >= 1 and kernel.count("UTMALDG") >= 1, kernel.title
        if architecture == "sm_90a":
            assert kernel.count("HGMMA") >= 4 and kernel.count("HMMA") == 0, kernel.title
        else:
            assert kernel.count("HMMA") >= 16 and kernel.count("LDSM.4") >= 8 and kernel.count("HGMMA") == 0, kernel.title


@needs_module
def test_info_prints_the_table():
    rows = json.loads(run("info", "--kernels", "--json").stdout)["kernels"]
    assert {row["architecture"] for row in rows} == {"sm_90a", "sm_120a"}
    assert all(row["spills"] == row["stack_bytes"] == row["local_bytes"] == 0 for row in rows)
    assert any(row["kernel"] == "linear_skinny<64, 128, 64, 2, 2, 1>" and row["instructions"]["HMMA"] > 0 for row in rows)
    assert "linear_skinny<64,128,64,2,2,1>" in run("info", "--kernels").stdout
