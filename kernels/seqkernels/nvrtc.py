"""CUDA C++ at run time: source file and ``-D`` macros in, a kernel ready to launch on PyTorch's current stream out.

NVRTC is the compiler inside the package ``nvidia-cuda-nvrtc``, which PyTorch's CUDA wheels bring; no ``nvcc`` and no
CUDA toolkit are needed. Compiled code (a cubin) is kept on disk, one file per source, macros, GPU generation and NVRTC
version, under ``$SEQKERNELS_CACHE`` or ``~/.cache/seqkernels``; files appear by an atomic rename, so processes that
compile the same kernel at once do not disturb each other. Compiling needs no GPU: the tests do it everywhere.

A kernel takes one struct, whose C++ declaration is the only description of its arguments: ``Kernel.launch`` reads the
field names and types from the source and takes keyword arguments (tensors for pointers, ``None`` for null).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import operator
import os
import re
import struct
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

_POINTER_OR_INT = {"i64": ctypes.c_longlong, "int": ctypes.c_int, "float": ctypes.c_float}
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_DEFAULT_SHARED_LIMIT = 48 * 1024  # above it a kernel has to ask
_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_...
_SHARED_SYMBOL = "shared_units"  # a symbol whose size, in units of 16 bytes, is what a block needs
_NVRTC_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


class CompileError(RuntimeError):
    """NVRTC refused a source; the message carries its log."""


# ------------------------------------------------------------------------------------------------------------- NVRTC


def _nvrtc_candidates() -> Iterator[str]:
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for folder in ("cu13", "cuda_nvrtc", "cu12"):
            yield from (str(Path(root) / folder / "lib" / name) for name in _NVRTC_NAMES)
    yield from _NVRTC_NAMES
    for root in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if root:
            yield from (str(Path(root) / "lib64" / name) for name in _NVRTC_NAMES)


@functools.cache
def _load_nvrtc() -> tuple[ctypes.CDLL | None, str]:
    """The library, or ``None`` and why not."""
    for name in _nvrtc_candidates():
        try:
            # NVRTC opens its built-ins by bare name: loaded first, they are found wherever they lie.
            for builtins in sorted(Path(name).parent.glob("libnvrtc-builtins.so*")) if "/" in name else []:
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(name), ""
        except OSError:
            continue
    return None, "the compiler NVRTC is missing: pip install nvidia-cuda-nvrtc (PyTorch's CUDA wheels bring it)"


def missing() -> str | None:
    """Why kernels cannot be compiled here, in words, or ``None``. Says nothing about a GPU."""
    library, reason = _load_nvrtc()
    return None if library else reason


def _nvrtc() -> ctypes.CDLL:
    library, reason = _load_nvrtc()
    if library is None:
        raise RuntimeError(reason)
    return library


@functools.cache
def nvrtc_version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@functools.cache
def supported_architectures() -> tuple[int, ...]:
    """Compute capabilities that this NVRTC compiles for, such as 90 for 9.0."""
    count = ctypes.c_int()
    _nvrtc().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    values = (ctypes.c_int * count.value)()
    _nvrtc().nvrtcGetSupportedArchs(values)
    return tuple(values)


def _headers(source: Path) -> dict[str, str]:
    """The files beside ``source`` that it may include."""
    return {path.name: path.read_text() for path in sorted(source.parent.glob("*.cuh"))}


def _options(defines: Mapping[str, int], architecture: int) -> list[str]:
    macros = [f"-D{name}={value}" for name, value in sorted(defines.items())]
    return [f"--gpu-architecture=sm_{architecture}", "--std=c++17", *macros]


def compile_cubin(source: Path, defines: Mapping[str, int], architecture: int) -> bytes:
    """Compile without the cache.

    Args:
        source: a ``.cu`` file; ``.cuh`` files in its folder can be included.
        defines: macros.
        architecture: compute capability as major * 10 + minor.

    Raises:
        CompileError: with NVRTC's log.
    """
    nvrtc = _nvrtc()
    headers = _headers(source)
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*[text.encode() for text in headers.values()])
    names = (ctypes.c_char_p * len(headers))(*[name.encode() for name in headers])
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.read_text().encode(), source.name.encode(), len(headers), texts, names
    )
    try:
        options = [option.encode() for option in _options(defines, architecture)]
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if status != 0:
            size = ctypes.c_size_t()
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise CompileError(
                f"{source.name} does not compile for sm_{architecture} with {dict(defines)} under NVRTC "
                f"{'.'.join(map(str, nvrtc_version()))}:\n{log.value.decode(errors='replace')}"
            )
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, cubin)
        return cubin.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


# ------------------------------------------------------------------------------------------------------------- cache


def cache_folder() -> Path:
    """Where cubins are kept: ``$SEQKERNELS_CACHE``, else ``~/.cache/seqkernels`` (``$XDG_CACHE_HOME`` honoured)."""
    chosen = os.environ.get("SEQKERNELS_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(chosen) if chosen else Path(base) / "seqkernels"


def _key(source: Path, defines: Mapping[str, int], architecture: int) -> str:
    digest = hashlib.sha256()
    for part in (
        source.read_text(),
        *[text for item in _headers(source).items() for text in item],
        *_options(defines, architecture),
        repr(nvrtc_version()),
    ):
        digest.update(part.encode())
        digest.update(b"\0")
    return f"{source.stem}-sm{architecture}-{digest.hexdigest()[:24]}.cubin"


def cached_cubin(source: Path, defines: Mapping[str, int], architecture: int) -> bytes:
    """Like :func:`compile_cubin`, from disk where possible. A folder that cannot be written costs only the reuse."""
    path = cache_folder() / _key(source, defines, architecture)
    try:
        return path.read_bytes()
    except OSError:
        pass
    cubin = compile_cubin(source, defines, architecture)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "wb") as file:
            file.write(cubin)
        os.replace(temporary, path)  # atomic: a reader sees the whole file or none
    except OSError:
        pass
    return cubin


# ------------------------------------------------------------------------------------------------------------ driver


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(status: int, doing: str) -> None:
    if status != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA driver error {status} while {doing}: {(text.value or b'unknown').decode()}")


@functools.cache
def struct_of(source: Path, name: str) -> type[ctypes.Structure]:
    """The ctypes twin of ``struct name`` in ``source``: pointers, ``i64``, ``int`` and ``float`` fields."""
    body = re.search(rf"struct {name} \{{(.*?)\n\}};", source.read_text(), re.S)
    assert body, f"{source.name} declares no struct {name}"
    fields: list[tuple[str, type]] = []
    for line in body.group(1).splitlines():
        declaration = line.split("//")[0].strip()
        if not declaration:
            continue
        match = re.fullmatch(r"(?:const )?(\w+)(\*?) (\w+);", declaration)
        assert match, f"{source.name}: struct {name} has a field this cannot read: {declaration!r}"
        kind, pointer, field = match.groups()
        fields.append((field, ctypes.c_void_p if pointer else _POINTER_OR_INT[kind]))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class Arguments:
    """Writes the values of an argument struct as the kernel reads them.

    A launch makes one: `struct.pack` takes a third of the time of a ctypes structure with as many fields.
    """

    def __init__(self, args: type[ctypes.Structure]):
        codes = {kind: code for code, kind in zip("Pqif", (ctypes.c_void_p, *_POINTER_OR_INT.values()))}
        self._packer = struct.Struct("@" + "".join(codes[kind] for _, kind, *_ in args._fields_))
        self._names = tuple(name for name, *_ in args._fields_)
        self._in_order = operator.itemgetter(*self._names)
        # A C struct ends on the alignment of its widest field, struct.pack does not.
        self._buffer = ctypes.c_char * max(ctypes.sizeof(args), self._packer.size)

    def pack(self, arguments: Mapping[str, torch.Tensor | float | None]) -> ctypes.Array:
        """The struct's bytes; tensors pass their address, None a null pointer."""
        assert len(arguments) == len(self._names), arguments.keys() ^ set(self._names)
        values = [
            0 if value is None else value.data_ptr() if isinstance(value, torch.Tensor) else value
            for value in self._in_order(arguments)
        ]
        buffer = self._buffer()
        self._packer.pack_into(buffer, 0, *values)
        return buffer


