"""Prints the lines of each area, and the code lines: without blanks, comments and docstrings."""

import collections
import io
import pathlib
import tokenize

ROOT = pathlib.Path(__file__).parent.parent
LAYOUT = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}
SILENT = LAYOUT | {tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER}
MODULES = dict.fromkeys(("features", "summary", "audio", "audio_info"), "features and audio")
MODULES |= {"prototypes": "prototypes", "sampling": "sampling"}


def code_lines(text):
    rows, before = set(), tokenize.ENCODING
    for kind, _, start, end, _ in tokenize.generate_tokens(io.StringIO(text).readline):
        if kind not in SILENT and not (kind == tokenize.STRING and before in LAYOUT):
            rows.update(range(start[0], end[0] + 1))
        before = before if kind in (tokenize.COMMENT, tokenize.NL) else kind
    return len(rows)


def area(path):
    top, *folders = path.relative_to(ROOT).parent.parts
    if top == "asdproto":  # modules in no package are files and configuration, but a few
        return folders[0] if folders else MODULES.get(path.stem, "files and configuration")
    return "/".join([top, *folders[:1]])


if __name__ == "__main__":
    print(f"{'area':28}{'lines':>8}{'code':>8}")
    for top in ("asdproto", "experiments", "tests"):
        lines, code = collections.Counter(), collections.Counter()
        for file in sorted((ROOT / top).rglob("*.py"), key=area):
            text = file.read_text(encoding="utf-8")
            lines[area(file)] += len(text.splitlines())
            code[area(file)] += code_lines(text)
        total = f"total of {top}"
        lines[total], code[total] = lines.total(), code.total()
        for name in lines:
            print(f"{name:28}{lines[name]:8}{code[name]:8}")
