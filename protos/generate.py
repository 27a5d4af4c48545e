"""Generate the Python side of the wire contract, or check that the committed one is up to date.

Every ``protos/<package>/**/*.proto`` becomes ``*_pb2.py`` and ``*_pb2.pyi``, and a file that declares a
service also ``*_pb2_grpc.py`` and ``*_pb2_grpc.pyi``. They land where Python imports them from
(``OUTPUT_ROOTS``), so that nothing that the generators write has to be edited afterwards.

Without an argument it writes; with ``--check`` it compares and exits with 1 when the committed code is stale.
"""

import argparse
import filecmp
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

REPOSITORY = Path(__file__).resolve().parent.parent
PROTOS = REPOSITORY / "protos"

OUTPUT_ROOTS = {
    "kvferry": Path(),
    "kvferry_control": Path("control"),
    "kvferry_dataplane": Path("dataplane"),
}
"""Top-level proto directory to the folder, relative to the repository, that its Python package lives in."""

GENERATED_PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


class GenerationError(Exception):
    """The contract cannot be compiled; the compiler's own message is on stderr."""


def run_protoc(arguments: list[str], sources: list[str]) -> None:
    """Run the bundled compiler on ``sources`` (paths relative to ``protos/``)."""
    well_known_types = str(resources.files("grpc_tools") / "_proto")
    command = ["protoc", f"-I{PROTOS}", f"-I{well_known_types}", *arguments, *sources]
    if protoc.main(command) != 0:
        raise GenerationError(f"protoc failed on {' '.join(sources)}")


def plugin_flag(name: str) -> str:
    """Name a plugin by the path in this interpreter's environment, so that PATH does not matter."""
    return f"--plugin={name}={Path(sys.executable).parent / name}"


def with_services(sources: list[str], scratch: Path) -> list[str]:
    """Those of ``sources`` that declare a service: only they get gRPC stubs."""
    image = scratch / "contract.binpb"
    run_protoc([f"--descriptor_set_out={image}"], sources)
    described = FileDescriptorSet.FromString(image.read_bytes())
    return sorted(file.name for file in described.file if file.service and file.name in sources)


def proto_sources() -> dict[str, list[str]]:
    """All proto files by top-level directory, relative to ``protos/``."""
    sources: dict[str, list[str]] = {}
    for path in sorted(PROTOS.rglob("*.proto")):
        relative = path.relative_to(PROTOS)
        if relative.parts[0] not in OUTPUT_ROOTS:
            raise GenerationError(f"protos/{relative}: no Python package for {relative.parts[0]!r} in OUTPUT_ROOTS")
        sources.setdefault(relative.parts[0], []).append(relative.as_posix())
    if not sources:
        raise GenerationError("no .proto files found")
    return sources


def write_package_markers(destination: Path, sources: list[str]) -> None:
    """Make every folder below the top-level one a package (in the repository a handwritten marker wins)."""
    folders = {parent for source in sources for parent in Path(source).parents if len(parent.parts) > 1}
    for folder in sorted(folders):
        marker = destination / folder / "__init__.py"
        package = ".".join(folder.parts)
        marker.write_text(f'"""Wire contract {package}: generated, see protos/{folder.as_posix()}."""\n')


def generate(root: Path) -> None:
    """Write the whole generated tree under the empty folder ``root``, laid out as in the repository."""
    with tempfile.TemporaryDirectory(prefix="kvferry-protos-") as scratch:
        for package, sources in proto_sources().items():
            destination = root / OUTPUT_ROOTS[package]
            destination.mkdir(parents=True, exist_ok=True)
            mypy_plugin = plugin_flag("protoc-gen-mypy")
            run_protoc([mypy_plugin, f"--python_out={destination}", f"--mypy_out=quiet:{destination}"], sources)
            services = with_services(sources, Path(scratch))
            if services:
                grpc_plugin = plugin_flag("protoc-gen-mypy_grpc")
                grpc_outputs = [f"--grpc_python_out={destination}", f"--mypy_grpc_out=quiet:{destination}"]
                run_protoc([grpc_plugin, *grpc_outputs], services)
            write_package_markers(destination, sources)


def generated_files(root: Path) -> Iterator[Path]:
    """Generated files below ``root``'s package folders, relative to ``root``."""
    for package, folder in OUTPUT_ROOTS.items():
        for pattern in GENERATED_PATTERNS:
            for path in (root / folder / package).rglob(pattern):
                yield path.relative_to(root)


def stale_files(fresh: Path) -> list[str]:
    """Differences between the committed tree and a freshly generated one, one line each."""
    wanted, present = set(generated_files(fresh)), set(generated_files(REPOSITORY))
    problems = [f"missing: {path}" for path in wanted - present]
    problems += [f"has no proto any more: {path}" for path in present - wanted]
    for path in wanted & present:
        if not filecmp.cmp(fresh / path, REPOSITORY / path, shallow=False):
            problems.append(f"out of date: {path}")
    for package in {path.parent for path in wanted}:
        if not (REPOSITORY / package / "__init__.py").exists():
            problems.append(f"missing: {package / '__init__.py'}")
    return sorted(problems)


def install(fresh: Path) -> None:
    """Copy a freshly generated tree into the repository and delete generated files whose proto is gone."""
    wanted = set(generated_files(fresh))
    for path in wanted:
        (REPOSITORY / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fresh / path, REPOSITORY / path)
    for path in set(generated_files(REPOSITORY)) - wanted:
        (REPOSITORY / path).unlink()
    for marker in fresh.rglob("__init__.py"):
        target = REPOSITORY / marker.relative_to(fresh)
        if not target.exists():
            shutil.copyfile(marker, target)


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Generate the Python side of the wire contract.")
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing")
    options = parser.parse_args()
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kvferry-protos-") as scratch:
        fresh = Path(scratch)
        try:
            generate(fresh)
        except GenerationError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        if options.check:
            problems = stale_files(fresh)
        else:
            install(fresh)
    if problems:
        sys.stderr.write("\n".join(problems) + "\ngenerated code is not up to date: run `make protos`\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
