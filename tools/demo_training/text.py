"""HTML manuals to plain prose, a tokenizer, and token files.

The sources are the documentation pages of two Debian packages, and nothing else: `sqlite3-doc` (public
domain) and `python3.11-doc` (PSF licence).
"""

from __future__ import annotations

import collections
import html
import html.parser
import json
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")
EOS_ID = 1

SKIP_TAGS = {"script", "style", "svg", "head", "nav", "button", "form"}
SKIP_CLASSES = {
    "nosearch", "fancy_toc", "sphinxsidebar", "related", "footer", "headerlink", "toctree-wrapper", "menu",
    "searchmenu", "localtable", "mobile-nav", "clearer", "contents", "local",
}  # fmt: skip
BLOCK_TAGS = {
    "p", "div", "section", "ul", "ol", "dl", "dt", "dd", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6",
    "blockquote", "pre", "table", "br", "hr",
}  # fmt: skip
SKIP_FOLDERS = {"releaselog", "syntax", "includes", "_static"}
SKIP_PAGES = {
    "sqlite": {
        "requirements", "syntaxdiagrams", "capi3ref", "fileformat", "doclist", "docs", "sitemap",
        "keyword_index", "syntax", "index", "chronology", "shortnames", "download", "search", "c_interface",
        "lang", "vtablist", "toc", "books", "crew",
    },
    "python": {
        "contents", "search", "py-modindex", "index", "download", "copyright", "stable", "allos",
        "changelog",
    },
}  # fmt: skip
BOILERPLATE = ("Small. Fast. Reliable.", "Choose any three.", "-")
TO_ASCII = str.maketrans(
    {
        "‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--",
        "…": "...", "\u00a0": " ", "¶": "", "→": "->", "⇒": "=>", "►": "",
        "•": "-", "−": "-", "\u200b": "",
    }
)  # fmt: skip
MIN_PAGE_CHARS = 300
REPEATED_PAGES = 12
"""A paragraph that stands in more pages of its source than this is boilerplate."""
HELD_OUT_CHARS = range(1500, 40_001)
HELD_OUT_SHARE = 0.02
SQLITE_HELD_OUT_CHARS = 110_000
"""The SQLite part is held out up to this, so that `heldout.txt` fills 100 kB."""


@dataclass
class Document:
    """One page: where it came from, and its paragraphs."""

    source: str
    name: str
    paragraphs: list[str]

    @property
    def text(self) -> str:
        """The page as prose."""
        return "\n\n".join(self.paragraphs)


class Page(html.parser.HTMLParser):
    """Collects the blocks (paragraphs, headings, table rows, code samples) of one page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[tuple[str, str]] = []
        self._buffer: list[str] = []
        self._skipped_tag, self._skip_depth = "", 0
        self._pre_depth = 0
        self._in_row = False

    def flush(self, kind: str = "p") -> None:
        """Ends the block that is being collected."""
        text = "".join(self._buffer)
        self._buffer = []
        if text.strip():
            self.blocks.append((kind, text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skip_depth:
            self._skip_depth += tag == self._skipped_tag
            return
        if tag in SKIP_TAGS or set((dict(attrs).get("class") or "").split()) & SKIP_CLASSES:
            self._skipped_tag, self._skip_depth = tag, 1
            return
        if self._pre_depth:
            self._pre_depth += tag == "pre"
            return
        if self._in_row:
            # Cells of a row become one line.
            if tag in ("td", "th"):
                self._buffer.append(" | " if "".join(self._buffer).strip() else "")
            elif tag in BLOCK_TAGS:
                self._buffer.append(" ")
            if tag != "tr":
                return
        if tag in BLOCK_TAGS:
            self.flush()
        if tag == "pre":
            self._pre_depth = 1
        elif tag == "tr":
            self._in_row = True
        elif tag == "li":
            self._buffer.append("- ")

    def handle_endtag(self, tag: str) -> None:
        if self._skip_depth:
            self._skip_depth -= tag == self._skipped_tag
        elif self._pre_depth:
            if tag == "pre":
                self.flush("pre")
                self._pre_depth = 0
        elif tag in ("tr", "table") and self._in_row:
            self.flush("row")
            self._in_row = False
        elif tag in BLOCK_TAGS and not self._in_row:
            self.flush("p")

    def handle_data(self, data: str) -> None:
        if not self._skip_depth:
            self._buffer.append(data)


def clean_page(path: Path) -> tuple[str, list[str]]:
    """One HTML file as its title and its paragraphs; pages of Sphinx are cut to their body."""
    raw = path.read_text(encoding="utf-8", errors="replace")
    title = re.search(r"<title>(.*?)</title>", raw, re.S)
    body, end = raw.find('<div class="body" role="main">'), raw.find('<div class="sphinxsidebar"')
    page = Page()
    page.feed(raw[body : end if end > body else None] if body >= 0 else raw)
    page.flush()
    paragraphs = [text for kind, block in page.blocks if (text := _clean_block(kind, block))]
    name = html.unescape(re.sub(r"\s+", " ", title.group(1)).strip()).translate(TO_ASCII) if title else ""
    return re.split(r" -{1,2} Python 3", name)[0], paragraphs


def _clean_block(kind: str, block: str) -> str:
    """The block's text; empty for tables of symbols, hex dumps and boilerplate."""
    block = block.translate(TO_ASCII)
    if kind == "pre":
        lines = [line.expandtabs(4).rstrip() for line in block.strip("\n").split("\n")]
        lines = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])][:24]
        return "\n".join(line[:160] for line in lines)
    text = re.sub(r"\s+([,.;:)])", r"\1", re.sub(r"\s+", " ", block).strip())
    letters = sum(c.isalpha() or c == " " for c in text)
    if kind == "row" and (len(text) < 60 or letters < 0.75 * len(text)):
        return ""
    if "This page last modified on" in text or text in BOILERPLATE:
        return ""
    return "" if len(text) > 40 and letters < 0.55 * len(text) else text


