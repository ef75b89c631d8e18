"""What cannot be published is one clear sentence, before anything is sent."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.hub import encoder, online_hub, push, save, stop_time
from helpers.loopback_hub import TOKEN, File, LoopbackHub
from helpers.tiny_clip import tiny_clip_config
from transformers import BertConfig, CLIPVisionModelWithProjection

from fare_hf.cli import main as cli


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub that must stay as it is."""
    stop_time(monkeypatch)
    with online_hub(monkeypatch, tmp_path / "xet") as found:
        yield found
        assert found.count("^(POST|PUT)") == 0


def refusal(hub: LoopbackHub, source: Any, *args: Any, **options: Any) -> str:
    """The sentence of the refusal."""
    with pytest.raises(ValueError) as caught:
        push(hub, source, *args, **options)
    message = str(caught.value)
    assert "\n" not in message and TOKEN not in message
    assert caught.value.__cause__ is None
    return message


def test_tokens_and_rights(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "fare4")
    monkeypatch.setattr("fare_hf.hub.push.remote.get_token", lambda: None)
    assert "run `hf auth login`, or set the environment variable HF_TOKEN." in refusal(hub, folder, token="")
    wrong = "hf_wrongWrongWrong"
    said = refusal(hub, folder, token=wrong)
    assert "does not accept the access token (401)" in said and wrong not in said
    assert "may only read" in refusal(hub, folder, token="hf_loopbackOnlyReads")
    assert "no right to write to 'you/fare4'" in refusal(hub, folder, "you/fare4")
    assert "no right to write to 'readers/fare4'" in refusal(hub, folder, "readers/fare4")


def test_what_is_there_already(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = save(tmp_path / "fare4")
    tree = hub.create("me/fare4").tree()
    vision = json.loads((folder / "config.json").read_text())
    tree["config.json"] = File(json.dumps({**vision, "hidden_size": 64}).encode(), False)
    assert "holds an encoder with hidden_size 64, this one has 32" in refusal(hub, folder)
    tree["config.json"] = File(json.dumps({**vision, "hidden_size": 33}).encode(), False)
    assert "that no clip_vision_model can have" in refusal(hub, folder)
    tree["config.json"] = File(BertConfig().to_json_string().encode(), False)
    assert "'me/fare4' on the Hub holds a model of type 'bert'" in refusal(hub, folder)
    del tree["config.json"]
    assert "is public already" in refusal(hub, folder, private=True)
    assert "no repository 'you/none'" in refusal(hub, folder, "you/none", create_pr=True)
    hub.repos["me/fare4"].tags["v1"] = str(hub.repos["me/fare4"].head("main"))
    assert "revision 'v1' of 'me/fare4' is no branch" in refusal(hub, folder, revision="v1")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"repo_id": "a/b/c"}, "repository name 'a/b/c' is not valid"),
        ({"repo_id": "me/fare 4"}, "repository name 'me/fare 4' is not valid"),
        ({"revision": "a..b"}, "revision 'a..b' is not valid"),
        ({"tag": "v 1"}, "tag 'v 1' is not valid"),
        ({"tag": "v1", "create_pr": True}, "cannot be put on a pull request"),
        ({"base_model": "x"}, r"\['base_model'\] belong to an encoder"),
    ],
)
def test_options(options: dict[str, Any], sentence: str, hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        push(hub, tmp_path, **options)
    assert hub.requests == []


def drop(name: str) -> Callable[[Path], Any]:
    """Takes a file away."""
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], Any]:
    """Puts a file there."""
    return lambda folder: (folder / name).write_text(text)


