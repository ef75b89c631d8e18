"""The lab's captions as a task of lmms-eval, run on the LLaVA with its own tower and with the robust one.

    pip install lmms-eval
    python examples/lmms_eval_lab.py --output_dir outputs/lmms-eval

Writes the pictures, a task (YAML) and the LLaVA, and runs `python -m lmms_eval --model fare_llava` twice. With
published models only the last step is needed:

    lmms-eval --model fare_llava --model_args pretrained=llava-hf/llava-1.5-7b-hf,vision_tower=user/fare4 --tasks pope
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from fare_hf.data.pixels import to_pil
from fare_hf.lab import encoder_folder, load_llava, measure
from fare_hf.lab.captions import CAPTION_PROMPT

TASK = """dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}}}
task: lab_captions
test_split: test
output_type: generate_until
doc_to_visual: !function lab_captions_utils.pictures
doc_to_text: "{question}"
doc_to_target: name
generation_kwargs: {{max_new_tokens: 14, temperature: 0}}
process_results: !function lab_captions_utils.results
metric_list: [{{metric: named, aggregation: mean, higher_is_better: true}}]
"""
TEMPLATE = (
    "USER: {% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} ASSISTANT:"
)
"""How the lab's LLaVA was asked in training; published processors bring their template."""
UTILS = """from PIL import Image


def pictures(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def results(doc, answers):
    return {"named": float(doc["name"] in answers[0].lower())}
"""


def main() -> None:
    """Writes everything and runs lmms-eval on both towers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/lmms-eval"))
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--encoder", default=str(encoder_folder("fare-4")))
    args = parser.parse_args()
    folder = args.output_dir.resolve()
    write_task(folder, args.images)
    llava, processor = load_llava()
    processor.chat_template = TEMPLATE
    for part in (llava, processor):
        part.save_pretrained(folder / "llava")
    for tower in ("", f",vision_tower={args.encoder}"):
        command = [sys.executable, "-m", "lmms_eval", "--model", "fare_llava", "--tasks", "lab_captions"]
        command += ["--model_args", f"pretrained={folder / 'llava'}{tower}", "--include_path", str(folder / "task")]
        subprocess.run([*command, "--batch_size", "32"], check=True)


def write_task(folder: Path, count: int) -> None:
    """Pictures of the main test set, a document for each, and the task."""
    test = measure.part("twemoji", count)
    (folder / "task").mkdir(parents=True, exist_ok=True)
    documents = []
    for number, (picture, label) in enumerate(zip(to_pil(test.pixels), test.labels.tolist(), strict=True)):
        picture.save(folder / f"{number:04d}.png")
        documents.append({"image": str(folder / f"{number:04d}.png"), "name": test.class_names[label]})
    (folder / "documents.json").write_text(json.dumps(documents))
    task = TASK.format(documents=folder / "documents.json", question=CAPTION_PROMPT)
    (folder / "task" / "lab_captions.yaml").write_text(task)
    (folder / "task" / "lab_captions_utils.py").write_text(UTILS)


if __name__ == "__main__":
    main()
