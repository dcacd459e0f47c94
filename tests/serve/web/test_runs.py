"""The pages of runs: what files they show, in both languages, and what nobody gets out of them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from leveret.serve.web.run_folder import last_change, read_lines, runs_below, stages_of
from leveret.serve.web.run_page import list_page, run_page
from leveret.serve.web.run_words import CHINESE
from leveret.serve.web.runs import runs_app
from leveret.trainer.metrics_page import figures

TALLY = {"requests": 4, "exact_share": 0.75, "exact_interval_95": [0.3, 0.95], "lenient_share": 1.0}
CERTIFICATE = {
    "passed": False,
    "comparisons": [
        {
            "kind": "int4", "passed": False,
            "first": "/x/demo/finetune/model", "second": "transformers:/x/demo/quantize",
            "checks": [{"name": "perplexity", "measured": "ratio 2", "bound": "ratio 1.15", "verdict": "different"}],
        }
    ],
}  # fmt: skip
EVALUATION = {
    "tools": {"held_out": {"overall": TALLY, "languages": {"Chinese": TALLY}, "tools": {"set_timer": TALLY}}},
    "text": {"valid": {"documents": 5, "bytes": 136437, "tokens": 42947, "bits_per_byte": 2.7767}},
}
QUANTIZATION = {
    "method": "gptq", "bits": 4, "bytes_before": 100_000, "bytes_after": 30_000, "relative_error": 0.08,
    "layers": [{"name": "layers.0.q", "relative_error": 0.09, "bytes_before": 4, "bytes_after": 1}],
}  # fmt: skip
PLAN = {"stages": [{"comparison": [{"stage": "train", "figure": "tokens per second", "forecast": 2.0, "measured": 3.0,
                                    "ratio": 1.5}]}]}  # fmt: skip


def put(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    demo = tmp_path / "runs" / "demo"
    put(demo / "recipe.yaml", "stages:\n- name: train\n- name: evaluate\n- name: certify\n")
    put(demo / "certify" / "certificate.json", CERTIFICATE)
    put(demo / "evaluate" / "evaluation.json", EVALUATION)
    lines = [json.dumps({"step": step, "loss": 9.0 / step, "validation_loss": 8.5 / step}) for step in range(1, 6)]
    put(demo / "train" / "metrics.jsonl", "\n".join(lines) + '\n{"step": 6, "lo')
    put(demo / "train" / "outcome.json", {"identity": {}, "figures": {"steps": 5, "tokens_per_second": 8628}})
    put(demo / "train" / "xray.html", "<!doctype html><p>this is <b>trained</b></p><script>alert(1)</script>")
    put(demo / "plan.json", PLAN)
    put(tmp_path / "runs" / "small" / "quantization.json", QUANTIZATION)
    put(tmp_path / "runs" / "notes" / "readme.txt", "no run")
    put(tmp_path / "secret" / "evaluation.json", EVALUATION)
    return tmp_path / "runs"


def get(root: Path, path: str, **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(runs_app(root))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def test_runs_are_found_and_stages_stand_in_the_recipes_order(root: Path) -> None:
    assert set(runs_below(root)) == {"demo", "small"}
    assert [stage.name for stage in stages_of(root / "demo")] == ["train", "evaluate", "certify", ""]
    assert list(runs_below(root / "demo")) == ["demo"]
    assert runs_below(root / "nowhere") == {}


def test_the_page_of_a_run_shows_all_that_is_there(root: Path) -> None:
    page = run_page("demo", root / "demo", "en")
    for text in (
        "<svg", "8,628", "this is &lt;b&gt;trained", "held_out", "75.0%", "30.0% – 95.0%", "set_timer", "2.777",
        "finetune/model → transformers:demo/quantize (int4)", "ratio 1.15", "different", "failed", "1.5",
    ):  # fmt: skip
        assert text in page, text
    assert page.index('id="train"') < page.index('id="evaluate"') < page.index('id="certify"')
    small = run_page("small", root / "small", "en")
    assert "gptq" in small and "100,000" in small and "layers.0.q" in small


def test_both_languages_show_the_same_numbers(root: Path) -> None:
    pages = {
        "en": run_page("demo", root / "demo", "en", alone=True), "zh": run_page("demo", root / "demo", "zh", alone=True)
    }  # fmt: skip
    for english in ("Label X-ray", "learning rate", "Evaluation", "Certificate", "lenient", "not finished"):
        assert (english in pages["en"]) == (CHINESE[english] in pages["zh"]) and english not in pages["zh"]
    strip = [[text for text in page.split(">") if any(sign.isdigit() for sign in text)] for page in pages.values()]
    assert len(strip[0]) == len(strip[1])


def test_the_language_follows_the_link_and_else_the_browser(root: Path) -> None:
    assert "训练记录" in get(root, "/runs", **{"Accept-Language": "zh-CN"}).text
    assert "训练记录" not in get(root, "/runs?lang=en", **{"Accept-Language": "zh-CN"}).text
    assert "证书" in get(root, "/runs/demo?lang=zh").text and get(root, "/runs/demo?lang=xx").status_code == 200
    assert 'href="/runs/demo?lang=zh"' in get(root, "/runs?lang=zh").text


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../secret", "/runs/..%2Fsecret", "/runs/%2e%2e/secret", "/runs/demo/../../secret", "/runs/demo%2Ftrain",
        "/runs/%2e", "/runs/..", "/runs/notes", "/runs/link", "/runs/demo%00", "/runs//secret", "/runs/demo/xray.html",
        "/runs/%2Fetc%2Fpasswd", "/runs/..%5Csecret",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder(root: Path, path: str) -> None:
    (root / "link").symlink_to(root.parent / "secret", target_is_directory=True)
    assert get(root, path).status_code == 404


def test_links_that_lead_out_are_not_followed(root: Path) -> None:
    secret = root.parent / "secret" / "evaluation.json"
    put(secret, {"text": {"the secret": {"documents": 1, "bytes": 1, "tokens": 1, "bits_per_byte": 1.0}}})
    (root / "small" / "evaluation.json").symlink_to(secret)
    (root / "small" / "inner").symlink_to(secret.parent, target_is_directory=True)
    assert "the secret" not in run_page("small", root / "small", "en")
    assert "link" not in runs_below(root)


def test_hostile_names_and_contents_stay_text(root: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    put(
        root / name / "evaluation.json",
        {"text": {name: {"documents": name, "bytes": 1, "tokens": 1, "bits_per_byte": 1}}},
    )
    put(root / name / name / "metrics.jsonl", json.dumps({"step": 1, name: name}) + "\n")
    for page in (list_page(runs_below(root), "en"), run_page(name, root / name, "en")):
        assert "<img" not in page and "&lt;img" in page
    page = run_page("demo", root / "demo", "en")
    assert "<script" not in page and "<iframe sandbox title" in page


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"tools": 3}', '{"text": {"x": {}}}', '{"tools": {"x": {}}}', "\x00"]
)
def test_a_file_that_cannot_be_read_spoils_no_other(root: Path, content: str) -> None:
    put(root / "demo" / "evaluate" / "evaluation.json", content)
    page = run_page("demo", root / "demo", "en")
    assert "evaluation.json cannot be shown" in page and "ratio 1.15" in page and "8,628" in page


@pytest.mark.parametrize("line", ['{"step": 1e999, "loss": 1}', '{"step": 1, "loss": 1' + "0" * 400 + "}"])
def test_a_number_that_no_curve_can_show_spoils_no_other(root: Path, line: str) -> None:
    put(root / "demo" / "finetune" / "metrics.jsonl", line)
    page = run_page("demo", root / "demo", "en")
    assert "metrics.jsonl cannot be shown" in page and "ratio 1.15" in page


def test_what_is_closed_or_gone_while_one_looks_is_left_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "closed").mkdir()
    (root / "loop").symlink_to("loop")
    real = Path.iterdir

    def iterdir(place: Path) -> Iterator[Path]:
        if place.name == "closed":
            raise PermissionError(13, "Permission denied", str(place))
        found = list(real(place))
        return iter([*found, place / "gone"])

    monkeypatch.setattr(Path, "iterdir", iterdir)
    page = get(root, "/runs?lang=en")
    assert page.status_code == 200 and "demo" in page.text and "small" in page.text and "closed" not in page.text
    assert last_change(root / "gone") == 0.0
    assert get(root, "/runs/demo").status_code == 200


def test_a_running_stage_says_how_far_it_is(root: Path) -> None:
    (root / "demo" / "train" / "outcome.json").unlink()
    put(root / "demo" / "train" / "metrics.html", "<p>running: step 5 of 1,080</p>")
    assert "not finished: 5 / 1,080" in run_page("demo", root / "demo", "en")
    assert len(read_lines(root / "demo" / "train" / "metrics.jsonl")) == 5


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    assert "There is no run" in get(tmp_path, "/runs?lang=en").text
    assert get(tmp_path / "nowhere", "/runs").status_code == 200


def test_looking_changes_nothing(root: Path) -> None:
    def state() -> list[tuple[str, int, int]]:
        files = sorted(root.rglob("*"))
        return [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]

    before = state()
    for path in ("/runs", "/runs/demo", "/runs/small"):
        assert get(root, path).status_code == 200
    assert state() == before and os.access(root, os.W_OK)


def test_the_words_on_the_curves_are_translated() -> None:
    lines = [{"step": 1, "loss": 2.0, "busiest_expert": 1.2, "idlest_expert": 0.8}]
    drawn = figures(lines, total_steps=1, say=lambda text: CHINESE.get(text, f"? {text} ?") if text else "")
    assert "?" not in drawn and "损失" in drawn and "最忙" in drawn
