"""A contract that import-linter does not have: modules that import nothing but the standard library."""

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output
from typing_extensions import override


class StandardLibraryOnly(Contract):
    """The named packages import themselves, each other and the standard library, and nothing else."""

    modules = fields.ListField(subfield=fields.StringField())

    @override
    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Collect every import that leads out."""
        modules: list[str] = self.modules  # type: ignore[assignment]  # a descriptor that import-linter does not type
        packages = tuple(modules)
        led_out = [
            f"{importer} imports {imported}"
            for importer in sorted(graph.modules)
            if _is_in(importer, packages)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if not _is_in(imported, packages) and imported.split(".")[0] not in sys.stdlib_module_names
        ]
        return ContractCheck(kept=not led_out, metadata={"led_out": led_out})

    @override
    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print what was found."""
        for line in check.metadata["led_out"]:
            output.print_error(line)


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
