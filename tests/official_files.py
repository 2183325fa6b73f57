"""Small folders in the formats of the official data sets."""

import gzip
import io
import json
import tarfile
from pathlib import Path

ENTRY = """  <entry category="{category}" eid="Id1" size="{size}">
    <originaltripleset><otriple>not | this | one</otriple></originaltripleset>
    <modifiedtripleset>
{triples}
    </modifiedtripleset>
{texts}
  </entry>
"""


def webnlg_xml(*entries) -> str:
    """An XML file of (category, triples, [(text, comment), ...])."""
    made = [
        ENTRY.format(
            category=category,
            size=len(triples),
            triples="\n".join(f"<mtriple>{triple}</mtriple>" for triple in triples),
            texts="\n".join(
                f'<lex comment="{comment}" lid="Id1">{text}</lex>'
                for text, comment in texts
            ),
        )
        for category, triples, texts in entries
    ]
    return f"<benchmark>\n<entries>\n{''.join(made)}</entries>\n</benchmark>\n"


BEAN = "Alan_Bean | nationality | United_States"
WEBNLG = {
    "train/1triples/1triple_allSolutions_Airport_train_challenge.xml": webnlg_xml(
        ("Airport", ["Aarhus_Airport | city | Aarhus"], [("Bad.", "toFix")]),
        ("Airport", ["Aarhus_Airport | city | Aarhus"], [("It &amp; it.", "good")]),
    ),
    "train/2triples/2triples_Astronaut_train_challenge.xml": webnlg_xml(
        (
            "Astronaut",
            [BEAN, "Alan_Bean | mission | Apollo_12"],
            [("Bean flew.", "good"), ("Bean flu.", "toFix"), ("He flew.", "good")],
        )
    ),
    "dev/1triples/1triple_allSolutions_Astronaut_dev_challenge.xml": webnlg_xml(
        ("Astronaut", [BEAN], [("Bean is American.", "good"), ("Bean is.", "toFix")])
    ),
    "test/testdata_with_lex.xml": webnlg_xml(
        ("Astronaut", [BEAN], [("Bean is American.", "good"), ("Yes.", "good")]),
        ("Athlete", ["A | plays | B"], [("A plays B.", "good")]),
    ),
    "test/testdata_no_lex.xml": webnlg_xml(("Athlete", ["A | plays | B"], [])),
}


def webnlg(folder: Path) -> None:
    for name, text in WEBNLG.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def webnlg_archive(folder: Path) -> None:
    with tarfile.open(folder / "webnlg_challenge_2017_xml.tar.gz", "w:gz") as archive:
        for name, text in reversed(WEBNLG.items()):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


def dart(folder: Path) -> None:
    entry = {
        "tripleset": [["Mars Hill", "JOINED", "1973"], ["Mars Hill", "HAS_TOWN", "X"]],
        "subtree_was_extended": True,
        "annotations": [
            {"source": "s", "text": "Mars Hill joined in 1973."},
            {"source": "s", "text": "In 1973 Mars Hill joined."},
        ],
    }
    for split in ("train", "dev", "test"):
        path = folder / f"dart-v1.1.1-full-{split}.json.gz"
        path.write_bytes(gzip.compress(json.dumps([entry] * 2, indent=2).encode()))


def xsum(folder: Path) -> None:
    row = {"id": "38295789", "document": "Line one.\nLine two.", "summary": "Lines."}
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")


def sst2(folder: Path) -> None:
    for split in ("train", "dev", "test"):
        text = 'sentence\tlabel\nhe said " no \t0\na fine film \t1\n'
        (folder / f"{split}.tsv").write_text(text)


def multi30k(folder: Path) -> None:
    texts = {"en": "A dog.\nTwo men.\n", "de": "Ein Hund.\nZwei Männer.\n"}
    texts["fr"] = "Un chien.\nDeux hommes.\n"
    for split in ("train", "val", "test_2016_flickr"):
        for language, text in texts.items():
            path = folder / f"{split}.{language}.gz"
            path.write_bytes(gzip.compress(text.encode()))
