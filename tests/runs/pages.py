"""Pages of `report` read back, and what to make them of."""

from html.parser import HTMLParser

from prefix_jax.data.tasks import Example
from prefix_jax.runs.evaluation import Evaluation
from prefix_jax.runs.report import report
from prefix_jax.runs.validate import Written

VOID = {"meta", "br", "hr", "img", "input", "link"}
SOURCES = ("name : Mill 1 | area : hill", "name : Mill 2 | area : harbour")


class Page(HTMLParser):
    """Checks that elements are closed in order; keeps elements, tables and text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.tables, self.words = [], [], {}, []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.caption, self.rows = "", []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self.caption.strip()] = [
                [" ".join(cell.split()) for cell in row] for row in self.rows
            ]

    def handle_data(self, data):
        self.words.append(data)
        if "caption" in self.open:
            self.caption += data
        elif {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            own
            for name, own in self.elements
            if name == tag and wanted.items() <= own.items()
        ]


def evaluation(**changes):
    values = {
        "split": "test",
        "which": "best",
        "loss": 1.25,
        "perplexity": 3.49,
        "tokens": 50,
        "sources": 2,
        "cut_sources": 0,
        "scores": {"bleu": 12.345, "ter": 67.891},
        "subsets": {},
        "classes": None,
    }
    return Evaluation(**values | changes)


def texts(*pairs):
    examples = [Example(source, "ref", ("ref", "other")) for source, _ in pairs]
    return Written(examples, [text for _, text in pairs], 0)


def made(tmp_path, *given, **options):
    out = tmp_path / "page.html"
    report([str(one) for one in given], out, **{"attention": False} | options)
    return Page(out)
