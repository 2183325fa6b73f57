"""The card of an exported prefix: README.md with the front matter of the hub."""

import json
import re

from prefix_jax.storage.metadata import Metadata
from prefix_jax.storage.peft_layout import Kind

WARNING = """\
> **With transformers 5.24 or later, `generate` of PEFT 0.21.2 silently ignores any
> prefix:** PEFT hands it over as `past_key_values`, where transformers now reads
> `cache`. With transformers 5.23 it works."""

WHAT: dict[Kind, str] = {
    "prefix": "Prefix-tuning ([Li & Liang 2021](https://arxiv.org/abs/2101.00190)): "
    "learned keys and values that every attention layer of a frozen language model "
    "sees to the left of the text.",
    "embedding": "Prompt tuning "
    "([Lester et al. 2021](https://arxiv.org/abs/2104.08691)): learned vectors that a "
    "frozen language model reads to the left of the text as if they were words.",
}

PEFT_TAGS: dict[Kind, str] = {"prefix": "prefix-tuning", "embedding": "prompt-tuning"}

WITHOUT_MODEL = """\
The adapter names no base model, because the backbone is on no hub: `prefix-jax export`
writes it too, as a Hugging Face folder, with `--with-backbone FOLDER`."""


def card(metadata: Metadata, base_model: str | None, stored_bytes: int) -> str:
    """Markdown that says what a prefix is, how to load it, and what it was measured at.

    `base_model`: as in adapter_config.json; None: PEFT must be given the model.
    """
    name = metadata.backbone_name or "(not recorded)"
    parts = [
        _front_matter(base_model, PEFT_TAGS[metadata.kind]),
        f"# A prefix of {metadata.length} positions for {name}",
        WHAT[metadata.kind],
        _table(
            {
                "backbone": f"{name}, {metadata.backbone_dtype or 'type not recorded'}",
                "its fingerprint": f"`{metadata.backbone_fingerprint}`",
                "positions of the text": f"{metadata.position_mode}: it starts to "
                f"count at {metadata.length}",
                "length": f"{metadata.length} positions",
                "size": f"{stored_bytes:,} bytes",
                "task": metadata.task or "text to continue",
            }
        ),
        "## In PEFT",
        _code("python", _in_peft(base_model)),
        WARNING if metadata.kind == "prefix" else "",
        "" if base_model else WITHOUT_MODEL,
        _prompts(metadata),
        "## In prefix_jax",
        _code(
            "python",
            "import prefix_jax as pj\n\n"
            f"backbone = pj.load_backbone({name!r})\n"
            'prefix = pj.load_prefix("FOLDER_OF_THIS_FILE", backbone)',
        ),
        _code("sh", 'prefix-jax generate --prefix FOLDER_OF_THIS_FILE "..."'),
        "## Scores, as recorded",
        _json(metadata.scores),
        "## Recipe, as recorded",
        _json(metadata.recipe),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def is_hub_name(name: str) -> bool:
    """Whether it has the form of a name on the Hugging Face hub."""
    part = r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9_])?"
    return bool(re.fullmatch(rf"({part}/)?{part}", name)) and ".." not in name


def _front_matter(base_model: str | None, tag: str) -> str:
    # The hub refuses a card whose base_model is not one of its names.
    named = base_model is not None and is_hub_name(base_model)
    lines = [
        *([f"base_model: {base_model}"] if named else []),
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags:",
        f"- {tag}",
        "- peft",
        "- prefix_jax",
    ]
    return "\n".join(["---", *lines, "---"])


def _in_peft(base_model: str | None) -> str:
    comment = "" if base_model else "  # the backbone above, as a Hugging Face folder"
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        "model = AutoModelForCausalLM.from_pretrained("
        f'"{base_model or "FOLDER_OF_THE_BACKBONE"}"){comment}\n'
        'model = PeftModel.from_pretrained(model, "FOLDER_OF_THIS_FILE")'
    )


def _prompts(metadata: Metadata) -> str:
    if metadata.task in (None, "language_modelling"):
        return ""
    linearised = (
        " linearised from an E2E meaning representation," if metadata.e2e else ""
    )
    what = "what the model writes up to the end token is the text."
    if metadata.task == "classification":
        words = "data.labels of the recipe below"
        what = f"the likeliest of the words in {words}, a space before them, is the "
        what += "label."
    separator = metadata.recorded("data.separator")
    after = (
        "the tokenizer's begin token" if separator is None else f"`` {separator!r} ``"
    )
    return (
        f"A prompt is a source,{linearised} with a space before it and {after} "
        f"after it; {what} (In Python `pj.encode_prompts` makes prompts "
        "for `pj.generate`; on the command line `generate` does so by itself.)"
    )


def _table(rows: dict[str, str]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _json(record: dict | None) -> str:
    if not record:
        return "None."
    return _code("json", json.dumps(record, indent=2, ensure_ascii=False))
