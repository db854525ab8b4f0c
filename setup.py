"""Builds the kernels against torch's stable ABI, `pointcept3m/_ops.so` (CPU) and `_ops_cuda.so`, and packs the configs.

torch is not imported here: only its headers and its shared libraries are needed, and they are looked up
in the environment that the package is installed into, so that pip's build isolation does not download
a second torch. Where that environment has no torch, pip is asked for one.

A machine without a C++ compiler still gets an installation: the ops then run in plain torch. Set
POINTCEPT3M_REQUIRE_NATIVE=1 to make that an error. A compiler that fails is always an error.

The CUDA kernels are built where nvcc is found ($CUDA_HOME, PATH, /usr/local/cuda) and torch is a CUDA build. Why they
were not stands in `pointcept3m/_ops_cuda.txt`, which `python -m pointcept3m.ops` reads.
  POINTCEPT3M_CUDA=0      never builds them; =1 makes it an error where they cannot be built
  TORCH_CUDA_ARCH_LIST    architectures, as torch writes them ("8.0;9.0+PTX"); by default those of the GPUs that are
                          seen, and where none is, 8.0, 9.0 and 10.0
  MAX_JOBS                compilers at a time
  POINTCEPT3M_PLAIN=1     CPU kernels without SIMD, as a machine without AVX2 runs them (for tests)
  POINTCEPT3M_CXXFLAGS    more flags for the CPU kernels, for the compiler and the linker (for the sanitizers)
"""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = "torch>=2.10"
REQUIRE_NATIVE = os.environ.get("POINTCEPT3M_REQUIRE_NATIVE") == "1"
CUDA_WANTED = os.environ.get("POINTCEPT3M_CUDA", "auto")
DEFAULT_ARCHITECTURES = ("8.0", "9.0", "10.0")


def find_torch() -> Path | None:
    """Folder of the torch that the library is built against, or None where there is none.

    pip hides the target environment from a build, but `sys.prefix` still points into it.
    """
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    settings = Path(sys.prefix) / "pyvenv.cfg"
    if settings.is_file() and "include-system-site-packages = true" in settings.read_text().lower():
        folders += site.getsitepackages([sys.base_prefix])
    for folder in [*folders, *sys.path]:
        if (Path(folder) / "torch" / "include").is_dir():
            return Path(folder) / "torch"
    return None


