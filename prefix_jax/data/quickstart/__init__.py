"""The quick start's data set: invented places, described in one or two sentences.

A table-to-text set in the format of the E2E set, about another subject. A source is
`name : Silver Mill | type : fishing village | area : northern Wales | river : Wren`,
a reference "Silver Mill is a fishing village on the River Wren in northern Wales."
Every place is invented: a name that also exists somewhere is a coincidence.

How it was made: by the programs in this folder alone, from word lists (`words.py`),
a sampler of meanings (`meanings.py`), a hand-written grammar (`grammar.py`) and an
independent reader that accepts a sentence only if it says all of its source and
nothing else (`check.py`). No text was taken from any other data set, no model took
part. `python -m prefix_jax.data.quickstart.generate` writes the same bytes again.

Files, one JSON object `{"source": str, "references": [str, ...]}` a line:

| file | sources | references each |
|---|---|---|
| `train.jsonl` | 1,250 | 1 or 2, in all 2,000 |
| `validation.jsonl` | 100 | 5 |
| `test.jsonl` | 100 | 5 |

What is held out of training: every name of the other two files, and their
combinations of the remaining values; a tenth of the sets of attributes; and some
values (words of names, rivers, landmarks, products, types), which occur in
validation and test only, so that a model has to copy from the source.

Licence: Apache-2.0, as the project.
"""
