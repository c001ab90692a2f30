"""C libraries: right results and no crash on the device, run here or under qemu-user; and what they need to link."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backends import build, load
from backends.artifact import Artifact
from backends.clibrary import CLibrary, launcher
from backends.objects import needed, renamed, symbols
from backends.probes import probes
from backends.profile import Profile
from backends.runtime.program import ProgramExecutable, runner
from backends.target import target as named_target
from backends.zig import zig
from compiler import compile
from compiler.cli import main
from compiler.frontends.onnx import load_onnx
from compiler.ir import SecateurError
from tests.backends.networks import assert_same, reference, small_cnn
from tests.backends.test_sparse import network

BUNDLED = Path(__file__).parents[2] / "examples" / "fashion_mnist" / "fashion_cnn.onnx"
WRAPPED = ("malloc", "calloc", "posix_memalign", "pthread_create")
MUSL = {"arm64-linux": "aarch64-linux-musl", "arm64-android": "aarch64-linux-musl", "x86-64-v3": "x86_64-linux-musl"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Builds an artifact once; skips where it could not run."""
    made: dict[tuple[object, ...], Artifact] = {}

    def of(target: str, seed: int = 0, run: bool = True, **options: object) -> Artifact:
        key = (target, seed, *options.items())
        if key not in made:
            path = tmp_path_factory.mktemp("clibrary") / "out"
            made[key] = build(load_onnx(small_cnn(seed)), path, target=target, packager=CLibrary(**options))
        if run and runner(made[key].manifest) is None:
            pytest.skip("qemu-user is not installed: code for another kind of machine is not run")
        return made[key]

    return of


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)


def words(artifact: Artifact, program: Path) -> list[str]:
    """The command of a program that was compiled for an artifact's target."""
    return [*(runner(artifact.manifest) or []), str(program)]


@pytest.mark.parametrize("target", ["arm64-linux", "x86-64-v3"])
@pytest.mark.parametrize("threads", [1, 3])
def test_it_computes_what_onnx_runtime_computes(
    package: Callable[..., Artifact], target: str, threads: int, x: np.ndarray
) -> None:
    with load(package(target).path, threads) as executable:
        assert isinstance(executable, ProgramExecutable)
        assert_same(reference(small_cnn(), {"x": x}), executable.run({"x": x}))


@pytest.mark.parametrize("passes", ["simplify", "simplify,sparsify(sparsity=0.9)"])
def test_the_bundled_model_is_verified_under_emulation(tmp_path: Path, passes: str) -> None:
    artifact = compile(
        BUNDLED, target="arm64-linux", passes=passes, output=tmp_path / "out", shapes={"input": (1, 1, 28, 28)}
    )
    if runner(artifact.manifest) is None:
        pytest.skip("qemu-user is not installed: compile() could not run the code")
    with load(artifact.path) as executable:
        assert isinstance(executable, ProgramExecutable)
        feeds = {"input": np.zeros((1, 1, 28, 28), np.float32)}
        if executable.emulated:
            with pytest.raises(SecateurError, match="say nothing about the processor"):
                executable.time(feeds, 1)
        else:
            assert len(executable.time(feeds, 3)) == 3