def find_nvcc() -> str | None:
    """The CUDA compiler, or None."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    candidates = [*folders, *os.get_exec_path(), Path("/usr/local/cuda/bin")]
    return next((found for folder in candidates if (found := shutil.which("nvcc", path=str(folder)))), None)


def cuda_architectures(nvcc: str) -> list[str]:
    """Architectures to compile for, such as "9.0" and "10.0+PTX"; of the default ones, those that nvcc knows."""
    if asked := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return asked.replace(";", " ").replace(",", " ").split()
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        seen = sorted(set(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()))
    except (OSError, subprocess.CalledProcessError):
        seen = []
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    usable = [arch for arch in seen or DEFAULT_ARCHITECTURES if f"compute_{arch.replace('.', '')}" in known]
    if not usable:
        raise SystemExit(f"pointcept3m: {nvcc} knows none of the architectures {', '.join(seen or DEFAULT_ARCHITECTURES)}")
    return usable


class BuildOps(build_ext):
    """Compiles the files side by side, once pip has provided torch, or says why there is nothing to compile with."""

    def run(self) -> None:
        super().run()
        if not self.extensions:
            return
        # In an editable install the libraries lie in the source tree, where `super().run()` has put the CPU's.
        folder = ROOT / "pointcept3m" if self.editable_mode or self.inplace else Path(self.build_lib) / "pointcept3m"
        reason = self._build_cuda(folder / "_ops_cuda.so")
        note = folder / "_ops_cuda.txt"
        note.unlink(missing_ok=True)
        if reason:
            (folder / "_ops_cuda.so").unlink(missing_ok=True)
            note.write_text(reason + "\n")

    def _build_cuda(self, library: Path) -> str | None:
        """Builds the CUDA library, or returns why not."""
        nvcc, torch = find_nvcc(), find_torch()
        reason = None
        if CUDA_WANTED == "0":
            return "POINTCEPT3M_CUDA=0 asked for none when the package was built"
        if nvcc is None:
            reason = "no CUDA compiler (nvcc) was found when the package was built"
        elif not (torch / "lib" / "libtorch_cuda.so").is_file():
            reason = "the package was built with a torch without CUDA"
        if reason is None:
            self._compile_cuda(nvcc, torch, library)
        elif CUDA_WANTED == "1":
            raise SystemExit(f"pointcept3m: {reason}, and POINTCEPT3M_CUDA=1 asks for the CUDA kernels")
        return reason

    def _compile_cuda(self, nvcc: str, torch: Path, library: Path) -> None:
        architectures = cuda_architectures(nvcc)
        flags = [
            "-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-DUSE_CUDA", f"-D{'='.join(macros[0])}",
            f'-DP3M_ARCHITECTURES="{" ".join(architectures)}"', "-Icsrc", f"-I{torch / 'include'}",
            f"-I{torch / 'include/torch/csrc/api/include'}",
        ]  # fmt: skip
        for architecture in architectures:
            number = architecture.removesuffix("+PTX").replace(".", "")
            code = f"[sm_{number},compute_{number}]" if architecture.endswith("+PTX") else f"sm_{number}"
            flags.append(f"-gencode=arch=compute_{number},code={code}")
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        library.parent.mkdir(parents=True, exist_ok=True)

        def compile_one(source: Path) -> str:
            target = folder / f"{source.parent.name}_{source.stem}.o"
            subprocess.run([nvcc, "-c", str(source), "-o", str(target), *flags], cwd=ROOT, check=True)
            return str(target)

        sources = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
        print(f"pointcept3m: {nvcc} compiles {len(sources)} CUDA files for {', '.join(architectures)}", flush=True)
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
            objects = list(pool.map(compile_one, sources))
        libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-ltorch_cuda"]
        subprocess.run([nvcc, "-shared", "-cudart=static", *objects, *libraries, "-o", str(library)], check=True)

    def build_extensions(self) -> None:
        compiler = shutil.which(self.compiler.compiler_so_cxx[0])
        if compiler is None:
            self._go_without(f"no C++ compiler ({self.compiler.compiler_so_cxx[0]!r} is not on the PATH)")
            return
        torch = find_torch()
        if torch is None:
            raise SystemExit(
                f"pointcept3m's kernels are built against the headers of {MINIMUM_TORCH}, and none is installed in "
                f"{sys.prefix}; run 'pip install torch' first"
            )
        for ext in self.extensions:
            ext.include_dirs += [str(torch / "include"), str(torch / "include/torch/csrc/api/include")]
            ext.library_dirs.append(str(torch / "lib"))
        self._compile_side_by_side()
        super().build_extensions()

    def _go_without(self, reason: str) -> None:
        if REQUIRE_NATIVE:
            raise SystemExit(f"pointcept3m: {reason}, and POINTCEPT3M_REQUIRE_NATIVE=1 asks for the compiled kernels")
        print(
            f"pointcept3m: {reason}; installing without the compiled kernels, the ops run in plain torch (slower). "
            "Install g++ and run 'pip install -e .' again to get them.",
            file=sys.stderr,
        )
        self.extensions = []  # so that nothing looks for a library that was not built

    def _compile_side_by_side(self) -> None:
        compile_in_order = self.compiler.compile

        def compile_all(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_in_order([source], **options), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_all

    def get_ext_filename(self, fullname: str) -> str:
        # Nothing in the library includes Python.h, so its name carries no Python version.
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class BuildWithConfigs(build_py):
    """Copies `configs/` into the wheel as `pointcept3m/configs`; an editable install reads them where they lie."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "pointcept3m" / "configs"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target, ignore=shutil.ignore_patterns("__pycache__"))


class AnyPythonWheel(bdist_wheel):
    """The wheel depends on the platform but not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


macros: list[tuple[str, str | None]] = [("TORCH_TARGET_VERSION", "0x020a000000000000")]
if os.environ.get("POINTCEPT3M_PLAIN") == "1":
    macros.append(("P3M_PLAIN", "1"))
more_flags = os.environ.get("POINTCEPT3M_CXXFLAGS", "").split()

ops = Extension(
    "pointcept3m._ops",
    sources=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*/*_cpu.cpp")),
    depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.h")),
    include_dirs=["csrc"],
    libraries=["torch_cpu"],
    define_macros=macros,
    extra_compile_args=["-std=c++20", "-O3", "-ffast-math", "-fno-finite-math-only", "-fvisibility=hidden", "-Wall", "-Wno-psabi", *more_flags],
    extra_link_args=more_flags or (["-Wl,-s"] if sys.platform == "linux" else []),
    language="c++",
)

setup(
    ext_modules=[ops],
    cmdclass={"build_ext": BuildOps, "build_py": BuildWithConfigs, "bdist_wheel": AnyPythonWheel},
    setup_requires=[] if find_torch() else [MINIMUM_TORCH],
)
