"""Completes the licences in a bill of materials: python release/complete_bom.py BOM SITE_PACKAGES.

cyclonedx-py takes the licence's name in the metadata ("MIT License") for its text, drops the licence files of packages
that name an SPDX expression (PEP 639), and does not look into a wheel. Here every component gets the licence files that
its distribution in SITE_PACKAGES installed, and qwenvl-edge gets the parts that THIRD_PARTY_LICENSES.md names. The
result is checked against the CycloneDX schema.
"""

import importlib.metadata
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

LICENCE_FILE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|ThirdPartyNotices|THIRD_PARTY)(?!.*\.pyc?$)", re.IGNORECASE)
PARTS = {  # heading in THIRD_PARTY_LICENSES.md: SPDX id, type
    "pybind11": ("BSD-3-Clause", "library"),
    "Unicode Character Database": ("Unicode-3.0", "data"),
    "WenQuanYi Micro Hei": ("Apache-2.0", "data"),
}


def text_of(name: str, content: str) -> dict[str, Any]:
    """A licence text under the name of its file."""
    return {"license": {"name": name, "text": {"contentType": "text/plain", "content": content}}}


def files_of(distribution: importlib.metadata.Distribution) -> list[dict[str, Any]]:
    """The licence files that a distribution installed; the Apache License for one that names it and brings no file."""
    files = [file for file in distribution.files or () if LICENCE_FILE.match(file.name)]
    texts = {str(file).partition(".dist-info/")[2] or str(file): file.read_text(encoding="utf-8") for file in files}
    if not texts and "Apache" in distribution.metadata.get("License", ""):
        texts = {"Apache-2.0": Path("LICENSE").read_text(encoding="utf-8")}
    if not texts:
        sys.exit(f"{distribution.metadata['Name']} comes without the text of its licence")
    return [text_of(name, text) for name, text in sorted(texts.items())]


def parts(document: str) -> list[dict[str, Any]]:
    """The sections of THIRD_PARTY_LICENSES.md as components; one that PARTS lacks, or the reverse, is an error."""
    sections = dict(section.split("\n", 1) for section in re.split(r"^## ", document, flags=re.MULTILINE)[1:])
    if set(sections) != set(PARTS):
        sys.exit(f"THIRD_PARTY_LICENSES.md has {sorted(sections)}, release/complete_bom.py has {sorted(PARTS)}")
    return [
        {
            "type": kind,
            "bom-ref": f"qwenvl-edge/{name}",
            "name": name,
            "licenses": [{"license": {"id": spdx}}],
            "evidence": {"licenses": [text_of("THIRD_PARTY_LICENSES.md", textwrap.dedent(sections[name]).strip())]},
        }
        for name, (spdx, kind) in PARTS.items()
    ]


def main() -> None:
    """Rewrite the file; an error if a component would be left without a text or the schema does not hold."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    file, site_packages = Path(sys.argv[1]), sys.argv[2]
    bom = json.loads(file.read_text(encoding="utf-8"))
    installed = {d.metadata["Name"]: d for d in importlib.metadata.distributions(path=[site_packages])}
    for component in bom["components"]:
        component["evidence"] = {"licenses": files_of(installed[component["name"]])}
        if component["name"] == "qwenvl-edge":
            component["purl"] = f"pkg:pypi/qwenvl-edge@{component['version']}"
            for reference in component["externalReferences"]:  # the wheel itself, not the folder it was built in
                if reference["url"].startswith("file:"):
                    reference["url"] = reference["url"].rpartition("/")[2]
            component["components"] = parts(Path("THIRD_PARTY_LICENSES.md").read_text(encoding="utf-8"))
    content = json.dumps(bom, indent=2) + "\n"
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(content)
    if wrong:
        sys.exit(f"{file} is not valid CycloneDX: {wrong}")
    file.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