def edit(name: str, value: Any) -> Callable[[Path], Any]:
    """Another value in the configuration."""

    def harm(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, name: value}))

    return harm


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (drop("model.safetensors"), "has no weights"),
        (drop("preprocessor_config.json"), "lacks preprocessor_config.json, the image processor"),
        (drop("config.json"), "lacks config.json"),
        (write("optimizer.pt", "x"), "'optimizer.pt' (1 such), which is not published"),
        (write("model.safetensors", "cut off"), "is not readable as safetensors"),
        (write("model-00001-of-00002.safetensors", "cut off"), "is not readable as safetensors"),
        (write("config.json", '{"model_type": "bert"}'), "holds a model of type 'bert'"),
        (write("config.json", "{"), "is not valid JSON"),
        (write("config.json", "[1]"), "holds no JSON object"),
        (write("preprocessor_config.json", "{}"), "is of no image processor, as it lacks image_mean"),
        (edit("architectures", ["ResNet"]), "has the architecture 'ResNet' in config.json, not one of CLIPModel"),
        (edit("num_hidden_layers", 4), "lacks the weights 'vision_model.encoder.layers.3."),
        (edit("intermediate_size", 65), "of shape (64, 32) and a config.json that asks for (65, 32)"),
        (write("README.md", "---\nlicense: [a\n---\n"), "has metadata that cannot be read"),
        (write("README.md", "---\nlicense: mine\n---\n"), "license 'mine' is unknown to the Hub"),
        (write("README.md", f"My token is {TOKEN}."), "holds what looks like an access token"),
    ],
)
def test_folders(harm: Callable[[Path], Any], sentence: str, hub: LoopbackHub, tmp_path: Path) -> None:
    folder = save(tmp_path / "fare4")
    harm(folder)
    assert sentence in refusal(hub, folder)
    assert hub.requests == []


def test_a_card_that_the_hub_does_not_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is asked before anything is made or sent, and not again for a card that is there."""
    folder = save(tmp_path / "fare4")
    text = (folder / "README.md").read_text()
    with online_hub(monkeypatch, tmp_path / "cache") as hub:
        (folder / "README.md").write_text(text.replace("base_model: openai/clip", "base_model: /models/clip"))
        said = refusal(hub, folder)
        assert "does not take the metadata of README.md" in said and "/models/clip" in said
        assert hub.repos == {} and hub.count("^(POST|PUT)") == 1
        (folder / "README.md").write_text(text)
        push(hub, folder)
        asked = hub.count("validate-yaml")
        push(hub, folder)
        assert hub.count("validate-yaml") == asked


def test_no_folder_and_flat_names(hub: LoopbackHub, tmp_path: Path) -> None:
    assert "is no folder" in refusal(hub, tmp_path / "none")
    folder = save(tmp_path / "fare4")
    encoder().vision_model.save_pretrained(tmp_path / "flat")
    (tmp_path / "flat" / "model.safetensors").rename(folder / "model.safetensors")
    (folder / "fare_hf.json").unlink()
    assert "no weights named vision_model.*" in refusal(hub, folder)


def test_text_encoders_that_do_not_fit(hub: LoopbackHub, tmp_path: Path, clip_folder: Path) -> None:
    folder = save(tmp_path / "fare4")
    assert "is no CLIP with a tokenizer" in refusal(hub, folder, text_encoder=str(tmp_path))
    config = tiny_clip_config().vision_config
    config.hidden_size = 16
    wide = save(tmp_path / "wide", CLIPVisionModelWithProjection(config))
    assert "of the encoder's shape" in refusal(hub, wide, text_encoder=str(clip_folder))
    pooled = save(tmp_path / "pooled", encoder().vision_model)
    assert "no projection" in refusal(hub, pooled, text_encoder=str(clip_folder))


def test_an_unknown_license_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="license 'mine' is unknown"):
        save(tmp_path / "fare4", license="mine")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="was not saved .* make room on the disk"):
            save(tmp_path / "fare4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fare_hf.hub.push.remote.get_token", lambda: None)  # nobody has to log in for that
    with pytest.raises(SystemExit, match="fare-hf: error: '.*none' is no folder"):
        cli.main(["push", str(tmp_path / "none"), "me/fare4"])