class _LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: a number and a union of 64 bytes, of which an int is used."""

    _fields_ = [("id", ctypes.c_int), ("_pad", ctypes.c_int), ("value", ctypes.c_int), ("_rest", ctypes.c_int * 15)]


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        *[(f"{kind}_{axis}", ctypes.c_uint) for kind in ("grid", "block") for axis in "xyz"],
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_LaunchAttribute)),
        ("attribute_count", ctypes.c_uint),
    ]


class Kernel:
    """One compiled kernel on one device.

    Attributes:
        shared_bytes: dynamic shared memory per block, read from the symbol ``shared_units`` of the source (0 without).
    """

    def __init__(self, source: Path, entry: str, args: str, defines: Mapping[str, int], device: int):
        major, minor = torch.cuda.get_device_capability(device)
        cubin = cached_cubin(source, defines, major * 10 + minor)
        self._arguments = Arguments(struct_of(source, args))
        self._name = f"{entry} of {source.name}"
        self._device = device
        self._may_begin_early = major >= 9
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        driver = _driver()
        with torch.cuda.device(device):
            torch.cuda.current_stream(device).query()  # makes PyTorch's context current in this thread
            _check(driver.cuModuleLoadData(ctypes.byref(self._module), cubin), f"loading {self._name}")
            _check(
                driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, entry.encode()),
                f"finding {self._name}",
            )
            self.shared_bytes = self._read_shared_bytes() if _SHARED_SYMBOL in source.read_text() else 0
            if self.shared_bytes > _DEFAULT_SHARED_LIMIT:
                _check(
                    driver.cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED, self.shared_bytes),
                    f"reserving {self.shared_bytes} bytes of shared memory for {self._name}",
                )

    def _read_shared_bytes(self) -> int:
        address, size = ctypes.c_void_p(), ctypes.c_size_t()
        _check(
            _driver().cuModuleGetGlobal_v2(
                ctypes.byref(address), ctypes.byref(size), self._module, _SHARED_SYMBOL.encode()
            ),
            f"reading how much shared memory {self._name} needs",
        )
        return 16 * size.value

    def attribute(self, number: int) -> int:
        """``cuFuncGetAttribute``: 4 is registers per thread, 3 local bytes (spills)."""
        value = ctypes.c_int()
        _check(_driver().cuFuncGetAttribute(ctypes.byref(value), number, self._function), f"asking about {self._name}")
        return value.value

    def blocks_per_multiprocessor(self, threads: int) -> int:
        value = ctypes.c_int()
        _check(
            _driver().cuOccupancyMaxActiveBlocksPerMultiprocessor(
                ctypes.byref(value), self._function, threads, ctypes.c_size_t(self.shared_bytes)
            ),
            f"asking about {self._name}",
        )
        return value.value

    def launch(
        self,
        grid: int | tuple[int, int],
        threads: int,
        early: bool = False,
        /,
        **arguments: torch.Tensor | float | None,
    ) -> None:
        """Enqueue on the current stream; never waits.

        Args:
            grid: blocks in x, or in (x, y).
            threads: per block.
            early: the kernel may begin before the one in front of it has ended (programmatic dependent launch); it
                must wait by itself (`griddepcontrol.wait`). Without effect before sm_90.
            arguments: every field of the argument struct. Tensors pass their address.
        """
        packed = self._arguments.pack(arguments)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(packed))
        x, y = (grid, 1) if isinstance(grid, int) else grid
        if torch.cuda.current_device() != self._device:
            with torch.cuda.device(self._device):
                status = self._enqueue(x, y, threads, early, pointers)
        else:
            status = self._enqueue(x, y, threads, early, pointers)
        _check(status, f"launching {self._name} on {x} x {y} blocks of {threads} threads")

    def _enqueue(self, x: int, y: int, threads: int, early: bool, pointers: ctypes.Array) -> int:
        stream = ctypes.c_void_p(torch._C._cuda_getCurrentRawStream(self._device))
        if early and self._may_begin_early:
            attributes = (_LaunchAttribute * 1)(_LaunchAttribute(_PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1))
            config = _LaunchConfig(x, y, 1, threads, 1, 1, self.shared_bytes, stream, attributes, 1)
            return _driver().cuLaunchKernelEx(ctypes.byref(config), self._function, pointers, None)
        return _driver().cuLaunchKernel(
            self._function, x, y, 1, threads, 1, 1, self.shared_bytes, stream, pointers, None
        )


_kernels: dict[tuple, Kernel] = {}
_kernels_lock = threading.Lock()


def kernel(source: Path, entry: str, args: str, defines: Mapping[str, int], device: int) -> Kernel:
    """The kernel ``entry`` of ``source``, compiled and loaded at most once per process, device and macros."""
    key = (source, entry, device, *defines.items())
    found = _kernels.get(key)
    if found is None:
        with _kernels_lock:  # autograd calls from its own threads
            found = _kernels.get(key)
            if found is None:
                found = _kernels[key] = Kernel(source, entry, args, defines, device)
    return found
