"""Pushing to a loopback Hub over real HTTP, with the unmodified client: what is on the Hub afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub import FILES, FOUR, encoder, online_hub, push, report, save, stop_time
from helpers.loopback_hub import File, LoopbackHub
from helpers.tiny_clip import tiny_processor
from huggingface_hub import ModelCard
from safetensors.torch import load, save_file

from fare_hf.cli import main as cli
from fare_hf.hub import PushError, regenerate_card

both = pytest.mark.parametrize("storage", ["lfs", "xet"], indirect=True)


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> str:
    """The way of the large files."""
    return getattr(request, "param", "lfs")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, storage: str) -> Iterator[LoopbackHub]:
    """An empty Hub."""
    stop_time(monkeypatch)
    with online_hub(monkeypatch, tmp_path / "xet", storage) as found:
        yield found


def commits(hub: LoopbackHub, repo_id: str = "me/fare4") -> int:
    """How many there are beside the one of the creation."""
    return len(hub.repos[repo_id].commits) - 1


@both
def test_a_push_is_one_commit_that_equals_the_folder(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = save(tmp_path / "fare4")
    found = push(hub, folder)
    tree = hub.repos["me/fare4"].tree()
    assert set(found.files) == FILES == set(tree) - {".gitattributes"}
    assert all(tree[name].data == (folder / name).read_bytes() for name in FILES - {"README.md"})
    assert tree["model.safetensors"].lfs and commits(hub) == 1
    assert hub.repos["me/fare4"].head("main") == found.commit and "5 files, equal by the Hub's hashes" in str(found)
    assert hub.count("GET .*/resolve/") == hub.count("GET /lfs/") == 0
    assert hub.count("(PUT /lfs|POST /v1/xorbs)") == 1


def test_parts_of_a_large_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with online_hub(monkeypatch, tmp_path, part_size=60_000) as hub:
        folder = save(tmp_path / "fare4")
        push(hub, folder)
        assert hub.repos["me/fare4"].tree()["model.safetensors"].data == (folder / "model.safetensors").read_bytes()
        assert hub.count(r"PUT /lfs/\w+/\d") == 3 and hub.count(r"POST /lfs/") == 1


@both
def test_the_same_again_sends_and_changes_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = save(tmp_path / "fare4")
    first = push(hub, folder)
    hub.requests.clear()
    assert push(hub, folder).commit == first.commit and commits(hub) == 1
    assert hub.count("^(PUT|POST)") == 0


def test_what_is_outdated_goes_and_what_is_the_users_stays(hub: LoopbackHub, tmp_path: Path) -> None:
    tree = hub.create("me/fare4").tree()
    for name in ("report.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
        tree[name] = File(b"old", False)
    push(hub, save(tmp_path / "fare4"))
    assert set(hub.repos["me/fare4"].tree()) == FILES | {".gitattributes", "notes.txt"}


def test_the_published_card_names_the_repository(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = save(tmp_path / "encoder", datasets=["imagenet-1k"])
    before = (folder / "README.md").read_text()
    push(hub, folder)
    card = hub.repos["me/fare4"].tree()["README.md"].data.decode()
    assert 'from_pretrained("me/fare4")' in card and '"encoder"' not in card
    assert (folder / "README.md").read_text() == before
    data = ModelCard(card).data
    assert data["base_model_relation"] == "finetune" and data.datasets == ["imagenet-1k"] and data.license == "mit"
    (folder / "README.md").write_text(before + "\nMy own words.\n")
    push(hub, folder)
    assert hub.repos["me/fare4"].tree()["README.md"].data.decode() == before + "\nMy own words.\n"


def test_a_card_is_regenerated_from_what_is_published(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe = {"steps": 7, "objective": "fare", "betas": (0.9, 0.95)}
    push(hub, save(tmp_path / "fare4", training=recipe, report=report(0.5), license="other", license_name="mine"))
    tree = hub.repos["me/fare4"].tree()
    published = tree["README.md"].data.decode()
    assert {"report.json", "results.png"} < set(tree) and "](results.png)" in published
    hub.requests.clear()
    assert regenerate_card("me/fare4") == published and hub.count("safetensors") == 0
    again = regenerate_card("me/fare4", report=report(0.25), revision="main", license="mit")
    assert "| 25.0 [" in again and "| 50.0 [" not in again and "results.png" not in again and "license: mit" in again
    with pytest.raises(OSError, match=r"does not give 'me/none' \(HTTP 40"):
        regenerate_card("me/none")
    with pytest.raises(ValueError, match="neither a folder here nor the name of a repository"):
        regenerate_card("a/b/c")
    with pytest.raises(ValueError, match=r"no readable fare_hf\.json"):
        regenerate_card(tmp_path)


def test_what_was_measured_later_is_published_with_its_picture(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = save(tmp_path / "fare4", license="mit")
    report(0.5).save(tmp_path / "measured")
    push(hub, folder)
    cli.main(["card", str(folder), "--report", str(tmp_path / "measured"), "--report_model", "FARE"])
    cli.main(["card", str(folder), "--license", "apache-2.0"])
    push(hub, folder)
    tree = hub.repos["me/fare4"].tree()
    assert set(tree) == FILES | {".gitattributes", "report.json", "results.png"} and commits(hub) == 2
    assert tree["report.json"].data == (tmp_path / "measured" / "report.json").read_bytes()
    assert regenerate_card("me/fare4") == tree["README.md"].data.decode()
    assert ModelCard(tree["README.md"].data.decode()).data.license == "apache-2.0"
    push(hub, save(tmp_path / "without"))
    assert set(hub.repos["me/fare4"].tree()) == FILES | {".gitattributes"}


def test_the_licence_comes_from_the_base_models_card(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.create("openai/clip").tree()["README.md"] = File(b"---\nlicense: other\nlicense_link: LICENSE\n---\n", False)
    push(hub, save(tmp_path / "fare4", license=None))
    data = ModelCard(hub.repos["me/fare4"].tree()["README.md"].data.decode()).data
    assert (data.license, data["license_link"]) == ("other", "https://huggingface.co/openai/clip/blob/main/LICENSE")
    hub.fail("busy", times=9, status=503)
    for name in ("openai/none", "openai/busy"):
        card = save(tmp_path / name, license=None, base_model=name) / "README.md"
        assert f"No licence was found for {name} or given" in card.read_text()


def test_private_tag_and_the_accounts_own_name(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = save(tmp_path / "fare4")
    found = push(hub, folder, "fare4", private=True, tag="v1")
    assert found.repo_id == "me/fare4" and hub.repos["me/fare4"].private
    assert hub.repos["me/fare4"].tags == {"v1": found.commit}
    assert push(hub, folder, "fare4", tag="v1").commit == found.commit
    with pytest.raises(ValueError, match="tag 'v1' of 'me/fare4' is on other files"):
        push(hub, save(tmp_path / "other", encoder(1)), tag="v1")
    assert commits(hub) == 1


def test_checkpoints_of_a_run_are_revisions(hub: LoopbackHub, tmp_path: Path) -> None:
    for step in (1, 2):
        push(hub, save(tmp_path / f"{step}", encoder(step)), revision=f"checkpoint-{step}")
    push(hub, save(tmp_path / "end", encoder(3)))
    repo = hub.repos["me/fare4"]
    for name, seed in (("checkpoint-1", 1), ("checkpoint-2", 2), ("main", 3)):
        weights = load(repo.tree(name)["model.safetensors"].data)
        assert torch.equal(weights["visual_projection.weight"], encoder(seed).visual_projection.weight)


def test_a_pull_request_to_somebody_elses(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.create("you/fare4")
    folder = save(tmp_path / "fare4")
    found = push(hub, folder, "you/fare4", create_pr=True, commit_message="With FARE")
    repo = hub.repos["you/fare4"]
    assert [title for _, title in repo.pulls.values()] == ["With FARE"]
    assert found.revision == "refs/pr/1" and found.url.endswith("/you/fare4/discussions/1")
    assert set(repo.tree("refs/pr/1")) >= FILES and set(repo.tree()) == {".gitattributes"}
    again = push(hub, folder, "you/fare4", create_pr=True, commit_message="With FARE")
    assert again.url == found.url and len(repo.pulls) == 1
    hub.fail("GET .*/tree/", times=99, status=403)
    with pytest.raises(PushError, match=r"fare-hf push \S+ me/fare4 --private --commit_message 'With FARE'$"):
        push(hub, folder, private=True, commit_message="With FARE")


def test_an_encoder_is_saved_and_pushed(hub: LoopbackHub, tmp_path: Path) -> None:
    options = {"processor": tiny_processor(), "base_model": "openai/clip"}
    push(hub, encoder(), threat_model=FOUR, **options)
    assert set(hub.repos["me/fare4"].tree()) == FILES | {".gitattributes"}


LOAD = """
import sys, torch
from transformers import AutoModel, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection, pipeline
from safetensors.torch import load_file
from PIL import Image
name, weights, whole = sys.argv[1], load_file(sys.argv[2]), sys.argv[3] == "whole"
for cls in (CLIPVisionModelWithProjection, CLIPVisionModel, AutoModel, *([CLIPModel] if whole else [])):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model, info = cls.from_pretrained(name, dtype=dtype, output_loading_info=True)
        assert not info["missing_keys"], (cls, info)
        for key, tensor in model.state_dict().items():
            key = key if key in weights else "vision_model." + key
            assert torch.equal(tensor, weights[key].to(dtype)), (cls, dtype, key)
