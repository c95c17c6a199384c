"""The page: one file, nothing from outside, everything escaped, small."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from codebrain import marks, output
from codebrain.errors import CodeBrainError
from codebrain.report.page import _sentence, render, write_report

EVIL = "<img src=x onerror=alert(1)></script>\"'&"


def picture(size=(780, 300), noise=False):
    stream = io.BytesIO()
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    if noise:
        pixels = np.random.default_rng(0).integers(0, 255, pixels.shape, np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def a_run(**changes):
    row = {"contrast": "T1", "file": "t1.nii.gz", "sha256": "ab" * 32, "role": "given", "shape": [3, 4, 5],
           "spacing_mm": [1.0, 1.0, 2.5], "orientation": "LPS",
           "alignment": {"shift_mm": 2.34, "rotation_deg": 1.2}}  # fmt: skip
    image = "study_T2_imputed.nii.gz"
    figure = {"file": "figures/T2_imputed.png", "contrast": "T2", "role": "imputed", "title": "T2 imputed"}
    run = {
        "schema": output.RUN_SCHEMA_NAME,
        "schema_version": output.RUN_SCHEMA,
        "notice": marks.RESEARCH_USE_ONLY,
        "study": "study",
        "codebrain": "1.2.3",
        "versions": {"torch": "2"},
        "device": "cpu",
        "threads": 2,
        "precision": "fp32",
        "model": {"name": "m", "architecture": "codebrain", "sha256": "cd" * 32, "contrasts": ["T1", "T2"]},
        "reference": "T1",
        "inputs": [row],
        "imputed": ["T2"],
        "enhancement": None,
        "scores": [{"contrast": "T2", "metric": "PSNR", "value": 24.126}],
        "scored": "Mean over slices.",
        "seconds": {"read": 0.5, "model": 2.25},
        "peak_memory_bytes": 3 * 2**29,
        "outputs": [{"contrast": "T2", "file": image, "kind": "image", "sha256": "ef" * 32}],
        "figures": [figure],
        "warnings": [],
        "command": ["codebrain", "impute"],
    }
    return run | changes


class Page(HTMLParser):
    """Collects what a page refers to and says."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.handlers, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]
        self.handlers += [key for key, _ in attrs if key.startswith("on") or key == "style"]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page_of(run, **pictures):
    return render(run, {"figures/T2_imputed.png": picture()} | pictures)


def test_the_facts_are_on_the_page():
    text = Page(page_of(a_run())).text
    numbers = ("24.13", "2.8 s", "1.50 GiB", "3 × 4 × 5", "1.0 × 1.0 × 2.5", "2.3")
    words = (
        "T2 imputed from T1",
        "m (codebrain",
        marks.RESEARCH_USE_ONLY,
        "SYNTHETIC",
        "study_T2_imputed.nii.gz",
    )
    for fact in (*numbers, *words):
        assert fact in text, fact


def test_nothing_comes_from_outside_and_nothing_runs():
    html = page_of(a_run())
    page = Page(html)
    assert page.links and all(link.startswith("data:image/") for link in page.links)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert page.handlers == []
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html).group(1)
    assert "default-src 'none'" in policy and "script-src" not in policy and "unsafe" not in policy


def test_the_policy_lets_the_page_s_own_style_through():
    import base64
    import hashlib

    html = page_of(a_run())
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in html


@pytest.mark.parametrize("place", ["study", "warning", "file", "command", "model"])
def test_names_from_files_cannot_become_markup(place):
    run = a_run()
    if place == "study":
        run["study"] = EVIL
    elif place == "warning":
        run["warnings"] = [{"code": EVIL, "message": EVIL, "file": EVIL}]
    elif place == "file":
        run["inputs"][0]["file"] = EVIL
    elif place == "command":
        run["command"] = [EVIL]
    else:
        run["model"]["name"] = EVIL
    html = page_of(run)
    page = Page(html)
    assert "onerror" not in "".join(page.handlers) and "x" not in page.links
    assert EVIL not in html
    assert "onerror=alert(1)" in page.text


def test_the_sentence_about_enhancement_stands_beside_t1gd():
    run = a_run(imputed=["T1Gd"], enhancement=marks.ENHANCEMENT_UNKNOWN)
    assert Page(page_of(run)).text.count(marks.ENHANCEMENT_UNKNOWN) == 2
    assert marks.ENHANCEMENT_UNKNOWN not in Page(page_of(a_run())).text


def test_heavy_pictures_are_made_smaller():
    run = a_run(figures=[
        {"file": f"figures/{n}.png", "contrast": "T2", "role": "imputed", "title": "t"} for n in range(12)
    ])  # fmt: skip
    noise = picture((780, 150), noise=True)
    html = render(run, {f"figures/{n}.png": noise for n in range(12)})
    assert 12 * len(noise) > 3_000_000 > len(html.encode())


def test_a_page_is_rebuilt_from_the_folder(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/T2_imputed.png").write_bytes(picture())
    (tmp_path / "run.json").write_text(json.dumps(a_run()))
    first = write_report(tmp_path).read_bytes()
    (tmp_path / "report.html").unlink()
    assert write_report(tmp_path).read_bytes() == first


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", "{", json.dumps({"schema": "other"}), json.dumps(a_run(schema_version=99)),
     json.dumps(a_run(figures=[{"file": "../../secret.png"}])), json.dumps(a_run(figures="x")),
     json.dumps(a_run(seconds=None))],
)  # fmt: skip
def test_a_folder_without_a_readable_run_is_refused(tmp_path, content):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/T2_imputed.png").write_bytes(picture())
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CodeBrainError) as caught:
        write_report(tmp_path)
    assert caught.value.code == "IN_FORMAT"
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_lists_read_as_sentences(words, text):
    assert _sentence(words) == text