@pytest.mark.parametrize("target", ["arm64-linux", "arm64-android", "x86-64-v3"])
def test_bad_input_is_an_error_and_never_a_crash(
    package: Callable[..., Artifact], target: str, tmp_path: Path, x: np.ndarray
) -> None:
    artifact, other = package(target), package("arm64-linux", seed=1, run=False)
    (tmp_path / "x.bin").write_bytes(x.tobytes())
    (tmp_path / "y.bin").write_bytes(reference(small_cnn(), {"x": x})["y"].tobytes())
    wraps = [f"-Wl,--wrap={function}" for function in WRAPPED]
    source = str(Path(__file__).parent / "clibrary_checks.c")
    flags = ["-target", MUSL[target], "-static", "-std=c11", "-O1", "-I", str(artifact.path), *wraps]
    zig(tmp_path, "cc", *flags, source, str(artifact.path / "libmodel.a"), "-o", "checks")
    files = [artifact.path / "weights.bin", other.path / "weights.bin", tmp_path / "x.bin", tmp_path / "y.bin"]
    command = [*words(artifact, tmp_path / "checks"), *map(str, files), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stderr


_PAIR = """\
#include <stdio.h>
#include "first.h"
#include "second.h"
int main(int count, char **words) {
  static float in[3 * 32 * 32], one[10], two[10];
  for (int i = 0; i < 3 * 32 * 32; ++i) in[i] = (float)(i % 17) / 17;
  first_options f = {.weights_file = words[1], .threads = 2};
  second_options s = {.threads = 2};
  first_instance *a; second_instance *b;
  if (count != 2 || first_create(&f, &a, 0, 0) || second_create(&s, &b, 0, 0)) return 1;
  size_t in_bytes = sizeof in, out_bytes = sizeof one;
  const void *ins = in; void *ones = one, *twos = two;
  if (first_run(a, &ins, &in_bytes, &ones, &out_bytes) || second_run(b, &ins, &in_bytes, &twos, &out_bytes)) return 2;
  for (int i = 0; i < 10; ++i) printf("%.9g %.9g\\n", (double)one[i], (double)two[i]);
  first_destroy(a); second_destroy(b);
  return 0;
}
"""


@pytest.mark.parametrize("target", ["arm64-linux", "x86-64-v3"])
def test_two_models_live_in_one_program_with_embedded_weights(
    package: Callable[..., Artifact], target: str, tmp_path: Path
) -> None:
    first, second = package(target, name="first"), package(target, seed=1, name="second", embed_weights=True)
    assert not (second.path / "weights.bin").exists()
    (tmp_path / "pair.c").write_text(_PAIR)
    include = ["-I", str(first.path), "-I", str(second.path)]
    archives = [str(first.path / "libfirst.a"), str(second.path / "libsecond.a")]
    zig(tmp_path, "cc", "-target", MUSL[target], "-static", "-O2", *include, "pair.c", *archives, "-o", "pair")
    command = [*words(first, tmp_path / "pair"), str(first.path / "weights.bin")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = np.array([[float(number) for number in line.split()] for line in text.splitlines()], np.float32)
    data = (np.arange(3 * 32 * 32) % 17 / np.float32(17)).astype(np.float32).reshape(1, 3, 32, 32)
    for column, seed in enumerate((0, 1)):
        assert_same(reference(small_cnn(seed), {"x": data}), {"y": found[None, :, column]})


def bench(artifact: Artifact, *options: str) -> subprocess.CompletedProcess[str]:
    """Run an artifact's benchmark program."""
    command = words(artifact, artifact.path / artifact.manifest["benchmark"])
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["x86-64-v3", "arm64-linux"])
def test_the_benchmark_program_writes_a_profile_that_compile_takes(
    package: Callable[..., Artifact], target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, path = package(target), tmp_path / "profile.json"
    done = bench(
        artifact,
        "-w",
        str(artifact.path / "weights.bin"),
        "-o",
        str(path),
        "-n",
        "3",
        "-r",
        "7" if target.startswith("x86") else "1",
    )
    assert done.returncode == 0 and f"--profile {path}" in done.stderr, done.stderr
    timed = json.loads(path.read_text())
    assert timed["model"]["runs"] == 3 and 0 < timed["model"]["least"] <= timed["model"]["median"]
    assert [kernel["name"] for kernel in timed["kernels"]] == [probe.name for probe in probes(named_target(target))]
    assert all(kernel["calls"] >= 1 and kernel["least"] <= kernel["median"] for kernel in timed["kernels"])
    profile = Profile.read(path)
    assert profile.processor == timed["processor"] != "unknown"
    if runner(artifact.manifest):
        return  # An emulator's times may lead to costs that no processor has.
    model, x = network()
    again = build(load_onnx(model), tmp_path / "out", target=target, profile=path)
    assert again.manifest["profile"]["sha256"] == profile.digest
    with load(again.path) as executable:
        assert_same(reference(model, {"x": x}), executable.run({"x": x}))
    with pytest.raises(SystemExit):
        main(["inspect", str(again.path)])
    assert f"chosen by costs measured on {timed['processor']} (profile " in capsys.readouterr().out


def test_a_benchmark_that_cannot_run_the_model_leaves_no_profile(
    package: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact, path = package("x86-64-v3"), tmp_path / "profile.json"
    done = bench(artifact, "-o", str(path))
    assert done.returncode == 1 and "no weights are given" in done.stderr and not path.exists()
    assert bench(artifact, "-q", "1").returncode == 2
    done = bench(artifact, "-w", str(artifact.path / "weights.bin"), "-o", str(tmp_path / "no" / "profile.json"))
    assert done.returncode == 1 and "cannot be written" in done.stderr


def test_a_processor_without_the_instructions_is_told_so(package: Callable[..., Artifact]) -> None:
    artifact = package("x86-64-v3")
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if emulator is None:
        pytest.skip("qemu-user is not installed: no older processor to try")
    command = [emulator, "-cpu", "Nehalem", str(artifact.path / "model-run"), "-w", str(artifact.path / "weights.bin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("this processor lacks AVX2 and FMA (x86-64-v3)\n")


def test_the_manifest_lists_what_has_to_be_linked(package: Callable[..., Artifact]) -> None:
    """What a program with nothing but the listed functions offers is enough for the linker."""
    artifact = package("arm64-linux", run=False)
    listed = artifact.manifest["symbols"]
    assert set(listed) == set(artifact.manifest["libraries"]) <= {"libc", "libm", "libpthread"}
    stubs = "".join(f"void {name}(void) {{}}\n" for names in listed.values() for name in names)
    folder = artifact.path.parent
    (folder / "stubs.c").write_text(stubs + "void _start(void) {}\n")
    flags = ["-target", "aarch64-linux-musl", "-nostdlib", "-static", "-w", "-fno-builtin", "-Wl,--whole-archive"]
    zig(folder, "cc", *flags, "stubs.c", str(artifact.path / "libmodel.a"), "-o", "whole")
    missing = listed["libc"].index("fopen")
    (folder / "stubs.c").write_text(stubs.replace(f"void {listed['libc'][missing]}(void) {{}}\n", ""))
    with pytest.raises(SecateurError, match="failed") as caught:
        zig(folder, "cc", *flags, "stubs.c", str(artifact.path / "libmodel.a"), "-o", "whole")
    assert "fopen" in str(caught.value.where)


def test_android_gets_a_library_that_needs_only_its_libc(package: Callable[..., Artifact]) -> None:
    """Inspected, not run: the program beside it, of the same objects, runs under qemu."""
    artifact = package("arm64-android", run=False)
    assert not [n for names in artifact.manifest["symbols"].values() for n in names if n.startswith("__")]
    found = dynamic((artifact.path / "libmodel.so").read_bytes())
    assert found["needed"] <= {"libc.so", "libm.so"} and found["soname"] == {"libmodel.so"}
    assert found["alignment"] == {16384}


def test_apple_gets_objects_of_three_systems(package: Callable[..., Artifact]) -> None:
    """Inspected, not run: there is no emulator of them."""
    artifact = package("arm64-apple", run=False)
    assert artifact.manifest["program"] is None
    for folder, system in (("", 1), ("ios/", 2), ("ios-simulator/", 7)):
        members = mach_o_members((artifact.path / f"{folder}libmodel.a").read_bytes())
        assert len(members) >= 4 and {mach_o_platform(code) for code in members} == {system}
        assert {"model_create", "model_run"} <= frozenset().union(*(symbols(code).defined for code in members))
    library = (artifact.path / "libmodel.dylib").read_bytes()
    assert mach_o_platform(library) == 1 and b"@rpath/libmodel.dylib" in library
    with pytest.raises(SecateurError, match="cannot run here"):
        load(artifact.path)


def test_equal_graphs_give_equal_bytes(package: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = package("arm64-linux", run=False)
    again = build(load_onnx(small_cnn()), tmp_path / "again", target="arm64-linux")
    assert again.manifest["files"] == artifact.manifest["files"]
    for file in again.path.iterdir():
        assert str(Path.home()).encode() not in file.read_bytes()
        assert b"/tmp/" not in file.read_bytes(), file


def test_the_sources_are_plain_c_and_the_header_is_cpp(package: Callable[..., Artifact], tmp_path: Path) -> None:
    folder = package("arm64-linux", run=False).path
    strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-target", "x86_64-linux-musl", "-c"]
    for name in ("main", "bench"):
        zig(tmp_path, "cc", "-std=c99", *strict, "-I", str(folder), str(folder / f"{name}.c"), "-o", f"{name}.o")
    (tmp_path / "user.cpp").write_text('#include "model.h"\nint main() { return model_input_count(); }\n')
    zig(tmp_path, "c++", "-std=c++11", *strict, "-I", str(folder), "user.cpp", "-o", "user.o")


def test_the_example_of_the_documentation_runs(package: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = package("arm64-linux")
    page = (Path(__file__).parents[2] / "docs" / "arm.md").read_text()
    source = page.partition("```c\n")[2].partition("```")[0]
    smaller = source.replace("3 * 224 * 224", "3 * 32 * 32").replace("scores[1000]", "scores[10]")
    (tmp_path / "user.c").write_text(smaller)
    flags = ["-target", "aarch64-linux-musl", "-static", "-O2", "-std=c99", "-I", str(artifact.path)]
    zig(tmp_path, "cc", *flags, "user.c", str(artifact.path / "libmodel.a"), "-o", "user")
    command = words(artifact, tmp_path / "user")
    missing = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert missing.returncode == 1 and missing.stderr == "the weights file 'weights.bin' cannot be opened\n"
    shutil.copy(artifact.path / "weights.bin", tmp_path)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_cmake_builds_the_program(package: Callable[..., Artifact], tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("cc") is None:
        pytest.skip("CMake or a C compiler is missing")
    artifact = package("x86-64-v3")
    for step in (["cmake", "-S", str(artifact.path), "-B", "build"], ["cmake", "--build", "build"]):
        subprocess.run(step, cwd=tmp_path, check=True, capture_output=True)
    weights = ["-w", str(artifact.path / "weights.bin"), "-n", "2"]
    command = [str(tmp_path / "build" / "model_run"), *weights]
    assert "latency of 2 runs" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    command = [str(tmp_path / "build" / "model_bench"), *weights, "-r", "1"]
    assert '"kernels": [' in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("target", "options", "code"),
    [
        ("arm64-linux", {"name": "My Model"}, "E_OPTION_VALUE"),
        ("arm64-linux", {"name": "main"}, "E_OPTION_VALUE"),
        ("native", {}, "E_TARGET"),
        ("wasm", {}, "E_TARGET"),
    ],
)
def test_what_cannot_be_packaged_is_refused(target: str, options: dict, code: str, tmp_path: Path) -> None:
    with pytest.raises(SecateurError) as caught:
        build(load_onnx(small_cnn()), tmp_path / "out", target=target, packager=CLibrary(**options))
    assert caught.value.code == code and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("system", ["x86_64-linux-musl", "aarch64-linux-musl", "aarch64-macos"])
def test_symbols_are_read_from_objects(system: str, tmp_path: Path) -> None:
    inner = "extern int far_away(void); static int inner(void) { return far_away(); }\n"
    (tmp_path / "a.c").write_text(inner + "int offered(void) { return inner(); }\n")
    (tmp_path / "b.c").write_text("int offered(void); int far_away(void) { return offered(); }\n")
    for name in ("a", "b"):
        zig(tmp_path, "cc", "-target", system, "-O1", "-c", f"{name}.c", "-o", f"{name}.o")
    a, b = ((tmp_path / f"{name}.o").read_bytes() for name in ("a", "b"))
    assert symbols(a).defined == {"offered"} and symbols(a).undefined == {"far_away"}
    assert needed([a]) == {"far_away"} and needed([a, b]) == frozenset()
    assert symbols(renamed(a, "far_away", "near_by_")).undefined == {"near_by_"}
    with pytest.raises(ValueError, match="neither"):
        symbols(b"MZ")


def test_launchers_have_room_for_any_name() -> None:
    for name in ("m", "model", "a_name_of_forty_characters_and_no_more_xx"):
        assert len(launcher(name)) == len("__TVMBackendParallelLaunch")
    assert launcher("a_name_of_forty_characters_1") != launcher("a_name_of_forty_characters_2")


def dynamic(code: bytes) -> dict[str, set]:
    """DT_NEEDED and DT_SONAME of a shared ELF library, and the alignment of its segments."""
    (offset,) = struct.unpack_from("<Q", code, 0x20)
    size, count = struct.unpack_from("<HH", code, 0x36)
    segments = [struct.unpack_from("<IIQQQQQQ", code, offset + i * size) for i in range(count)]
    table = next(s for s in segments if s[0] == 2)
    entries = [struct.unpack_from("<qQ", code, table[2] + at) for at in range(0, table[5], 16)]
    address = next(value for tag, value in entries if tag == 5)
    strings = next(s[2] + address - s[3] for s in segments if s[0] == 1 and s[3] <= address < s[3] + s[6])

    def names(wanted: int) -> set[str]:
        return {code[strings + v : code.index(b"\0", strings + v)].decode() for tag, v in entries if tag == wanted}

    return {"needed": names(1), "soname": names(14), "alignment": {s[7] for s in segments if s[0] == 1}}


def mach_o_members(archive: bytes) -> list[bytes]:
    """The object files of a BSD archive."""
    found, at = [], 8
    while at < len(archive):
        size, name = int(archive[at + 48 : at + 58]), archive[at : at + 16].decode().strip()
        start = at + 60 + (int(name[3:]) if name.startswith("#1/") else 0)
        member = archive[start : at + 60 + size]
        if member.startswith(b"\xcf\xfa\xed\xfe"):
            found.append(member)
        at += 60 + size + size % 2
    return found


def mach_o_platform(code: bytes) -> int:
    """The platform of LC_BUILD_VERSION, of an ARM64 file."""
    assert struct.unpack_from("<I", code, 4)[0] == 0x0100000C
    at = 32
    for _ in range(struct.unpack_from("<I", code, 16)[0]):
        kind, size, system = struct.unpack_from("<III", code, at)
        if kind == 0x32:
            return system
        at += size
    raise AssertionError("no LC_BUILD_VERSION")