def extract(root: Path, source: str) -> list[Document]:
    """All pages of a manual that are prose."""
    documents = []
    for path in sorted(root.rglob("*.html")):
        stem, folder = path.stem, path.parent.name
        index = "crossref" in stem or stem.startswith("genindex")
        if index or stem in SKIP_PAGES[source] or folder in SKIP_FOLDERS:
            continue
        if stem.endswith("list") and folder == "c3ref":
            continue
        title, paragraphs = clean_page(path)
        if source == "sqlite" and title and title not in paragraphs[:2]:
            paragraphs = [title, *paragraphs]
        documents.append(Document(source, str(path.relative_to(root)), paragraphs))
    return documents


def without_repeats(documents: list[Document]) -> list[Document]:
    """Drops boilerplate, and long paragraphs that stood in an earlier page."""
    frequency = collections.Counter((d.source, p) for d in documents for p in set(d.paragraphs))
    seen: set[str] = set()
    kept = []
    for document in documents:
        paragraphs: list[str] = []
        for paragraph in document.paragraphs:
            key = re.sub(r"\W+", " ", paragraph.lower())
            if frequency[document.source, paragraph] > REPEATED_PAGES or (
                len(paragraph) > 60 and key in seen
            ):
                continue
            if not paragraphs or paragraphs[-1] != paragraph:
                seen.add(key)
                paragraphs.append(paragraph)
        cleaned = Document(document.source, document.name, paragraphs)
        if len(cleaned.text) >= MIN_PAGE_CHARS:
            kept.append(cleaned)
    return kept


def hold_out(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """(training, validation): whole pages, in the order given."""
    training, validation = [], []
    for source, floor_chars in (("sqlite", SQLITE_HELD_OUT_CHARS), ("python", 0)):
        mine = [d for d in documents if d.source == source]
        wanted, n, chars = math.ceil(HELD_OUT_SHARE * len(mine)), 0, 0
        for document in mine:
            if (n < wanted or chars < floor_chars) and len(document.text) in HELD_OUT_CHARS:
                validation.append(document)
                n, chars = n + 1, chars + len(document.text)
            else:
                training.append(document)
    return training, validation


def train_tokenizer(documents: list[Document], vocab_size: int) -> Tokenizer:
    """Byte-level BPE; a text begins with <|bos|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((d.text for d in documents), trainer)
    bos = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, 0)]
    )
    return tokenizer


def prepare(sqlite: Path, python: Path, work: Path, vocab_size: int, seed: int) -> None:
    """Writes `tokenizer.json`, and for each of train and val `.npy` (uint16 tokens) and `.jsonl`."""
    work.mkdir(parents=True, exist_ok=True)
    documents = extract(sqlite, "sqlite") + extract(python, "python")
    generator = random.Random(seed)
    generator.shuffle(documents)
    training, validation = hold_out(without_repeats(documents))
    generator.shuffle(training)
    tokenizer = train_tokenizer(training, vocab_size)
    tokenizer.save(str(work / "tokenizer.json"), pretty=False)
    for part, mine in (("train", training), ("val", validation)):
        ids = [token for d in mine for token in (*tokenizer.encode(d.text).ids, EOS_ID)]
        np.save(work / f"{part}.npy", np.array(ids, dtype=np.uint16))
        with (work / f"{part}.jsonl").open("w") as file:
            for d in mine:
                file.write(json.dumps({"source": d.source, "name": d.name, "text": d.text}) + "\n")
        print(f"{part}: {len(mine)} documents, {sum(len(d.text.encode()) for d in mine):,} bytes, "
              f"{len(ids):,} tokens")  # fmt: skip
