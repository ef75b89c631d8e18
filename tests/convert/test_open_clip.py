"""The reference and the converters against the real open_clip package, in its own environment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.environments import environment, run
from helpers.open_clip_files import CONFIG, PREPROCESS, random_state, write_open_clip
from helpers.open_clip_itself import EMBED, STUBS, packages, write_inputs
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from fare_hf.convert import convert_from_open_clip, convert_to_open_clip
from fare_hf.convert.open_clip_config import read_open_clip_config
from fare_hf.convert.proof import TOLERANCE, difference
from fare_hf.convert.reference import image_features, text_features

pytestmark = pytest.mark.slow

NAMES = ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"]
NAMES += ["ViT-B-32-quickgelu", "ViT-L-14-quickgelu"]
LAYERS, VOCABULARY = 2, 512


# Prints the published configurations, with fewer layers and words; the first one keeps its vocabulary.
SHAPES = """
found = {name: open_clip.get_model_config(name) for name in sys.argv[1].split(",")}
for index, config in enumerate(found.values()):
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = int(sys.argv[2])
    config["text_cfg"]["vocab_size"] = int(sys.argv[3]) if index else 49408
print(json.dumps(found))
"""


VISUAL = """
folder, inputs = sys.argv[1], load_file(sys.argv[2] + "/inputs.safetensors")
config = json.load(open(sys.argv[2] + "/open_clip_config.json"))["model_cfg"]
model = open_clip.model.CLIP(**config).eval()
model.visual.load_state_dict(load_file(folder + "/visual.safetensors"))
with torch.no_grad():
    save_file({"image": model.visual(inputs["pixels"]).contiguous()}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python that has open_clip."""
    return environment("open-clip", packages(), dependencies=False)


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """A random model of a configuration, with inputs to embed."""
    folder.mkdir()
    content = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(random_state(config), folder / "open_clip_model.safetensors")
    write_inputs(folder, config)


@pytest.fixture(scope="module")
def embedded(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every published shape with two blocks a tower, its true widths and heads, embedded by the package."""
    place = tmp_path_factory.mktemp("shapes")
    for name, config in json.loads(run(python, STUBS + SHAPES, ",".join(NAMES), str(LAYERS), str(VOCABULARY))).items():
        write_model(place / name, config)
    run(python, STUBS + EMBED, ",".join(str(place / name) for name in NAMES), str(place / "found.safetensors"))
    return place


@pytest.mark.parametrize("name", NAMES)
def test_reference_and_conversion_of_a_published_shape(name: str, embedded: Path, tmp_path: Path) -> None:
    """The package, our reference and transformers agree on images and sentences."""
    folder, real = embedded / name, load_file(embedded / "found.safetensors")
    spec = read_open_clip_config(json.loads((folder / "open_clip_config.json").read_text()), name)
    state, inputs = (load_file(folder / f"{part}.safetensors") for part in ("open_clip_model", "inputs"))
    done = convert_from_open_clip(folder, tmp_path / "hf")
    model: Any = CLIPModel.from_pretrained(done.folder).eval()
    shutil.rmtree(done.folder)
    with torch.no_grad():
        theirs = {
            "image": model.get_image_features(inputs["pixels"]).pooler_output,
            "text": model.get_text_features(inputs["ids"]).pooler_output,
        }
    ours = {"image": image_features(state, spec, inputs["pixels"])[0]}
    ours["text"] = text_features(state, spec, inputs["ids"])
    for part in ("image", "text"):
        expected = real[f"{folder}|{part}"]
        values = difference(ours[part], expected), difference(theirs[part], expected)
        print(f"{name} {part}: reference {values[0]:.1e}, transformers {values[1]:.1e}; proof {done.differences}")
        assert max(values) <= TOLERANCE, (name, part, values)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_what_we_write_open_clip_loads(python: Path, tmp_path: Path, quick_gelu: bool) -> None:
    """open_clip -> transformers -> open_clip, loaded by the package from the folder, with the same outputs."""
    source = write_open_clip(tmp_path / "source", quick_gelu=quick_gelu)
    convert_from_open_clip(source, tmp_path / "hf")
    convert_to_open_clip(tmp_path / "hf", tmp_path / "back")
    convert_to_open_clip(tmp_path / "hf", tmp_path / "visual", visual_only=True)
    folders = [source, tmp_path / "back"]
    for folder in folders:
        write_inputs(folder, CONFIG)
    run(python, STUBS + EMBED, ",".join(map(str, folders)), str(tmp_path / "found.safetensors"))
    found = load_file(tmp_path / "found.safetensors")
    for part in ("image", "text"):
        first, second = (found[f"{folder}|{part}"] for folder in folders)
        assert torch.equal(first, second), part
    run(python, STUBS + VISUAL, *(str(tmp_path / name) for name in ("visual", "source", "visual.safetensors")))
    visual = load_file(tmp_path / "visual.safetensors")["image"]
    assert torch.equal(visual, found[f"{source}|image"])
