"""The CUDA sources without a GPU: they compile for every generation, and their launches are cut correctly."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from pathlib import Path

import pytest
from seqkernels import nvrtc
from seqkernels.selective_scan.cuda import plan

FOLDER = Path(plan.__file__).parent
ARCHITECTURES = (80, 90, 100)
SMS = 132

VARIANTS = {
    "forward-bf16": ("forward.cu", {"LANES": 1, "THREADS": 128, "MIN_BLOCKS": 4, "SAVE_EVERY": 4, "SAVE_Y": 1}),
    "forward-lanes2": ("forward.cu", {"LANES": 2, "THREADS": 64, "MIN_BLOCKS": 8, "SAVE_EVERY": 8, "SAVE_Y": 1}),
    "forward-lanes4": ("forward.cu", {"LANES": 4, "THREADS": 128, "MIN_BLOCKS": 4, "SAVE_Y": 0}),
    "backward-wide": ("backward.cu", {"LANE_CHANNELS": 4, "WARPS": 4, "MIN_BLOCKS": 2, "SAVE_EVERY": 4}),
    "backward-narrow": ("backward.cu", {"LANE_CHANNELS": 2, "WARPS": 4, "MIN_BLOCKS": 2, "SAVE_EVERY": 8}),
    "ends": ("ends.cu", {"REVERSE": 0, "THREADS": 128, "MIN_BLOCKS": 4}),
    "ends-reverse": ("ends.cu", {"REVERSE": 1, "THREADS": 64, "MIN_BLOCKS": 8}),
    "carry": ("carry.cu", {}),
    "reduce": ("reduce.cu", {}),
    "complex-forward": ("complex_forward.cu", {"LANES": 4, "PER_LANE": 4, "WARPS": 4, "MIN_BLOCKS": 4, "SAVE": 1}),
    "complex-backward": ("complex_backward.cu", {"LANES": 4, "PER_LANE": 4, "WARPS": 8, "MIN_BLOCKS": 2}),
    "complex-ends": ("complex_ends.cu", {"LANES": 8, "PER_LANE": 4, "WARPS": 4, "MIN_BLOCKS": 4, "REVERSE": 1}),
    "complex-carry": ("complex_carry.cu", {}),
    "complex": ("complex.cu", {"PER_LANE": 1, "SAVE": 1, "WARPS": 16}),
}
COMMON = {"ELEMENT": 1, "SOFTPLUS": 1, "HAS_GATE": 1, "PARTIAL_IN": 0, "PARTIAL_OUT": 0}

needs_nvrtc = pytest.mark.skipif(nvrtc.missing() is not None, reason=nvrtc.missing() or "")


def test_every_source_has_a_variant_here():
    assert {path.name for path in FOLDER.glob("*.cu")} == {file for file, _ in VARIANTS.values()}


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sources_compile(variant: str, architecture: int):
    file, defines = VARIANTS[variant]
    assert architecture in nvrtc.supported_architectures()
    cubin = nvrtc.compile_cubin(FOLDER / file, COMMON | defines, architecture)
    assert cubin[:4] == b"\x7fELF"


@needs_nvrtc
@pytest.mark.parametrize("element", [0, 1, 2])
@pytest.mark.parametrize(("gate", "softplus"), [(0, 0), (1, 0)])
@pytest.mark.parametrize("parts", [(0, 1), (1, 0)])
def test_options_compile(element: int, gate: int, softplus: int, parts: tuple[int, int]):
    options = {"ELEMENT": element, "HAS_GATE": gate, "SOFTPLUS": softplus}
    options |= {"PARTIAL_IN": parts[0], "PARTIAL_OUT": parts[1]}
    for variant in ("forward-bf16", "backward-narrow"):
        file, defines = VARIANTS[variant]
        assert nvrtc.compile_cubin(FOLDER / file, defines | options, 90)


@needs_nvrtc
def test_a_compile_error_names_the_file_and_shows_the_log(tmp_path: Path):
    source = tmp_path / "broken.cu"
    source.write_text('extern "C" __global__ void f() { nonsense; }')
    with pytest.raises(nvrtc.CompileError, match=r"broken\.cu does not compile for sm_90[\s\S]*nonsense"):
        nvrtc.compile_cubin(source, {}, 90)


def _compile_carry(folder: str, barrier) -> None:
    os.environ["SEQKERNELS_CACHE"] = folder
    barrier.wait()
    nvrtc.cached_cubin(FOLDER / "carry.cu", COMMON, 90)


@needs_nvrtc
def test_two_processes_compile_at_once(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_compile_carry, args=(str(tmp_path), barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    (cubin,) = tmp_path.iterdir()  # one file, no temporary ones left
    assert cubin.read_bytes()[:4] == b"\x7fELF"


@needs_nvrtc
def test_the_cache_is_used_and_keyed_by_macros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEQKERNELS_CACHE", str(tmp_path))
    first = nvrtc.cached_cubin(FOLDER / "carry.cu", COMMON, 90)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"from disk")
    assert nvrtc.cached_cubin(FOLDER / "carry.cu", COMMON, 90) == b"from disk" != first
    nvrtc.cached_cubin(FOLDER / "carry.cu", COMMON | {"ELEMENT": 0}, 90)
    assert len(list(tmp_path.iterdir())) == 2


@needs_nvrtc
def test_a_cache_that_cannot_be_written_costs_only_the_reuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("SEQKERNELS_CACHE", str(blocked / "below"))
    assert nvrtc.cached_cubin(FOLDER / "carry.cu", COMMON, 90)


def test_argument_structs_are_read_from_the_source():
    fields = dict(nvrtc.struct_of(FOLDER / "carry.cu", "CarryArgs")._fields_)  # type: ignore[arg-type]
    assert list(fields)[:2] == ["a", "start"]
    assert fields["length"].__name__ in ("c_long", "c_longlong")
    assert fields["E"].__name__ == "c_int"


@pytest.mark.parametrize(("file", "args"), [("carry.cu", "CarryArgs"), ("backward.cu", "BackwardArgs")])
def test_arguments_are_packed_as_c_lays_them_out(file: str, args: str) -> None:
    struct = nvrtc.struct_of(FOLDER / file, args)
    values: dict[str, int | None] = {name: 3 + 7 * place for place, (name, *_) in enumerate(struct._fields_)}
    values[struct._fields_[0][0]] = None  # a null pointer
    packed = nvrtc.Arguments(struct).pack(dict(reversed(values.items())))
    assert bytes(packed) == bytes(struct(**values))
    with pytest.raises(AssertionError):
        nvrtc.Arguments(struct).pack({**values, "unknown": 1})



def sizes():
    shapes = [(1, 1), (1, 63), (3, 1000), (8, 2048), (1, 65536), (2, 8192), (64, 512), (1, 1048576)]
    for (sequences, length), channels, groups, packed, bytes_ in itertools.product(
        shapes, (64, 192, 512, 2048), (1, 1), (False, True), (2, 4)
    ):
        yield plan.Size(sequences, length, channels, groups, packed, bytes_, SMS)


def test_every_layout_covers_its_size():
    for size in sizes():
        for layout in (plan.forward(size), plan.backward(size)):
            cut = layout.cut
            assert size.channels // size.groups % layout.channels == 0, (size, layout)
            assert cut.chunk_length % plan.TILE == 0
            assert cut.chunks * cut.chunk_length >= size.length > (cut.chunks - 1) * cut.chunk_length
            assert cut.chunks == 1 or cut.chunk_length >= plan.MIN_CHUNK


@pytest.mark.parametrize("bounds", [[0, 1, 64, 100, 164], [0, 16, 32, 33, 48], [0, 5000], list(range(0, 1025, 1))])
@pytest.mark.parametrize("chunk_length", [16, 256, 8192])
def test_packed_slots_and_tiles_never_collide(bounds: list[int], chunk_length: int):
    """The arithmetic of `packed_base` in common.cuh, which leaves each sequence room without a prefix sum."""
    size = plan.Size(len(bounds) - 1, bounds[-1], 64, 1, True, 2, SMS)
    slots = plan.cut_into(size, -(-size.length // chunk_length)).slots
    for per, room in ((plan.TILE, size.tiles), (max(chunk_length, plan.MIN_CHUNK), slots)):
        if per >= size.length:
            room = size.sequences
        taken: set[int] = set()
        for sequence, (start, end) in enumerate(itertools.pairwise(bounds)):
            base = start // per + sequence
            mine = range(base, base + -(-(end - start) // per))
            assert not taken.intersection(mine)
            taken.update(mine)
        assert max(taken) < room


def test_benchmark_shapes_take_the_fast_layouts():
    def layouts(B: int, E: int, L: int) -> tuple[plan.Forward, plan.Backward]:
        size = plan.Size(B, L, E, 1, False, 2, SMS)
        return plan.forward(size), plan.backward(size)

    forward, backward = layouts(32, 2048, 2048)
    assert (forward.lanes, forward.threads, forward.cut.chunks) == (1, 64, 1)
    assert (backward.lane_channels, backward.warps, backward.cut.chunks) == (4, 4, 1)
    forward, backward = layouts(1, 512, 1048576)
    assert forward.cut.chunks > 100
    assert backward.cut.chunks > 50


@pytest.mark.parametrize("states", range(1, 40))
def test_complex_layouts_cover_their_size(states: int):
    unit, padded = plan.complex_units(states)
    assert padded >= states
    assert plan.complex_is_fast(6 * unit, 3, padded) == (states <= plan.COMPLEX_STATES)
    if states > plan.COMPLEX_STATES:
        return
    assert not plan.complex_is_fast(unit + 1, 1, padded)
    for sequences, length, shared in itertools.product((1, 300), (1, 1000, 1048576), (100, 228)):
        size = plan.Size(sequences, length, 4 * unit, 2, False, 2, SMS, shared * 1024)
        for layout in (plan.complex_forward(size, padded), plan.complex_backward(size, padded)):
            assert layout.lanes * layout.per_lane == padded
            assert size.channels // size.groups % layout.channels == 0
            assert layout.cut.chunks * layout.cut.chunk_length >= length


def test_complex_benchmark_shapes_take_the_fast_layouts():
    def layouts(B: int, E: int, L: int) -> tuple[plan.Complex, plan.Complex]:
        size = plan.Size(B, L, E, 1, False, 2, SMS)
        return plan.complex_forward(size, 16), plan.complex_backward(size, 16)

    for B, L, warps, cut in ((256, 1024, 8, False), (16, 16384, 4, False), (2, 131072, 8, True), (1, 1048576, 8, True)):
        forward, backward = layouts(B, 512, L)
        assert (forward.cut.chunks > 1, backward.cut.chunks > 1) == (cut, cut)
        assert backward.warps == warps


def test_states_are_saved_until_they_weigh_too_much():
    card = 141 * 2**30
    assert plan.save_every(2048 * 32, 2048, 16, card) == 4
    assert plan.save_every(2**20, 512, 16, card) == 8
    assert plan.save_every(2**20, 512, 64, card) == 0