if whole:
    image, names = Image.new("RGB", (32, 32), "red"), ["cat", "dog", "car"]
    found = pipeline("zero-shot-image-classification", model=name)(image, candidate_labels=names)
    assert {row["label"] for row in found} == set(names) and abs(sum(row["score"] for row in found) - 1) < 1e-5
print("loaded", type(AutoModel.from_pretrained(name)).__name__)
"""


@pytest.mark.parametrize("process", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["one file", "shards", "whole"])
def test_plain_from_pretrained_equals_to_the_bit(
    hub: LoopbackHub,
    tmp_path: Path,
    clip_folder: Path,
    kind: str,
    process: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each class, each dtype; in this process, and in one that has nothing but the environment's HF_ENDPOINT."""
    vision = encoder()
    sizes: dict[str, Any] = {"max_shard_size": "60KB"} if kind == "shards" else {}
    push(
        hub,
        save(tmp_path / "fare4", vision, base_model=str(clip_folder), **sizes),
        text_encoder=str(clip_folder) if kind == "whole" else None,
    )
    tree = hub.repos["me/fare4"].tree()
    stored = {
        key: value for name, file in tree.items() if name.endswith("tensors") for key, value in load(file.data).items()
    }
    assert all(torch.equal(stored[name], tensor) for name, tensor in vision.state_dict().items())
    assert ("model-00001-of-00003.safetensors" in tree) == (kind == "shards")
    save_file(stored, tmp_path / "published.safetensors")
    words = ["me/fare4", str(tmp_path / "published.safetensors"), kind]
    if process:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", LOAD, *words], env=environment, timeout=500)
        assert done.returncode == 0
    else:
        monkeypatch.setattr(sys, "argv", ["-c", *words])
        exec(compile(LOAD, "LOAD", "exec"), {})
    assert "loaded CLIP" + ("Model" if kind == "whole" else "VisionModel") in capfd.readouterr().out


def test_a_push_of_other_shards_takes_the_old_ones_away(hub: LoopbackHub, tmp_path: Path) -> None:
    push(hub, encoder(), processor=tiny_processor(), base_model="a/b", threat_model=FOUR, max_shard_size="60KB")
    before = {name for name in hub.repos["me/fare4"].tree() if name.startswith("model")}
    push(hub, save(tmp_path / "one"))
    assert len(before) == 4 and set(hub.repos["me/fare4"].tree()) == FILES | {".gitattributes"}
