"""Builds `pointcept3m/_ops.so`, the CPU kernels, against torch's stable ABI, and packs the configs.

torch is not imported here: only its headers and its shared library are needed, and they are looked up
in the environment that the package is installed into, so that pip's build isolation does not download
a second torch. Where that environment has no torch, pip is asked for one.

A machine without a C++ compiler still gets an installation: the ops then run in plain torch. Set
POINTCEPT3M_REQUIRE_NATIVE=1 to make that an error. A compiler that fails is always an error.
"""

import os
import shutil
import site
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


class BuildOps(build_ext):
    """Compiles the files side by side, once pip has provided torch, or says why there is nothing to compile with."""

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

ops = Extension(
    "pointcept3m._ops",
    sources=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*/*_cpu.cpp")),
    depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.h")),
    include_dirs=["csrc"],
    libraries=["torch_cpu"],
    define_macros=macros,
    extra_compile_args=["-std=c++20", "-O3", "-ffast-math", "-fno-finite-math-only", "-fvisibility=hidden", "-Wall", "-Wno-psabi"],
    extra_link_args=["-Wl,-s"] if sys.platform == "linux" else [],
    language="c++",
)

setup(
    ext_modules=[ops],
    cmdclass={"build_ext": BuildOps, "build_py": BuildWithConfigs, "bdist_wheel": AnyPythonWheel},
    setup_requires=[] if find_torch() else [MINIMUM_TORCH],
)
